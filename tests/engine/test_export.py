"""torch.export of a wrapped model: the program computes what the model computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import compiler
import norse.torch as norse
import pytest
import snntorch
import torch
from compat_snntorch import start
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn
from usage import own_instances  # noqa: F401

import tssl_adapters
from tssl_adapters.errors import LostTraceError

export = pytest.importorskip("torch.export")


class Steps(nn.Module):
    """snnTorch, its states passed on in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(6, 5), snntorch.Synaptic(0.8, 0.9)

    def forward(self, x: Tensor) -> Tensor:
        states, outs = start(self.lif), []
        for step in x.unbind(0):
            out, *states = self.lif(self.fc(step), *states)
            outs.append(out)
        return torch.stack(outs)


class Holding(nn.Module):
    """SpikingJelly, from rest."""

    def __init__(self, node: nn.Module, mode: str) -> None:
        super().__init__()
        self.net = nn.Sequential(layer.Linear(6, 5), node)
        functional.set_step_mode(self.net, mode)
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self.net)
        if self.mode == "m":
            return self.net(x)  # type: ignore[no-any-return]
        return torch.stack([self.net(step) for step in x.unbind(0)])


class Cells(nn.Module):
    """Norse, a state passed on in a loop, or a whole sequence."""

    def __init__(self, lif: nn.Module) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(6, 5), lif
        nn.init.uniform_(self.fc.weight, -0.5, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.lif, norse.LIFBoxCell):
            state, outs = None, []
            for step in x.unbind(0):
                out, state = self.lif(self.fc(step), state)
                outs.append(out)
            return torch.stack(outs)
        out, _ = self.lif(self.fc(x))
        return out  # type: ignore[no-any-return]


class Halves(nn.Module):
    """A sequence cut into two calls."""

    def __init__(self, lif: nn.Module) -> None:
        super().__init__()
        self.fc, self.lif = layer.Linear(6, 5), lif
        nn.init.uniform_(self.fc.weight, -0.5, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self.lif)
        first, last = self.fc(x).split(2)
        if isinstance(self.lif, neuron.LIFNode):
            return torch.cat([self.lif(first), self.lif(last)])
        out, state = self.lif(first)
        return torch.cat([out, self.lif(last, state)[0]])


class Whole(nn.Module):
    """Layer by layer, from single steps."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.net.modules():
            if isinstance(module, snntorch.SpikingNeuron):
                start(module)
        return tssl_adapters.multi_step_forward(self.net, x)  # type: ignore[no-any-return]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "snntorch-Synaptic": Steps,
    "snntorch-Leaky": lambda: Whole(nn.Linear(6, 5), snntorch.Leaky(0.9, init_hidden=True)),
    "spikingjelly-LIF-s": lambda: Holding(neuron.LIFNode(), "s"),
    "spikingjelly-LIF-m": lambda: Holding(neuron.LIFNode(), "m"),
    "spikingjelly-PLIF-m": lambda: Holding(neuron.ParametricLIFNode(), "m"),
    "spikingjelly-EIF-m": lambda: Holding(neuron.EIFNode(), "m"),
    "spikingjelly-LIF-halves": lambda: Halves(neuron.LIFNode(step_mode="m")),
    "norse-LIF-halves": lambda: Halves(norse.LIF()),
    "norse-LIFBoxCell": lambda: Cells(norse.LIFBoxCell()),
    "norse-LIF": lambda: Cells(norse.LIF()),
    "norse-LSNN": lambda: Cells(norse.LSNN()),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]()


def inputs(seed: int) -> Tensor:
    return 8.0 * torch.rand(4, 3, 6, generator=torch.Generator().manual_seed(seed))


def exported(model: nn.Module, **how: Any) -> Any:
    return export.export(model, (inputs(0),), strict=False, **how).module()


@pytest.mark.singly
@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("name", MODELS)
def test_the_program_computes_what_the_model_computes(name: str, tau_s: float) -> None:
    """On inputs that it was not made with; and at ``tau_s == 1`` that is what it does natively."""
    model = tssl_adapters.wrap(made(name), tau_s=tau_s)
    program, x = exported(model), inputs(1)
    expected = model(x)
    assert 0.05 < float(expected.detach().mean()) < 0.95
    assert torch.equal(program(x), expected)
    if tau_s == 1.0:
        assert torch.equal(exported(made(name))(x), expected)


@pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"),
    reason="this version's front end does not say whether it compiles or exports",
)
@pytest.mark.parametrize("name", ["snntorch-Synaptic", "spikingjelly-LIF-s", "spikingjelly-LIF-m"])
def test_strict_export(name: str) -> None:
    """Through torch.compile's front end, which Norse's layers do not pass natively."""
    model, x = tssl_adapters.wrap(made(name)), inputs(1)
    compiler.forget()
    program = export.export(model, (inputs(0),), strict=True).module()
    assert torch.equal(program(x), model(x))


@pytest.mark.singly
@pytest.mark.parametrize("name", MODELS)
def test_the_model_goes_on_learning(name: str) -> None:
    """After an export its gradient is the rule's, as before."""

    def gradients(model: nn.Module) -> list[Tensor]:
        model.zero_grad()
        model(inputs(1)).square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    model = tssl_adapters.wrap(made(name))
    expected = [grad.clone() for grad in gradients(model)]
    exported(model)
    for ours, theirs in zip(gradients(model), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert max(float(grad.abs().max()) for grad in expected) > 0


def test_a_potential_of_unknown_past_is_refused() -> None:
    """Nobody can see whether it is at rest, and what else its trace is."""
    lif = tssl_adapters.wrap(snntorch.Leaky(0.9), tau_s=3.0)
    mem = torch.zeros(3, 6)
    with pytest.raises((LostTraceError, ValueError)) as caught:
        export.export(lif, (inputs(0)[0], mem), strict=False)
    error: BaseException | None = caught.value
    if isinstance(error, ValueError):  # older versions stumble over their own clearing up
        error = error.__context__
    assert isinstance(error, LostTraceError)
    assert "'Leaky' (tau_s=3.0) cannot be exported" in str(error)
    assert "init_leaky()" in str(error)


def test_compiled_without_a_graph() -> None:
    """Where nothing is to be learned the layer compiles as the library's own does."""
    model = tssl_adapters.wrap(made("spikingjelly-LIF-m"))
    compiled = torch.compile(model.net, backend="eager", fullgraph=True)
    compiler.forget()
    with torch.no_grad():
        expected = model(inputs(1))
        functional.reset_net(model)
        assert torch.equal(compiled(inputs(1)), expected)
