"""torch.compile of nodes over whole sequences, which stay in its graph: what eager gives."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import compiler
import numpy
import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn
from usage import own_instances  # noqa: F401

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.errors import LostLinkWarning, NativeGradientWarning

X = 3.0 * torch.rand(3, 4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
NODES: dict[str, Callable[[], nn.Module]] = {
    "LIF": neuron.LIFNode,
    "IF": neuron.IFNode,
    "ParametricLIF": neuron.ParametricLIFNode,
    "KLIF": neuron.KLIFNode,
    "EIF": neuron.EIFNode,
    "Izhikevich": neuron.IzhikevichNode,
    "CUBALIF": neuron.CUBALIFNode,
    "ComplementaryLIF": neuron.ComplementaryLIFNode,
    "GatedLIF": lambda: neuron.GatedLIFNode(T=3, inplane=4),
    "SimpleLIF": lambda: neuron.SimpleLIFNode(2.0, True),
}


def made(node: Callable[[], nn.Module] = neuron.LIFNode, **how: Any) -> nn.Sequential:
    torch.manual_seed(0)
    numpy.random.seed(0)  # GatedLIFNode draws its parameters by it
    parts = [layer.Conv2d(1, 4, 3), node(), layer.Conv2d(4, 4, 3), layer.BatchNorm2d(4), node()]
    model = nn.Sequential(*parts)
    functional.set_step_mode(model, "m")
    return tssl_adapters.wrap(model, **how)


def compiled(model: Any, fullgraph: bool = True, **how: Any) -> Any:
    compiler.forget()
    return torch.compile(model, backend="aot_eager", fullgraph=fullgraph, **how)


def numbers(model: nn.Module, run: Any, x: Tensor = X, *others: Tensor) -> list[Any]:
    """The output, then the gradients of all parameters and of ``others``, from rest."""
    functional.reset_net(model)
    return joined(model, run, x, *others)


def joined(model: nn.Module, run: Any, x: Tensor = X, *others: Tensor) -> list[Any]:
    """The same from the states that there are."""
    out = run(x)
    weights = torch.linspace(0.0, 1.0, out.numel(), dtype=out.dtype).view_as(out)
    wanted = [*model.parameters(), *others]
    return [out, *torch.autograd.grad((out * weights).sum(), wanted, allow_unused=True)]


def assert_same(found: list[Any], expected: list[Any]) -> None:
    assert expected[0].count_nonzero()
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or (ours.dtype == theirs.dtype and torch.equal(ours, theirs))


@pytest.mark.singly
@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("name", NODES)
def test_a_node_stays_in_the_graph(name: str, tau_s: float) -> None:
    plain, model = (made(NODES[name], tau_s=tau_s) for _ in range(2))
    run = compiled(model)
    for _ in range(2):
        assert_same(numbers(model, run), numbers(plain, plain))


RULES = [rules.TSSLBP(), rules.Lee(), rules.STRSBP(), rules.SurrogateGradient(torch.exp)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_rule(rule: rules.Rule) -> None:
    plain, model = (made(rule=rule) for _ in range(2))
    assert_same(numbers(model, compiled(model)), numbers(plain, plain))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_and_sizes(dtype: torch.dtype) -> None:
    plain, model = (made().to(dtype) for _ in range(2))
    run = compiled(model)
    for batch in (4, 3, 2):
        x = X[:, :batch].to(dtype)
        assert_same(numbers(model, run, x), numbers(plain, plain, x))


def test_whole_numbers_as_an_input() -> None:
    found = []
    for compile in (lambda model: model, compiled):
        torch.manual_seed(0)
        parts = [neuron.ParametricLIFNode(decay_input=False), layer.Flatten(), nn.Linear(64, 3)]
        model = nn.Sequential(*parts)
        functional.set_step_mode(model, "m")
        found.append(numbers(tssl_adapters.wrap(model), compile(model), X.long()))
    assert_same(*reversed(found))


def test_autocast() -> None:
    plain, model = made(), made()
    run = compiled(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(numbers(model, run), numbers(plain, plain))


def test_states_after_a_sequence() -> None:
    """They are eager's, with a gradient of their own."""
    found = []
    for compile in (lambda model: model, compiled):
        model = made(neuron.CUBALIFNode)
        compile(model)(X)
        states = [*model[1]._memories.values(), *model[-1]._memories.values()]
        loss = sum((state * state.sigmoid()).sum() for state in states)
        found.append([*states, *torch.autograd.grad(loss, list(model.parameters()))])
    assert_same(*reversed(found))


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
def test_sequences_go_on_from_states_without_a_graph(tau_s: float) -> None:
    plain, model = made(tau_s=tau_s), made(tau_s=tau_s)
    run = compiled(model, fullgraph=False)
    for _ in range(3):
        assert_same(joined(model, run), joined(plain, plain))
        functional.detach_net(plain)
        functional.detach_net(model)


def test_sequences_that_go_on_from_a_graph_lose_the_chain_with_a_warning() -> None:
    plain, model = (made(rule=rules.TSSLBP()) for _ in range(2))
    run = compiled(model, fullgraph=False)
    expected = numbers(plain, lambda x: torch.cat([plain(x), plain(x)]))
    with pytest.warns(LostLinkWarning):
        found = numbers(model, lambda x: torch.cat([run(x), run(x)]))
    assert torch.equal(found[0], expected[0])
    assert not torch.allclose(found[1], expected[1])


class Sets(nn.Module):
    """Sets the threshold of its first neurons in the forward pass."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.model, self.threshold = model, 1.0

    def forward(self, x: Tensor) -> Tensor:
        self.model[1].v_threshold = self.threshold
        out: Tensor = self.model(x)
        return out


def test_a_threshold_that_is_set() -> None:
    """Before the call, or by compiled code in it."""
    plain, model = made(), made()
    run = compiled(model)
    for threshold in (1.0, 0.5, 0.7):
        plain[1].v_threshold = model[1].v_threshold = threshold
        assert_same(numbers(model, run), numbers(plain, plain))
    around, within = Sets(made()), Sets(made())
    run = compiled(within, fullgraph=False)
    for threshold in (1.0, 0.5, 0.7):
        around.threshold = within.threshold = threshold
        assert_same(numbers(within, run), numbers(around, around))


def with_its_own_surrogate() -> nn.Module:
    """The library's default is one object for all nodes."""
    return neuron.LIFNode(surrogate_function=surrogate.Sigmoid())


def test_the_native_rule_breaks_the_graph() -> None:
    """Its slope is of the forward pass, and a layer does not see that its surrogate is changed."""
    found = []
    for compile in (lambda model: model, lambda model: compiled(model, fullgraph=False)):
        model = made(with_its_own_surrogate, rule=rules.Native())
        out = compile(model)(X)
        model[1].surrogate_function.alpha = 1.0
        found.append([out, *torch.autograd.grad(out.sum(), list(model.parameters()))])
    assert_same(*reversed(found))


@pytest.mark.parametrize("called", [False, True])
def test_a_threshold_with_a_graph_breaks_it(called: bool) -> None:
    """Set before the first call or after it."""
    threshold = torch.tensor(0.8, requires_grad=True)
    plain, model = made(), made()
    run = compiled(model, fullgraph=False)
    if called:
        run(X)
    plain[1].v_threshold = model[1].v_threshold = threshold
    expected = numbers(plain, plain, X, threshold)
    assert_same(numbers(model, run, X, threshold), expected)
    assert expected[-1] != 0.0


class Halving(neuron.SimpleIFNode):  # type: ignore[misc]
    """Its charge is the user's, who may do anything in it."""

    def neuronal_charge(self, x: Tensor) -> None:
        self.v = self.v + 0.5 * x


def halving() -> nn.Module:
    tssl_adapters.register(Halving, like=neuron.SimpleIFNode)
    return made(Halving)


def storing() -> nn.Module:
    return made(lambda: neuron.IFNode(store_v_seq=True))


def with_its_own_kernels() -> nn.Module:
    model = made(neuron.IFNode)
    model[1].backend = "cupy"
    return model


@pytest.mark.parametrize("make", [halving, storing, with_its_own_kernels])
def test_what_breaks_the_graph(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(Exception, match=r"disable\(\)"):
        compiled(make())(X)


def test_models_do_not_share_a_graph() -> None:
    compiler.forget()
    for rule in RULES:
        model = made(rule=rule)
        run = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert_same(numbers(model, run), numbers(model, model))


def test_a_copy_has_a_graph_of_its_own() -> None:
    model = made()
    run = compiled(model)
    expected = numbers(model, run)
    functional.reset_net(model)
    twin = copy.deepcopy(model)
    another = torch.compile(twin, backend="aot_eager", fullgraph=True)
    assert_same(numbers(twin, another), expected)
    model[1].v_threshold = 0.5
    assert_same(numbers(twin, another), expected)
    assert_same(numbers(model, run), numbers(model, model))


def test_a_layer_that_changes_before_the_backward_pass() -> None:
    model = made()
    out = compiled(model)(X).sum()
    model[1].v_threshold = 0.5
    with pytest.raises(RuntimeError, match=r"layer '1' of a compiled model was changed between"):
        out.backward()


def test_a_layer_that_is_gone_before_the_backward_pass() -> None:
    out = compiled(made())(X).sum()
    compiler.forget()
    gc.collect()
    with pytest.raises(RuntimeError, match=r"a layer of a compiled model was deleted between"):
        out.backward()


def test_a_layer_that_is_no_longer_the_neuron() -> None:
    plain, model = made(), made()
    run = compiled(model, fullgraph=False)
    run(X)
    for one in (plain, model):
        one[1].surrogate_function = surrogate.Sigmoid(spiking=False)
    with pytest.warns(NativeGradientWarning):
        found = numbers(model, run)
    with pytest.warns(NativeGradientWarning):
        assert_same(found, numbers(plain, plain))
