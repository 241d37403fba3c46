"""Classes of the user's own, said to be like a known one."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import norse.torch as norse
import pytest
import snntorch
import torch
from cases import sigmoid
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import adapters, rules
from tssl_adapters.errors import LibraryVersionError, UnsupportedLayerError


class MyLIF(neuron.LIFNode):
    """A subclass with an attribute more."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.calls = 0

    def extra_repr(self) -> str:
        return f"mine, {super().extra_repr()}"


class OwnNode(neuron.BaseNode):
    """A layer of its own making: LIFNode's attributes and step, without being one."""

    def __init__(self, tau: float = 2.0, decay_input: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.tau, self.decay_input = tau, decay_input

    def single_step_functional_forward(self, inputs: Any, states: Any, **_: Any) -> Any:
        (x,), (v,) = inputs, states
        v = v + (x - v) / self.tau
        spike = self.surrogate_function(v - self.v_threshold)
        return (spike,), (v * (1.0 - spike),)


class Doubling(neuron.LIFNode):
    """Says it is LIFNode, and is not: its input counts twice."""

    def single_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        return super().single_step_functional_forward((2.0 * inputs[0],), states, **kwargs)


class MyLeaky(snntorch.Leaky):
    """A subclass that changes nothing."""


class DoublingLeaky(snntorch.Leaky):
    """Another forward pass."""

    def forward(self, input_: Tensor, mem: Any = None) -> Any:
        return super().forward(2.0 * input_, mem)


class MyCell(norse.LIFCell):
    """A subclass that changes nothing."""


LIKE: dict[Any, Any] = {
    MyLIF: neuron.LIFNode,
    OwnNode: neuron.LIFNode,
    MyLeaky: snntorch.Leaky,
    MyCell: norse.LIFCell,
}


def made(cls: Any) -> Any:
    return cls(0.9) if issubclass(cls, snntorch.Leaky) else cls()


def run(layer: Any) -> tuple[Tensor, Tensor]:
    """Output and input gradient."""
    x = torch.randn(6, 2, 30, generator=torch.Generator().manual_seed(0)).mul_(3.0)
    x.requires_grad_()
    state, outs = None, []
    if hasattr(layer, "reset"):
        layer.reset()
    for step in x:
        out = layer(step) if isinstance(layer, neuron.BaseNode) else layer(step, state)
        out, state = out if isinstance(out, tuple) else (out, None)
        outs.append(out)
    out = torch.stack(outs)
    (grad,) = torch.autograd.grad((out * torch.linspace(-1, 2, 360).view_as(out)).sum(), x)
    return out.detach(), grad


@pytest.mark.parametrize("cls", LIKE, ids=lambda cls: cls.__name__)
def test_a_registered_class_trains_as_the_one_it_is_like(cls: Any) -> None:
    like = LIKE[cls]
    assert tssl_adapters.register(cls, like=like) is cls
    layer = tssl_adapters.wrap(made(cls))
    assert isinstance(layer, cls)
    assert tssl_adapters.is_wrapped(layer)
    expected = run(tssl_adapters.wrap(made(like)))
    for ours, theirs in zip(run(layer), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert expected[0].any()
    tssl_adapters.unwrap(layer)
    assert type(layer) is cls


def test_repr_and_attributes_stay() -> None:
    tssl_adapters.register(MyLIF, like=neuron.LIFNode)
    layer = made(MyLIF)
    before = repr(layer)
    said = repr(tssl_adapters.wrap(layer))
    assert said.replace(", tssl_adapters: SmoothTSSLBP(), engine='torch'", "") == before
    assert "mine" in before
    assert layer.calls == 0


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("cls", [MyLIF, OwnNode])
@pytest.mark.parametrize("trip", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_and_pickles(cls: Any, trip: Any, tau_s: float) -> None:
    tssl_adapters.register(cls, like=neuron.LIFNode)
    layer = tssl_adapters.wrap(nn.Sequential(made(cls)), tau_s=tau_s)
    expected = run(layer[0])
    layer[0].reset()
    twin = trip(layer)
    assert type(twin[0]) is type(layer[0])
    for ours, theirs in zip(run(twin[0]), expected, strict=True):
        assert torch.equal(ours, theirs)
    tssl_adapters.unwrap(twin)
    assert type(twin[0]) is cls


def test_a_pickle_registers_where_nobody_has_yet() -> None:
    tssl_adapters.register(MyLIF, like=neuron.LIFNode)
    pickled = pickle.dumps(tssl_adapters.wrap(made(MyLIF)))
    (adapter,) = (a for a in adapters.loaded() if MyLIF in a.kinds)
    del adapter.kinds[MyLIF]
    layer = pickle.loads(pickled)
    assert tssl_adapters.is_wrapped(layer)
    assert type(tssl_adapters.unwrap(layer)) is MyLIF


@pytest.mark.parametrize(
    ("cls", "like"), [(Doubling, neuron.LIFNode), (DoublingLeaky, snntorch.Leaky)]
)
def test_another_neuron_is_found_out(cls: Any, like: Any) -> None:
    tssl_adapters.register(cls, like=like)
    layer = tssl_adapters.wrap(nn.Sequential(nn.Identity(), made(cls)))
    with pytest.raises(LibraryVersionError, match=r"Layer '1' does not compute the neuron"):
        run(layer[1])


class Louder(neuron.LIFNode):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2.0


class StepwiseLouder(neuron.KLIFNode):
    def single_step_forward(self, x: Tensor) -> Tensor:
        return super().single_step_forward(1.7 * x)


class Deeper(Louder):
    """Inherits it."""


@pytest.mark.parametrize(
    ("cls", "like", "name"),
    [
        (Louder, neuron.LIFNode, "forward"),
        (StepwiseLouder, neuron.KLIFNode, "single_step_forward"),
        (Deeper, neuron.LIFNode, "forward"),
    ],
)
def test_what_a_wrapped_node_would_not_call_is_refused(cls: Any, like: Any, name: str) -> None:
    """Such a layer would silently compute something else."""
    tssl_adapters.register(cls, like=like)
    model = nn.Sequential(cls(), neuron.LIFNode())
    with pytest.raises(UnsupportedLayerError, match=rf"0 .*overrides {name}, which"):
        tssl_adapters.wrap(model)
    assert type(model[1]) is neuron.LIFNode
    tssl_adapters.wrap(model, skip=["0"])


def test_a_class_of_another_kind_altogether() -> None:
    """It is refused where it stands, and inspect goes on."""

    class Flat(nn.Flatten):
        pass

    tssl_adapters.register(Flat, like=snntorch.Leaky)
    model = nn.Sequential(Flat(), snntorch.Leaky(0.9))
    row = tssl_adapters.inspect(model)[0]
    assert (row.path, row.status) == ("0", "refused")
    assert "registered like Leaky, but lacks" in row.detail
    with pytest.raises(UnsupportedLayerError, match="registered like Leaky"):
        tssl_adapters.wrap(model)


def test_the_refusal_explains_register() -> None:
    with pytest.raises(
        UnsupportedLayerError, match=r"tssl_adapters\.register\(MyLIF, like=LIFNode\)"
    ):
        tssl_adapters.wrap(made(MyLIF))


def test_what_is_like_a_registered_class() -> None:
    tssl_adapters.register(MyLIF, like=neuron.LIFNode)
    tssl_adapters.register(OwnNode, like=MyLIF)
    assert tssl_adapters.is_wrapped(tssl_adapters.wrap(made(OwnNode)))


def test_wrong_arguments() -> None:
    register: Any = tssl_adapters.register
    with pytest.raises(TypeError, match=r"takes layer classes; class is 3"):
        register(3, like=neuron.LIFNode)
    with pytest.raises(TypeError, match=r"takes layer classes; like is LIFNode\("):
        register(MyLIF, like=neuron.LIFNode())
    with pytest.raises(ValueError, match=r"like=Linear is not a known class"):
        register(MyLIF, like=nn.Linear)
    with pytest.raises(ValueError, match=r"Linear is torch's own, and every model's"):
        register(nn.Linear, like=neuron.LIFNode)
    with pytest.raises(ValueError, match=r"LIFNode is known already"):
        register(neuron.LIFNode, like=neuron.IFNode)
    register(MyLIF, like=neuron.LIFNode)
    register(MyLIF, like=neuron.LIFNode)
    with pytest.raises(ValueError, match=r"MyLIF is known already"):
        register(MyLIF, like=neuron.IFNode)


class OwnCharge(neuron.SimpleBaseNode):
    """A charge of its own, with a weight that learns."""

    def __init__(self) -> None:
        super().__init__(v_threshold=0.3, step_mode="s")
        self.gate = nn.Parameter(torch.tensor(0.7))

    def neuronal_charge(self, x: Tensor) -> None:
        self.v = self.v * torch.tanh(self.gate + 0.3 * self.v) + x


class OwnFire(OwnCharge):
    """Fires in its own way too."""

    def neuronal_fire(self) -> Tensor:
        return self.surrogate_function(self.v - 2.0 * self.v_threshold)


def test_a_charge_of_the_user_s_own() -> None:
    """The library's surrogate as the rule gives the native gradient, of the weight too."""

    def gradients(layer: Any) -> list[Tensor]:
        x = torch.randn(7, 3, 9, generator=torch.Generator().manual_seed(0)).double()
        x.requires_grad_()
        out = torch.stack([layer(step) for step in x])
        loss = (out * torch.linspace(-1.0, 2.0, out.numel()).view_as(out)).sum() + layer.v.sum()
        return [out, *torch.autograd.grad(loss, [x, layer.gate])]

    tssl_adapters.register(OwnCharge, like=neuron.SimpleLIFNode)
    rule = rules.SurrogateGradient(sigmoid)
    ours = gradients(tssl_adapters.wrap(OwnCharge().double(), rule=rule))
    theirs = gradients(OwnCharge().double())
    assert torch.equal(ours[0], theirs[0])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_spike_of_the_user_s_own_is_refused() -> None:
    tssl_adapters.register(OwnFire, like=neuron.SimpleLIFNode)
    with pytest.raises(UnsupportedLayerError, match=r"its class overrides neuronal_fire"):
        tssl_adapters.wrap(OwnFire())
