"""First spike times, for losses and models that read spike times.

Source: the paper of :class:`tssl_adapters.rules.STDBP`. All tensors are time first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def first_spike_time(spikes: Tensor) -> Tensor:
    """The step of each neuron's first spike, ``[...]`` for ``spikes`` of shape ``[T, ...]``.

    T for a silent neuron. A floating point tensor, for losses such as cross-entropy of -time/tau
    with tau of 1 to 2 steps. Differentiable for :class:`tssl_adapters.rules.STDBP`, which reads the
    time's gradient g from a ramp: the spikes get g min(t, time + 1) at step t.
    """
    _check(spikes)
    times: Tensor = _FirstSpikeTime.apply(spikes)  # type: ignore[no-untyped-call]
    return times


def first_spike(spikes: Tensor) -> Tensor:
    """Keep only each neuron's first spike; same shape as ``spikes``, ``[T, ...]``.

    For a model under :class:`tssl_adapters.rules.STDBP` whose neurons fire more than once: put it
    between a layer and the next. Backward it passes on the gradient up to one step after the first
    spike, where the rule reads the spike's time, and keeps it constant from there, so that later
    spikes do not matter.
    """
    _check(spikes)
    first: Tensor = _FirstSpike.apply(spikes)  # type: ignore[no-untyped-call]
    return first


def _first_times(spikes: Tensor) -> Tensor:
    """The step of the first spike, T if there is none; integers."""
    fired = spikes.ne(0)
    times = fired.to(torch.uint8).argmax(dim=0)
    return times.masked_fill(~fired.any(dim=0), len(spikes))


def _steps_of(spikes: Tensor) -> Tensor:
    """The steps 0 ... T-1, shaped to broadcast against spikes."""
    steps = torch.arange(len(spikes), device=spikes.device)
    return steps.reshape(-1, *(1 for _ in spikes.shape[1:]))


class _FirstSpikeTime(torch.autograd.Function):
    """``spikes [T, ...] -> times [...]``."""

    @staticmethod
    def forward(ctx: Any, spikes: Tensor) -> Tensor:
        times = _first_times(spikes)
        ctx.save_for_backward(times, _steps_of(spikes))
        return times.to(spikes.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        times, steps = ctx.saved_tensors
        return grad * torch.minimum(steps, times + 1)


class _FirstSpike(torch.autograd.Function):
    """``spikes [T, ...] -> the first of them``."""

    @staticmethod
    def forward(ctx: Any, spikes: Tensor) -> Tensor:
        times, steps = _first_times(spikes), _steps_of(spikes)
        ctx.save_for_backward(times, steps)
        return spikes * steps.eq(times)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        times, steps = ctx.saved_tensors
        return grad.gather(0, torch.minimum(steps, times + 1).clamp(max=len(grad) - 1))


def _check(spikes: Tensor) -> None:
    if spikes.dim() == 0 or not spikes.is_floating_point():
        raise ValueError(f"spikes must be a floating point tensor [T, ...], not {describe(spikes)}")


def describe(tensor: Tensor) -> str:
    """Dtype and shape, for an error."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
