"""A leaky synaptic current over a whole sequence, computed by compiled kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tssl_adapters.elementwise import plain
from tssl_adapters.engine.call.once import first_order
from tssl_adapters.engine.compiled.kernels import Backend, memory
from tssl_adapters.engine.compiled.launch import Current
from tssl_adapters.engine.compiled.memory import spread, spreads
from tssl_adapters.neuron import Value


def fits(backend: Backend, drive: Tensor, current: Tensor, k: Value) -> bool:
    """Whether the kernels support the current: its leak must be one plain number."""
    return (
        isinstance(k, float)
        and plain(drive)
        and backend.takes(drive)
        and current.dtype == drive.dtype
        and spreads(current.shape, drive.shape[1:])
    )


class FusedCurrent(torch.autograd.Function):
    """``(backend, drive, current, k, path) -> i'``, like
    :class:`tssl_adapters.engine.filter.SynapticCurrent`.
    """

    @staticmethod
    def forward(
        ctx: Any, backend: Backend, drive: Tensor, current: Tensor, k: float, path: str = ""
    ) -> Tensor:
        ctx.call = Current(path, backend, k)
        ctx.like = current.shape
        start = spread(current, drive.shape[1:], drive)
        charged: Tensor = ctx.call.run(memory(drive), start)
        return charged

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        grad_drive = ctx.call.back(memory(grad_out))
        entering = grad_drive[0].clone() if ctx.needs_input_grad[2] else None
        entering = None if entering is None else entering.sum_to_size(ctx.like)
        return None, grad_drive, entering, None, None
