"""The same recursion one step a call, for the time loop that the user writes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tssl_adapters.engine.plan import (
    Plan,
    carried_in,
    carried_out,
    empty_links,
    in_working_dtype,
    reduced,
    restore,
    save,
    value_gradients,
    working_dtype,
)
from tssl_adapters.engine.recursion import Backward, forward_step, state_after
from tssl_adapters.engine.sequence import Values, next_trace

class StepFunction(torch.autograd.Function):
    """``(plan, values, drive, state, trace, *links, *neuron values) -> out, state, *links``."""

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
            moment = forward_step(neuron, state, drive)
            spike, after = moment.spike, state_after(neuron, moment)
        else:
            spike, after = values()
        return (next_trace(trace, spike, plan.tau_s), after, *empty_links(plan, after))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        plan, _, drive, state, trace, *rest = inputs
        save(ctx, plan, (drive, state, trace), rest[plan.links :])

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_out: Tensor | None, grad_state: Tensor | None, *grad_links: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        plan, neuron, (drive, state, trace) = restore(ctx)
        moment = forward_step(neuron, state, drive)
        now = next_trace(trace, moment.spike, plan.tau_s)
        dtype = working_dtype(moment.charged)
        moment = in_working_dtype(moment)
        needs = ctx.needs_input_grad[5 + plan.links :][:5]
        backward = Backward(neuron, plan.rule, plan.tau_s, needs, carried_in(grad_links))

        if grad_out is None:
            grad_out = torch.zeros_like(moment.charged)
        grad_out = grad_out.to(dtype)
        grad_spike = grad_out if plan.tau_s == 1.0 else grad_out / plan.tau_s
        if grad_state is not None:
            grad_state = grad_state.to(dtype)
        grad_drive = backward.step(moment, now.to(dtype), grad_spike, grad_state)
        values = neuron.values()
        return (
            None,
            None,
            reduced(grad_drive, drive),
            reduced(backward.entering(moment, plan.linked), state),
            None if trace is None else reduced(grad_out * (1.0 - 1.0 / plan.tau_s), trace),
            *carried_out(backward, plan, moment.charged),
            *value_gradients(backward, values, len(values)),
        )
