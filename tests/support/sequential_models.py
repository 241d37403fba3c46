"""Sequential models as each library's users write them, for single steps and for sequences.

Weights and inputs are multiples of powers of two: a sum of them is the same in any order, so that
spikes may be compared bit for bit however torch multiplies matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import norse.torch as norse
import snntorch as snn
import torch
from models import LIVELY
from norse.torch.functional.lif import LIFParameters
from snntorch.functional import quant
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

T, BATCH, INPUTS = 6, 5, 8
Make = Callable[[], nn.Module]


def dyadic(model: nn.Module) -> nn.Module:
    """Round a model's matrices and biases, and make them large enough for spikes."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            for p in module.parameters():
                values = torch.randint(-24, 33, p.shape, generator=generator) / 32
                p.data = values.to(p.dtype)
    return model


def inputs(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = shape or (INPUTS,)
    return torch.randint(-4, 7, (T, BATCH, *size), generator=generator) / 4


class Kept(nn.Sequential):
    """A user's class that keeps ``forward``."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(INPUTS, 6), snn.Leaky(beta=0.8, init_hidden=True), nn.Linear(6, 4)
        )


class MyNode(neuron.LIFNode):  # type: ignore[misc]
    """A user's node, which ``wrap`` would want registered."""


def hidden(cls: Any, **settings: Any) -> Make:
    """Two layers of snnTorch that hold their states; the last one shows them."""

    def make() -> nn.Module:
        first, last = (cls(init_hidden=True, output=o, **settings) for o in (False, True))
        return nn.Sequential(nn.Linear(INPUTS, 5), first, nn.Linear(5, 5), last)

    return make


def snntorch_models() -> Iterator[tuple[str, Make]]:
    for reset in ("subtract", "zero", "none"):
        common: dict[str, Any] = {"reset_mechanism": reset, "threshold": 0.7}
        for delay in (True, False):
            name = f"{reset}-{'delay' if delay else 'now'}"
            both = common | {"reset_delay": delay}
            yield f"Leaky-{name}", hidden(snn.Leaky, beta=0.8, **both)
            if not delay and reset != "none":
                continue  # which fail in the library
            yield f"Synaptic-{name}", hidden(snn.Synaptic, alpha=0.6, beta=0.8, **both)
        yield f"Lapicque-{reset}", hidden(snn.Lapicque, beta=0.8, **common)
        yield f"Alpha-{reset}", hidden(snn.Alpha, alpha=0.9, beta=0.8, **common)
        yield f"RLeaky-{reset}", hidden(snn.RLeaky, beta=0.8, linear_features=5, **common)
        yield (
            f"RSynaptic-{reset}",
            hidden(snn.RSynaptic, alpha=0.6, beta=0.8, all_to_all=False, **common),
        )
    learned = {"beta": torch.full((5,), 0.8), "learn_beta": True, "learn_threshold": True}
    yield "learned", hidden(snn.Leaky, threshold=torch.full((5,), 0.6), **learned)
    yield "graded", hidden(snn.Leaky, beta=0.8, graded_spikes_factor=2.0)
    yield "quantised", hidden(snn.Leaky, beta=0.8, state_quant=quant.state_quant(num_bits=4))
    yield "subclass", Kept
    yield "layer with its states by argument", lambda: snn.Leaky(beta=0.8)
    yield (
        "last layer with its states by argument",
        lambda: nn.Sequential(nn.Linear(INPUTS, 5), snn.Synaptic(alpha=0.6, beta=0.8)),
    )
    yield (
        "nested",
        lambda: nn.Sequential(
            Kept(),
            nn.Sequential(nn.LayerNorm(4), nn.Sequential(snn.Leaky(beta=0.9, init_hidden=True))),
        ),
    )


def convolution(**mode: Any) -> nn.Module:
    """A small network of SpikingJelly, in either step mode."""
    return nn.Sequential(
        layer.Conv2d(1, 2, 3, padding=1, **mode),
        layer.BatchNorm2d(2, **mode).eval(),
        neuron.IFNode(v_threshold=0.5, **mode),
        layer.MaxPool2d(2, **mode),
        layer.Flatten(**mode),
        layer.Linear(8, 6, **mode),
        layer.Dropout(0.3, **mode),
        neuron.LIFNode(v_threshold=0.5, **mode),
    )


def two_nodes(cls: Any, settings: dict[str, Any]) -> nn.Module:
    return nn.Sequential(nn.Linear(INPUTS, 5), cls(**settings), nn.Linear(5, 5), cls(**settings))


def spikingjelly_models() -> Iterator[tuple[str, Make]]:
    nodes: list[tuple[str, dict[str, Any]]] = [
        ("LIFNode", {"v_reset": None, "decay_input": False}),
        ("ParametricLIFNode", {"detach_reset": True}),
        ("KLIFNode", {}),
        ("QIFNode", {}),
        ("EIFNode", {}),
        ("IzhikevichNode", {}),
        ("CUBALIFNode", {}),
        ("SimpleLIFNode", {"tau": 2.0, "decay_input": True}),
        ("LIFNode", {"store_v_seq": True}),
    ]
    for name, settings in nodes:
        if name != "SimpleLIFNode":
            settings = {"v_threshold": 0.5, **settings}
        yield "-".join([name, *settings]), partial(two_nodes, getattr(neuron, name), settings)
    yield "user's node", lambda: nn.Sequential(nn.Linear(INPUTS, 5), MyNode(v_threshold=0.5))
    yield "lone node", lambda: neuron.LIFNode(v_threshold=0.5)
    yield (
        "containers",
        lambda: nn.Sequential(
            layer.SeqToANNContainer(nn.Linear(INPUTS, 6), nn.ReLU()),
            layer.MultiStepContainer(nn.Linear(6, 6), neuron.LIFNode(v_threshold=0.5)),
            layer.StepModeContainer(True, "m", nn.Linear(6, 6), neuron.IFNode(v_threshold=0.5)),
            neuron.LIFNode(step_mode="m", v_threshold=0.5),
        ),
    )
    yield (
        "container for steps",
        lambda: nn.Sequential(
            layer.StepModeContainer(
                True, "s", nn.Linear(INPUTS, 6), neuron.IFNode(v_threshold=0.5)
            ),
            layer.VotingLayer(2),
        ),
    )


def lif() -> Any:
    return norse.LIFCell(LIFParameters(**LIVELY))


def norse_models() -> Iterator[tuple[str, Make]]:
    spiking = {"v_th": torch.as_tensor(0.3)}
    yield (
        "cells",
        lambda: norse.SequentialState(
            nn.Linear(INPUTS, 6),
            lif(),
            nn.Linear(6, 6),
            norse.LIFBoxCell(norse.LIFBoxParameters(**LIVELY)),
            nn.Linear(6, 4),
            norse.LICell(),
        ),
    )
    yield (
        "other cells",
        lambda: norse.SequentialState(
            nn.Linear(INPUTS, 6),
            norse.IAFCell(norse.IAFParameters(**spiking)),
            norse.LSNNCell(),
            norse.LIFRecurrentCell(6, 5, LIFParameters(**LIVELY)),
        ),
    )
    yield (
        "nested",
        lambda: norse.SequentialState(
            norse.SequentialState(nn.Linear(INPUTS, 6), lif()),
            nn.Sequential(nn.Linear(6, 4)),
            lif(),
        ),
    )
    yield (
        "hidden",
        lambda: norse.SequentialState(
            nn.Linear(INPUTS, 6), lif(), nn.Linear(6, 4), return_hidden=True
        ),
    )
    yield "lone cell", lif
    yield (
        "lifted",
        lambda: norse.SequentialState(
            norse.Lift(nn.Sequential(nn.Unflatten(1, (1, INPUTS)), nn.Flatten(1))),
            nn.Linear(INPUTS, 6),
            norse.LIF(LIFParameters(**LIVELY)),
            nn.Flatten(2),
            norse.Lift(nn.Linear(6, 4)),
            norse.LI(),
        ),
    )
    yield "lifted cell", lambda: norse.SequentialState(nn.Linear(INPUTS, 6), norse.Lift(lif()))
    yield "lone sequence", lambda: norse.LIF(LIFParameters(**LIVELY))


def mixed() -> nn.Module:
    return nn.Sequential(
        nn.Linear(INPUTS, 6),
        snn.Leaky(beta=0.8, init_hidden=True),
        nn.Linear(6, 6),
        neuron.LIFNode(v_threshold=0.5),
    )


MODELS: dict[str, Make] = {
    **{f"snntorch: {name}": make for name, make in snntorch_models()},
    **{f"spikingjelly: {name}": make for name, make in spikingjelly_models()},
    **{f"norse: {name}": make for name, make in norse_models()},
    "mixed": mixed,
}
IMAGES: dict[str, Make] = {
    "snntorch: convolution": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        snn.Leaky(beta=0.5, init_hidden=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 4),
        snn.Leaky(beta=0.9, init_hidden=True, output=True),
    ),
    "spikingjelly: convolution, steps": convolution,
    "spikingjelly: convolution, sequences": partial(convolution, step_mode="m"),
    "norse: convolution, cells": lambda: norse.SequentialState(
        nn.Conv2d(1, 2, 3, padding=1), lif(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 4), lif()
    ),
    "norse: convolution, sequences": lambda: norse.SequentialState(
        norse.Lift(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.AvgPool2d(2))),
        norse.LIF(LIFParameters(**LIVELY)),
        nn.Flatten(2),
        norse.LSNN(),
    ),
}
"""For ``[T, batch, 1, 4, 4]``."""

STATES = ("mem", "syn", "syn_exc", "syn_inh", "spk", "reset")


def held(model: nn.Module) -> dict[str, Any]:
    """What every layer holds between calls."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        if isinstance(module, snn.SpikingNeuron):
            found |= {f"{path}.{name}": getattr(module, name, None) for name in STATES}
        for name, value in getattr(module, "_memories", {}).items():
            found[f"{path}.{name}"] = value
    return found


def whole(model: nn.Module) -> bool:
    """Whether a model is written for sequences."""
    sequences = (norse.Lift, norse.LIF, layer.MultiStepContainer)
    return any(
        isinstance(module, sequences) or getattr(module, "step_mode", "s") == "m"
        for module in model.modules()
    )


def loop(model: Any, x: Tensor, state: Any = None) -> Any:
    """The library's own way: a loop over time, or one call of a model written for sequences."""
    threads = isinstance(model, norse.SequentialState | norse.LIFCell | norse.LIF)
    if whole(model):
        return model(x, state) if threads else model(x)
    outs = []
    for step in x:
        out = model(step, state) if threads else model(step)
        if threads:
            out, state = out
        outs.append(out)
    stacked = over_time(outs)
    return (stacked, state) if threads else stacked


def over_time(outs: list[Any]) -> Any:
    if isinstance(outs[0], Tensor):
        return torch.stack(outs)
    return type(outs[0])(map(over_time, map(list, zip(*outs, strict=True))))


def tensors(value: Any) -> list[Tensor]:
    """All tensors of an output, however deep."""
    if isinstance(value, Tensor):
        return [value]
    return [t for part in value for t in tensors(part)] if isinstance(value, list | tuple) else []
