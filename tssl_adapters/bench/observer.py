"""How a run's progress is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]
"""A line of the results: an epoch."""


@dataclass
class Progress:
    """How far a run has come; the sums are those of the epoch in progress.

    ``seconds`` is without ``untimed`` batches, in which what they go through was compiled.
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
        """What the epoch's batches would have taken, had all taken as long as the timed ones."""
        return self.seconds * self.batch / max(1, self.batch - self.untimed)


class Observer:
    """Is told how a run goes on; what is to be shown overrides this."""

    def batch(self, progress: Progress, num_batches: int) -> None:
        """A batch of ``num_batches`` in the epoch was trained on."""

    def epoch(self, record: Record, best: float) -> None:
        """An epoch ended; ``best`` is the best test accuracy so far."""

    def stops(self) -> bool:
        """Whether the run is to stop after this batch."""
        return False


def describe(record: Record, epochs: int, best: float) -> str:
    """An epoch in one line."""
    return (
        f"epoch {record['epoch']}/{epochs}  loss {record['train_loss']:.4f}  "
        f"train {record['train_accuracy']:.2%}  test {record['test_accuracy']:.2%} "
        f"(best {best:.2%})  spikes {record['spike_rate']:.3f} a step  "
        f"{record['seconds']:.1f} s"
    )
