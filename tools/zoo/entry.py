"""What is known of a model before it is tried, and what came of it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Verdict = Literal[
    "works",
    "works, part silent",
    "overflows",
    "refused",
    "nothing to wrap",
    "no model",
    "library error",
    "fails",
    "no recipe",
]
Run = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Entry:
    """A model, and how its users run it.

    Attributes:
        library: distribution name.
        constructor: what builds it, with the module it is found in.
        make: builds it; ``None`` where there is nothing to build, and ``note`` says why.
        run: the whole forward pass from rest, to one tensor.
        shape: of the random input.
        variant: which of several settings of one constructor.
        normal: whether the input is normal rather than uniform in [0, 1).
        note: what is to be said of it beforehand.
    """

    library: str
    constructor: str
    make: Callable[[], nn.Module] | None
    run: Run = lambda model, x: model(x)
    shape: Sequence[int] = ()
    variant: str = ""
    normal: bool = True
    note: str = ""

    @property
    def name(self) -> str:
        """Its key in the table."""
        variant = f" [{self.variant}]" if self.variant else ""
        return f"{self.library}: {self.constructor}{variant}"

    def seed(self) -> int:
        """Always the same for one model, and not the same for all."""
        return zlib.crc32(self.name.encode()) % 2**31

    def inputs(self) -> Tensor:
        """A small random input."""
        generator = torch.Generator().manual_seed(self.seed())
        draw = torch.randn if self.normal else torch.rand
        return draw(*self.shape, generator=generator)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        library: distribution name.
        version: of the library.
        model: constructor, and its variant.
        verdict: what came of it.
        reason: why, where it is not simply "works".
        parameters: how many numbers it learns.
        wrapped: spiking layers that are wrapped.
        native: layers that do not spike and stay as they are.
        refused: spiking layers that cannot be wrapped.
        silent: spiking layers without a single spike on this input.
        weights: weights (tensors of two dimensions and more) with a native gradient.
        taught: those of them with a gradient that is finite and not zero once wrapped.
        rule: the name of the rule that it was wrapped with.
        seconds: what the check took.
    """

    library: str
    version: str
    model: str
    verdict: Verdict
    reason: str = ""
    parameters: int = 0
    wrapped: int = 0
    native: int = 0
    refused: int = 0
    silent: int = 0
    weights: int = 0
    taught: int = 0
    rule: str = "smooth-tsslbp"
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """As :attr:`Entry.name`."""
        return f"{self.library}: {self.model}"

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        return asdict(self)
