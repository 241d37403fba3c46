"""The whole sequence in one autograd function: O(T), and one T x N tensor kept for backward."""

from __future__ import annotations

from collections.abc import Callable
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
from tssl_adapters.engine.recursion import Backward, Moment, forward_step, state_after
from tssl_adapters.neuron import Neuron, Value

Values = Callable[[], "tuple[Tensor, Tensor]"]
"""Returns what the library computed: spikes ``[T, batch, ...]`` and the membrane potential, after
the last step or, where ``keep_membrane``, after every one."""


def psc(spikes: Tensor, trace: Tensor | None, tau_s: float) -> Tensor:
    """a[t] = a[t-1] + (s[t] - a[t-1]) / tau_s over ``[T, ...]``, from a[-1] = ``trace`` or 0."""
    traces = []
    for spike in spikes.unbind(0):
        trace = next_trace(trace, spike, tau_s)
        traces.append(trace)
    return torch.stack(traces) if traces else spikes.clone()


def next_trace(trace: Tensor | None, spike: Tensor, tau_s: float) -> Tensor:
    """One step of the post-synaptic current; at ``tau_s == 1`` it is the spike."""
    if tau_s == 1.0:
        return spike
    if trace is None:
        return spike / tau_s
    return trace + (spike - trace) / tau_s


def moments(neuron: Neuron, drive: Tensor, state: Tensor) -> list[Moment]:
    """Every step of a sequence, recomputed from the drive."""
    steps = []
    for x in drive.unbind(0):
        if steps:
            state = state_after(neuron, steps[-1])
        steps.append(forward_step(neuron, state, x))
    return steps


class SequenceFunction(torch.autograd.Function):
    """``(plan, values, drive, state, trace, *links, *neuron values) -> out, membrane, *links``."""

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
            steps = moments(neuron, drive, state)
            spikes = torch.stack([m.spike for m in steps])
            kept = steps if plan.keep_membrane else steps[-1:]
            states = torch.stack([state_after(neuron, m) for m in kept])
            membrane = states if plan.keep_membrane else states[0].clone()
        else:
            spikes, membrane = values()
        out = spikes if plan.tau_s == 1.0 else psc(spikes, trace, plan.tau_s)
        last = membrane[-1] if plan.keep_membrane else membrane
        return (out, membrane, *empty_links(plan, last))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        plan, _, drive, state, trace, *rest = inputs
        save(ctx, plan, (drive, state, trace), rest[plan.links :])
        ctx.spike_dtype = output[0].dtype

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_out: Tensor | None, grad_membrane: Tensor | None, *grad_links: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        plan, neuron, (drive, state, trace) = restore(ctx)
        steps = moments(neuron, drive, state)
        traces = _traces(steps, trace, plan.tau_s)
        needs = ctx.needs_input_grad[5 + plan.links :][:5]
        backward = Backward(neuron, plan.rule, plan.tau_s, needs, carried_in(grad_links))

        dtype = working_dtype(steps[-1].charged)
        grad_drive: list[Tensor] = []
        grad_trace: Tensor | None = None
        for t in reversed(range(len(steps))):
            grad_trace = _through_psc(grad_out, grad_trace, t, plan.tau_s, dtype)
            grad_spike = (
                torch.zeros_like(steps[t].charged, dtype=dtype)
                if grad_trace is None
                else grad_trace / plan.tau_s
                if plan.tau_s != 1.0
                else grad_trace
            )
            grad_state = _at(grad_membrane, t, len(steps), plan.keep_membrane, dtype)
            moment = in_working_dtype(steps[t])
            grad_drive.append(
                backward.step(moment, traces[t].to(dtype), grad_spike, grad_state)
            )
        entering = backward.entering(in_working_dtype(steps[0]), plan.linked)
        if grad_trace is not None:
            grad_trace = grad_trace * (1.0 - 1.0 / plan.tau_s)
        values = neuron.values()
        return (
            None,
            None,
            reduced(torch.stack(grad_drive[::-1]), drive),
            reduced(entering, state),
            None if trace is None else reduced(grad_trace, trace),
            *carried_out(backward, plan, steps[0].charged),
            *value_gradients(backward, values, len(values)),
        )


def _traces(steps: list[Moment], trace: Tensor | None, tau_s: float) -> list[Tensor]:
    traces = []
    for moment in steps:
        trace = next_trace(trace, moment.spike, tau_s)
        traces.append(trace)
    return traces


def _through_psc(
    grad_out: Tensor | None, later: Tensor | None, t: int, tau_s: float, dtype: torch.dtype
) -> Tensor | None:
    """The whole gradient with respect to a[t]: the output's own and that of a[t+1]."""
    own = None if grad_out is None else grad_out[t].to(dtype)
    if later is None or tau_s == 1.0:
        return own
    later = later * (1.0 - 1.0 / tau_s)
    return later if own is None else own + later


def _at(
    grad: Tensor | None, t: int, steps: int, per_step: bool, dtype: torch.dtype
) -> Tensor | None:
    """c[t]: the gradient that the state after step t gets from outside."""
    if grad is None or not (per_step or t == steps - 1):
        return None
    return (grad[t] if per_step else grad).to(dtype)
