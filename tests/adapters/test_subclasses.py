"""Subclasses with nothing of their own but ``__init__`` and constants are their base."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import norse.torch as norse
import pytest
import snntorch
import torch
from norse.torch.functional.lif import LIFParameters
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import adapters
from tssl_adapters.errors import UnsupportedLayerError


class PaperLIF(neuron.LIFNode):
    """The settings of a paper."""

    TAU = 5.0
    NAMES = ("tau", "v_threshold")

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__(
            tau=self.TAU, decay_input=False, surrogate_function=surrogate.ATan(), detach_reset=True
        )
        self.scale = scale


class DeeperLIF(PaperLIF):
    """And another's."""

    TAU2: float = 3.0


class SequenceLIF(neuron.LIFNode):
    def __init__(self) -> None:
        super().__init__(step_mode="m")


class PaperKLIF(neuron.KLIFNode):
    def __init__(self) -> None:
        super().__init__(tau=3.0)


class PaperCUBA(neuron.CUBALIFNode):
    def __init__(self) -> None:
        super().__init__(v_threshold=0.4)


class PaperSimple(neuron.SimpleLIFNode):
    def __init__(self) -> None:
        super().__init__(tau=3.0, decay_input=False)


class PaperLeaky(snntorch.Leaky):
    BETA = 0.7

    def __init__(self) -> None:
        super().__init__(beta=self.BETA, learn_beta=True, init_hidden=True)


class PaperRLeaky(snntorch.RLeaky):
    def __init__(self) -> None:
        super().__init__(beta=0.8, all_to_all=False, V=0.5, init_hidden=True)


class PaperCell(norse.LIFCell):
    def __init__(self) -> None:
        super().__init__(LIFParameters(tau_mem_inv=torch.as_tensor(500.0)))


class PaperLIFRecurrent(norse.LIFRecurrent):
    def __init__(self) -> None:
        super().__init__(7, 5)


BASES: dict[Any, Any] = {
    PaperLIF: neuron.LIFNode,
    DeeperLIF: neuron.LIFNode,
    SequenceLIF: neuron.LIFNode,
    PaperKLIF: neuron.KLIFNode,
    PaperCUBA: neuron.CUBALIFNode,
    PaperSimple: neuron.SimpleLIFNode,
    PaperLeaky: snntorch.Leaky,
    PaperRLeaky: snntorch.RLeaky,
    PaperCell: norse.LIFCell,
    PaperLIFRecurrent: norse.LIFRecurrent,
}


def made(cls: Any) -> Any:
    torch.manual_seed(0)
    return cls()


def run(layer: Any) -> list[Tensor]:
    """Output and gradients of the input and the parameters, from rest."""
    x = torch.rand(5, 3, 7, generator=torch.Generator().manual_seed(0)).mul_(3.0)
    x.requires_grad_()
    if hasattr(layer, "_memories"):
        layer.reset()
    if isinstance(layer, snntorch.SpikingNeuron):
        layer.mem = torch.zeros(())
        layer.spk = torch.zeros(())
    if isinstance(layer, norse.LIFRecurrent) or getattr(layer, "step_mode", "s") == "m":
        out = layer(x)
        out = out[0] if isinstance(out, tuple) else out
    else:
        state, outs = None, []
        for step in x:
            out = layer(step, state) if isinstance(layer, norse.LIFCell) else layer(step)
            out, state = out if isinstance(out, tuple) else (out, None)
            outs.append(out)
        out = torch.stack(outs)
    loss = (out * torch.linspace(-1.0, 2.0, out.numel()).view_as(out)).sum()
    return [out.detach(), *torch.autograd.grad(loss, [x, *layer.parameters()])]


def based(cls: Any) -> Any:
    """A layer of the base with a subclass's settings."""
    layer = made(cls)
    layer.__class__ = BASES[cls]
    return layer


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("cls", BASES, ids=lambda cls: cls.__name__)
def test_it_is_wrapped_as_its_base(cls: Any, tau_s: float) -> None:
    model = nn.Sequential(made(cls))
    before = model.state_dict()
    assert tssl_adapters.inspect(model, tau_s=tau_s)[0].status == "wrap"
    assert type(model[0]) is cls
    tssl_adapters.wrap(model, tau_s=tau_s)
    assert isinstance(model[0], cls)
    assert f"(0): {cls.__name__}(" in repr(model)
    assert list(model.state_dict()) == list(before)
    ours, expected = run(model[0]), run(tssl_adapters.wrap(based(cls), tau_s=tau_s))
    assert expected[0].any()
    assert all(map(torch.equal, ours, expected))
    assert type(tssl_adapters.unwrap(model)[0]) is cls
    assert all(map(torch.equal, run(model[0]), run(made(cls))))
    assert not any(cls in adapter.kinds for adapter in adapters.loaded())


@pytest.mark.parametrize("trip", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("cls", [PaperLIF, SequenceLIF, PaperCUBA])
def test_copies_and_pickles(cls: Any, trip: Any) -> None:
    model = tssl_adapters.wrap(nn.Sequential(made(cls)), tau_s=2.0)
    expected = run(model[0])
    functional.reset_net(model)
    twin = trip(model)
    assert type(twin[0]) is type(model[0])
    assert all(map(torch.equal, run(twin[0]), expected))
    assert type(tssl_adapters.unwrap(twin)[0]) is cls


def test_a_pickle_where_nobody_has_wrapped_one_yet() -> None:
    pickled = pickle.dumps(tssl_adapters.wrap(made(PaperLIF)))
    for adapter in adapters.loaded():
        adapter.derived.clear()
    layer = pickle.loads(pickled)
    assert tssl_adapters.is_wrapped(layer)
    assert type(tssl_adapters.unwrap(layer)) is PaperLIF


def test_it_can_still_be_registered() -> None:
    tssl_adapters.wrap(made(PaperLIF))
    tssl_adapters.register(PaperLIF, like=neuron.LIFNode)
    assert type(tssl_adapters.unwrap(tssl_adapters.wrap(made(PaperLIF)))) is PaperLIF


class Method(neuron.LIFNode):
    def extra(self) -> int:
        return 1


class Parameter(neuron.LIFNode):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))


class Buffer(snntorch.Leaky):
    def __init__(self) -> None:
        super().__init__(0.9)
        self.register_buffer("count", torch.zeros(()))


class Module(norse.LIFCell):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Identity()


class Memory(neuron.IFNode):
    def __init__(self) -> None:
        super().__init__()
        self.register_memory("help", 0.0)


class Hook(neuron.LIFNode):
    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(lambda module, given, out: 2.0 * out)


class Mixed:
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)  # type: ignore[misc]


class MixedIn(Mixed, neuron.LIFNode):
    """Its own class body is empty."""


class Property(neuron.LIFNode):
    v_threshold = property(lambda self: 0.5, lambda self, value: None)


@pytest.mark.parametrize(
    ("cls", "why"),
    [
        (Method, "LIFNode .*for it defines extra"),
        (Parameter, "LIFNode .*for it registers the parameter 'gain'"),
        (Buffer, "Leaky .*for it registers the buffer 'count'"),
        (Module, "LIFCell .*for it registers the module 'norm'"),
        (Memory, "IFNode .*for it registers the memory 'help'"),
        (Hook, "LIFNode .*for it has hooks"),
        (MixedIn, "LIFNode .*for it defines forward"),
        (Property, "LIFNode .*for it defines v_threshold"),
    ],
)
def test_one_that_has_more_is_refused(cls: Any, why: str) -> None:
    model = nn.Sequential(cls(), neuron.LIFNode())
    with pytest.raises(UnsupportedLayerError, match=rf"0 .*it is a subclass of {why}; .*register"):
        tssl_adapters.wrap(model)
    assert not tssl_adapters.is_wrapped(model)
