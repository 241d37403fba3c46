"""The same recursion one step a call, for the time loop that the user writes.

h[t] and s[t] are kept rather than recomputed, which is cheaper a call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tssl_adapters.engine.once import first_order
from tssl_adapters.engine.plan import (
    LEARNED,
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
from tssl_adapters.engine.recursion import Backward, Carried, Moment, charge, over, state_after
from tssl_adapters.engine.sequence import next_trace


class StepFunction(EngineFunction):
    """``(plan, values, drive, state, trace, *links, *neuron values)``
    ``-> out, state, spike, charged, before, *links``; spike, charged and before take no gradient.
    """

    @staticmethod
    def forward(
        plan: Plan,
        values: Values | None,
        drive: Tensor,
        state: Tensor,
        trace: Tensor | None,
        *rest: Any,
    ) -> tuple[Tensor | None, ...]:
        neuron = plan.neuron.with_values(rest[plan.links :]) if plan.functional else plan.neuron
        before, charged = charge(neuron, state, drive)
        if values is None:
            fired = over(neuron, charged)
            spike = fired.to(charged.dtype)
            after = state_after(neuron, charged, spike, before)
        else:
            spike, after = values()
            fired = spike != 0
        emits_spike = plan.tau_s == 1.0
        return (
            spike if emits_spike else next_trace(trace, spike, plan.tau_s),
            charged.clone() if after is charged else after,
            fired,
            charged,
            before,
            *empty_links(plan, after),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        plan, _, drive, state, trace, *rest = inputs
        # The output and the state go to the user, who may write to them: copies are kept.
        _, _, spike, charged, before, *_ = output
        ctx.mark_non_differentiable(*(t for t in (spike, charged, before) if t is not None))
        needs_drive = ctx.needs_input_grad[5 + plan.links + 1]
        ctx.drive_dtype = drive.dtype
        kept = (
            drive if needs_drive or plan.functional else None,
            state,
            trace,
            spike,
            charged,
            before,
        )
        save(ctx, plan, kept, rest[plan.links :])

    @staticmethod
    @first_order
    def backward(
        ctx: Any,
        grad_out: Tensor | None,
        grad_state: Tensor | None,
        _spike: None,
        _charged: None,
        _before: None,
        *grad_links: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        plan, neuron, (drive, state, trace, spike, charged, before) = restore(ctx)
        moment = Moment(state, drive, before, charged, spike.to(charged.dtype))
        moment = in_working_dtype(moment)
        dtype = moment.charged.dtype
        needs = ctx.needs_input_grad[5 + plan.links :][:LEARNED]
        backward = Backward(neuron, plan.rule, plan.tau_s, needs, Carried(*grad_links))

        emits_spike = plan.tau_s == 1.0
        if grad_out is None:
            grad_out = torch.zeros_like(moment.charged)
        if grad_out.dtype != dtype:
            grad_out = grad_out.to(dtype)
        grad_spike = grad_out if emits_spike else grad_out / plan.tau_s
        if grad_state is not None and grad_state.dtype != dtype:
            grad_state = grad_state.to(dtype)
        now = moment.spike
        if not emits_spike:
            now = next_trace(trace, now, plan.tau_s)
        grad_drive = backward.step(moment, now, grad_spike, grad_state)
        return (
            None,
            None,
            grad_drive.to(ctx.drive_dtype),
            reduced(backward.entering(moment, plan.linked), state),
            None if trace is None else reduced(grad_out * (1.0 - 1.0 / plan.tau_s), trace),
            *carried_out(backward, plan, moment.charged),
            *value_gradients(backward),
        )
