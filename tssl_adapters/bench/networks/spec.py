"""What the suite knows of a network: its data, how it is built, run and trained."""

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
    """Samples, batch first, and labels ``[N]``, to train and to test on."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class Network:
    """A network and its recipe. Nothing is read or built before it is asked for.

    Attributes:
        name: short words in kebab-case, the library's first.
        library: the name of its library's distribution.
        kind: ``ordinary`` networks are as tutorials have them; ``stress`` cases have unusual
            depths, thresholds, drives or resets; in ``timing`` tasks, on a fine time grid, only
            when a spike comes tells the classes apart; ``fashion`` are of Fashion-MNIST, whose
            files have to be there, and are run by name alone.
        data: reads or generates the samples, the same each time; takes the folder of the data's
            files, or ``None`` for the usual places.
        build: makes the model, as the library has it, from torch's global generator.
        forward: ``forward(model, x)`` runs one batch ``[batch, ...]`` of the samples from rest.
        loss: of what ``forward`` returned and the labels, a mean over the batch.
        score: of what ``forward`` returned, the values ``[batch, classes]`` whose largest is the
            prediction.
        optimizer: made for the model.
        epochs: how many in all.
        batch_size: samples in a batch of training.
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
