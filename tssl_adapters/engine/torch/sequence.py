"""The whole sequence in one autograd function: O(T), with one T x N tensor kept for backward.

The backward pass recomputes everything else: all steps at once by default, or with the rule's
option ``checkpoint`` that many at a time, from states stored by a first pass over the sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tssl_adapters.elementwise import at_least
from tssl_adapters.engine.call.once import first_order
from tssl_adapters.engine.call.plan import (
    EngineFunction,
    Plan,
    Values,
    carried_out,
    empty_links,
    in_working_dtype,
    reduced,
    restore,
    save,
    value_gradients,
)
from tssl_adapters.engine.call.window import last, reshaped, watch_times
from tssl_adapters.engine.step.recursion import (
    Backward,
    Carried,
    Moment,
    charge,
    fires,
    state_after,
    through_psc,
    trace_after,
)
from tssl_adapters.engine.step.spec import LEARNED, looks_around
from tssl_adapters.neuron import Neuron
from tssl_adapters.rules import Rule


def activity(rule: Rule, trace: Tensor, tau_s: float) -> Tensor | None:
    """1 where the rule counts a neuron as active by its a[t], else 0; ``None`` if it does not."""
    gate = None if tau_s == 1.0 else rule.active_from(tau_s)
    return None if gate is None else at_least(trace, gate)


def traces(spikes: list[Tensor], trace: Tensor | None, tau_s: float) -> list[Tensor]:
    """:func:`trace_after` over a list of time steps."""
    found = []
    for spike in spikes:
        trace = trace_after(trace, spike, tau_s)
        found.append(trace)
    return found


def moments(
    neuron: Neuron, drive: Tensor, state: Tensor, spikes: Tensor | None = None
) -> list[Moment]:
    """Every step of a sequence, computed from the drive (and the spikes, if known)."""
    steps: list[Moment] = []
    for t, x in enumerate(drive.unbind(0)):
        if steps:
            last = steps[-1]
            state = state_after(neuron, last.charged, last.spike, last.before)
        before, charged = charge(neuron, state, x)
        spike = fires(neuron, charged) if spikes is None else spikes[t].to(charged.dtype)
        steps.append(Moment(state, x, before, charged, spike))
    return steps


def compute(
    neuron: Neuron, drive: Tensor, state: Tensor, keep_states: bool
) -> tuple[Tensor, Tensor]:
    """Spikes and membrane potential, as in :data:`Values`, from the record alone."""
    spikes, states = [], []
    for x in drive.unbind(0):
        before, charged = charge(neuron, state, x)
        spikes.append(fires(neuron, charged))
        state = state_after(neuron, charged, spikes[-1], before)
        if keep_states:
            states.append(state)
    return torch.stack(spikes), torch.stack(states) if keep_states else state


class Kept(NamedTuple):
    """What a sequence is recomputed from: its initial state, its drive, and its spikes if known."""

    neuron: Neuron
    drive: Tensor
    state: Tensor
    trace: Tensor | None
    spikes: Tensor | None
    tau_s: float

    def backwards(self, every: int | None) -> Iterator[tuple[Moment, Tensor]]:
        """Every step and its a[t], from the last to the first, ``every`` of them held at once."""
        for start in reversed(list(self._starts(every or len(self.drive)))):
            steps = moments(*start[:3], start.spikes)
            yield from reversed([*zip(steps, start._traces(steps), strict=True)])

    def _starts(self, every: int) -> Iterator[Kept]:
        """The sequence in pieces of ``every`` steps, each with its initial state."""
        piece, later = self._cut(every)
        yield piece
        while later is not None:
            steps = moments(*piece[:3], piece.spikes)
            last, trace = steps[-1], piece._traces(steps)[-1]
            state = state_after(self.neuron, last.charged, last.spike, last.before)
            start = later._replace(state=state, trace=None if self.tau_s == 1.0 else trace)
            piece, later = start._cut(every)
            yield piece

    def _cut(self, at: int) -> tuple[Kept, Kept | None]:
        if len(self.drive) <= at:
            return self, None
        spikes = (None, None) if self.spikes is None else (self.spikes[:at], self.spikes[at:])
        first = self._replace(drive=self.drive[:at], spikes=spikes[0])
        return first, self._replace(drive=self.drive[at:], spikes=spikes[1])

    def _traces(self, steps: list[Moment]) -> list[Tensor]:
        return traces([step.spike for step in steps], self.trace, self.tau_s)


class SequenceFunction(EngineFunction):
    """``(plan, values, drive, state, trace, *links, *neuron values) -> out, states, *links``."""

    @staticmethod
    def forward(
        plan: Plan,
        values: Values | None,
        drive: Tensor,
        state: Tensor,
        trace: Tensor | None,
        *rest: Any,
    ) -> tuple[Tensor, ...]:
        if values is None:
            neuron = plan.neuron.with_values(rest[plan.links :])
            spikes, states = compute(neuron, drive, state, plan.keep_states)
        else:
            spikes, states = values()
        out = spikes
        if plan.tau_s != 1.0:
            out = torch.stack(traces(list(spikes.unbind(0)), trace, plan.tau_s))
        return (out, states, *empty_links(plan, states[-1] if plan.keep_states else states))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        plan, values, drive, state, trace, *rest = inputs
        # Spikes that the record does not reproduce must be kept, one byte each.
        known = None if values is None else spikes_of(output[0], trace, plan.tau_s)
        save(ctx, plan, (drive, state, trace, known), rest[plan.links :])

    @staticmethod
    @first_order
    def backward(
        ctx: Any, grad_out: Tensor | None, grad_states: Tensor | None, *grad_links: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        plan, neuron, (drive, state, trace, known) = restore(ctx)
        steps = Kept(neuron, drive, state, trace, known, plan.tau_s).backwards(plan.rule.checkpoint)
        last_step, last_trace = next(steps)
        steps = chain([(last_step, last_trace)], steps)
        needs = ctx.needs_input_grad[5 + plan.links :][:LEARNED]
        dtype = in_working_dtype(last_step, neuron).charged.dtype
        carried = Carried(*grad_links)
        window = plan.window(neuron, dtype)
        fired = None if window is None else window.active
        backward = Backward(neuron, plan.rule, plan.tau_s, needs, carried, fired, plan.steps())
        arrived = arriving(grad_out, len(drive), last_step.charged, plan.tau_s, dtype)
        ahead = None
        if plan.position is not None and window is not None:
            found, grads = zip(*arrived, strict=True)
            held = [*steps]
            spikes = [step.spike.to(dtype) for step, _ in reversed(held)]
            made = reshaped(plan.position, window, grads[::-1], spikes, carried.grad_spike)
            arrived, ahead, steps = zip(found, made[::-1], strict=True), grads[-1], iter(held)
        elif watches(plan):
            assert plan.position is not None
            found, grads = zip(*arrived, strict=True)
            watch_times(plan.position, grads[::-1], carried.grad_spike)
            arrived = zip(found, grads, strict=True)
        alone = not plan.linked and carried.chain is None
        looks = looks_around(plan.rule, plan.keep_states, len(drive) > 1, alone)

        grad_drive: list[Tensor] = []
        for t, given, (step, psc) in zip(reversed(range(len(drive))), arrived, steps, strict=True):
            grad_trace, grad_spike = given
            grad_state = grad_of_state(grad_states, t, len(drive), plan.keep_states, dtype)
            moment, at_end = in_working_dtype(step, neuron), last(plan.position, t)
            active = activity(plan.rule, psc.to(dtype), plan.tau_s)
            mean = around(grad_states, t, plan.neuron, dtype) if looks else None
            grad_drive.append(
                backward.step(moment, active, grad_spike, grad_state, last=at_end, around=mean)
            )
        backward.hand_back(ahead)
        return (
            None,
            None,
            reduced(torch.stack(grad_drive[::-1]), drive),
            reduced(backward.entering(moment, plan.linked), state),
            None if trace is None else reduced(grad_trace, trace),
            *carried_out(backward, plan, step.charged),
            *value_gradients(backward),
        )


def spikes_of(out: Tensor, trace: Tensor | None, tau_s: float) -> Tensor:
    """The spikes of an emitted PSC, as booleans."""
    if tau_s == 1.0:
        return out != 0
    first = torch.zeros_like(out[:1]) if trace is None else trace.detach().unsqueeze(0)
    before = torch.cat([first, out[:-1]])
    return tau_s * (out - before) + before > 0.5


def arriving(
    grad_out: Tensor | None, steps: int, like: Tensor, tau_s: float, dtype: torch.dtype
) -> Iterable[tuple[Tensor | None, Tensor]]:
    """The gradients with respect to a[t-1] (``None`` is zero) and s[t], from the last step back."""
    grad_trace = None
    for t in reversed(range(steps)):
        own = None if grad_out is None else grad_out[t].to(dtype)
        grad_trace, grad_spike = through_psc(own, grad_trace, tau_s)
        if grad_spike is None:
            grad_spike = torch.zeros_like(like, dtype=dtype)
        yield grad_trace, grad_spike


def watches(plan: Plan) -> bool:
    """Whether to check G, the gradient of a call's output, for a rule that looks ahead without a
    window. For a PSC it is never constant over time.
    """
    rule = plan.rule
    if plan.position is None or plan.tau_s != 1.0 or rule.windowed or not rule.looks_ahead:
        return False
    return not plan.position.stretch.settings.watched


def around(grad: Tensor | None, t: int, neuron: Neuron, dtype: torch.dtype) -> Tensor | None:
    """The mean of a loss's gradients ``[T, batch, ...]`` before and after the reset of step ``t``;
    with a delayed reset, the step's own potential is the one before it.
    """
    if grad is None:
        return None
    total, other = grad[t].to(dtype), t + 1 if neuron.timing == "delayed" else t - 1
    if 0 <= other < len(grad):
        total = total + grad[other].to(dtype)
    return 0.5 * total


def grad_of_state(
    grad: Tensor | None, t: int, steps: int, per_step: bool, dtype: torch.dtype
) -> Tensor | None:
    """c[t]: the gradient that the state after step t gets from outside."""
    if grad is None or not (per_step or t == steps - 1):
        return None
    return (grad[t] if per_step else grad).to(dtype)
