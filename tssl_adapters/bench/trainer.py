"""One run: training, testing, checkpoints."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler

from tssl_adapters.bench.data import Data
from tssl_adapters.bench.measures import KeptForBackward, SpikeRate
from tssl_adapters.bench.method import (
    MAX_GRADIENT_NORM,
    MAX_WEIGHT,
    MEAN_LOSS,
    batch_loss,
    encode,
)
from tssl_adapters.bench.observer import Observer, Progress, Record
from tssl_adapters.bench.settings import Settings

Forward = Callable[[nn.Module, Tensor], Tensor]
TEST_BATCH = 500


class CheckpointError(Exception):
    """A checkpoint that a run cannot go on from."""


class InterruptedRunError(Exception):
    """The run was asked to stop; its checkpoint goes on with the next batch."""


def _schedule(optimizer: torch.optim.Optimizer, settings: Settings) -> LRScheduler:
    """How the learning rate goes on from epoch to epoch."""
    if settings.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=settings.epochs)
    return ConstantLR(optimizer, factor=1.0)


class Trainer:
    """A model, its optimizer, and how far they have come: all of it is in the checkpoint.

    Args:
        settings: the run's.
        model: the network; its weights are trained in place.
        forward: ``forward(model, x)`` runs it over ``x`` ``[T, batch, ...]`` from rest and returns
            what the output layer emits, ``[T, batch, classes]``.
        data: samples to train and to test on.
        neuron: class of its spiking layers.
        checkpoint: file that is written after each epoch.
        device: where to compute.
        observer: is told how it goes on.
        full_records: add the loss's name to the records, and as ``kept_bytes`` what a batch keeps
            for backward.
    """

    def __init__(
        self,
        settings: Settings,
        model: nn.Module,
        forward: Forward,
        data: Data,
        neuron: type[nn.Module],
        checkpoint: Path,
        device: str = "cpu",
        observer: Observer | None = None,
        full_records: bool = False,
    ) -> None:
        self.settings, self.forward, self.neuron = settings, forward, neuron
        self.checkpoint, self.device = checkpoint, device
        self.data, self.observer = data, observer or Observer()
        self.model = model.to(device)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr)
        self.schedule = _schedule(self.optimizer, settings)
        self.order = torch.Generator().manual_seed(settings.seed)
        self.progress = Progress()
        self.records: list[Record] = []
        self.kept = KeptForBackward() if full_records else None

    def fit(self) -> list[Record]:
        """Train up to the last epoch; the records of those trained now.

        Raises:
            InterruptedRunError: the observer said so; the checkpoint has been written.
        """
        before = len(self.records)
        while self.progress.epoch < self.settings.epochs:
            self._train_epoch()
            self._end_epoch()
            if self.observer.stops() and self.progress.epoch < self.settings.epochs:
                raise InterruptedRunError(str(self.checkpoint))
        return self.records[before:]

    def _train_epoch(self) -> None:
        epoch_start = self.order.get_state()
        samples = torch.randperm(len(self.data.train_labels), generator=self.order)
        batches = torch.split(samples, self.settings.batch_size)
        self.model.train()
        for batch in batches[self.progress.batch :]:
            self._train_batch(batch)
            self.observer.batch(self.progress, len(batches))
            if self.observer.stops() and self.progress.batch < len(batches):
                self.save(epoch_start)
                raise InterruptedRunError(str(self.checkpoint))

    def _train_batch(self, batch: Tensor) -> None:
        """One step of the optimizer, and its part in the epoch's sums."""
        started = time.perf_counter()
        labels = self.data.train_labels[batch].to(self.device)
        with self._measured():
            output = self._run(self.data.train_images[batch])
            loss = batch_loss(self.settings.loss, output, labels, self.settings.tau_s)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.clamp_(-MAX_WEIGHT, MAX_WEIGHT)
        progress = self.progress
        progress.batch += 1
        progress.samples += len(batch)
        progress.loss += loss.item() * (len(batch) if self.settings.loss == MEAN_LOSS else 1)
        progress.correct += self._num_correct(output, labels)
        progress.seconds += time.perf_counter() - started

    def _measured(self) -> AbstractContextManager[Any]:
        """Measure an epoch's first batch, and the first after a checkpoint."""
        if self.kept is None or (self.progress.batch > 0 and self.kept.num_bytes > 0):
            return nullcontext()
        return self.kept

    def _run(self, samples: Tensor) -> Tensor:
        x = encode(samples.to(self.device), self.settings.time_steps, self.settings.tau_s)
        return self.forward(self.model, x)

    @staticmethod
    def _num_correct(output: Tensor, labels: Tensor) -> int:
        return int((output.sum(0).argmax(1) == labels).sum())

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Accuracy on the test set, and the spike rate there."""
        self.model.eval()
        images, labels = self.data.test_images, self.data.test_labels
        correct = 0
        with SpikeRate(self.model, self.neuron, self.settings.tau_s) as spikes:
            for start in range(0, len(labels), TEST_BATCH):
                batch = slice(start, start + TEST_BATCH)
                output = self._run(images[batch])
                correct += self._num_correct(output, labels[batch].to(self.device))
                spikes.end_sequence(self.settings.time_steps)
        return correct / len(labels), spikes.rate

    def _end_epoch(self) -> None:
        test_accuracy, spike_rate = self.evaluate()
        done = self.progress
        self.progress = Progress(done.epoch + 1, best=max(done.best, test_accuracy))
        self.schedule.step()
        record = {
            **self.settings.recorded(),
            "epoch": self.progress.epoch,
            "train_loss": done.loss / done.samples,
            "train_accuracy": done.correct / done.samples,
            "test_accuracy": test_accuracy,
            "seconds": done.seconds,
            "spike_rate": spike_rate,
        }
        if self.kept is not None:
            record |= {"loss": self.settings.loss, "kept_bytes": self.kept.num_bytes}
        self.records.append(record)
        self.save(self.order.get_state())
        self.observer.epoch(record, self.progress.best)

    def save(self, order: Tensor) -> None:
        """Write the checkpoint in one piece; ``order`` draws the order of the current epoch."""
        checkpoint = {
            "settings": self.settings.fixed(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "progress": asdict(self.progress),
            "records": self.records,
            "order": order,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all(),
        }
        path = self.checkpoint
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.part")
        torch.save(checkpoint, unfinished)
        os.replace(unfinished, path)

    def load(self) -> None:
        """Go on where the checkpoint was written.

        Raises:
            CheckpointError: there is none, or it was made under other settings.
        """
        path = self.checkpoint
        if not path.is_file():
            raise CheckpointError(f"no checkpoint at {path} to resume")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        mine = self.settings.fixed()
        for name, value in checkpoint["settings"].items():
            if value != mine.get(name):
                option = f"--{name.replace('_', '-')}"
                raise CheckpointError(
                    f"{path} was made with {option} {value}, not {mine.get(name)}"
                )
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.schedule.load_state_dict(checkpoint["schedule"])
        self.progress = Progress(**checkpoint["progress"])
        self.records = checkpoint["records"]
        self.order.set_state(checkpoint["order"])
        torch.set_rng_state(checkpoint["random"])
        if self.device.startswith("cuda"):
            torch.cuda.set_rng_state_all(checkpoint["random_cuda"])
