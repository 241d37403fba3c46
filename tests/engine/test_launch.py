"""Compiled code is tried before it is used, and never given memory that it was not compiled for."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from fused_cases import T, Variant, a_neuron, call_of, check_against_torch
from torch import Tensor

import tssl_adapters
from tssl_adapters.engine.call.plan import Plan
from tssl_adapters.engine.compiled import fused, kernels, launch
from tssl_adapters.engine.compiled.kernels import Adjoints, Given, MismatchError
from tssl_adapters.engine.compiled.steps import Steps
from tssl_adapters.engine.cpu import backend as cpu
from tssl_adapters.engine.cpu import backward, loops
from tssl_adapters.engine.cpu.backend import CpuBackend
from tssl_adapters.engine.step.spec import BackForm
from tssl_adapters.errors import EngineWarning
from tssl_adapters.rules import TSSLBP, SmoothTSSLBP

VARIANT = Variant("immediate", "value", 3.0, "complete", False, False, True)


@pytest.fixture(autouse=True)
def untried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has just begun."""
    monkeypatch.setattr(launch, "_tried", {})
    cpu._backward_loop.cache_clear()
    yield
    cpu._backward_loop.cache_clear()


def a_layer(tau_s: float = 1.0) -> Any:
    norse = pytest.importorskip("norse.torch")
    model = torch.nn.Sequential(norse.LIF())
    return tssl_adapters.wrap(model, tau_s=tau_s, rule=TSSLBP(), engine="cpu")


def gradient(layer: Any, steps: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = (2.0 * torch.randn(steps, 3, 5)).requires_grad_()
    out, _ = layer[0](x)
    return out.detach(), torch.autograd.grad((out * torch.randn(out.shape)).sum(), x)[0]


def by_torch(tau_s: float = 1.0) -> tuple[Tensor, Tensor]:
    layer = a_layer(tau_s)
    layer[0]._tssl_settings.engine = "torch"
    return gradient(layer)


def slower(spec: Any, tau_s: float, *rest: Any) -> Any:
    return spec, 2.0 * tau_s, *rest


def steeper(spec: Any, rule: TSSLBP, *rest: Any) -> Any:
    return spec, replace(rule, max_slope=2.0 * rule.max_slope), *rest


def wider(spec: Any, rule: TSSLBP, *rest: Any) -> Any:
    return spec, replace(rule, fallback_width=2.0 * rule.fallback_width), *rest


def instead(of: Any, made: Any) -> Any:
    """Have the CPU backend make other loops of one kind: ``made`` is given its way to make them."""
    right = cpu._made

    def make(which: Any, *variant: Any) -> Any:
        if which is not of:
            return right(which, *variant)
        return made(lambda *variant: right(of, *variant), *variant)

    return make


def broken(change: Any) -> Any:
    """A compiled loop of another variant than the one that is asked for."""
    return lambda right, *variant: right(*change(*variant))


def unfinished(right: Any, *variant: Any) -> Any:
    """A compiled loop that leaves out half of the neurons."""
    loop = right(*variant)
    return lambda first, last, *rest: loop(first, last // 2, *rest)


@pytest.mark.parametrize(
    ("kind", "change", "called"),
    [
        (loops.forward_sequence, slower, "forward"),
        (backward.backward_sequence, steeper, "backward"),
        (backward.backward_sequence, wider, "backward"),
        (loops.current, None, "current"),
        (loops.current_back, None, "current_back"),
    ],
)
def test_torch_takes_the_place_of_a_loop_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch, kind: Any, change: Any, called: str
) -> None:
    expected = by_torch(3.0)
    made = unfinished if change is None else broken(change)
    monkeypatch.setattr(cpu, "_made", instead(kind, made))
    layer = a_layer(3.0)
    with pytest.warns(EngineWarning, match=f"layer '0': .* the compiled {called} pass") as told:
        found = gradient(layer)
    assert len(told) == 1
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-6)
    assert found[1].abs().sum() > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", EngineWarning)
        again = gradient(copy.deepcopy(layer))
    torch.testing.assert_close(again, found)


def test_values_of_a_loop_that_are_wrong_make_no_other_neuron(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Torch, whose values are the library's, takes its place with the same gradient."""
    plain = fused.Call.values
    monkeypatch.setattr(fused.Call, "values", lambda *given: [2.0 * v for v in plain(*given)])
    layer = a_layer()
    for ours, theirs in zip(gradient(layer), by_torch(), strict=True):
        assert torch.equal(ours, theirs)
    assert not any(layer[0]._tssl_settings.loops.values())
    assert not recwarn.list


@pytest.mark.parametrize(
    ("kind", "called"),
    [(loops.forward_sequence, "forward"), (backward.backward_sequence, "backward")],
)
def test_what_only_large_sequences_run_is_tried_too(
    monkeypatch: pytest.MonkeyPatch, kind: Any, called: str
) -> None:
    expected = by_torch()

    def made(right: Any, *variant: Any) -> Any:
        loop = right(*variant)

        def run(first: int, last: int, steps: int, neurons: int, large: int, *rest: int) -> None:
            loop(first, last if large else last // 2, steps, neurons, large, *rest)

        return run

    monkeypatch.setattr(cpu, "_made", instead(kind, made))
    with pytest.warns(EngineWarning, match=f"layer '0': .* the compiled {called} pass"):
        found = gradient(a_layer())
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [loops.forward_sequence, backward.backward_sequence])
def test_torch_takes_the_place_of_a_loop_that_does_not_compile(
    monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no compiler")

    expected = by_torch()
    monkeypatch.setattr(cpu, "_made", instead(kind, fails))
    with pytest.warns(EngineWarning, match=r"cannot be run \(RuntimeError: no compiler\)"):
        found = gradient(a_layer())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
def test_steps_go_on_where_a_backward_loop_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tau_s: float
) -> None:
    """Those of a layer that keeps its states, for which its own steps are not compiled."""
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    torch.manual_seed(0)
    x, weight = torch.randn(2, 6, 3, 5)
    found = []
    for engine in ("torch", "cpu"):
        if engine == "cpu":
            made = instead(backward.backward_step, broken(steeper))
            monkeypatch.setattr(cpu, "_made", made)
        layer = neuron.ParametricLIFNode(v_reset=None, store_v_seq=True)
        tssl_adapters.wrap(layer, engine=engine, tau_s=tau_s, rule=TSSLBP())
        given = (2.0 * x).requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EngineWarning)
            outs = [layer(step) for step in given]
            loss = (torch.stack(outs) * weight).sum() + layer.v.sum()
            found.append(torch.autograd.grad(loss, [given, *layer.parameters()]))
    assert False in launch._tried.values()
    for ours, expected in zip(*reversed(found), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert found[0][0].abs().sum() > 0


def test_a_variant_is_tried_once() -> None:
    check_against_torch(CpuBackend(), VARIANT)
    tried = dict(launch._tried)
    assert len(tried) == 2
    assert all(tried.values())
    check_against_torch(CpuBackend(), VARIANT)
    assert launch._tried == tried


def test_trying_leaves_the_users_random_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    layer, x = a_layer(), torch.ones(5, 3, 5, requires_grad=True)
    torch.manual_seed(0)
    layer[0](x)[0].sum().backward()
    assert launch._tried
    assert torch.equal(torch.rand(3), expected)


WRONG = {
    "dtype": lambda t: t.float(),
    "half": lambda t: t.half(),
    "count": lambda t: t[..., :-1].contiguous(),
    "order": lambda t: t.t().contiguous().t() if t.ndim == 2 else t.repeat(2)[::2],
    "device": lambda t: t.to("meta"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("field", ["drive", "state", "trace"])
def test_memory_of_another_kind_is_not_handed_over(
    monkeypatch: pytest.MonkeyPatch, field: str, wrong: str
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the loop was called")

    monkeypatch.setattr(cpu, "over", never)
    neuron = a_neuron("both", "value", False)
    plan = Plan(neuron, TSSLBP(), 3.0, 0, False, False, False)
    drive, state, trace = (torch.zeros(*shape, 5).double() for shape in ((T, 3), (3,), (3,)))
    call = call_of(CpuBackend(), plan, drive, state, trace)
    with torch.no_grad():
        given = call.given(drive, state, trace)
    given = given._replace(drive=drive.view(T, 15), state=state.view(15), trace=trace.view(15))
    out, after = torch.empty_like(drive), torch.empty_like(state)
    with pytest.raises(AssertionError, match="was called"):
        call.backend.forward(call.spec, given, out, after, None, None, False, True)
    bad: Given = given._replace(**{field: WRONG[wrong](getattr(given, field))})
    with pytest.raises(MismatchError, match="where a loop wants"):
        call.backend.forward(call.spec, bad, out, after, None, None, False, True)


def test_numbers_of_another_kind_are_not_handed_over() -> None:
    neuron = a_neuron("both", "value", False)
    plan = Plan(neuron, TSSLBP(), 1.0, 0, False, False, False)
    drive, state = torch.zeros(T, 3, 5).double(), torch.zeros(3, 5).double()
    call = call_of(CpuBackend(), plan, drive, state)
    with torch.no_grad():
        given = call.given(drive, state, None)
    out, after = torch.empty_like(drive), torch.empty_like(state)
    for like, dense in ((drive.float(), False), (drive, True)):
        numbers = call.backend.numbers([0.5] * 8, dense, like, state.shape)
        with pytest.raises(MismatchError, match="numbers in"):
            call.backend.forward(
                call.spec, given._replace(numbers=numbers), out, after, None, None, False, True
            )


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("field", ["out", "after", "link"])
def test_gradients_of_another_kind_are_not_handed_over(
    monkeypatch: pytest.MonkeyPatch, field: str, wrong: str
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the loop was called")

    monkeypatch.setattr(cpu, "over", never)
    neuron = a_neuron("both", "value", False)
    plan = Plan(neuron, TSSLBP(), 1.0, 0, False, False, False)
    drive, state = torch.zeros(T, 15).double(), torch.zeros(15).double()
    call = call_of(CpuBackend(), plan, drive, state)
    with torch.no_grad():
        given = call.given(drive, state, None)
    link = torch.zeros(2, 15).double()
    room = (torch.empty_like(drive), torch.empty_like(link), state, None, None, None)
    adjoints = Adjoints(torch.zeros_like(drive), 15, state, 0, link, *room)
    form = BackForm(True, False, True, False, TSSLBP())
    variant = kernels.Variant.of(call.spec, form, given, adjoints)
    with pytest.raises(AssertionError, match="was called"):
        call.backend.backward(variant, given, None, adjoints)
    adjoints = adjoints._replace(**{field: WRONG[wrong](getattr(adjoints, field))})
    with pytest.raises(MismatchError, match="where a loop wants"):
        call.backend.backward(variant, given, None, adjoints)


@pytest.mark.parametrize("kept", [Tensor.double, lambda t: t.repeat_interleave(2, -1)[..., ::2]])
def test_what_a_hook_gives_back_in_another_form_is_computed_all_the_same(kept: Any) -> None:
    expected = gradient(a_layer())
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, kept):
        found = gradient(a_layer())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_sign_that_torch_only_notes_is_seen() -> None:
    negated = torch._neg_view(2.0 * torch.randn(5, 3, 5))
    assert negated.is_neg()
    assert negated.is_contiguous()
    found = []
    for engine in ("torch", "cpu"):
        layer = a_layer()
        layer[0]._tssl_settings.engine = engine
        x = negated.detach().clone().requires_grad_()
        out, _ = layer[0](negated)
        again, _ = layer[0](x)
        assert torch.equal(out, again)
        found.append(torch.autograd.grad(again, x, negated)[0])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("error::tssl_adapters.errors.EngineWarning")
def test_gradients_that_cancel_in_every_step_are_no_fault() -> None:
    """Of a loss on the last potential, where a slope times what a spike takes is nearly 1."""
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    layer = neuron.IFNode(step_mode="m", v_reset=None)
    tssl_adapters.wrap(layer, rule="native", engine="cpu")
    x = torch.randn(5, 8, requires_grad=True)
    layer(x)
    (layer.v**2).sum().backward()
    assert x.grad is not None
    assert all(launch._tried.values())


def test_a_trial_around_a_threshold_far_from_zero() -> None:
    """In noise much narrower than it, every gradient would be rounding."""
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    layer = neuron.IFNode(v_reset=None, v_threshold=1e4, detach_reset=True, store_v_seq=True)
    tssl_adapters.wrap(layer, rule=SmoothTSSLBP(reset_path="complete"), engine="cpu")
    layer.v = torch.rand(2, 4, requires_grad=True)
    x = torch.randn(2, 2, 4, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", EngineWarning)
        found = [(layer(step), layer.v.clone()) for step in x]
        sum(out.sum() + v.sum() for out, v in found).backward()
    assert len(launch._tried) == 4
    assert all(launch._tried.values())


def test_a_sum_over_neurons_that_happens_to_cancel_is_tried_again() -> None:
    norse = pytest.importorskip("norse.torch")

    def learned(value: float) -> Tensor:
        return torch.tensor(value).requires_grad_()

    torch.manual_seed(0)
    numbers = {"tau_mem_inv": 300.0, "v_leak": 0.125, "v_th": 0.4, "v_reset": -0.2}
    p = norse.LIFParameters(
        **{name: learned(value) for name, value in numbers.items()},
        tau_syn_inv=learned(400.0),
        method="heavi_erfc",
    )
    weights = [torch.nn.Parameter(torch.randn(4, 4) * 0.7) for _ in range(2)]
    layer = norse.LIFRecurrentCell(
        4, 4, dt=0.001, p=p, input_weights=weights[0], recurrent_weights=weights[1]
    )
    tssl_adapters.wrap(layer, rule="native", tau_s=7.0, engine="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error", EngineWarning)
        layer(torch.randn(3, 4, requires_grad=True))
    assert isinstance(layer._tssl_settings.decided, Steps)
