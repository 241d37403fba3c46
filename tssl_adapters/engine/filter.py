"""A leaky synaptic current over a whole sequence, in front of the membrane."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tssl_adapters.engine.call.once import first_order
from tssl_adapters.engine.call.settings import Settings
from tssl_adapters.engine.compiled import reference
from tssl_adapters.engine.compiled.kernels import backend
from tssl_adapters.engine.compiled.synapse import FusedCurrent, fits
from tssl_adapters.neuron import Value


def synaptic_current(settings: Settings, drive: Tensor, current: Tensor, k: Value) -> Tensor:
    """i'[t] ``[T, batch, ...]`` from such a drive and the layer's current ``[batch, ...]``.

    i'[t] = i[t-1] + x[t] and i[t] = i'[t] + k i'[t], with k = -dt/tau_syn.
    """
    charged: Tensor
    kernels = backend(settings.engine) if settings.rule.chain else None
    if kernels is not None and fits(kernels, drive, current, k):
        charged = FusedCurrent.apply(kernels, drive, current, k, settings.path)  # type: ignore[no-untyped-call]
        return charged
    charged = SynapticCurrent.apply(drive, current, k, settings.rule.chain)  # type: ignore[no-untyped-call]
    return charged


class SynapticCurrent(torch.autograd.Function):
    """i'[t] = i[t-1] + x[t] and i[t] = i'[t] + k i'[t], with k = -dt/tau_syn.

    ``apply(drive [T, batch, ...], current [batch, ...], k, chain) -> i' [T, batch, ...]``;
    ``chain=False`` sends nothing back over time. Backward in O(T); i' is kept only if k learns.
    """

    @staticmethod
    def forward(drive: Tensor, current: Tensor, k: Value, chain: bool) -> Tensor:
        return reference.current(drive, current, k)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        drive, current, k, ctx.chain = inputs
        ctx.number = None if isinstance(k, Tensor) else k
        learns = isinstance(k, Tensor) and k.requires_grad
        ctx.save_for_backward(k if ctx.number is None else None, output if learns else None)
        ctx.meta = (drive.dtype, current.shape, current.dtype)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_charged: Tensor) -> tuple[Tensor | None, ...]:
        k, charged = ctx.saved_tensors
        k = k if ctx.number is None else ctx.number
        drive_dtype, current_shape, current_dtype = ctx.meta
        if not ctx.chain:
            return grad_charged.to(drive_dtype), None, None, None
        grads = reference.current_back(grad_charged, k)
        grad_k = None
        if charged is not None:
            grad_k = (grads[1:] * charged[:-1]).sum(0).sum_to_size(k.shape)
        grad_current = grads[0].sum_to_size(current_shape).to(current_dtype)
        return grads.to(drive_dtype), grad_current, grad_k, None
