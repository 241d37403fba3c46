"""Checks that the rules share, of arguments and of layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real

import torch
from torch import nn
from torch.nn.modules import dropout, pooling

from tssl_adapters.neuron import Traits, Value

MOST_TAKEN = 1e4
"""A reset that takes more than this many thresholds is a way to make a neuron fire once."""


_LOSES: tuple[tuple[tuple[type[nn.Module], ...], str, str], ...] = (
    (
        (pooling._MaxPoolNd, pooling._AdaptiveMaxPoolNd),
        "passes a gradient to spikes alone",
        "use average pooling",
    ),
    (
        (dropout._DropoutNd,),
        "may draw anew at each step",
        "draw once a sequence, as SpikingJelly's layer.Dropout does",
    ),
)
"""Modules that lose a gradient at silent steps: why, and what to use instead."""


def losing_times(rule: str, modules: Mapping[str, nn.Module]) -> list[str]:
    """Which modules lose gradients that a spike-time rule needs, and what to use instead."""
    return [
        f"'{path}' ({type(module).__name__}) {why}, and {rule} needs the gradient one step "
        f"after a spike, which is lost there; {instead}."
        for path, module in modules.items()
        for kinds, why, instead in _LOSES
        if isinstance(module, kinds)
    ]


def positive(rule: str, name: str, value: object) -> None:
    """Refuse an option that is not a positive number.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not positive and finite.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{rule}: {name} must be a number, not {value!r}.")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{rule}: {name} must be positive and finite, not {value!r}.")


def at_least_one(rule: str, name: str, value: object) -> None:
    """Refuse an option that is not a finite number of 1 or more.

    Raises:
        TypeError: it is not a number.
        ValueError: it is below 1 or not finite.
    """
    positive(rule, name, value)
    if float(value) < 1.0:  # type: ignore[arg-type]
        raise ValueError(f"{rule}: {name} must be 1 or more, not {value!r}.")


def one_of(rule: str, name: str, value: object, choices: Sequence[object]) -> None:
    """Refuse an option that is not one of its choices.

    Raises:
        ValueError: it is something else.
    """
    if value not in choices:
        known = ", ".join(map(repr, choices))
        raise ValueError(f"{rule}: {name} must be one of {known}, not {value!r}.")


def flag(rule: str, name: str, value: object) -> None:
    """Refuse an option that is not a bool.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{rule}: {name} must be True or False, not {value!r}.")


def indivisible(rule: str, traits: Traits) -> str | None:
    """Why a rule that divides by what a spike takes from the potential does not work for a neuron
    whose spikes take nothing, or put the threshold out of reach, or ``None``.
    """
    if not above_zero(traits.reset.drop(traits.threshold)):
        return (
            f"{rule} divides by what a spike takes from the potential, and that is not above 0; "
            "use a v_reset below the threshold, or a positive threshold if that is taken away"
        )
    value = out_of_reach(traits)
    if value is None:
        return None
    return (
        f"{rule} divides by what a spike takes from the potential, and a reset to {value:g} would "
        "leave no gradient; use STDBP for neurons that fire once, or a v_reset near the threshold"
    )


def out_of_reach(traits: Traits) -> float | None:
    """The value of a reset, if it is so far from the threshold that a neuron fires only once."""
    if traits.reset.target is None:
        return None
    threshold, value = _number(traits.threshold), _number(traits.reset.target)
    far = abs(threshold - value) > MOST_TAKEN * max(1.0, abs(threshold))
    return value if far else None


def above_zero(value: Value) -> bool:
    """Whether a number is positive, for every neuron; unknown ones are taken to be."""
    if isinstance(value, torch.Tensor):
        return value.is_meta or bool((value.detach() > 0.0).all())
    return value > 0.0


def has_numbers(traits: Traits) -> bool:
    """Whether threshold, decay and reset have values: on the meta device they have none."""
    values = [traits.threshold, traits.decay, traits.reset.number]
    return not any(isinstance(value, torch.Tensor) and value.is_meta for value in values)


def _number(value: Value) -> float:
    """The value with the largest magnitude."""
    if not isinstance(value, torch.Tensor):
        return float(value)
    return float(value.detach().flatten()[value.detach().abs().argmax()])
