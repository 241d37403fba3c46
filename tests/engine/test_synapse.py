"""A synaptic current and its neuron in one compiled loop, held to torch's operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import norse.torch as norse
import pytest
import torch
from norse.torch.functional.lif import LIFFeedForwardState
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters.engine.compiled import launch
from tssl_adapters.engine.compiled.kernels import Given, MismatchError
from tssl_adapters.engine.cpu.backend import CpuBackend
from tssl_adapters.errors import EngineWarning

STEPS, SHAPE = 9, (3, 43)
"""Odd sizes, so that a vector and a block are filled in part."""


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The currents of the calls that compute both in one loop."""
    found: list[Tensor] = []
    forward, again = launch.forward, CpuBackend.forward_again

    def noted(kernels: launch.Kernels, given: Given, *rest: Any) -> Any:
        if given.synapse is not None:
            found.append(given.synapse.current)
        return forward(kernels, given, *rest)

    def noted_again(backend: CpuBackend, *variant: Any) -> Any:
        run = again(backend, *variant)

        def noted(steps: int, neurons: int, window: float, tensors: Sequence[Any]) -> None:
            found.extend([] if tensors[2] is None else [tensors[2]])
            run(steps, neurons, window, tensors)

        return noted

    monkeypatch.setattr(launch, "forward", noted)
    monkeypatch.setattr(CpuBackend, "forward_again", noted_again)
    return found


def layer(rule: Any, engine: str, **p: Any) -> Any:
    made: nn.Module = norse.LIF(p=norse.LIFParameters(v_th=torch.tensor(0.3), **p))
    return tssl_adapters.wrap(made, rule=rule, engine=engine)


def numbers(
    make: Callable[[], Any], dtype: torch.dtype, cuts: tuple[int, ...] = (), current: bool = True
) -> list[Tensor]:
    """Spikes and states of a sequence in one call or several, then the gradients of a loss on
    all of them, or but for the current, by the drive and by the states before.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    x = (4.0 * noise(STEPS, *SHAPE)).requires_grad_()
    v, i = noise(*SHAPE).mul_(0.3).requires_grad_(), noise(*SHAPE).requires_grad_()
    run, outs, state = make(), [], norse.LIFFeedForwardState(v, i)
    for part in x.tensor_split(cuts):
        out, state = run(part, state)
        outs.append(out)
    found = [torch.cat(outs), state.v, state.i]
    losses = [(noise(*t.shape) * t).sum() for t in found[: 3 if current else 2]]
    return [*found, *torch.autograd.grad(sum(losses), (x, v, i))]


@pytest.mark.parametrize("current", [True, False], ids=["loss-on-current", "none"])
@pytest.mark.parametrize("cuts", [(), (4,), (1, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rule", ["smooth-tsslbp", "native", "tsslbp", "eventprop"])
def test_is_what_torch_computes(
    rule: str,
    dtype: torch.dtype,
    cuts: tuple[int, ...],
    current: bool,
    joined: list[Tensor],
) -> None:
    ours = numbers(lambda: layer(rule, "cpu"), dtype, cuts, current)
    longer = len(cuts) + 1 - (1 in cuts)  # than a step
    assert len(joined) == longer
    theirs = numbers(lambda: layer(rule, "torch"), dtype, cuts, current)
    assert len(joined) == longer
    assert 0.05 < float(ours[0].detach().mean()) < 0.95
    for ours_one, theirs_one in zip(ours[:3], theirs[:3], strict=True):
        assert torch.equal(ours_one, theirs_one)
    for ours_one, theirs_one in zip(ours[3:], theirs[3:], strict=True):
        tolerance = 1e-12 if dtype == torch.float64 else 2e-5
        scale = float(theirs_one.abs().max())
        assert scale > 0.0
        torch.testing.assert_close(ours_one, theirs_one, rtol=tolerance, atol=tolerance * scale)


def test_without_gradient(joined: list[Tensor]) -> None:
    x = 4.0 * torch.randn(STEPS, *SHAPE)
    out, state = layer("smooth-tsslbp", "cpu")(x)
    assert joined
    assert not state.i.requires_grad
    expected, theirs = norse.LIF(p=norse.LIFParameters(v_th=torch.tensor(0.3)))(x)
    assert torch.equal(out, expected)
    assert torch.equal(state.v, theirs.v)
    assert torch.equal(state.i, theirs.i)


def test_what_loops_of_their_own_are_for(joined: list[Tensor]) -> None:
    """A number that learns, states of every step, and a current of another dtype."""
    x = 4.0 * torch.randn(STEPS, *SHAPE, requires_grad=True)
    learns = torch.tensor(150.0, requires_grad=True)
    out, state = layer("smooth-tsslbp", "cpu", tau_mem_inv=learns)(x)
    (out.sum() + state.i.sum()).backward()
    assert learns.grad is not None
    assert float(learns.grad.abs()) > 0.0
    recorded = tssl_adapters.wrap(norse.LIF(record_states=True), engine="cpu")
    native = norse.LIF(record_states=True)
    for ours, theirs in zip(recorded(x)[1], native(x)[1], strict=True):
        assert torch.equal(ours, theirs)
    wide = norse.LIFFeedForwardState(torch.zeros(SHAPE), torch.zeros(SHAPE, dtype=torch.float64))
    assert layer("smooth-tsslbp", "cpu")(x, wide)[1].i.dtype == torch.float64
    assert not joined


def test_a_loop_that_rounds_otherwise_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_tried", {})
    expected = numbers(lambda: layer("smooth-tsslbp", "torch"), torch.float64)
    monkeypatch.setattr(launch, "_charges_alike", lambda *_: False)
    with pytest.warns(EngineWarning, match="does not give what torch gives"):
        found = numbers(lambda: layer("smooth-tsslbp", "cpu"), torch.float64)
    assert torch.equal(found[0], expected[0])
    for ours, theirs in zip(found[3:], expected[3:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_current_is_looked_at() -> None:
    x, made = 4.0 * torch.randn(STEPS, *SHAPE), layer("smooth-tsslbp", "cpu")
    made(x)
    call = made._tssl_settings.decided.call
    given = call.given(x, torch.zeros(SHAPE), None, current=torch.zeros(SHAPE))
    assert given.synapse is not None
    narrow = given.synapse._replace(current=torch.zeros(2))
    out, after = torch.empty_like(x), torch.empty(SHAPE)
    with pytest.raises(MismatchError, match="where a loop wants"):
        call.backend.forward(
            call.spec, given._replace(synapse=narrow), out, after, None, None, False, True
        )


@pytest.mark.parametrize("engine", ["torch", "cpu"])
def test_whole_numbers_join_the_current_as_they_do_natively(engine: str) -> None:
    """Before anything else gives them a dtype."""
    wide = {
        name: torch.tensor(value, dtype=torch.float64)
        for name, value in {
            "tau_mem_inv": 300.0,
            "v_leak": 0.0,
            "v_th": 0.12,
            "tau_syn_inv": 400.0,
        }.items()
    }
    x = torch.randint(0, 2, (STEPS, *SHAPE), generator=torch.Generator().manual_seed(0)).byte()
    p = norse.LIFParameters(**wide)
    out, state = tssl_adapters.wrap(norse.LIF(p=p), rule="tsslbp", engine=engine)(x)
    expected, theirs = norse.LIF(p=p)(x)
    for ours, native in ((out, expected), (state.v, theirs.v), (state.i, theirs.i)):
        assert ours.dtype == native.dtype
        assert torch.equal(ours, native)


@pytest.mark.parametrize("engine", ["torch", "cpu"])
def test_neurons_without_a_shape_in_half_precision(engine: str) -> None:
    """One neuron's states are single numbers, which a sequence would round otherwise."""
    x = torch.randn(STEPS, generator=torch.Generator().manual_seed(0)).half()
    out, state = tssl_adapters.wrap(norse.LIF(), rule="tsslbp", engine=engine)(x)
    expected, theirs = norse.LIF()(x)
    for ours, native in ((out, expected), (state.v, theirs.v), (state.i, theirs.i)):
        assert ours.dtype == native.dtype
        assert torch.equal(ours, native)


@pytest.mark.parametrize("rule", ["lee", "eventprop"])
def test_a_step_from_one_current_for_all_is_no_sequence(rule: str, joined: list[Tensor]) -> None:
    x = 3.0 * torch.rand(STEPS, 5, 5, generator=torch.Generator().manual_seed(0))
    found = []
    for engine in ("torch", "cpu"):
        cell = tssl_adapters.wrap(norse.LIFCell(), rule=rule, engine=engine)
        given, outs = x.clone().requires_grad_(), []
        state: Any = LIFFeedForwardState(torch.zeros(5, 5), torch.tensor(0.2))
        for step in given.unbind(0):
            out, state = cell(step, state)
            outs.append(out)
        values = torch.stack(outs)
        weights = torch.linspace(-1.0, 1.0, values.numel()).view_as(values)
        found.append((values, *torch.autograd.grad((values * weights).sum(), given)))
    assert not joined
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-5)
    assert found[0][1].any()
