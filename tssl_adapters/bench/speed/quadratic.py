"""TSSL-BP by the authors' algorithm: at each step, a slice over all later steps.

Source: W. Zhang and P. Li, NeurIPS 2020, eq. (8) to (13): the gradient with respect to h[t] is a
sum over the PSCs a[t], ..., a[T-1] that depend on h[t]. Time and memory traffic grow as T^2; the
recursion of `tssl_adapters.engine` computes the same sums in O(T). Time is the first dimension
here, and the last in the authors' code; the former is faster on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MAX_SLOPE, WIDTH, MAX_EXPONENT = 8.0, 0.2, 8.0


class QuadraticTSSLBP(nn.Module):
    """A neuron with h[t] = decay u[t-1] + gain x[t], reset to zero, that emits its PSC.

    Args:
        decay: of the membrane potential, per time step.
        gain: of the drive.
        threshold: the neuron fires if h is at least this.
        tau_s: synaptic time constant in time steps, at least 1.
    """

    def __init__(self, decay: float, gain: float, threshold: float, tau_s: float) -> None:
        super().__init__()
        self.settings = decay, gain, threshold, tau_s

    def forward(self, x: Tensor) -> Tensor:
        """``[T, ...]`` to PSCs of the same shape, from rest."""
        return _Quadratic.apply(x, *self.settings)  # type: ignore[no-untyped-call, no-any-return]


class _Quadratic(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, decay: float, gain: float, threshold: float, tau_s: float
    ) -> Tensor:
        u = a = torch.zeros_like(x[0])
        rows = []
        for drive in x:
            h = decay * u + gain * drive
            s = (h >= threshold).to(x.dtype)
            d, u = h - u, h * (1 - s)
            a = a + (s - a) / tau_s
            rows.append((h, s, d, a))
        charged, spike, increment, psc = (torch.stack(row) for row in zip(*rows, strict=True))
        ctx.save_for_backward(charged, spike, increment, psc)
        ctx.settings = decay, gain, threshold, tau_s
        return psc

    @staticmethod
    def backward(ctx: Any, grad_psc: Tensor) -> tuple[Tensor | None, ...]:
        charged, spike, increment, psc = ctx.saved_tensors
        decay, gain, threshold, tau_s = ctx.settings
        slope = spike * torch.where(increment == 0, MAX_SLOPE, (1 / increment).clip(0, MAX_SLOPE))
        carry = decay * (1 - spike) + (1 - decay) * charged * slope
        z = torch.exp(((threshold - charged) / WIDTH).clip(-MAX_EXPONENT, MAX_EXPONENT))
        smooth = z / (WIDTH * (1 + z) ** 2)
        silent = psc < 1 / (4 * tau_s)
        later = torch.arange(len(psc), dtype=psc.dtype, device=psc.device)
        kernel = (1 - 1 / tau_s) ** later / tau_s  # da[t + j] / ds[t], j = 0, 1, ...
        kernel = kernel.reshape(-1, *[1] * (psc.dim() - 1))
        grad_drive = torch.empty_like(psc)
        reach = psc[:0]  # [T - t - 1, ...]: da[j] / dh[t + 1], along the chain of spike times
        for t in reversed(range(len(psc))):
            from_spike = kernel[: len(psc) - t].expand_as(psc[t:])
            reach = slope[t] * from_spike + torch.cat([torch.zeros_like(psc[:1]), carry[t] * reach])
            through_time = (reach * grad_psc[t:]).sum(0)
            through_value = (from_spike * grad_psc[t:]).sum(0) * smooth[t]
            grad_drive[t] = gain * torch.where(silent[t], through_value, through_time)
        return grad_drive, None, None, None, None
