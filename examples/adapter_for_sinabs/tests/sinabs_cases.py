"""The layers under test, with their settings, and how they are run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from sinabs import activation, layers
from sinabs.activation import MaxSpike, MembraneReset, MembraneSubtract, MultiSpike, SingleSpike
from sinabs.layers.alif import ALIFSqueeze
from torch import Tensor, nn

from tssl_adapters.testing import BATCH, NEURONS, Case, Run

FLOAT32 = 5e-6
"""Spikes are float32 whatever the input, and so are their gradients."""


def single_exponential(x: Tensor) -> Tensor:
    """The default surrogate, at a threshold of 1."""
    return 2.0 * torch.exp(-2.0 * x.abs())


def gaussian(x: Tensor) -> Tensor:
    """``Gaussian()``, which is the same at any threshold."""
    return torch.exp(-2.0 * x**2) / (0.5 * math.sqrt(2.0 * math.pi))


def called(layer: Any, x: Tensor) -> Tensor:
    """A layer's output for ``x [T, batch, neurons]``; it takes the batch first."""
    given = x.transpose(0, 1)
    if isinstance(layer, layers.SqueezeMixin):
        out = layer(given.flatten(0, 1)).unflatten(0, given.shape[:2])
    else:
        out = layer(given)
    return out.transpose(0, 1)  # type: ignore[no-any-return]


def run(layer: Any, x: Tensor, v0: Tensor | None) -> Run:
    """From rest, or from a given potential."""
    layer.init_state_with_shape((BATCH, NEURONS))
    if v0 is not None:
        layer.v_mem = v0
    out = called(layer, x)
    seen = {name: state.transpose(0, 1) for name, state in layer.recordings.items()}
    states = seen or dict(layer.named_buffers(recurse=False))
    membrane = states.pop("v_mem")
    return Run(out, membrane, tuple(states.values()))


def calls(layer: Any, parts: Sequence[Tensor]) -> list[Tensor]:
    layer.reset_states()
    return [called(layer, part) for part in parts]


def tensor(value: float, vector: bool) -> Tensor:
    return torch.linspace(value, 1.5 * value, NEURONS) if vector else torch.tensor(value)


RESETS = {
    "subtract": MembraneSubtract(),
    "subtract-0.7": MembraneSubtract(0.7),
    "reset": MembraneReset(),
    "reset-0.2": MembraneReset(-0.2),
}
SPIKES = {"single": SingleSpike, "multi": MultiSpike, "max": MaxSpike(2)}
SETTINGS: dict[str, dict[str, Any]] = {
    "": {},
    "plain-input": {"norm_input": False},
    "synapse": {"tau_syn": 2.0},
    "alphas": {"train_alphas": True, "tau_syn": 2.0},
    "clipped": {"min_v_mem": -0.4},
    "recorded": {"record_states": True, "tau_syn": 2.0},
}
TAUS = {"LIF": ("tau_mem",), "IAF": (), "ALIF": ("tau_mem", "tau_adapt")}
CLASSES: dict[str, tuple[Any, Any, Any]] = {
    "LIF": (layers.LIF, layers.LIFRecurrent, layers.LIFSqueeze),
    "IAF": (layers.IAF, layers.IAFRecurrent, layers.IAFSqueeze),
    "ALIF": (layers.ALIF, layers.ALIFRecurrent, ALIFSqueeze),
}


class Recurrent(nn.Linear):
    """Takes the library's float32 spikes in float64 too."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


def maker(
    name: str, form: int, vector: bool = False, learns: bool = False, **settings: Any
) -> Callable[[torch.dtype], nn.Module]:
    """Makes a layer of a class and form."""

    def make(dtype: torch.dtype) -> nn.Module:
        given = {tau: tensor(4.0, vector) for tau in TAUS[name]}
        if form == 1:
            given["rec_connect"] = Recurrent(NEURONS, NEURONS, bias=False)
        if form == 2:
            given["batch_size"] = BATCH
        threshold = tensor(1.0, vector)
        layer: Any = CLASSES[name][form](spike_threshold=threshold, **given, **settings)
        if learns:
            layer.spike_threshold.requires_grad_()
        return layer.to(dtype)  # type: ignore[no-any-return]

    return make


def learned(but: str, layer: nn.Module) -> list[Tensor]:
    named = layer.named_parameters()
    return [p for name, p in named if p.requires_grad and name not in (but, f"alpha{but[3:]}")]


def case(label: str, name: str, form: int, spike: str, **settings: Any) -> Case:
    plain = name == "IAF" or not settings.get("norm_input", True)
    scale = 1.0 if plain else 4.0  # so that it spikes now and then
    surrogate = gaussian if name == "ALIF" or settings.get("vector") else single_exponential
    if surrogate is gaussian:
        settings["surrogate_grad_fn"] = activation.Gaussian()

    def scaled(layer: Any, x: Tensor, v0: Tensor | None) -> Run:
        return run(layer, scale * x, v0)

    # The adaptation has a gradient only through a reset by the threshold.
    fixed = "reset_fn" in settings and settings["reset_fn"] != MembraneSubtract()
    form_name = ("", "Recurrent", "Squeeze")[form]
    return Case(
        "-".join(filter(None, (f"sinabs-{name}{form_name}", label, spike))),
        maker(name, form, spike_fn=SPIKES[spike], **settings),
        scaled,
        surrogate,
        partial(learned, "tau_adapt" if fixed else ""),
        rule=None if spike == "single" else "native",
        tolerance=FLOAT32,
        calls=calls,
    )


def cases() -> Iterator[Case]:
    for name in CLASSES:
        for label, settings in SETTINGS.items():
            if name != "IAF" or not {"norm_input", "train_alphas"} & {*settings}:
                yield case(label, name, 0, "single", **settings)
        for label, reset in RESETS.items():
            yield case(label, name, 0, "single", reset_fn=reset)
            yield case(label, name, 0, "multi", reset_fn=reset)
        yield case("", name, 0, "max")
        if name == "LIF":
            yield case("vector", name, 0, "single", vector=True)
            yield case("learns", name, 0, "single", learns=True)
        for form in (1, 2):
            yield case("", name, form, "single")
            yield case("synapse", name, form, "single", tau_syn=2.0)
            yield case("reset", name, form, "multi", reset_fn=MembraneReset())


CASES = list(cases())
