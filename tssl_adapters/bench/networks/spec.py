"""What defines a network of the suite: its data, and how it is built, run and trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

Library = Literal["snntorch", "spikingjelly", "norse"]
Kind = Literal["ordinary", "stress", "timing", "fashion"]


class Split(NamedTuple):
    """Samples, batch first, and labels ``[N]``, for training and for testing."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class Network:
    """A network and its recipe. Nothing is read or built before it is needed.

    Attributes:
        name: short words in kebab-case, the library first.
        library: the name of its library's distribution.
        kind: ``ordinary`` networks are from tutorials; ``stress`` cases have unusual depths,
            thresholds, drives or resets; ``timing`` tasks, on a fine time grid, can be solved only
            by spike times; ``fashion`` networks use Fashion-MNIST, whose files must be there, and
            are run only when named.
        data: reads or generates the samples, the same at every call; takes the folder of the data
            files, or ``None`` for the usual places.
        build: makes the model, as the library does, with torch's global generator.
        forward: ``forward(model, x)`` runs one batch ``[batch, ...]`` of samples from rest.
        loss: maps the output of ``forward`` and the labels to a mean over the batch.
        score: maps the output of ``forward`` to ``[batch, classes]``; the largest value is the
            prediction.
        optimizer: makes the model's optimizer.
        epochs: the total number.
        batch_size: samples per training batch.
    """

    name: str
    library: Library
    kind: Kind
    data: Callable[[Path | None], Split]
    build: Callable[[], nn.Module]
    forward: Callable[[nn.Module, Tensor], Any]
    loss: Callable[[Any, Tensor], Tensor]
    score: Callable[[Any], Tensor]
    optimizer: Callable[[nn.Module], Optimizer]
    epochs: int
    batch_size: int
