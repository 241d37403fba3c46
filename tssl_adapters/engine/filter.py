"""A leaky synaptic current in front of the membrane."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tssl_adapters.elementwise import plain
from tssl_adapters.engine.call.once import first_order
from tssl_adapters.engine.call.settings import Settings
from tssl_adapters.engine.compiled import reference
from tssl_adapters.engine.compiled.kernels import Backend, backend, memory
from tssl_adapters.engine.compiled.launch import Current
from tssl_adapters.engine.compiled.memory import spread, spreads
from tssl_adapters.neuron import Value


def synaptic_current(
    settings: Settings, drive: Tensor, current: Tensor, k: Value, *, sequence: bool = True
) -> Tensor:
    """i'[t], like the drive: ``[batch, ...]``, or ``[T, batch, ...]`` for a sequence; from the
    layer's current ``[batch, ...]``.

    i'[t] = i[t-1] + x[t] and i[t] = i'[t] + k i'[t], with k = -dt/tau_syn.
    """
    if not sequence:
        # Where the rule has no chain over time, the current's graph ends here too.
        return (current if settings.rule.chain else current.detach()) + drive
    kernels, chain = backend(settings.engine), settings.rule.chain
    compiled = None
    if kernels is not None and isinstance(k, float) and chain and _fits(kernels, drive, current):
        compiled = Current(settings.path, kernels, k)
    charged: Tensor = SynapticCurrent.apply(drive, current, k, chain, compiled)  # type: ignore[no-untyped-call]
    return charged


def _fits(kernels: Backend, drive: Tensor, current: Tensor) -> bool:
    """Whether the kernels take these tensors."""
    return (
        plain(drive)
        and kernels.takes(drive)
        and current.dtype == drive.dtype
        and spreads(current.shape, drive.shape[1:])
    )


class SynapticCurrent(torch.autograd.Function):
    """i'[t] = i[t-1] + x[t] and i[t] = i'[t] + k i'[t], with k = -dt/tau_syn.

    ``apply(drive, current, k, chain, compiled) -> i'``, the drive and i' ``[T, batch, ...]``, the
    current ``[batch, ...]``; ``chain=False`` sends nothing back over time. Backward in O(T); i' is
    kept only if k learns.
    """

    @staticmethod
    def forward(
        drive: Tensor, current: Tensor, k: Value, chain: bool, compiled: Current | None
    ) -> Tensor:
        if compiled is None:
            return reference.current(drive, current, k)
        return compiled.run(memory(drive), spread(current, drive.shape[1:], drive))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        drive, current, k, ctx.chain, ctx.compiled = inputs
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
            return grad_charged.to(drive_dtype), None, None, None, None
        if ctx.compiled is None:
            grads = reference.current_back(grad_charged, k)
        else:
            grads = ctx.compiled.back(memory(grad_charged))
        grad_k = None
        if charged is not None:
            grad_k = (grads[1:] * charged[:-1]).sum(0).sum_to_size(k.shape)
        grad_current = None
        if ctx.needs_input_grad[1]:  # a copy: the caller may write to the drive's
            grad_current = grads[0].clone().sum_to_size(current_shape).to(current_dtype)
        return grads.to(drive_dtype), grad_current, grad_k, None, None
