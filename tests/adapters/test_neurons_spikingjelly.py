"""SpikingJelly's further nodes: what the common suite cannot ask."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from cases import BATCH, NEURONS, sigmoid
from spikingjelly.activation_based import base, functional, neuron, surrogate
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.adapters.spikingjelly.simple import SimpleNode
from tssl_adapters.engine.call.settings import Settings
from tssl_adapters.errors import UnsupportedConfigError, UnsupportedLayerError

STEPS = 8
FURTHER = {
    "Half": lambda: neuron.HalfThresholdIFNode(),
    "KLIF": lambda: neuron.KLIFNode(v_threshold=0.5),
    "KLIF-scaled": lambda: neuron.KLIFNode(True, v_threshold=0.5),
    "QIF": lambda: neuron.QIFNode(v_threshold=0.6),
    "EIF": lambda: neuron.EIFNode(tau=5.0, delta_T=2.0),
    "Izhikevich": lambda: neuron.IzhikevichNode(v_threshold=0.6, a=0.4, b=0.3),
    "Complementary": lambda: neuron.ComplementaryLIFNode(3.0, 0.7),
    "CUBA": lambda: neuron.CUBALIFNode(),
    "RAF": lambda: neuron.RAFNode(v_threshold=0.5),
    "SimpleIF": lambda: neuron.SimpleIFNode(),
    "SimpleLIF": lambda: neuron.SimpleLIFNode(3.0, False, v_threshold=0.5),
}
every = pytest.mark.parametrize("name", FURTHER)


def drive(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = 0.6 + torch.randn(STEPS, BATCH, NEURONS, generator=generator, dtype=torch.float64)
    return x.requires_grad_()


def made(name: str, mode: str = "s") -> Any:
    node = FURTHER[name]().double()
    node.step_mode = mode
    return node


def weighted(out: Tensor) -> Tensor:
    weight = torch.linspace(-1.0, 2.0, out.numel(), dtype=out.dtype)
    return (out * weight.view_as(out)).sum()


def gradient(node: Any, x: Tensor) -> list[Tensor]:
    """Of the input and the parameters, by the node's own rule, however it is called."""
    out = node(x) if node.step_mode == "m" else torch.stack([node(step) for step in x])
    return list(torch.autograd.grad(weighted(out), [x, *node.parameters()]))


def same(left: list[Tensor], right: list[Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@every
def test_a_sequence_is_its_steps(name: str, tau_s: float) -> None:
    """TSSL-BP, whose chain travels on links: none is lost, and both step modes agree."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nodes = [tssl_adapters.wrap(made(name, m), tau_s=tau_s, rule="tsslbp") for m in "sm"]
        found = [gradient(node, drive()) for node in nodes]
    same(*found)
    assert float(found[0][0].abs().sum()) > 0.0


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("mode", "sm")
@pytest.mark.parametrize("v_reset", [0.0, -0.2])
def test_simple_nodes_are_the_others(mode: str, tau_s: float, v_reset: float) -> None:
    """TSSL-BP by the generic way and by the linear one."""
    pairs = [
        (neuron.SimpleLIFNode, neuron.LIFNode, {"tau": 3.0, "decay_input": True}),
        (neuron.SimpleIFNode, neuron.IFNode, {}),
    ]
    for simple, linear, settings in pairs:
        options = {**settings, "v_threshold": 0.5, "v_reset": v_reset, "step_mode": mode}
        nodes = [cls(**options) for cls in (simple, linear)]
        for node in nodes:
            tssl_adapters.wrap(node, tau_s=tau_s, rule="tsslbp")
        nodes[1].set_reset_value("v", 0.0)  # where simple nodes start, whatever their v_reset
        nodes[1].v = 0.0
        same(*(gradient(node, drive()) for node in nodes))


@pytest.mark.parametrize("mode", "sm")
@pytest.mark.parametrize("v_reset", [0.0, -0.2, None])
def test_scale_reset_changes_nothing_at_k_of_1(mode: str, v_reset: float | None) -> None:
    """Two neurons that are then the same one: the same chain through spike times, too."""
    found = []
    for scale in (False, True):
        node = neuron.KLIFNode(scale, 3.0, v_threshold=0.5, v_reset=v_reset, step_mode=mode)
        found.append(gradient(tssl_adapters.wrap(node.double(), rule="tsslbp"), drive())[:1])
    same(*found)


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("mode", "sm")
@every
def test_functional_forward(name: str, mode: str, tau_s: float) -> None:
    """What memopt calls: values and gradient of the plain call, and no memory is changed."""
    node = tssl_adapters.wrap(made(name, mode), tau_s=tau_s)
    x = drive()
    call = base.to_functional_forward(node)
    start = base.extract_memories(node)
    states, outs = tuple(start), []
    for part in x if mode == "s" else x.split(3):
        (out,), states = call((part,), states)
        outs.append(out)
    assert base.extract_memories(node) == start
    out = (torch.stack if mode == "s" else torch.cat)(outs)
    found = list(torch.autograd.grad(weighted(out), [x, *node.parameters()]))
    same(found, gradient(node, x))
    with torch.no_grad():
        assert torch.equal(call((x if mode == "m" else x[0],), tuple(start))[0][0], outs[0]) or (
            mode == "m"
        )


@every
def test_nothing_flows_back_without_a_chain(name: str) -> None:
    """SLTT: only the current step's input has a gradient, whatever states there are."""
    rule = rules.SurrogateGradient(sigmoid, chain=False)
    node = tssl_adapters.wrap(made(name), rule=rule)
    x = drive()
    outs = [node(step) for step in x]
    (grad,) = torch.autograd.grad(outs[-1].sum() + 0.0 * x.sum(), x)
    assert not grad[:-1].any()
    assert name == "RAF" or grad[-1].any()  # RAF's input arrives a step later


@every
def test_detach_and_reset(name: str) -> None:
    """detach_net cuts every state and keeps the trace; reset_net starts anew."""
    node = tssl_adapters.wrap(made(name), tau_s=3.0)
    x = drive()
    first = [node(step).detach() for step in x]
    functional.reset_net(node)
    for step in x[:4]:
        node(step)
    functional.detach_net(node)
    assert not any(m.requires_grad for m in node.memories() if isinstance(m, Tensor))
    outs = [node(step) for step in x[4:]]
    assert torch.equal(torch.stack(outs), torch.stack(first[4:]))
    (grad,) = torch.autograd.grad(sum(map(torch.sum, outs)), x)  # type: ignore[arg-type]
    assert not grad[:4].any()
    assert grad[4:].any()


@every
def test_the_surrogate_function_is_left_alone(name: str) -> None:
    """Layers share it; so might threads."""
    node = made(name)
    shared = node.surrogate_function
    before = dict(vars(shared))
    tssl_adapters.wrap(node)
    gradient(node, drive())
    assert node.surrogate_function is shared
    assert vars(shared) == before


@every
def test_pickles(name: str) -> None:
    node = pickle.loads(pickle.dumps(tssl_adapters.wrap(made(name))))
    assert tssl_adapters.is_wrapped(node)
    same(gradient(node, drive()), gradient(tssl_adapters.wrap(made(name)), drive()))


def test_half_a_threshold_is_rest() -> None:
    """Where the library starts a node is where a new trace may start, as a tensor too."""
    node, again = (tssl_adapters.wrap(made("Half"), tau_s=3.0) for _ in range(2))
    x = drive()
    again(x[1])
    again.v = torch.full_like(x[0], 0.5)
    assert torch.equal(node(x[0]), again(x[0]))


def test_klif_in_training() -> None:
    """k learns, past 1, with the potentials that are handed on scaled by it."""
    node = tssl_adapters.wrap(neuron.KLIFNode(True, v_threshold=0.5, step_mode="m").double())
    optimizer = torch.optim.SGD(node.parameters(), 0.05)
    for _ in range(3):
        functional.reset_net(node)
        before = node.k.item()
        node(drive()).sum().neg().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert node.k.item() != before
    functional.reset_net(node)
    native = neuron.KLIFNode(True, v_threshold=0.5, step_mode="m").double()
    nn.init.constant_(native.k, node.k.item())
    assert torch.equal(node(drive()), native(drive()))
    assert torch.equal(node.v, native.v)


def test_complementary_in_evaluation() -> None:
    """The library cuts the gradient there; values are its own and the gradient the rule's."""
    found = []
    for training in (True, False):
        node = made("Complementary").train(training)
        native = copy.deepcopy(node)
        tssl_adapters.wrap(node)
        for step in drive():
            assert torch.equal(node(step), native(step))
        functional.reset_net(node)
        found.append(gradient(node, drive()))
    same(*found)


# --- classes of the user's own -----------------------------------------------------------------


class Own(neuron.SimpleBaseNode):
    """A charge, a state and parameters of its own; the input has another shape than the state."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(v_threshold=0.6, **settings)
        self.register_memory("current", 0.0)
        self.rate = nn.Parameter(torch.linspace(0.4, 0.8, NEURONS))
        self.mix = nn.Linear(NEURONS, NEURONS - 1)
        self.calls = 0

    def neuronal_charge(self, x: Tensor) -> None:
        self.calls += 1
        drive = self.mix(x * self.rate)
        self.current = 0.5 * self.current + drive - 0.1 * self.v
        self.v = self.v + torch.tanh(self.current) - 0.2 * self.v**3 + 0.3


class WrappedOwn(SimpleNode, Own):
    _tssl_native = Own


def own(tau_s: float = 1.0, rule: Any = None, **settings: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    native = Own(**settings).double()
    node = copy.deepcopy(native)
    node.__class__ = WrappedOwn
    node._tssl_settings = Settings("own", rule or rules.SurrogateGradient(sigmoid), tau_s)
    return native, node


@pytest.mark.parametrize("detached", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, -0.2, None])
@pytest.mark.parametrize("mode", "sm")
def test_a_class_of_the_users_own(mode: str, v_reset: float | None, detached: bool) -> None:
    native, node = own(step_mode=mode, v_reset=v_reset, detach_reset=detached)
    found = [gradient(layer, drive()) for layer in (native, node)]
    same(*found)
    assert torch.equal(node.v, native.v)
    assert torch.equal(node.current, native.current)
    assert node.calls == native.calls == STEPS
    for kept in (node.v, node.current):
        kept.detach_()
    with torch.no_grad():
        assert torch.equal(node(drive()), native(drive()))


def test_what_else_a_class_may_override() -> None:
    class Loud(neuron.SimpleIFNode):
        def neuronal_fire(self) -> Tensor:
            return 2.0 * super().neuronal_fire()

    with pytest.raises(UnsupportedLayerError, match="Own"):
        tssl_adapters.wrap(Own())
    assert tssl_adapters.register(Own, like=neuron.SimpleIFNode) is Own
    with pytest.raises(UnsupportedLayerError, match=r"Loud cannot .*overrides neuronal_fire"):
        tssl_adapters.register(Loud, like=neuron.SimpleIFNode)
    off = neuron.SimpleIFNode(surrogate_function=surrogate.ATan(spiking=False))
    with pytest.raises(UnsupportedConfigError, match="set_spiking_mode"):
        tssl_adapters.wrap(off)
