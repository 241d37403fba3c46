"""Triton's kernels: on a GPU where there is one, else through Triton's interpreter on the CPU.

``python -m nox -s triton`` runs them interpreted; on a machine with a GPU, with torch's CUDA build,
``pytest tests/engine -k triton`` runs the same tests on the card.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fused_cases import (
    OTHER_RULES,
    OVERFLOWS,
    VARIANTS,
    Demanding,
    Variant,
    a_dividing_neuron,
    affine,
    call_of,
    check_against_naive,
    check_against_torch,
    check_layer,
    check_nothing_unwritten_is_read,
    check_overflow,
    check_steps,
    integrating_model,
    leaky_both,
    leaky_steps,
    norse_model,
    norse_steps,
    other_rules,
    spikingjelly_model,
    variants,
    windowed,
    windowed_steps,
)
from interpreted import as_compiled

import tssl_adapters
from tssl_adapters.engine.call.plan import Plan
from tssl_adapters.engine.compiled import fused, launch
from tssl_adapters.engine.compiled.kernels import backend
from tssl_adapters.engine.filter import SynapticCurrent
from tssl_adapters.engine.step.spec import link_size
from tssl_adapters.engine.torch.sequence import SequenceFunction
from tssl_adapters.engine.torch.sequence import compute as sequence_values
from tssl_adapters.errors import EngineNotAvailableError
from tssl_adapters.neuron import LinearCharge, Neuron, computes
from tssl_adapters.resets import Subtract, ToValue
from tssl_adapters.rules import TSSLBP, Rule, SmoothTSSLBP

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no GPU, and no TRITON_INTERPRET=1", allow_module_level=True)

# Where a kernel is not what torch is, torch takes its place, with a warning.
pytestmark = pytest.mark.filterwarnings("error::tssl_adapters.errors.EngineWarning")
TRITON = backend("triton")
LONG = 19
"""Steps of more than two of the kernels' spans, the last one cut short."""
GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden" / "lif_psc_layer.npz"))


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        as_compiled(monkeypatch)


def on_device(make: Any) -> Any:
    layer, run = make()
    return layer.to(DEVICE), run


@variants
def test_the_kernels_are_the_torch_recursion(variant: Variant) -> None:
    check_against_torch(TRITON, variant, DEVICE)


@OVERFLOWS
def test_an_overflow_is_what_it_is_in_torch(variant: Variant) -> None:
    check_overflow(TRITON, variant, DEVICE)


@pytest.mark.parametrize("fallback", [True, False])
def test_what_is_no_number_stays_none(fallback: bool) -> None:
    torch.manual_seed(0)
    neuron, rule = a_dividing_neuron(2.0, 0.1), TSSLBP(fallback=fallback)
    drive = (4.0 * torch.randn(LONG, 300)).to(DEVICE)
    drive[3, :50] = torch.nan
    drive.requires_grad_()
    plan = Plan(neuron, rule, 1.0, link_size(neuron, rule), False, False, False)
    given = (drive, torch.zeros_like(drive[0]), None)
    ours = call_of(TRITON, plan, *given).run(*given, None, None, *neuron.values())
    theirs = SequenceFunction.apply(plan, None, *given, *(None,) * plan.links, *neuron.values())
    weight = torch.randn(drive.shape).to(DEVICE)
    found, expected = (torch.autograd.grad((o[0] * weight).sum(), drive)[0] for o in (ours, theirs))
    assert expected[:, :50].isnan().any(0).all()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("steps", [1, 2, LONG])
@pytest.mark.parametrize("variant", VARIANTS[:2] + VARIANTS[-5:-3], ids=str)
def test_other_lengths(variant: Variant, steps: int) -> None:
    check_against_torch(TRITON, variant, DEVICE, steps)


@other_rules
@pytest.mark.parametrize("variant", VARIANTS[1::6], ids=str)
def test_other_rules(variant: Variant, rule: Rule) -> None:
    check_against_torch(TRITON, variant, DEVICE, rule=rule)


def test_a_rule_is_told_how_many_steps_there_are() -> None:
    for steps in (9, LONG):  # of one kernel
        rule = SmoothTSSLBP()
        check_layer("triton", lambda: on_device(integrating_model), steps, DEVICE, rule=rule)


@pytest.mark.parametrize(
    "rule",
    [*OTHER_RULES[:5:2], Demanding()],
    ids=["smooth", "surrogate", "eventprop", "demanding"],
)
@pytest.mark.parametrize("make", [leaky_steps, norse_steps])
def test_steps_of_other_rules(make: Any, rule: Rule) -> None:
    check_steps("triton", lambda: on_device(make), 3.0, DEVICE, rule)


@windowed
@pytest.mark.parametrize("make", [norse_model, spikingjelly_model])
def test_a_rule_is_told_of_its_window(make: Any, rule: Rule, tau_s: float) -> None:
    check_layer("triton", lambda: on_device(make), LONG, DEVICE, rule=rule, tau_s=tau_s)


@windowed_steps
def test_steps_of_a_window(rule: Rule, tau_s: float) -> None:
    check_steps("triton", lambda: on_device(leaky_steps), tau_s, DEVICE, rule)


@pytest.mark.parametrize("steps", [5, LONG])
def test_nothing_is_read_that_was_not_written(steps: int) -> None:
    check_nothing_unwritten_is_read(TRITON, DEVICE, steps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("steps", [1, 9])
@pytest.mark.parametrize("make", [norse_model, spikingjelly_model])
def test_wrapped_layers(make: Any, steps: int, dtype: torch.dtype) -> None:
    check_layer("triton", lambda: on_device(make), steps, DEVICE, dtype)


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("make", [leaky_steps, leaky_both, norse_steps])
def test_steps(make: Any, tau_s: float) -> None:
    check_steps("triton", lambda: on_device(make), tau_s, DEVICE)


@pytest.mark.parametrize("rule", [TSSLBP(), SmoothTSSLBP()], ids=str)
@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_as_torch_does(dtype: torch.dtype, tau_s: float, rule: Rule) -> None:
    torch.manual_seed(0)
    neuron = a_dividing_neuron(3.3, 0.0625)
    drive = (4.0 * torch.randn(LONG, 300)).to(DEVICE, dtype).requires_grad_()
    state = torch.zeros(300, device=DEVICE, dtype=dtype)
    plan = Plan(neuron, rule, tau_s, link_size(neuron, rule), False, True, False)
    given = (drive, state, None)
    ours = call_of(TRITON, plan, *given).run(*given, None, None, *neuron.values())
    theirs = SequenceFunction.apply(plan, None, *given, *(None,) * plan.links, *neuron.values())
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert 0.02 < (theirs[0] > 0.5).float().mean() < 0.98
    weight = torch.randn(drive.shape).to(DEVICE, dtype)
    grads = [torch.autograd.grad((o[0] * weight).sum(), drive)[0].float() for o in (ours, theirs)]
    # Steep slopes multiply up to large values, which are rounded when they are written.
    torch.testing.assert_close(*grads, rtol=4.0 * torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize("timing", ["immediate", "delayed", "both"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_threshold_is_rounded_where_it_is_compared(dtype: torch.dtype, timing: Any) -> None:
    torch.manual_seed(0)
    # On a CPU torch rounds a number that it adds, too: one that is rounded already.
    charge = LinearCharge(0.7, 0.9, 0.0625, affine, (0.7, 0.9, 0.0625))
    for threshold in (0.77, 0.7724, 0.771):  # above and below what the dtypes hold
        neuron = Neuron(charge, Subtract(), threshold, timing)
        plan = Plan(neuron, SmoothTSSLBP(), 1.0, 0, False, True, False)
        level = torch.tensor(threshold, dtype=dtype)
        drive = torch.randn(3, 300).to(DEVICE, dtype)
        drive[0] = ((level - 0.0625) / 0.9).to(dtype)
        state = torch.where(torch.arange(300) < 100, level, 0.0).to(DEVICE, dtype)
        rest = (state, None, None, None, *neuron.values())
        with torch.no_grad():
            ours = call_of(TRITON, plan, drive, state).run(drive, *rest)
            theirs = sequence_values(neuron, drive, state, True)
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize(("steps", "neurons"), [(1, 1), (LONG, 1), (3, 130), (8, 256)])
@pytest.mark.parametrize("tau_s", [1.0, 2.5])
def test_against_the_readable_recursion(tau_s: float, steps: int, neurons: int) -> None:
    check_against_naive(TRITON, tau_s, steps, neurons, DEVICE)


def paper(v: Any, x: Any, decay: Any) -> Any:
    return decay * v + x


@computes(paper)
def paper_charge(v: Any, x: Any, decay: Any) -> Any:
    return decay * v + x


@pytest.mark.parametrize("case", [f"case{i:02d}" for i in range(0, int(GOLDEN["n_cases"]), 3)])
def test_golden_vectors(case: str) -> None:
    tau_m, tau_s, theta = (float(GOLDEN[f"{case}/{k}"]) for k in ("tau_m", "tau_s", "theta"))
    decay = 1.0 - 1.0 / tau_m
    charge = LinearCharge(decay, 1.0, 0.0, paper_charge, (decay,))
    neuron, rule = Neuron(charge, ToValue(0.0), theta), TSSLBP()
    drive = torch.tensor(GOLDEN[f"{case}/drive"], device=DEVICE, requires_grad=True)
    plan = Plan(neuron, rule, tau_s, link_size(neuron, rule), False, False, False)
    given = (drive, torch.zeros_like(drive[0]), None)
    out, *_ = call_of(TRITON, plan, *given).run(*given, None, None, *neuron.values())
    out.backward(torch.tensor(GOLDEN[f"{case}/grad_psc"], device=DEVICE))
    np.testing.assert_allclose(out.detach().cpu(), GOLDEN[f"{case}/psc"], atol=1e-14)
    golden = GOLDEN[f"{case}/grad_drive"]
    assert np.abs(drive.grad.cpu() - golden).max() <= 1e-12 * np.abs(golden).max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("steps", [1, LONG])
def test_synaptic_current(steps: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    drive = torch.randn(steps, 3, 50).to(DEVICE, dtype).requires_grad_()
    current = torch.randn(50).to(DEVICE, dtype).requires_grad_()
    weight = torch.randn(steps, 3, 50).to(DEVICE, dtype)
    kernel = launch.Current("", TRITON, -0.3)
    ours = SynapticCurrent.apply(drive, current, -0.3, True, kernel)
    theirs = SynapticCurrent.apply(drive, current, -0.3, True, None)
    assert torch.equal(ours, theirs)
    found, expected = (
        torch.autograd.grad((out * weight).sum(), (drive, current)) for out in (ours, theirs)
    )
    tolerance = 1e-12 if dtype == torch.float64 else 2e-2
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


def test_without_gradient_no_states_are_kept() -> None:
    drive, state = torch.randn(LONG, 4, device=DEVICE), torch.zeros(4, device=DEVICE)
    neuron, rule = a_dividing_neuron(2.0, 0.0), TSSLBP()
    plan = Plan(neuron, rule, 1.0, link_size(neuron, rule), False, False, False)
    call, rest = call_of(TRITON, plan, drive, state), (state, None, None, None, *neuron.values())
    with torch.no_grad():
        out, after, *_ = call.run(drive, *rest)
    recorded, *_ = call.run(drive.clone().requires_grad_(), *rest)
    assert torch.equal(out, recorded)
    assert after.grad_fn is None
    assert fused.compute(call, call.given(drive, state, None), None, again=False)[2] is None
    kept = [t for t in recorded.grad_fn.saved_tensors if t is not None]
    # The drive, the state, and a state for each of the two spans after the first.
    assert sum(t.numel() for t in kept) == (LONG + 1 + 2) * 4


def test_why_it_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = (row for row in tssl_adapters.engines() if row.name == "triton")
    assert row.available
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineNotAvailableError, match="'triton': torch finds no CUDA device"):
        tssl_adapters.wrap(torch.nn.Linear(1, 1), engine="triton", rule="tsslbp")
    monkeypatch.setattr("tssl_adapters._engines.find_spec", lambda package: None)
    with pytest.raises(EngineNotAvailableError, match="triton is not installed; it comes with"):
        tssl_adapters.wrap(torch.nn.Linear(1, 1), engine="triton", rule="tsslbp")
