"""First derivatives only: a rule defines a gradient, which has no derivative of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeAlias

import torch
from torch import Tensor

Backward: TypeAlias = "Callable[..., tuple[Tensor | None, ...]]"

_TWICE = (
    "tssl_adapters: a wrapped layer has no second derivative: the rule defines its gradient, and "
    "that is not a function's derivative. Do not use create_graph=True (or nested torch.func.grad) "
    "through it; unwrap the model for that."
)


class _Refuse(torch.autograd.Function):
    """``(count, *gradients, *anchors) -> gradients``, which cannot be differentiated."""

    @staticmethod
    def forward(count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError(_TWICE)


def first_order(backward: Backward) -> Backward:
    """Make an autograd function's ``backward`` refuse a second derivative.

    With ``create_graph=True`` it refuses at once, as that has no other use. torch.func always
    builds the graph, so there it refuses only when the gradient is differentiated again.
    """

    @wraps(backward)
    def guarded(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        if not torch._C._are_functorch_transforms_active():
            raise RuntimeError(_TWICE)
        with torch.no_grad():
            found = backward(ctx, *grads)
        anchors = [t for t in (*ctx.saved_tensors, *grads) if t is not None]
        tensors = [grad for grad in found if grad is not None]
        refusing = iter(_Refuse.apply(len(tensors), *tensors, *anchors))  # type: ignore[no-untyped-call]
        return tuple(None if grad is None else next(refusing) for grad in found)

    return guarded
