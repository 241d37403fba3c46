"""How a run reports its progress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
"""A line of the results: one epoch."""


@dataclass
class Progress:
    """How far a run has come; the sums are of the current epoch.

    ``seconds`` excludes the ``untimed`` batches, in which something was compiled.
    """

    epoch: int = 0
    batch: int = 0
    samples: int = 0
    loss: float = 0.0
    correct: int = 0
    seconds: float = 0.0
    best: float = 0.0
    untimed: int = 0

    @property
    def epoch_seconds(self) -> float:
        """The epoch's time if all batches had taken as long as the timed ones."""
        return self.seconds * self.batch / max(1, self.batch - self.untimed)


class Observer:
    """Is told of a run's progress; override it to show something."""

    def batch(self, progress: Progress, num_batches: int) -> None:
        """A batch of ``num_batches`` in the epoch was trained on."""

    def epoch(self, record: Record, best: float) -> None:
        """An epoch ended; ``best`` is the best test accuracy so far."""

    def stops(self) -> bool:
        """Whether the run is to stop after this batch."""
        return False


def describe(record: Record, epochs: int, best: float) -> str:
    """One line about an epoch."""
    return (
        f"epoch {record['epoch']}/{epochs}  loss {record['train_loss']:.4f}  "
        f"train {record['train_accuracy']:.2%}  test {record['test_accuracy']:.2%} "
        f"(best {best:.2%})  spikes {record['spike_rate']:.3f} a step  "
        f"{record['seconds']:.1f} s"
    )
