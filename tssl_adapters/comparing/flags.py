"""What, by a comparison, keeps a network from learning, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Sequence
from typing import TypeVar

from tssl_adapters.comparing.comparison import Flag, LayerComparison, ParameterComparison

SILENT = 0.9
"""A layer with at least this share of silent neurons counts as dead."""
ALWAYS = 0.9
"""A layer that fires at least at this rate carries no information either."""
LARGER, SMALLER = 10.0, 0.1
"""Between these ratios a wrapped gradient is about as large as the native one; a chain over time
that multiplies a gradient by more than the first explodes."""
NARROW, WIDE = 0.15, 10.0
"""A width between these multiples of a step's rise fits."""
SAME = 1e-3
"""Gradients count as the same if their ratio and cosine are this close to 1."""

T = TypeVar("T", LayerComparison, ParameterComparison)


def flags(
    losses: tuple[float, float],
    same_forward: bool,
    layers: Sequence[LayerComparison],
    parameters: Sequence[ParameterComparison],
    remarks: Sequence[str],
    default: Container[str],
) -> tuple[Flag, ...]:
    """What stands out.

    Args:
        losses: native and wrapped.
        same_forward: whether both passes have the same forward pass.
        layers: every spiking layer.
        parameters: every parameter.
        remarks: the rules' remarks about the model.
        default: the paths of the layers that have the default rule.
    """
    found = [
        *_not_finite(losses, layers, parameters),
        *_dead(layers, parameters),
        *_exploding(layers, parameters),
        *_widths(layers, default),
    ]
    if _same(parameters):
        found.append(
            Flag(
                "remark",
                (),
                "both gradients are the same here: no difference is to be expected",
                'The page "Choosing rule, tau_s and engine" says which rule helps where.',
            )
        )
    if same_forward and all(map(math.isfinite, losses)) and not math.isclose(*losses, rel_tol=1e-5):
        found.append(
            Flag(
                "not fixed",
                (),
                f"the two passes had losses {losses[0]:.6g} and {losses[1]:.6g}, though wrap does "
                "not change the forward pass",
                "Have step begin with a reset of the states it keeps itself, take the same batch "
                "each time, and draw random numbers from torch, numpy or random alone.",
            )
        )
    found += [Flag("remark", (), remark.rstrip("."), "") for remark in remarks]
    return tuple(found)


def _same(parameters: Sequence[ParameterComparison]) -> bool:
    """Whether every gradient that arrives is the same in both passes, within ``SAME``."""
    arrive = [p for p in parameters if p.native or p.wrapped]
    return bool(arrive) and all(
        p.ratio is not None
        and p.cosine is not None
        and abs(p.ratio - 1.0) < SAME
        and abs(p.cosine - 1.0) < SAME
        for p in arrive
    )


def _named(parts: Iterable[T], wrong: Callable[[T], bool]) -> tuple[str, ...]:
    """The names of those for which ``wrong`` is true."""
    return tuple(
        part.path if isinstance(part, LayerComparison) else part.name
        for part in parts
        if wrong(part)
    )


def _flags(*candidates: tuple[str, tuple[str, ...], str, str]) -> list[Flag]:
    return [Flag(*candidate) for candidate in candidates if candidate[1]]


def _not_finite(
    losses: tuple[float, float],
    layers: Sequence[LayerComparison],
    parameters: Sequence[ParameterComparison],
) -> list[Flag]:
    found = []
    if not all(map(math.isfinite, losses)):
        found.append(
            Flag(
                "not finite",
                (),
                f"the loss is {losses[0]:g} natively and {losses[1]:g} wrapped",
                "Look for a division by 0, a logarithm of 0 or a NaN in the batch, and at the "
                "layers and parameters named below.",
            )
        )

    def gradient(p: ParameterComparison) -> bool:
        return any(g is not None and not math.isfinite(g) for g in (p.native, p.wrapped))

    return found + _flags(
        (
            "not finite",
            _named(parameters, lambda p: not math.isfinite(p.norm)),
            "the parameter itself is not finite",
            "Start anew, or from a checkpoint before it happened, and clip the gradient's norm or "
            "lower the learning rate.",
        ),
        (
            "not finite",
            _named(layers, lambda one: one.rise is not None and not math.isfinite(one.rise)),
            "the membrane potential is not finite",
            "Look at its input: normalise it, or use smaller weights.",
        ),
        (
            "not finite",
            _named(parameters, gradient),
            "the gradient is not finite",
            "If the native one is finite, the rule's chain multiplies up: take the default rule, "
            "or lower the rule's max_slope. If not, look at the loss and the parameters' size.",
        ),
    )


def _dead(
    layers: Sequence[LayerComparison], parameters: Sequence[ParameterComparison]
) -> list[Flag]:
    dead = _named(layers, _is_dead)
    first = f"; begin with {dead[0]}" if len(dead) > 1 else ""
    return _flags(
        (
            "dead",
            dead,
            f"at least {SILENT:.0%} of the neurons never fire in this batch",
            f"Several silent layers in a row stay silent under every rule{first}: normalise its "
            "input (batch normalisation), raise its weights or lower its threshold until it "
            "fires in a tenth of the steps.",
        ),
        (
            "dead",
            _named(layers, lambda one: one.rate is not None and one.rate >= ALWAYS),
            f"it fires in at least {ALWAYS:.0%} of all steps, so its spikes carry no information",
            "Use smaller weights or inputs, or a higher threshold.",
        ),
        (
            "dead",
            _named(layers, lambda one: one.rate is None and one.wrapped_rate is None),
            "step does not call it",
            "Leave it out, or look at the model's forward.",
        ),
        (
            "dead",
            _named(layers, lambda one: one.status == "wrapped" and one.rise is None),
            "no gradient reaches it",
            "Look for a detach, a no_grad, or an output that the loss does not depend on.",
        ),
        (
            "dead",
            _named(parameters, lambda p: not p.native and not p.wrapped),
            "there is no gradient in either pass",
            "Its input is 0 everywhere, or the layers after it are dead, or the loss does not "
            "depend on it.",
        ),
        (
            "dead",
            _named(parameters, lambda p: bool(p.native) and not p.wrapped),
            "there is no gradient when wrapped, though natively there is",
            "Take the default rule: a rule of spike times needs spikes.",
        ),
    )


def _is_dead(layer: LayerComparison) -> bool:
    seen = layer.silent if layer.silent is not None else layer.wrapped_silent
    return seen is not None and seen >= SILENT


def _exploding(
    layers: Sequence[LayerComparison], parameters: Sequence[ParameterComparison]
) -> list[Flag]:
    def grows(layer: LayerComparison) -> bool:
        return layer.carry is not None and layer.carry > LARGER

    starved = any(
        _narrow(one.native_width, one) > _narrow(one.wrapped_width, one) for one in layers
    )
    larger = _named(parameters, lambda p: p.ratio is not None and p.ratio > LARGER)
    return _flags(
        (
            "exploding",
            _named(layers, grows),
            f"the rule's chain over time makes a gradient more than {LARGER:g} times as large",
            "Take the default rule, whose chain is the potential's ordinary adjoint.",
        ),
        (
            "exploding",
            () if starved else larger,
            f"the wrapped gradient is more than {LARGER:g} times the native one",
            "Clip the gradient's norm; with an optimizer that does not rescale, as SGD, lower the "
            "learning rate by the ratio. Under TSSLBP take the default rule, or a lower max_slope.",
        ),
        (
            "vanishing",
            larger if starved else (),
            f"the native gradient is less than {1.0 / LARGER:g} of the wrapped one",
            "The library's surrogate is too narrow to let more through, as said below.",
        ),
        (
            "vanishing",
            _named(parameters, lambda p: p.ratio is not None and p.ratio < SMALLER),
            f"the wrapped gradient is less than {SMALLER:g} of the native one",
            "With an optimizer that does not rescale, as SGD, raise the learning rate by the "
            "ratio; else take the default rule.",
        ),
    )


def _narrow(width: float | None, layer: LayerComparison) -> bool:
    return width is not None and layer.rise is not None and width < NARROW * layer.rise


def _wide(width: float | None, layer: LayerComparison) -> bool:
    if width is None or not layer.rise or _is_dead(layer):
        return False  # where all is silent, only a wide slope reaches the neurons
    return math.isfinite(width) and width > WIDE * layer.rise


def _widths(layers: Sequence[LayerComparison], default: Container[str]) -> list[Flag]:
    """Widths that do not fit. The default rule is not advised where it is already used."""
    narrower = f"is less than {NARROW:g} of a step's rise: potentials jump past it"
    by_default = [one for one in layers if one.path in default]
    others = [one for one in layers if one.path not in default]
    wider = f"is more than {WIDE:g} times a step's rise: it blurs when a spike happens"
    return _flags(
        (
            "too narrow",
            _named(layers, lambda one: _narrow(one.native_width, one)),
            f"the library's surrogate {narrower}",
            "The default rule's width follows the threshold; natively use a surrogate with a "
            "smaller slope (alpha), or weights and a threshold scaled to it.",
        ),
        (
            "too narrow",
            _named(others, lambda one: _narrow(one.wrapped_width, one)),
            f"the rule's slope {narrower}",
            "Take the default rule, or a wider derivative.",
        ),
        (
            "too narrow",
            _named(by_default, lambda one: _narrow(one.wrapped_width, one)),
            f"the rule's slope {narrower}",
            "Use smaller inputs or weights, and a lower learning rate if training made them large.",
        ),
        (
            "too wide",
            _named(layers, lambda one: _wide(one.native_width, one)),
            f"the library's surrogate {wider}",
            "It matters where the task is in spike times: there take the default rule, or "
            "natively a surrogate with a larger slope (alpha).",
        ),
        (
            "too wide",
            _named(others, lambda one: _wide(one.wrapped_width, one)),
            f"the rule's slope {wider}",
            "It matters where the task is in spike times: there take the default rule, which is "
            "sharper where a neuron remembers many steps, or a narrower derivative.",
        ),
        (
            "too wide",
            _named(by_default, lambda one: _wide(one.wrapped_width, one)),
            f"the rule's slope {wider}",
            "It matters where the task is in spike times: there raise what comes in (weights, "
            "inputs), or take a SurrogateGradient with a narrower derivative.",
        ),
    )
