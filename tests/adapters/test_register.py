"""Classes of the user's own, said to be like a known one."""

from __future__ import annotations

import copy
import pickle
import re
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
from tssl_adapters.errors import UnsupportedLayerError


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
    """Another charge."""

    def _base_state_function(self, input_: Tensor) -> Any:
        return super()._base_state_function(2.0 * input_)


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
        out = (
            layer(step)
            if isinstance(layer, neuron.BaseNode | neuron.SimpleBaseNode)
            else layer(step, state)
        )
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
    assert said.replace(", tssl_adapters: SmoothTSSLBP(), engine='cpu'", "") == before
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
    """Before anything runs."""
    tssl_adapters.register(cls, like=like)
    model = nn.Sequential(nn.Identity(), made(cls), neuron.LIFNode())
    text = rf"1 \(.*does not compute the neuron of {like.__name__}: on a probe .* of its membrane"
    assert re.search(text, refusal(model))
    assert not tssl_adapters.is_wrapped(model)


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
    with pytest.raises(UnsupportedLayerError, match=rf"{cls.__name__} cannot .*overrides {name}, "):
        tssl_adapters.register(cls, like=like)
    assert tssl_adapters.inspect(cls())[0].status == "refused"


class LouderLeaky(snntorch.Leaky):
    def forward(self, input_: Tensor, mem: Any = None) -> Any:
        return super().forward(2.0 * input_, mem)


class LouderCell(norse.LIFRecurrentCell):
    def forward(self, input_tensor: Tensor, state: Any = None) -> Any:
        return super().forward(2.0 * input_tensor, state)


class Older(neuron.LIFNode):
    """Written for versions whose nodes call it."""

    def neuronal_charge(self, x: Tensor) -> None:
        self.v = self.v.detach() + x


class Flat(nn.Flatten):
    """No neuron at all."""


class Bare(neuron.SimpleBaseNode):
    """Has less than ``IFNode``."""

    def neuronal_charge(self, x: Tensor) -> None:
        self.v = self.v + x


@pytest.mark.parametrize(
    ("cls", "like", "why"),
    [
        (LouderLeaky, snntorch.Leaky, "overrides forward, and a wrapped Leaky goes by its own"),
        (LouderCell, norse.LIFRecurrentCell, "overrides forward, and a wrapped LIFRecurrentCell"),
        (Older, neuron.LIFNode, r"overrides neuronal_charge, .*derived from SimpleBaseNode"),
        (Bare, neuron.IFNode, r"lacks .*store_v_seq, which that has; derive it from IFNode"),
        (Flat, snntorch.Leaky, r"lacks .*fire.*, which that has"),
    ],
)
def test_what_the_class_itself_shows(cls: Any, like: Any, why: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=rf"{cls.__name__} cannot be registered.*{why}"):
        tssl_adapters.register(cls, like=like)
    assert not any(cls in adapter.kinds for adapter in adapters.loaded())


class Remembering(neuron.LIFNode):
    """A second memory."""

    def __init__(self) -> None:
        super().__init__()
        self.register_memory("help", 0.0)


class Online(neuron.LIFNode):
    """Lets go of its state at every step."""

    def single_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        states = tuple(s.detach() for s in states)
        return super().single_step_functional_forward(inputs, states, **kwargs)


class OnlineLeaky(snntorch.Leaky):
    """The same."""

    def _base_state_function(self, input_: Tensor) -> Any:
        self.mem = self.mem.detach()
        return super()._base_state_function(input_)


class Watched(neuron.LIFNode):
    """Keeps its rate for a penalty in the loss."""

    def single_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        out, states = super().single_step_functional_forward(inputs, states, **kwargs)
        self.rate = out[0].mean()
        return out, states


class Weighted(neuron.LIFNode):
    """Weighs its input; at first by one."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def single_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        inputs = (self.gain * inputs[0],)
        return super().single_step_functional_forward(inputs, states, **kwargs)


class Softer(neuron.LIFNode):
    """Its reset has another gradient."""

    def single_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        (spike,), (v,) = super().single_step_functional_forward(inputs, states, **kwargs)
        return (spike,), (v + 0.0 * v.detach() - 0.5 * (v - v.detach()),)


@pytest.mark.parametrize(
    ("cls", "like", "why"),
    [
        (Remembering, neuron.LIFNode, "it has the memory 'help', which"),
        (Online, neuron.LIFNode, "it detaches its state from one step to the next"),
        (OnlineLeaky, snntorch.Leaky, "it detaches its state from one step to the next"),
        (Watched, neuron.LIFNode, "as it runs it keeps 'rate', which LIFNode does not"),
        (Weighted, neuron.LIFNode, "the gradient of its parameter 'gain' is another than"),
        (Softer, neuron.LIFNode, "the gradient of its input is another than"),
    ],
)
def test_what_only_a_layer_shows(cls: Any, like: Any, why: str) -> None:
    tssl_adapters.register(cls, like=like)
    model = nn.Sequential(made(cls), neuron.LIFNode())
    row = tssl_adapters.inspect(model)[0]
    assert row.status == "refused"
    assert why in row.detail
    assert why in refusal(model)
    assert type(model[1]) is neuron.LIFNode
    assert type(tssl_adapters.wrap(model, skip=["0"])[0]) is cls


def refusal(model: nn.Module) -> str:
    with pytest.raises(UnsupportedLayerError) as caught:
        tssl_adapters.wrap(model)
    return str(caught.value)


class Fading(neuron.SimpleBaseNode):
    """Two memories, the second one of the spikes' trace."""

    def __init__(self) -> None:
        super().__init__(v_threshold=0.4)
        self.register_memory("help", 0.0)

    def neuronal_charge(self, x: Tensor) -> None:
        self.help = 0.5 * self.help + 0.3 * self.v
        self.v = 0.8 * self.v - 0.2 * self.help + x


class OwnCUBA(neuron.CUBALIFNode):
    """A step of its own: the library's."""

    def single_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        return super().single_step_functional_forward(inputs, states, **kwargs)


@pytest.mark.parametrize(
    ("cls", "like"), [(Fading, neuron.SimpleIFNode), (OwnCUBA, neuron.CUBALIFNode)]
)
def test_a_second_memory_wrapped_right(cls: Any, like: Any) -> None:
    """The library's surrogate as the rule gives the native gradient."""
    tssl_adapters.register(cls, like=like)
    surrogate = cls().surrogate_function

    def derivative(distance: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = distance.detach().requires_grad_()
            return torch.autograd.grad(surrogate(leaf).sum(), leaf)[0]

    layer = tssl_adapters.wrap(cls(), rule=rules.SurrogateGradient(derivative))
    (out, grad), (native_out, native_grad) = run(layer), run(cls())
    assert torch.equal(out, native_out)
    assert out.any()
    torch.testing.assert_close(grad, native_grad)


def test_trying_a_layer_out_leaves_no_trace() -> None:
    """Not in the layer, its hooks or its surrogate, and not in the random numbers."""
    tssl_adapters.register(OwnNode, like=neuron.LIFNode)
    layer = OwnNode()
    layer(torch.rand(2, 3, requires_grad=True))  # its state has a graph, which copy refuses
    calls: list[int] = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    before, v = dict(vars(layer)), layer.v
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert tssl_adapters.inspect(layer)[0].status == "wrap"
    assert torch.equal(torch.rand(2), expected)
    assert vars(layer) == before
    assert layer.v is v
    assert v.grad_fn is not None
    assert calls == []


@pytest.mark.parametrize("make", [neuron.LIFNode, lambda: snntorch.Leaky(0.9), norse.LIFCell])
def test_a_method_replaced_on_the_layer_itself(make: Any) -> None:
    """A wrapped class would change nothing."""
    layer = make()
    forward = layer.forward
    layer.forward = lambda *given: forward(*given)
    assert "its forward was replaced on the layer itself" in refusal(nn.Sequential(layer))


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
    with pytest.raises(TypeError, match=r"takes layer classes; class is an object of class int"):
        register(3, like=neuron.LIFNode)
    with pytest.raises(TypeError, match=r"takes layer classes; like is an object of class LIFNode"):
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
    with pytest.raises(UnsupportedLayerError, match=r"it overrides neuronal_fire"):
        tssl_adapters.register(OwnFire, like=neuron.SimpleLIFNode)
