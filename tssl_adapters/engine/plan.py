"""What one call of a layer needs to know, and what the two autograd functions share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tssl_adapters.engine.recursion import Backward, Carried, Moment
from tssl_adapters.neuron import Neuron, Value
from tssl_adapters.rules import Rule


@dataclass(frozen=True)
class Plan:
    """The static part of a call.

    Attributes:
        neuron: the record; its tensors are replaced by those that autograd hands over.
        rule: the learning rule.
        tau_s: synaptic time constant in steps; at 1 the layer emits its spikes.
        linked: whether the incoming state came with a link.
        keep_membrane: return the state after every step rather than after the last one.
    """

    neuron: Neuron
    rule: Rule
    tau_s: float
    linked: bool = False
    keep_membrane: bool = False

    @property
    def links(self) -> int:
        """How many tensors the link between two calls has; 0 where none is needed.

        lambda[t+1] and F_v lambda[t+1]; where the layer hands on h, the reset belongs to the call
        before, so that F_v mu[t+1] has to go the same way.
        """
        rule, neuron = self.rule, self.neuron
        if not rule.chain:
            return 0
        delayed = neuron.timing == "delayed"
        if rule.splits_adjoint(neuron.detached) or (
            delayed and rule.resets_membrane(neuron.detached)
        ):
            return 3 if delayed else 2
        return 0

    def inputs(self) -> tuple[Value, ...]:
        """The neuron's numbers as autograd inputs; the raw ones only serve recomputation."""
        values = self.neuron.values()
        raw = tuple(v.detach() if isinstance(v, Tensor) else v for v in values[5:])
        return (*values[:5], *raw)


def working_dtype(tensor: Tensor) -> torch.dtype:
    """Adjoints of half-precision layers are carried in float32."""
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype


def in_working_dtype(moment: Moment) -> Moment:
    dtype = working_dtype(moment.charged)
    if moment.charged.dtype == dtype:
        return moment
    return Moment(*(None if field is None else field.to(dtype) for field in moment))  # type: ignore[arg-type]


def empty_links(plan: Plan, like: Tensor) -> tuple[Tensor, ...]:
    """Tensors without storage of their own that carry only gradients."""
    dtype = working_dtype(like)
    return tuple(
        torch.zeros((), dtype=dtype, device=like.device).expand(like.shape)
        for _ in range(plan.links)
    )


def save(ctx: Any, plan: Plan, tensors: Sequence[Tensor | None], values: Sequence[Value]) -> None:
    """Keep the call's tensors and the neuron's numbers, tensors the way autograd wants it."""
    ctx.plan = plan
    ctx.count = len(tensors)
    ctx.numbers = tuple(None if isinstance(v, Tensor) else v for v in values)
    ctx.save_for_backward(*tensors, *(v for v in values if isinstance(v, Tensor)))
    ctx.set_materialize_grads(False)


def restore(ctx: Any) -> tuple[Plan, Neuron, tuple[Tensor, ...]]:
    """The inverse of :func:`save`."""
    saved = ctx.saved_tensors
    tensors, rest = saved[: ctx.count], iter(saved[ctx.count :])
    values = [next(rest) if number is None else number for number in ctx.numbers]
    return ctx.plan, ctx.plan.neuron.with_values(values), tensors


def carried_in(links: Sequence[Tensor | None]) -> Carried:
    return Carried(*links)


def carried_out(backward: Backward, plan: Plan, like: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of the link that came in; a missing link takes none."""
    if not plan.links:
        return ()
    if not plan.linked:
        return (None,) * plan.links
    return tuple(
        None if part is None else part.sum_to_size(like.shape)
        for part in backward.carried[: plan.links]
    )


def reduced(grad: Tensor | None, like: Tensor) -> Tensor | None:
    """A gradient in the shape and dtype of the tensor it belongs to."""
    return None if grad is None else grad.sum_to_size(like.shape).to(like.dtype)


def value_gradients(
    backward: Backward, values: Sequence[Value], count: int
) -> tuple[Tensor | None, ...]:
    """Gradients of the five numbers that learn, then ``None`` for the raw ones."""
    learned = tuple(
        reduced(total, value) if isinstance(value, Tensor) else None
        for total, value in zip(backward.sums, values, strict=False)
    )
    return (*learned, *(None,) * (count - len(learned)))
