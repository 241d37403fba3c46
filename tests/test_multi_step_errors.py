"""What ``multi_step_forward`` refuses, what it says, and that nothing was run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from sequential_models import held, inputs
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import tssl_adapters
from tssl_adapters.errors import NotSequentialError, TSSLAdaptersError


class Explicit(nn.Module):
    """As snnTorch's tutorials write it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.lif = snn.Leaky(beta=0.5)

    def forward(self, x: Tensor) -> Any:
        return self.lif(self.fc(x), self.lif.init_leaky())


def leaky(**settings: Any) -> nn.Module:
    return snn.Leaky(beta=0.5, init_hidden=True, **settings)


def before(model: nn.Module) -> nn.Module:
    """The model behind a layer whose state would show that something ran."""
    return nn.Sequential(leaky(), model)


def hooked(kind: str) -> nn.Module:
    model = nn.Linear(8, 8)
    getattr(model, f"register_{kind}_hook")(lambda *args: None)
    return before(model)


def twice() -> nn.Module:
    lif = leaky()
    return nn.Sequential(leaky(), nn.Sequential(lif), nn.Linear(8, 8), lif)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class DoubledStep(layer.Linear):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Cell(norse.LIFCell):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.inner = norse.LIFCell()


class Memory(neuron.LIFNode):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.inner = neuron.IFNode()


CUSTOM = r"it has a forward of its own.*\(states such as mem\).*init_hidden=True"
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "explicit states": (Explicit, rf"Explicit \(the model\): {CUSTOM}"),
    "custom block": (lambda: before(Explicit()), rf"1 \(Explicit\): {CUSTOM}"),
    "list": (lambda: nn.ModuleList([leaky()]), rf"ModuleList \(the model\): {CUSTOM}"),
    "custom layer": (lambda: before(Doubled(8, 8)), r"1 \(Doubled\): it has a forward of its own"),
    "custom step layer": (lambda: before(DoubledStep(8, 8)), r"1 \(DoubledStep\): it has a"),
    "cells in a cell": (
        lambda: norse.SequentialState(leaky(), Cell()),
        r"1 \(Cell\): it has a forward of its own",
    ),
    "nodes in a node": (lambda: before(Memory()), r"1 \(Memory\): it has a forward of its own"),
    "torch's recurrence": (lambda: before(nn.RNN(8, 8)), r"1 \(RNN\): it has a forward of its own"),
    "batch norm": (
        lambda: before(nn.Sequential(nn.BatchNorm1d(8))),
        r"1\.0 \(BatchNorm1d\): it normalises by the statistics of its batch.*in evaluation",
    ),
    "batch norm without statistics": (
        lambda: before(nn.BatchNorm1d(8, track_running_stats=False).eval()),
        r"1 \(BatchNorm1d\): it normalises",
    ),
    "spikingjelly's batch norm": (
        lambda: nn.Sequential(leaky(), layer.BatchNorm2d(8)),
        r"1 \(BatchNorm2d\): it normalises",
    ),
    "instance norm": (
        lambda: before(nn.InstanceNorm1d(8, track_running_stats=True)),
        r"1 \(InstanceNorm1d\): it updates its running statistics.*track_running_stats=False",
    ),
    "indices": (lambda: before(nn.MaxPool1d(2, return_indices=True)), r"1 \(MaxPool1d\): it retu"),
    "spectral norm": (
        lambda: before(parametrizations.spectral_norm(nn.Linear(8, 8))),
        r"1 \(ParametrizedLinear\): a parametrization of it keeps statistics",
    ),
    "forward hook": (lambda: hooked("forward"), r"1 \(Linear\): it has hooks.*remove them"),
    "pre-hook": (lambda: hooked("forward_pre"), r"1 \(Linear\): it has hooks"),
    "backward hook": (lambda: hooked("full_backward"), r"1 \(Linear\): it has hooks"),
    "backward pre-hook": (lambda: hooked("full_backward_pre"), r"1 \(Linear\): it has hooks"),
    "states in the middle": (
        lambda: nn.Sequential(leaky(), nn.Sequential(leaky(output=True)), nn.Linear(8, 8)),
        r"1 \(Sequential\): it returns its states beside its spikes.*output=False",
    ),
    "twice": (twice, r"3 \(Leaky\): it comes twice, and its state goes.*one layer for each place"),
    "feedback in Norse": (
        lambda: before(norse.RecurrentSequential(norse.LIFCell())),
        r"1 \(RecurrentSequential\): its output comes back to its first layer",
    ),
    "feedback in SpikingJelly": (
        lambda: before(layer.LinearRecurrentContainer(neuron.LIFNode(), 8, 8)),
        r"1 \(LinearRecurrentContainer\): its output comes back to its layers",
    ),
    "lost states": (
        lambda: before(norse.LIFCell()),
        r"1 \(LIFCell\): its state is passed from step to step.*norse.torch.SequentialState",
    ),
    "two kinds": (
        lambda: nn.Sequential(leaky(), neuron.LIFNode(step_mode="m")),
        r"1 \(LIFNode\): it takes whole sequences and '0' takes single steps.*set_step_mode",
    ),
    "a sequence within a step": (
        lambda: norse.Lift(norse.LIF()),
        r"lifted_module \(LIF\): it takes whole sequences, and is given single steps",
    ),
    "snnTorch's within a step": (
        lambda: layer.MultiStepContainer(snn.StateLeaky(beta=0.5, channels=8)),
        r"0 \(StateLeaky\): it takes whole sequences, and is given single steps",
    ),
    "a lifted layer": (
        lambda: norse.Lift(nn.BatchNorm1d(8)),
        r"lifted_module \(BatchNorm1d\): it normalises",
    ),
    "custom in a sequence": (
        lambda: nn.Sequential(neuron.LIFNode(step_mode="m"), Wraps(neuron.LIFNode(step_mode="m"))),
        r"1 \(Wraps\): it has a forward of its own",
    ),
}


class Wraps(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_ran(name: str) -> None:
    make, text = REFUSED[name]
    model = make()
    states = held(model)
    with pytest.raises(NotSequentialError, match=f"(?s){text}") as raised:
        tssl_adapters.multi_step_forward(model, inputs())
    assert isinstance(raised.value, TSSLAdaptersError)
    assert str(raised.value).startswith(
        f"{type(model).__name__} cannot be run layer by layer, and nothing was run:\n  - "
    )
    assert str(raised.value).endswith("Or call the model step by step, in a loop over time.")
    assert all(held(model)[key] is states[key] for key in states)


def test_every_layer_is_named_once() -> None:
    model = nn.Sequential(nn.BatchNorm1d(8), leaky(output=True), nn.BatchNorm1d(8), Explicit())
    with pytest.raises(NotSequentialError) as raised:
        tssl_adapters.multi_step_forward(model, inputs())
    lines = str(raised.value).splitlines()
    paths = [line.split()[1] for line in lines if line.startswith("  - ")]
    assert sorted(paths) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((len, torch.ones(2, 2)), TypeError, "takes a torch.nn.Module, not builtin_function"),
        ((leaky(), [1]), TypeError, r"x_seq must be a tensor \[T, batch, ...\], not list"),
        ((leaky(), torch.ones(3)), ValueError, r"not one of shape \(3,\)"),
        ((leaky(), torch.ones(0, 2, 8)), ValueError, r"at least one step.*\(0, 2, 8\)"),
        ((leaky(), torch.ones(2, 2).to_sparse()), ValueError, "dense tensor.*sparse_coo"),
        (
            (leaky(), torch.ones(2, 2, 8), []),
            ValueError,
            "Leaky takes no state, as its layers hold",
        ),
    ],
)
def test_wrong_arguments(arguments: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        tssl_adapters.multi_step_forward(*arguments)
