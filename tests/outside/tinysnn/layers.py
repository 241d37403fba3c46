"""Its layers hold their potential, and reset by subtraction or to zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, distance: Tensor) -> Tensor:
        ctx.save_for_backward(distance)
        return (distance >= 0.0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (distance,) = ctx.saved_tensors
        return grad / (1.0 + distance.abs()) ** 2


class LIF(nn.Module):
    """One time step a call."""

    def __init__(self, decay: float = 0.8, threshold: float = 1.0, to_zero: bool = False) -> None:
        super().__init__()
        self.decay, self.threshold, self.to_zero = decay, threshold, to_zero
        self.spike = Spike.apply
        self.v: Tensor | float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        charged = self.decay * self.v + x
        spikes: Tensor = self.spike(charged - self.threshold)
        self.v = charged - spikes * (charged if self.to_zero else self.threshold)
        return spikes


class LIFSequence(LIF):
    """All time steps a call, ``[T, batch, ...]``."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([super(LIFSequence, self).forward(step) for step in x])


class Gate(LIF):
    """A neuron that no adapter knows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * x.sigmoid()


class Leak(nn.Module):
    """It does not spike."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


def reset(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, LIF):
            module.v = 0.0
