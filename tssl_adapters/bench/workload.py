"""What a run trains: a model, its batches and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Generator, Tensor, nn

from tssl_adapters.bench.architectures import Network
from tssl_adapters.bench.data import Data
from tssl_adapters.bench.measures import SpikeRate
from tssl_adapters.bench.method import (
    MAX_GRADIENT_NORM,
    MAX_WEIGHT,
    MEAN_LOSSES,
    batch_loss,
    encode,
    scores,
)
from tssl_adapters.bench.settings import Settings

TEST_BATCH = 500
Batch = tuple[Tensor, Tensor]
"""Inputs and labels."""


class Workload(ABC):
    """A model that can be trained and tested in batches."""

    model: nn.Module
    neuron: type[nn.Module] | tuple[type[nn.Module], ...]
    num_batches: int
    num_steps: int | None = None
    averages: bool = True
    """Whether the loss is a mean over the batch, not a sum."""

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """Make the optimizer."""

    @abstractmethod
    def train_batches(self, order: Generator) -> Iterator[Batch]:
        """An epoch's batches, in an order drawn from ``order``."""

    @abstractmethod
    def test_batches(self) -> Iterator[Batch]:
        """All batches of the test set."""

    @abstractmethod
    def output(self, inputs: Tensor) -> Tensor:
        """Run the model from rest: ``[T, batch, classes]`` or ``[batch, classes]``."""

    @abstractmethod
    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar."""

    def scores(self, output: Tensor) -> Tensor:
        """The class scores, ``[batch, classes]``."""
        return output.sum(0) if output.dim() == 3 else output

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the weights from their gradients."""
        optimizer.step()

    def spike_rate(self, tau_s: float) -> AbstractContextManager[SpikeRate]:
        """Measures the spike rate of the model's spiking layers."""
        return SpikeRate(self.model, self.neuron, tau_s)


class PaperWorkload(Workload):
    """A network in the set-up of the TSSL-BP paper.

    Args:
        settings: the run's.
        network: the run's network, with its initial weights.
        data: samples for training and testing.
        device: where to compute.
    """

    def __init__(
        self, settings: Settings, network: Network, data: Data, device: str = "cpu"
    ) -> None:
        self.settings, self.data, self.device = settings, data, device
        self.model, self.forward, self.neuron = network
        self.model.to(device)
        self.num_steps = settings.time_steps
        self.num_batches = -(-len(data.train_labels) // settings.batch_size)
        self.averages = settings.loss in MEAN_LOSSES

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=self.settings.lr)

    def train_batches(self, order: Generator) -> Iterator[Batch]:
        samples = torch.randperm(len(self.data.train_labels), generator=order)
        for batch in torch.split(samples, self.settings.batch_size):
            yield self.data.train_images[batch], self.data.train_labels[batch].to(self.device)

    def test_batches(self) -> Iterator[Batch]:
        for start in range(0, len(self.data.test_labels), TEST_BATCH):
            batch = slice(start, start + TEST_BATCH)
            yield self.data.test_images[batch], self.data.test_labels[batch].to(self.device)

    def output(self, inputs: Tensor) -> Tensor:
        chosen = self.settings
        x = encode(inputs.to(self.device), chosen.time_steps, chosen.tau_s, chosen.once)
        return self.forward(self.model, x)

    def scores(self, output: Tensor) -> Tensor:
        return scores(self.settings.loss, output)

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        return batch_loss(self.settings.loss, output, labels, self.settings.tau_s)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.clamp_(-MAX_WEIGHT, MAX_WEIGHT)
