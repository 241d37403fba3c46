"""Naive, sequence and step engine hold each other: every reset, timing, shape and cut."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import naive
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tssl_adapters import rules
from tssl_adapters.engine.attach import attach
from tssl_adapters.engine.call.settings import Settings
from tssl_adapters.neuron import LinearCharge, Neuron, Reset, Timing
from tssl_adapters.resets import Never, Subtract, SubtractAmount, SubtractEarly, ToValue

RULES = [
    rules.TSSLBP(),
    rules.TSSLBP(reset_path="complete"),
    rules.TSSLBP(reset_path="none"),
    rules.TSSLBP(fallback=False, reset_path="complete"),
    rules.TSSLBP(fallback=False, reset_path="none"),
    rules.TSSLBP(fallback=False),
    rules.TSSLBP(max_slope=1.5, fallback_width=0.5),
    rules.TSSLBP(checkpoint=1),
    rules.TSSLBP(reset_path="complete", checkpoint=5),
    rules.SurrogateGradient(lambda x: 1 / (1 + x.abs()) ** 2),
    rules.SurrogateGradient(lambda x: 1 / (1 + x.abs()) ** 2, reset_path="complete"),
    rules.SurrogateGradient(lambda x: 1 / (1 + x.abs()) ** 2, reset_path="none"),
    rules.SurrogateGradient(lambda x: 1 / (1 + x.abs()) ** 2, checkpoint=3),
    rules.SurrogateGradient(lambda x: 1 / (1 + x.abs()) ** 2, chain=False),
    rules.Lee(),
    rules.Lee(gate="active"),
    rules.Lee(gate="active", normalise=True),
    rules.STRSBP(credit="spike"),
    rules.STRSBP(credit="spike", silent="zero", self_effect="regular"),
    rules.STRSBP(credit="spike", self_effect="none"),
    rules.STDBP(),
    rules.STDBP(max_slope=1.5, silent="none"),
]
SHAPES = [(), (4,), (3, 4), (1, 4)]


@dataclass
class Problem:
    """A neuron with everything that goes in and comes back."""

    timing: Timing
    reset: str
    strict: bool
    detached: bool
    values: dict[str, Tensor]
    drive: Tensor
    state: Tensor
    trace: Tensor
    grad_out: Tensor
    grad_states: Tensor
    tau_s: float
    rule: rules.Rule

    def neuron(self, leaves: dict[str, Tensor]) -> Neuron:
        decay, gain, offset = (leaves[k] for k in ("decay", "gain", "offset"))
        resets: dict[str, Reset] = {
            "value": ToValue(leaves["reset_value"] if self.timing == "immediate" else 0.0),
            "subtract": Subtract(),
            "subtract early": SubtractEarly(),
            "subtract amount": SubtractAmount(amount=leaves["reset_value"]),
            "never": Never(),
        }
        raw = (decay.detach(), gain.detach(), offset.detach())
        return Neuron(
            LinearCharge(decay, gain, offset, linear, raw),
            resets[self.reset],
            leaves["threshold"],
            self.timing,
            self.strict,
            self.detached,
        )


def linear(v: Tensor, x: Tensor, decay: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    return decay * v + gain * x + offset


@st.composite
def problems(draw: st.DrawFn, max_steps: int = 12) -> Problem:
    steps = draw(st.integers(1, max_steps))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    timing: Timing = draw(st.sampled_from(["immediate", "delayed", "both"]))

    def rand(shape: tuple[int, ...], low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    def shape() -> tuple[int, ...]:
        return draw(st.sampled_from(SHAPES))

    rule = draw(st.sampled_from(RULES))
    full = (3, 4)
    resets = ["value", "subtract", "subtract amount", "never"] + ["subtract early"] * (
        timing == "delayed"
    )
    grad_out = rand((steps, *full), -1.0, 1.0)
    if rule.looks_ahead:  # step by step a rule has to guess how it would go on from the end
        grad_out[-2:] = 0.0
    return Problem(
        timing=timing,
        reset=draw(st.sampled_from(resets)),
        strict=draw(st.booleans()),
        detached=draw(st.booleans()),
        values={
            "decay": rand(shape(), 0.3, 1.0),
            "gain": rand(shape(), 0.3, 1.2),
            "offset": rand(shape(), -0.2, 0.2),
            "threshold": rand(shape(), 0.3, 1.0),
            "reset_value": rand(shape(), -0.3, 0.1),
        },
        drive=rand((steps, *full), -1.0, 2.0),
        state=rand(full, -0.5, 1.5),
        trace=rand(full, 0.0, 1.0),
        grad_out=grad_out,
        grad_states=rand((steps, *full), -1.0, 1.0) * draw(st.sampled_from([0.0, 1.0])),
        tau_s=1.0 if rule.looks_ahead else draw(st.sampled_from([1.0, 1.5, 3.0])),
        rule=rule,
    )


def by_naive(p: Problem) -> tuple[list[Tensor], list[Tensor]]:
    neuron = p.neuron(p.values)
    trace = p.trace if p.tau_s > 1 else torch.zeros_like(p.trace)
    run = naive.forward(neuron, p.tau_s, p.drive, p.state, trace)
    grads = naive.backward(neuron, p.rule, p.tau_s, p.drive, run, p.grad_out, p.grad_states)
    found = [grads.drive, grads.state]
    found += [grads.trace] if p.tau_s > 1 else []
    for name, value in p.values.items():
        to_value = p.timing == "immediate" and p.reset == "value"
        learned = name != "reset_value" or to_value or p.reset == "subtract amount"
        found.append(getattr(grads, name).sum_to_size(value.shape) * learned)
    return [run.psc, run.state], found


def by_engine(p: Problem, cuts: list[int] | None) -> tuple[list[Tensor], list[Tensor]]:
    """Run as sequences cut at ``cuts``, or step by step where ``cuts`` is ``None``."""
    leaves = {name: value.clone().requires_grad_() for name, value in p.values.items()}
    drive, state, trace = (t.clone().requires_grad_() for t in (p.drive, p.state, p.trace))
    neuron, layer = p.neuron(leaves), Settings("layer", p.rule, p.tau_s)
    v, a = state, trace if p.tau_s > 1 else None
    outs, states = [], []
    if cuts is None:
        for x in drive:
            result = attach(layer, neuron, x, v, a, None, sequence=False)
            v, a = result.state, result.trace
            outs.append(result.out)
            states.append(v)
        out, seen = torch.stack(outs), torch.stack(states)
    else:
        bounds = [0, *cuts, len(drive)]
        for start, stop in pairwise(bounds):
            part = drive[start:stop]
            result = attach(layer, neuron, part, v, a, None, sequence=True, keep_states=True)
            v, a = result.state, result.trace
            outs.append(result.out)
            assert result.states is not None
            states.append(result.states)
        out, seen = torch.cat(outs), torch.cat(states)
    loss = (out * p.grad_out).sum() + (seen * p.grad_states).sum()
    wanted = [drive, state, *([trace] if p.tau_s > 1 else []), *leaves.values()]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    grads = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]
    return [out, seen], grads


def agree(left: list[Tensor], right: list[Tensor], tolerance: float = 1e-12) -> None:
    for ours, theirs in zip(left, right, strict=True):
        scale = max(1.0, float(theirs.detach().abs().max()))
        assert float((ours - theirs).detach().abs().max()) <= tolerance * scale


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(p=problems(), data=st.data())
def test_engines_agree(p: Problem, data: st.DataObject) -> None:
    values, grads = by_naive(p)
    cuts = (
        sorted(data.draw(st.sets(st.integers(1, len(p.drive) - 1), max_size=3)))
        if len(p.drive) > 1
        else []
    )
    for chosen in ([], cuts, None):
        our_values, our_grads = by_engine(p, chosen)
        agree(our_values, values)
        agree(our_grads, grads)


@settings(max_examples=6, deadline=None)
@given(p=problems(max_steps=200))
def test_engines_agree_on_long_sequences(p: Problem) -> None:
    values, grads = by_naive(p)
    for chosen in ([], None):
        our_values, our_grads = by_engine(p, chosen)
        agree(our_values, values, 1e-11)
        agree(our_grads, grads, 1e-11)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("reset", ["value", "subtract", "subtract amount"])
@pytest.mark.parametrize("timing", ["delayed", "both"])
def test_a_spike_still_due_its_reset_when_the_first_step_begins(
    timing: Timing, reset: str, rule: rules.Rule
) -> None:
    """Some neurons start above their threshold, and some of them spike at once again."""
    torch.manual_seed(0)
    numbers = {"decay": 0.9, "gain": 1.0, "offset": 0.0, "threshold": 0.5, "reset_value": -0.2}
    values = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
    drive, grads, states = torch.randn(3, 4, 64, dtype=torch.float64)
    if rule.looks_ahead:
        grads[-2:] = 0.0
    start = torch.linspace(-1.0, 2.0, 64, dtype=torch.float64)
    p = Problem(
        timing, reset, True, False, values, drive, start, start.abs(), grads, states, 1.0, rule
    )
    expected_values, expected = by_naive(p)
    fired = expected_values[0][0] > 0
    assert 5 < (fired & (start > 0.5)).sum() < 60
    for cuts in ([], [1], None):
        found_values, found = by_engine(p, cuts)
        agree(found_values, expected_values)
        agree(found, expected)


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("path", ["reference", "complete"])
@pytest.mark.parametrize("reset", ["value", "subtract"])
@pytest.mark.parametrize("timing", ["immediate", "delayed", "both"])
def test_where_lambda_overflows_silent_steps_have_their_fallback(
    timing: Timing, reset: str, path: Any, tau_s: float
) -> None:
    torch.manual_seed(0)
    rule = rules.TSSLBP(max_slope=1e4, reset_path=path)
    numbers = {"decay": 0.9, "gain": 1.0, "offset": 0.0, "threshold": 0.3, "reset_value": 0.0}
    values = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
    drive = 0.4 * torch.randn(80, 8, dtype=torch.float64)
    start = torch.zeros(8, dtype=torch.float64)
    grads = 1e308 / tau_s * torch.rand(80, 8, dtype=torch.float64)
    around = (drive, start, start, grads, torch.zeros_like(grads))
    p = Problem(timing, reset, True, False, values, *around, tau_s, rule)
    run = naive.forward(p.neuron(values), tau_s, drive, start, start)
    _, (expected, *_) = by_naive(p)
    for cuts in ([], [30], None):
        _, (found, *_) = by_engine(p, cuts)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0.0, equal_nan=True)
    assert not expected.isfinite().all()
    silent = run.psc < 0.25 / tau_s
    assert 0.05 < silent.double().mean() < 0.95
    assert not expected[silent].isnan().any()


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
def test_sequence_keeps_one_tensor(tau_s: float) -> None:
    """At most one T x N tensor is kept for backward."""
    drive = torch.rand(50, 8, 16, requires_grad=True)
    neuron = Neuron(LinearCharge(0.8, 1.0, 0.0, lambda v, x: 0.8 * v + x), ToValue(), 1.0)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        attach(
            Settings("layer", rules.TSSLBP(), tau_s),
            neuron,
            drive,
            torch.zeros(8, 16),
            None,
            None,
            sequence=True,
        )
    assert sum(n for n in kept if n >= drive.numel()) == drive.numel()


class Living(TorchDispatchMode):
    """The most bytes that were alive at a time, of those made since it began."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.untyped_storage().data_ptr() not in given:
            size = found.untyped_storage().nbytes()
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(found, self.free, size)
        return found

    def free(self, size: int) -> None:
        self.now -= size


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
def test_checkpoints_bound_what_the_backward_pass_holds(tau_s: float) -> None:
    def run(checkpoint: int | None) -> tuple[float, Tensor]:
        torch.manual_seed(0)
        drive = torch.randn(400, 1, 64, requires_grad=True)
        neuron = Neuron(LinearCharge(0.8, 1.0, 0.0, lambda v, x: 0.8 * v + x), ToValue(), 1.0)
        layer = Settings("layer", rules.TSSLBP(checkpoint=checkpoint), tau_s)
        out = attach(layer, neuron, drive, torch.zeros(1, 64), None, None, sequence=True).out
        weight = torch.randn_like(out)
        with Living() as living:
            (grad,) = torch.autograd.grad(out, drive, weight)
        return living.most / drive.nbytes, grad

    (most, expected), (bounded, found) = run(None), run(20)
    assert torch.equal(found, expected)
    assert most > 4.0
    assert bounded < 2.1  # the gradient of the drive twice, in pieces and whole, and 40 steps


@pytest.mark.parametrize("checkpoint", [0, -3])
def test_a_checkpoint_is_a_number_of_steps(checkpoint: int) -> None:
    with pytest.raises(ValueError, match=f"checkpoint must be 1 step or more, not {checkpoint}"):
        rules.TSSLBP(checkpoint=checkpoint)
    with pytest.raises(TypeError, match="checkpoint must be None or a number of steps"):
        rules.SurrogateGradient(lambda x: x, checkpoint=1.5)  # type: ignore[arg-type]
