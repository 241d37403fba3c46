"""Random models: random layers, what is around them, and what they are run on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import norse.torch as norse
import torch
from cases import atan, sigmoid
from compat_norse import superspike
from hypothesis import strategies as st
from random_layers import (
    WIDTH,
    Draw,
    Layer,
    beginning,
    called,
    flags,
    in_sequence,
    kept,
    layers,
    pick,
)
from spikingjelly.activation_based import functional
from spikingjelly.activation_based import layer as sj_layer
from torch import Tensor, nn

from tssl_adapters import rules


@dataclass(frozen=True)
class Unit:
    """A layer and what is around it.

    Attributes:
        layer: the neuron; ``None`` uses that of the unit before once more.
        before: what makes its drive.
        place: how a user holds the two.
        residual: whether the unit's input is added to its output.
    """

    layer: Layer | None
    before: str
    place: str
    residual: bool


@dataclass(frozen=True)
class Recipe:
    """A model and what it is run on."""

    units: list[Unit]
    interleaved: bool
    batch: int
    steps: int
    double: bool
    tau_s: float
    rule: rules.Rule
    skip: str
    training: bool

    def make(self, tau_s: float = 1.0) -> Net:
        torch.manual_seed(0)
        net = Net(self, tau_s)
        if self.double:
            net.double()
        return net.train(self.training)

    def input(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        x = 0.5 + 1.5 * torch.randn(self.steps, self.batch, WIDTH, generator=generator)
        return (x.double() if self.double else x).requires_grad_()


class Net(nn.Module):
    """The units one after the other; over time as a user would, outside or inside.

    With ``tau_s > 1`` native layers emit their PSC.
    """

    def __init__(self, recipe: Recipe, tau_s: float) -> None:
        super().__init__()
        self.recipe, self.tau_s = recipe, tau_s
        self.filtered: set[nn.Module] | None = None
        self.units = nn.ModuleList()
        neuron: nn.Module | None = None
        self.neurons: list[nn.Module] = []
        for unit in recipe.units:
            neuron = neuron if unit.layer is None else unit.layer.make()
            assert neuron is not None
            self.neurons.append(neuron)
            self.units.append(held(unit, neuron))

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        functional.reset_net(self)
        self.traces: dict[Any, Tensor] = {}
        start = x.detach()[0]
        states = [beginning(neuron, start) for neuron in self.neurons]
        together = not any(
            in_sequence(neuron) or self.lifted(i) for i, neuron in enumerate(self.neurons)
        )
        outs: list[Tensor] = []
        if self.recipe.interleaved and together:
            rows = []
            for step in x:
                rows.append([])
                for i in range(len(self.units)):
                    step, states[i] = self.step(i, step, states[i])
                    rows[-1].append(step)
            outs = [torch.stack(column) for column in zip(*rows, strict=True)]
        else:
            for i in range(len(self.units)):
                x, states[i] = self.sequence(i, x, states[i])
                outs.append(x)
        final = [t for n, s in zip(self.neurons, states, strict=True) for t in kept(n, s)]
        return outs, final

    def lifted(self, i: int) -> bool:
        return self.recipe.units[i].place == "over time"

    def step(self, i: int, x: Tensor, states: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        out, states = ran(self.units[i], x, states)
        out = self.emitted(i, out)
        return (out + x if self.recipe.units[i].residual else out), states

    def sequence(
        self, i: int, x: Tensor, states: tuple[Any, ...]
    ) -> tuple[Tensor, tuple[Any, ...]]:
        if not (in_sequence(self.neurons[i]) or self.lifted(i)):
            outs = []
            for step in x:
                out, states = self.step(i, step, states)
                outs.append(out)
            return torch.stack(outs), states
        out, states = ran(self.units[i], x, states)
        out = torch.stack([self.emitted(i, one) for one in out])
        return (out + x if self.recipe.units[i].residual else out), states

    def emitted(self, i: int, out: Tensor) -> Tensor:
        neuron = self.neurons[i]
        if self.tau_s == 1.0 or neuron not in (self.filtered or ()):
            return out
        hidden = next(u for u in self.recipe.units[i::-1] if u.layer).layer.hidden  # type: ignore[union-attr]
        key = neuron if hidden else i
        factor = getattr(neuron, "graded_spikes_factor", torch.ones(()))
        graded = bool(factor != 1.0) or factor.requires_grad
        spikes = (out != 0).to(out.dtype) if graded else out
        before = self.traces.get(key, torch.zeros_like(out))
        self.traces[key] = before + (spikes - before) / self.tau_s
        return self.traces[key] * factor if graded else self.traces[key]


BEFORE: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "twice": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)),
    "nothing": nn.Identity,
    "dropout": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.3)),
    "norm": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)),
}


def held(unit: Unit, neuron: nn.Module) -> nn.Module:
    before = BEFORE[unit.before]()
    if unit.place == "sequential":
        return nn.Sequential(nn.Sequential(before), nn.Sequential(neuron))
    if unit.place == "state":
        return norse.SequentialState(before, neuron)  # type: ignore[no-any-return]
    if unit.place == "over time":
        if hasattr(neuron, "_memories"):
            return sj_layer.MultiStepContainer(before, neuron)  # type: ignore[no-any-return]
        return nn.ModuleDict({"before": before, "neuron": norse.Lift(neuron)})
    return nn.ModuleDict({"before": before, "neuron": neuron})


def ran(unit: Any, x: Tensor, states: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
    if isinstance(unit, nn.ModuleDict):
        return called(unit["neuron"], unit["before"](x), states)
    return called(unit, x, states)


PLACES = {
    "spikingjelly s": ["dict", "sequential", "over time"],
    "spikingjelly m": ["dict", "sequential"],
    "snntorch hidden": ["dict", "sequential"],
    "snntorch": ["dict"],
    "norse": ["dict", "state"],
    "norse cell": ["dict", "state", "over time"],
}


def places(layer: Layer) -> list[str]:
    if layer.library == "norse":
        return PLACES["norse cell" if layer.name.endswith("Cell") else "norse"]
    if layer.library == "snntorch":
        return PLACES["snntorch hidden" if layer.settings.get("init_hidden") else "snntorch"]
    if layer.name == "NonSpikingLIFNode":
        return PLACES["spikingjelly m"]
    return PLACES[f"spikingjelly {layer.settings.get('step_mode', 's')}"]


@st.composite
def units(draw: Draw, libraries: tuple[str, ...]) -> list[Unit]:
    made: list[Unit] = []
    for _ in range(draw(st.integers(1, 4))):
        again = bool(made) and draw(pick(False, False, False, True))
        layer = None if again else draw(layers(libraries))
        last = layer or next(unit.layer for unit in reversed(made) if unit.layer)
        before = draw(pick("linear", "linear", "linear", *BEFORE))
        made.append(Unit(layer, before, draw(pick(*places(last))), draw(flags)))
    return made


LIBRARIES = ("snntorch", "spikingjelly", "norse")
RULES = [
    rules.TSSLBP(),
    rules.TSSLBP(max_slope=1.0, reset_path="none"),
    rules.TSSLBP(reset_path="complete"),
    rules.TSSLBP(fallback=False, fallback_width=0.5),
    rules.SurrogateGradient(sigmoid),
    rules.SurrogateGradient(atan, chain=False),
    rules.SurrogateGradient(superspike, reset_path="complete"),
]


@st.composite
def recipes(draw: Draw) -> Recipe:
    libraries = draw(pick(*[(name,) for name in LIBRARIES], LIBRARIES))
    return Recipe(
        units=draw(units(libraries)),
        interleaved=draw(flags),
        batch=draw(pick(3, 3, 3, 2, 1, 0)),
        steps=draw(pick(5, 5, 4, 2, 1)),
        double=draw(flags),
        tau_s=draw(pick(1.0, 1.0, 2.5, 3.0)),
        rule=draw(pick(*RULES)),
        skip=draw(pick("", "", "", "units.0", "*.neuron")),
        training=draw(pick(True, True, False)),
    )
