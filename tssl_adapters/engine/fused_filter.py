"""A leaky synaptic current over a whole sequence, computed by compiled loops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tssl_adapters.engine import numba_filter
from tssl_adapters.engine.fused import plain, spread, spreads
from tssl_adapters.engine.once import first_order
from tssl_adapters.engine.threads import over
from tssl_adapters.neuron import Value


def fits(drive: Tensor, current: Tensor, k: Value) -> bool:
    """Whether the loops know the current: one plain number leaks it."""
    return (
        isinstance(k, float)
        and plain(drive)
        and current.dtype == drive.dtype
        and spreads(current.shape, drive.shape[1:])
    )


def _dtype(tensor: Tensor) -> str:
    return "float32" if tensor.dtype == torch.float32 else "float64"


class FusedCurrent(torch.autograd.Function):
    """``(drive, current, k) -> i'``, as :class:`tssl_adapters.engine.filter.SynapticCurrent`."""

    @staticmethod
    def forward(ctx: Any, drive: Tensor, current: Tensor, k: float) -> Tensor:
        ctx.k, ctx.like = k, current.shape
        steps, neurons = drive.shape[0], drive[0].numel()
        drive, start = drive.contiguous(), spread(current, drive.shape[1:], drive.dtype)
        out = torch.empty_like(drive)
        loop = numba_filter.forward(_dtype(drive))
        over(loop, steps, neurons, k, drive.data_ptr(), start.data_ptr(), out.data_ptr())
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        grad_out = grad_out.contiguous()
        steps, neurons = grad_out.shape[0], grad_out[0].numel()
        grad_drive = torch.empty_like(grad_out)
        loop = numba_filter.backward(_dtype(grad_out))
        over(loop, steps, neurons, ctx.k, grad_out.data_ptr(), grad_drive.data_ptr())
        entering = grad_drive[0].clone() if ctx.needs_input_grad[1] else None
        return grad_drive, None if entering is None else entering.sum_to_size(ctx.like), None
