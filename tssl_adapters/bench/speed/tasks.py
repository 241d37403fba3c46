"""The timed tasks, each with a forward and a backward pass."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tssl_adapters.bench.speed.works import Run

LEARNING_RATE = 5e-4


class Task(Protocol):
    """What a contestant runs once per round."""

    def forward(self) -> Any:
        """The forward pass; returns what the backward pass needs."""
        ...

    def backward(self, out: Any) -> None:
        """The backward pass."""
        ...


class LayerTask:
    """A layer on a drive ``[T, batch, neurons]``, and back from a gradient of that shape."""

    def __init__(self, model: nn.Module, run: Run, drive: Tensor, gradient: Tensor) -> None:
        self.model, self.run, self.gradient = model, run, gradient
        self.drive = drive.detach().requires_grad_()

    def forward(self) -> Tensor:
        return self.run(self.model, self.drive)

    def backward(self, out: Tensor) -> None:
        self.drive.grad = None  # so that backward assigns it instead of adding to it
        torch.autograd.backward(out, self.gradient.to(out.dtype))


class TrainingTask:
    """A training step: cross-entropy of the output summed over time, then Adam's update."""

    def __init__(self, model: nn.Module, run: Run, samples: Tensor, labels: Tensor) -> None:
        self.model, self.run, self.samples, self.labels = model, run, samples, labels
        self.optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)

    def forward(self) -> Tensor:
        return F.cross_entropy(self.run(self.model, self.samples).sum(0), self.labels)

    def backward(self, out: Tensor) -> None:
        self.optimizer.zero_grad()
        torch.autograd.backward(out)
        self.optimizer.step()


class CopyTask:
    """Copies the drive: the cost of memory traffic on this device at this size."""

    def __init__(self, drive: Tensor) -> None:
        self.source, self.target = drive.detach(), torch.empty_like(drive)

    def forward(self) -> None:
        self.target.copy_(self.source)

    def backward(self, out: None) -> None:
        """A copy has no backward pass."""
