"""One run: training, testing, checkpoints."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler

from tssl_adapters.bench.measures import KeptForBackward
from tssl_adapters.bench.observer import Observer, Progress, Record
from tssl_adapters.bench.settings import Settings
from tssl_adapters.bench.workload import Workload


class CheckpointError(Exception):
    """A run cannot continue from this checkpoint."""


class InterruptedRunError(Exception):
    """The run was asked to stop; its checkpoint continues with the next batch."""


def _schedule(optimizer: torch.optim.Optimizer, settings: Settings) -> LRScheduler:
    """The learning rate schedule, stepped once per epoch."""
    if settings.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=settings.epochs)
    return ConstantLR(optimizer, factor=1.0)


def _num_correct(scores: Tensor, labels: Tensor) -> int:
    """The number of correct predictions, by the largest score."""
    return int((scores.argmax(1) == labels).sum())


class Trainer:
    """A workload, its optimizer, and their progress: the checkpoint contains all of it.

    Args:
        settings: the run's settings.
        work: the model, its batches and its loss; the model's weights are trained in place.
        checkpoint: file written after each epoch.
        observer: is told of the progress.
        full_records: add the loss's name to the records, and as ``kept_bytes`` the memory saved
            for the backward pass of a batch.
    """

    def __init__(
        self,
        settings: Settings,
        work: Workload,
        checkpoint: Path,
        observer: Observer | None = None,
        full_records: bool = False,
    ) -> None:
        self.settings, self.work, self.checkpoint = settings, work, checkpoint
        self.observer = observer or Observer()
        self.optimizer = work.optimizer()
        self.schedule = _schedule(self.optimizer, settings)
        self.order = torch.Generator().manual_seed(settings.seed)
        self.progress = Progress()
        self.records: list[Record] = []
        self.kept = KeptForBackward() if full_records else None
        self.cold = True
        """Whether this process has not trained on any batch yet."""

    def fit(self) -> list[Record]:
        """Train to the last epoch; returns the records of the epochs trained now.

        Raises:
            InterruptedRunError: the observer asked to stop; the checkpoint has been written.
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
        batches = islice(self.work.train_batches(self.order), self.progress.batch, None)
        self.work.model.train()
        for inputs, labels in batches:
            self._train_batch(inputs, labels)
            self.observer.batch(self.progress, self.work.num_batches)
            if self.observer.stops() and self.progress.batch < self.work.num_batches:
                self.save(epoch_start)
                raise InterruptedRunError(str(self.checkpoint))

    def _train_batch(self, inputs: Tensor, labels: Tensor) -> None:
        """One optimizer step; adds to the epoch's sums."""
        started = time.perf_counter()
        with self._measured():
            output = self.work.output(inputs)
            loss = self.work.loss(output, labels)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.work.step(self.optimizer)
        progress = self.progress
        progress.batch += 1
        progress.samples += len(labels)
        progress.loss += loss.item() * (len(labels) if self.work.averages else 1)
        progress.correct += _num_correct(self.work.scores(output), labels)
        seconds, cold, self.cold = time.perf_counter() - started, self.cold, False
        if cold and self.work.num_batches > 1:
            progress.untimed += 1
        else:
            progress.seconds += seconds

    def _measured(self) -> AbstractContextManager[Any]:
        """Measure the first batch of an epoch, and the first after a checkpoint."""
        if self.kept is None or (self.progress.batch > 0 and self.kept.num_bytes > 0):
            return nullcontext()
        return self.kept

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Accuracy and spike rate on the test set."""
        self.work.model.eval()
        correct = samples = 0
        with self.work.spike_rate(self.settings.tau_s) as spikes:
            for inputs, labels in self.work.test_batches():
                correct += _num_correct(self.work.scores(self.work.output(inputs)), labels)
                samples += len(labels)
                spikes.end_sequence(self.work.num_steps)
        return correct / samples, spikes.rate

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
            "seconds": done.epoch_seconds,
            "spike_rate": spike_rate,
        }
        if self.kept is not None:
            record |= {"loss": self.settings.loss, "kept_bytes": self.kept.num_bytes}
        self.records.append(record)
        self.save(self.order.get_state())
        self.observer.epoch(record, self.progress.best)

    def save(self, order: Tensor) -> None:
        """Write the checkpoint atomically; ``order`` draws the current epoch's sample order."""
        checkpoint = {
            "settings": self.settings.fixed(),
            "model": self.work.model.state_dict(),
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
        """Continue from the checkpoint.

        Raises:
            CheckpointError: there is none, or it was made with other settings.
        """
        path = self.checkpoint
        if not path.is_file():
            raise CheckpointError(f"no checkpoint at {path} to resume")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        mine = self.settings.fixed()
        for name, value in (self.settings.defaults() | checkpoint["settings"]).items():
            if value != mine.get(name):
                option = f"--{name.replace('_', '-')}"
                raise CheckpointError(
                    f"{path} was made with {option} {value}, not {mine.get(name)}"
                )
        self.work.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.schedule.load_state_dict(checkpoint["schedule"])
        self.progress = Progress(**checkpoint["progress"])
        self.records = checkpoint["records"]
        self.order.set_state(checkpoint["order"])
        torch.set_rng_state(checkpoint["random"])
        if len(checkpoint["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(checkpoint["random_cuda"])
