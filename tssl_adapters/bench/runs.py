"""One run of the grid, in whichever process executes it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tssl_adapters.bench import architectures, data, rules
from tssl_adapters.bench.architectures import Network
from tssl_adapters.bench.experiment import Experiment
from tssl_adapters.bench.method import init_weights
from tssl_adapters.bench.observer import Observer, Progress, Record
from tssl_adapters.bench.settings import Settings
from tssl_adapters.bench.trainer import InterruptedRunError, Trainer
from tssl_adapters.bench.user import UserWorkload, build
from tssl_adapters.bench.workload import PaperWorkload, Workload

Event = dict[str, Any]
Tell = Callable[[Event], None]
SECONDS_BETWEEN_EVENTS = 0.5


@dataclass(frozen=True)
class Job:
    """A run, the experiment's folder, and the device."""

    settings: Settings
    folder: Path
    data_dir: Path | None = None
    device: str = "cpu"
    source: str | None = None
    """``FILE:FUNCTION`` of a user's own model."""

    def workload(self) -> Workload:
        """The model to train and its data, at the start."""
        settings = self.settings
        if self.source is not None:
            return UserWorkload(settings, build(self.source, settings.seed))
        samples = data.load(
            settings.data,
            self.data_dir,
            settings.time_steps,
            settings.limit,
            settings.validation,
        )
        return PaperWorkload(settings, network(settings, samples), samples, self.device)


class Messenger(Observer):
    """Reports epochs and, now and then, batches; writes the run's records."""

    def __init__(self, job: Job, tell: Tell, stops: Callable[[], bool]) -> None:
        self.job, self.tell, self._stops = job, tell, stops
        self.records: list[Record] = []
        self.last = 0.0

    def batch(self, progress: Progress, num_batches: int) -> None:
        now = time.monotonic()
        if now - self.last >= SECONDS_BETWEEN_EVENTS:
            self.last = now
            done = {"epoch": progress.epoch, "batch": progress.batch, "batches": num_batches}
            self.tell({"run": self.job.settings.name, **done})

    def epoch(self, record: Record, best: float) -> None:
        self.records.append(record)
        Experiment(self.job.folder).record(self.job.settings, self.records)
        self.tell({"run": self.job.settings.name, "record": record, "best": best})

    def stops(self) -> bool:
        return self._stops()


def network(settings: Settings, samples: data.Data) -> Network:
    """A run's network, at its start."""
    between = architectures.connections(settings.network, samples.sample_shape, samples.num_classes)
    once = settings.once
    built = rules.build(settings.library, settings.rule, settings.tau_s, between, once)
    init_weights(built.model, settings.seed, once)
    return built


def run(job: Job, tell: Tell, stops: Callable[[], bool] = lambda: False) -> None:
    """Train one run to its last epoch, from its checkpoint if there is one.

    An error is recorded in the experiment's folder.

    Raises:
        InterruptedRunError: ``stops`` returned true.
    """
    experiment = Experiment(job.folder)
    experiment.forgive(job.settings)
    try:
        _train(job, experiment, Messenger(job, tell, stops))
    except InterruptedRunError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        experiment.fail(job.settings, said, traceback.format_exc())
        tell({"run": job.settings.name, "error": said})


def _train(job: Job, experiment: Experiment, messenger: Messenger) -> None:
    settings = job.settings
    work = job.workload()
    torch.manual_seed(settings.seed)
    checkpoint = experiment.checkpoint(settings)
    trainer = Trainer(settings, work, checkpoint, messenger, full_records=True)
    if trainer.checkpoint.is_file():
        trainer.load()
    messenger.records = trainer.records.copy()
    experiment.record(settings, messenger.records)
    trainer.fit()
