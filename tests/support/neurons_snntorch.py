"""The further neurons of the library, with their settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import snntorch
import torch
from cases import BATCH, NEURONS, Case, Run, atan
from compat_snntorch import FLOAT32, STATES, delay, delays, has, runs, start
from snntorch.functional import quant
from torch import Tensor, nn

RESETS = ("subtract", "zero", "none")
RECURRENCES = {
    "learn": ("V", "linear", "conv"),
    "vector": ("V",),
    "graded": ("linear",),
    "hidden": ("V", "linear"),
    "quantised": ("linear",),
    "quantised-hidden": (),
}
PARAMETERS = {"beta": 0.75, "alpha": 0.85}


class _Atan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, distance: Tensor) -> Tensor:
        ctx.save_for_backward(distance)
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (distance,) = ctx.saved_tensors
        return grad / (1.0 + (math.pi * distance) ** 2)


def exact_atan(distance: Tensor) -> Tensor:
    """snnTorch's default surrogate in the input's dtype, so that recurrent layers take float64."""
    spikes: Tensor = _Atan.apply(distance)
    return spikes


# --- runs ------------------------------------------------------------------------------------


def conv(layer: Any) -> bool:
    """Whether a layer takes images."""
    return bool(getattr(layer, "conv2d_channels", None))


def starting(layer: Any, x: Tensor, v0: Tensor) -> dict[str, Tensor]:
    """Incoming states that all depend on v0; the spikes are 0 and 1 as are any."""
    step, scale = torch.zeros_like(x[0]), {"mem": 1.0, "syn": 0.2, "syn_exc": 0.5, "syn_inh": -0.3}
    v0 = v0.view_as(step)
    return {
        name: step if name == "spk" else step + scale[name] * v0
        for name in STATES[layer._get_name()]
    }


def as_given(layer: Any, x: Tensor) -> Tensor:
    """A convolution sees the neurons as the width of an image."""
    return x.view(len(x), BATCH, 1, 1, NEURONS) if conv(layer) else x


def collected(outs: list[Tensor], seen: list[list[Tensor]], x: Tensor) -> Run:
    """Stack what a run saw; the potential is the last of the states."""
    *others, mem = (torch.stack(column).view_as(x) for column in zip(*seen, strict=True))
    return Run(torch.stack(outs).view_as(x), mem, tuple(others))


def run_explicit(layer: Any, x: Tensor, v0: Tensor | None) -> Run:
    """States by argument. What is fed back is ``layer.spk``, which natively is the output."""
    states = list(start(layer))
    if v0 is not None:
        states = list(starting(layer, as_given(layer, x), v0).values())
    recurrent, outs, seen = len(states) > 1 and hasattr(layer, "recurrent"), [], []
    if not getattr(layer, "reset_delay", True) and v0 is None:
        # Layers that forget the reset which is not delayed start from states of the right shape.
        states = [torch.zeros_like(as_given(layer, x)[0]) for _ in states]
    for step in as_given(layer, x):
        out, *after = layer(step, *states)
        outs.append(out)
        seen.append(after)
        states = [getattr(layer, "spk", out), *after] if recurrent else after
    return collected(outs, seen, x)


def run_hidden(layer: Any, x: Tensor, v0: Tensor | None) -> Run:
    """States on the layer."""
    start(layer)
    if v0 is not None:
        for name, state in starting(layer, as_given(layer, x), v0).items():
            setattr(layer, name, state)
    names = [n for n in STATES[layer._get_name()] if n != "spk"]
    outs, seen = [], []
    for step in as_given(layer, x):
        result = layer(step)
        outs.append(result[0] if layer.output else result)
        seen.append([getattr(layer, name) for name in names])
    return collected(outs, seen, x)


# --- layers ----------------------------------------------------------------------------------


def learnable(layer: Any) -> list[Tensor]:
    """V belongs to the layer and to its recurrence, but counts once."""
    return [p for p in layer.parameters() if p.requires_grad]


def vector_of(mean: float, dtype: torch.dtype, vector: bool) -> Tensor:
    shape = (NEURONS,) if vector else ()
    return (mean + 0.1 * torch.rand(shape)).to(dtype)


def quantiser(dtype: torch.dtype) -> Any:
    """64 levels from -3 to 3, of a dtype, so that recurrent layers take float64."""
    made = quant.state_quant(num_bits=6, threshold=1.0, lower_limit=2.0, upper_limit=2.0)
    (levels,) = made.__closure__
    levels.cell_contents = levels.cell_contents.to(dtype)
    return made


def make_layer(
    name: str,
    dtype: torch.dtype,
    *,
    vector: bool = False,
    learn: bool = False,
    graded: bool = False,
    recurrence: str = "",
    quantised: bool = False,
    **settings: Any,
) -> Any:
    if name == "Lapicque":
        # A beta that learns is good for one backward pass: C is made of it once, with its graph.
        settings = {"beta": vector_of(0.7, dtype, False)} | settings
    else:
        names = ["beta"] + (["alpha"] if "syn" in " ".join(STATES[name]) else [])
        for key in names:
            settings[key] = vector_of(PARAMETERS[key], dtype, vector)
            if learn and (name, key) != ("Alpha", "alpha"):  # which fails natively
                settings[f"learn_{key}"] = True
    settings["threshold"] = vector_of(0.5, dtype, vector)
    settings["learn_threshold"] = learn
    if recurrence:
        settings["learn_recurrent"] = learn
        settings |= {
            "V": {"all_to_all": False, "V": 0.4 * vector_of(1.0, dtype, vector)},
            "linear": {"linear_features": NEURONS, "spike_grad": exact_atan},
            "conv": {"conv2d_channels": 1, "kernel_size": (1, 3), "spike_grad": exact_atan},
        }[recurrence]
    if quantised:
        settings["state_quant"] = quantiser(dtype)
    layer = getattr(snntorch, name)(**settings)
    if recurrence in ("linear", "conv"):
        layer.recurrent.to(dtype)
    if graded:
        del layer.graded_spikes_factor
        layer.graded_spikes_factor = nn.Parameter(torch.tensor(1.7))
    return layer


def settings_of(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every reset with every way to hold the states, the parameters and the recurrence."""
    cls = getattr(snntorch, name)
    for reset, delayed in itertools.product(RESETS, delays(cls)):
        common: dict[str, Any] = {"reset_mechanism": reset, **delay(cls, delayed)}
        label = reset
        if has(cls, "reset_delay"):
            label += "-delay" if delayed else "-nodelay"
        kinds: dict[str, dict[str, Any]] = {
            "learn": {"learn": True},
            "vector": {"learn": True, "vector": True},
            "graded": {"graded": True},
            "hidden": {"init_hidden": True, "output": reset == "zero"},
            "quantised": {"learn": True, "quantised": True},
            "quantised-hidden": {"init_hidden": True, "quantised": True},
        }
        for kind, more in kinds.items():
            if name == "Leaky" and "quantised" not in kind:
                continue  # tests/support/layers.py has them
            if name == "RSynaptic" and not delayed and kind not in ("learn", "quantised"):
                continue  # it computes what it does with delay, or fails
            for recurrence in RECURRENCES[kind] if name.startswith("R") else ("",):
                settings = common | more | {"recurrence": recurrence}
                hidden = "init_hidden" in settings
                if hidden and not (delayed or runs(make_layer(name, torch.float32, **settings))):
                    continue  # so does Synaptic in some versions
                yield "-".join(filter(None, (label, kind, recurrence))), settings


def cases() -> Iterator[Case]:
    for name in STATES:
        for label, settings in settings_of(name):

            def make(dtype: torch.dtype, name: str = name, settings: Any = settings) -> nn.Module:
                return make_layer(name, dtype, **settings)  # type: ignore[no-any-return]

            hidden = "init_hidden" in settings
            run = run_hidden if hidden else run_explicit
            yield Case(f"snntorch-{name}-{label}", make, run, atan, learnable, tolerance=FLOAT32)


CASES: list[Case] = list(cases())
