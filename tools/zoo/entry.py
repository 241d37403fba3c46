"""What is known about a model in advance, and the outcome of its check."""

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
    """A model, and how users run it.

    Attributes:
        library: distribution name.
        constructor: its class or function, with the module.
        make: builds it; ``None`` if there is nothing to build, for the reason in ``note``.
        run: the whole forward pass from rest; returns one tensor.
        shape: the shape of the random input.
        variant: which of several settings of a constructor.
        normal: whether the input is normal rather than uniform in [0, 1).
        note: a remark made in advance.
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
        """The key in the table."""
        variant = f" [{self.variant}]" if self.variant else ""
        return f"{self.library}: {self.constructor}{variant}"

    def seed(self) -> int:
        """A seed that is fixed for a model and differs between models."""
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
        version: the library's version.
        model: constructor, and its variant.
        verdict: the outcome.
        reason: why, if the verdict is not simply "works".
        parameters: number of learned values.
        wrapped: spiking layers that are wrapped.
        native: layers that do not spike and stay native.
        refused: spiking layers that cannot be wrapped.
        silent: spiking layers that do not spike at all on this input.
        weights: weights (tensors of two dimensions and more) with a native gradient.
        taught: those of them whose gradient is finite and nonzero once wrapped.
        rule: the name of the rule used for wrapping.
        seconds: duration of the check.
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
        """Same as :attr:`Entry.name`."""
        return f"{self.library}: {self.model}"

    def to_json(self) -> dict[str, Any]:
        """The row as it is written to the file."""
        return asdict(self)
