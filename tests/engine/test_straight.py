"""The straight code of a decided step: that it can be read, what it keeps, what it costs."""

from __future__ import annotations

import gc
import linecache
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import norse.torch as norse
import pytest
import snntorch
import torch
from cell_layers import drive, steps, wrapped
from spikingjelly.activation_based import neuron
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.adapters.norse import run
from tssl_adapters.arithmetic import arithmetic
from tssl_adapters.engine.compiled import straight
from tssl_adapters.errors import LostLinkWarning


def test_the_example_of_the_docstring_is_what_is_written() -> None:
    node = tssl_adapters.wrap(neuron.LIFNode(), rule="native")
    node(torch.ones(2, 3, requires_grad=True))
    written = node._tssl_settings.decided.code.splitlines()
    assert straight.__doc__ is not None
    example = straight.__doc__.split("::\n\n")[1].split("\n\n")[0]
    shown = [line.removeprefix("    ") for line in example.splitlines()]
    assert len(shown) > 10
    assert [line for line in written if line in shown] == shown


def test_where_a_step_fails_its_line_is_shown() -> None:
    layer = wrapped("LSNNCell")
    steps(layer, drive())
    code = layer._tssl_settings.decided.run.__code__
    assert code.co_filename.startswith("<tssl_adapters: step ")  # no tool takes it for a file
    assert linecache.getline(code.co_filename, code.co_firstlineno).startswith("def run(")


def test_warnings_point_at_the_users_line() -> None:
    layer, x = wrapped("LSNNCell", "tsslbp"), drive()
    _, state = layer(x[0])
    _, state = layer(x[1], state)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", LostLinkWarning)
        layer(x[2], state._replace(v=state.v * 1.0))
    (said,) = (one for one in seen if one.category is LostLinkWarning)
    assert said.filename == __file__


def test_what_was_decided_before_is_freed() -> None:
    layer, held = wrapped("QIFNode"), []
    for _ in range(3):
        steps(layer, drive())
        held.append(weakref.ref(layer._tssl_settings.decided))
        layer.v_threshold = layer.v_threshold + 0.25
    texts = len(linecache.cache)
    steps(layer, drive())
    assert len(linecache.cache) == texts  # of the same form
    gc.collect()
    assert [ref() for ref in held] == [None] * 3


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
def test_evaluation_multiplies_no_weights_in_vain(
    tau_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = wrapped("LIFRecurrentCell", tau_s=tau_s), drive()
    _, state = layer(x[0])
    _, state = layer(x[1], state)
    called: list[int] = []
    linear = run.linear
    monkeypatch.setattr(run, "linear", lambda *given: (called.append(1), linear(*given))[1])
    with torch.no_grad():
        layer(x[2], state)
    assert len(called) == (0 if tau_s == 1.0 else 2)


def test_a_plain_tuple_as_a_state_is_refused_by_the_library() -> None:
    layer, x = wrapped("LSNNCell"), drive()
    steps(layer, x)
    with pytest.raises(AttributeError, match=r"'tuple' object has no attribute '[a-z]'"):
        layer(x[0], (x[0], x[0], x[0], x[0]))


@pytest.mark.parametrize("name", ["LSNNCell", "KLIFNode"])
@pytest.mark.parametrize("tau_s", [1.0, 3.0])
def test_a_hook_that_gives_back_another_shape_is_an_error(name: str, tau_s: float) -> None:
    layer = wrapped(name, "tsslbp", tau_s=tau_s)
    steps(layer, drive())
    with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor[:1]):
        out = steps(layer, drive())[0]
        with pytest.raises(RuntimeError, match="a hook on saved tensors gave back one of shape"):
            out.sum().backward()


@dataclass(frozen=True)
class Timed(rules.TSSLBP):
    """It has a link, and asks for the number of time steps."""

    timed = True

    @arithmetic
    def slope(self, step: Any) -> Any:
        return step.spike * (1.0 / step.steps)


@pytest.mark.parametrize("engine", ["torch", "cpu"])
def test_a_timed_rule_that_goes_on_from_an_untimed_ones_state(engine: str) -> None:
    """Its sequence begins there."""
    first = tssl_adapters.wrap(norse.LIFCell(), rule="tsslbp", engine=engine)
    second = tssl_adapters.wrap(norse.LIFCell(), rule=Timed(), engine=engine)
    x = (20.0 * torch.rand(7, 3, 5, generator=torch.Generator().manual_seed(0))).requires_grad_()

    def outs(until: int, state: Any = None) -> Tensor:
        found = []
        for t, step in enumerate(x):
            out, state = (first if t < until else second)(step, state)
            found.append(out)
        return torch.stack(found)

    grads = torch.autograd.grad(outs(3).sum(), x)[0]
    assert grads[3:].any()
    with torch.no_grad():
        _, state = norse.LIFCell()(x[0])
        for step in x[1:3]:
            _, state = norse.LIFCell()(step, state)
    leaf = x[3:].detach().requires_grad_()
    found = []
    for step in leaf:
        out, state = second(step, state)
        found.append(out)
    (alone,) = torch.autograd.grad(torch.stack(found).sum(), leaf)
    torch.testing.assert_close(grads[3:], alone)


MAKERS: dict[str, Callable[[], Any]] = {
    "Leaky": lambda: snntorch.Leaky(0.9),
    "LIFNode": neuron.LIFNode,
    "QIFNode": neuron.QIFNode,
    "RSynaptic": lambda: snntorch.RSynaptic(0.8, 0.9, linear_features=64),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_gradient_may_lie_in_memory_as_it_likes(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.rand(2, 64, 64, generator=generator)

    def gradient(of_out: Tensor) -> Tensor:
        torch.manual_seed(0)  # of the layer's own weights
        layer, leaf = tssl_adapters.wrap(MAKERS[name]()), x.clone().requires_grad_()
        ran = layer(leaf)
        assert layer._tssl_settings.decided is not None
        (ran[0] if isinstance(ran, tuple) else ran).backward(of_out)
        found: Tensor = leaf.grad
        return found

    for given in (weight.t(), weight[:1].expand(64, 64), weight[:, :1].expand(64, 64)):
        found = gradient(given)
        assert torch.equal(found, gradient(given.contiguous()))
        assert found.any()
