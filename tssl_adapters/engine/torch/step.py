"""The same recursion with one step per call, for the user's own time loop.

h[t] is kept rather than recomputed, which is cheaper per call. The incoming state is recomputed
from h of the previous call, which that call keeps: together they keep one tensor per step, and at
``tau_s > 1`` one bit per neuron of the trace.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tssl_adapters.elementwise import cast
from tssl_adapters.engine.call.once import first_order
from tssl_adapters.engine.call.plan import (
    EngineFunction,
    Like,
    Plan,
    Values,
    carried_out,
    empty_links,
    in_working_dtype,
    reduced,
    restore,
    save,
    value_gradients,
    working_dtype,
)
from tssl_adapters.engine.call.window import last, reshaped, watch_potential, watch_times
from tssl_adapters.engine.step.recursion import (
    Backward,
    Carried,
    Moment,
    charge,
    fires,
    state_after,
    state_from,
    through_psc,
    trace_after,
)
from tssl_adapters.engine.step.spec import GAIN, LEARNED
from tssl_adapters.engine.torch.bits import pack, unpack
from tssl_adapters.engine.torch.sequence import activity, watches


class StepFunction(EngineFunction):
    """``(plan, values, drive, state, trace, earlier, *links, *neuron values)``
    ``-> out, state, charged, spike, known, before, active, *links``. ``known``: the spikes, if the
    library computed them; ``active``: bits of where a neuron counts as active by its trace. They
    and ``before`` take no gradient, and neither does ``charged`` unless the plan exposes it.
    ``spike`` is then an output besides the PSC, else ``None``. ``earlier`` is ``charged`` of the
    call that made ``state``, if it may replace that.
    """

    @staticmethod
    def forward(
        plan: Plan,
        values: Values | None,
        drive: Tensor,
        state: Tensor,
        trace: Tensor | None,
        earlier: Tensor | None,
        *rest: Any,
    ) -> tuple[Tensor | None, ...]:
        neuron = plan.neuron.with_values(rest[plan.links :]) if plan.functional else plan.neuron
        before, charged = charge(neuron, state, drive)
        known = None
        if values is None:
            spike = fires(neuron, charged)
            after = state_after(neuron, charged, spike, before)
        else:
            spike, after = values()
            known = spike != 0
        out = trace_after(trace, spike, plan.tau_s)
        active = None
        if plan.recorded and plan.tau_s != 1.0:
            active = activity(plan.rule, cast(out, working_dtype(out)), plan.tau_s)
        return (
            out,
            charged.clone() if after is charged else after,
            charged,
            spike if plan.exposed and plan.tau_s != 1.0 else None,
            known,
            before,
            None if active is None else pack(active),
            *empty_links(plan, after),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        plan, _, drive, state, trace, earlier, *rest = inputs
        # The user may write to the returned output and state, so they are not kept.
        _, _, charged, _, known, before, active, *_ = output
        constant = (None if plan.exposed else charged, known, before, active)
        ctx.mark_non_differentiable(*(t for t in constant if t is not None))
        needs_drive = ctx.needs_input_grad[6 + plan.links + GAIN]
        ctx.drive_dtype, ctx.trace = drive.dtype, Like.of(trace)
        drive = drive if needs_drive or plan.functional else None
        state = state if earlier is None else None
        kept = (drive, state, earlier, charged, known, active)
        save(ctx, plan, kept, rest[plan.links :])

    @staticmethod
    @first_order
    def backward(
        ctx: Any,
        grad_out: Tensor | None,
        grad_state: Tensor | None,
        grad_charged: Tensor | None,
        grad_fired: Tensor | None,
        _known: None,
        _before: None,
        _active: None,
        *grad_links: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        plan, neuron, (drive, state, earlier, charged, known, active) = restore(ctx)
        if state is None:
            state = state_from(neuron, earlier)
        spike = fires(neuron, charged) if known is None else known.to(charged.dtype)
        before = None if neuron.timing == "immediate" else fires(neuron, state)
        moment = in_working_dtype(Moment(state, drive, before, charged, spike), neuron)
        dtype = moment.charged.dtype
        needs = ctx.needs_input_grad[6 + plan.links :][:LEARNED]
        carried = Carried(*grad_links)
        window = plan.window(neuron, dtype)
        fired = None if window is None else window.active
        backward = Backward(neuron, plan.rule, plan.tau_s, needs, carried, fired, plan.steps())

        if grad_out is None:
            grad_out = torch.zeros_like(moment.charged)
        grad_out = cast(grad_out, dtype)
        grad_trace, grad_spike = through_psc(grad_out, None, plan.tau_s)
        assert grad_spike is not None
        if grad_fired is not None:
            grad_spike = grad_spike + grad_fired.to(dtype)
        if grad_state is not None:
            grad_state = cast(grad_state, dtype)
        if grad_charged is not None:
            grad_charged = cast(grad_charged, dtype)
        ahead = grad_spike
        if plan.position is not None and window is not None:
            later, spike = carried.grad_spike, moment.spike
            (grad_spike,) = reshaped(plan.position, window, [grad_spike], [spike], later)
        watch(plan, grad_spike, carried.grad_spike, grad_state, moment.spike)
        if active is not None:
            active = unpack(active, charged.shape, dtype)
        at_end = last(plan.position, 0)
        grad_drive = backward.step(moment, active, grad_spike, grad_state, grad_charged, at_end)
        backward.hand_back(ahead)
        return (
            None,
            None,
            cast(grad_drive, ctx.drive_dtype),
            reduced(backward.entering(moment, plan.linked), state),
            None if ctx.trace is None else reduced(grad_trace, ctx.trace),
            None,
            *carried_out(backward, plan, moment.charged),
            *value_gradients(backward),
        )


def watch(
    plan: Plan,
    grad_spike: Tensor | None,
    later: Tensor | None,
    grad_state: Tensor | None,
    spike: Tensor | None,
) -> None:
    """Warn if a single step's gradients show that the loss does not suit the rule."""
    position = plan.position
    if position is None:
        return
    if watches(plan) and grad_spike is not None:
        watch_times(position, [grad_spike], later)
    looks = plan.rule.looks_around and not position.stretch.settings.seen_around
    if looks and grad_state is not None and spike is not None:
        watch_potential(position, grad_state, spike)
