"""Tables that print well and can be iterated: what ``inspect`` and ``supported`` return."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

Status = Literal["wrap", "wrapped", "refused", "skipped", "native"]


class Row(Protocol):
    """A line of a report."""

    def cells(self) -> tuple[str, ...]:
        """The line's texts, one for each heading."""
        ...


@dataclass(frozen=True)
class LayerReport:
    """One layer of a model.

    Attributes:
        path: dotted name in the model.
        layer: class name.
        library: the library it is from.
        version: that library's installed version.
        status: ``"wrap"`` (``wrap`` would), ``"wrapped"`` (is already), ``"refused"``,
            ``"skipped"``, or ``"native"`` (does not spike: stays as it is).
        detail: wrapped how (step or sequence), or why not and what to do.
        config: whether a refusal is about a setting rather than about the class.
    """

    path: str
    layer: str
    library: str
    version: str
    status: Status
    detail: str
    config: bool = False

    def cells(self) -> tuple[str, ...]:
        return (self.path, self.layer, f"{self.library} {self.version}", self.status, self.detail)


@dataclass(frozen=True)
class Supported:
    """One supported layer class of an installed library."""

    library: str
    version: str
    layer: str
    mode: str

    def cells(self) -> tuple[str, ...]:
        return (f"{self.library} {self.version}", self.layer, self.mode)


R = TypeVar("R", bound=Row)


class Report(Sequence[R], Generic[R]):
    """Rows under headings, and last lines on the whole; ``print`` it, iterate it, index it."""

    def __init__(
        self, headings: tuple[str, ...], rows: Sequence[R], empty: str, verdict: str = ""
    ) -> None:
        self._headings, self._rows = headings, tuple(rows)
        self._empty, self._verdict = empty, verdict

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[R]:
        return iter(self._rows)

    def __str__(self) -> str:
        if not self._rows:
            return self._empty
        table = [self._headings, *(row.cells() for row in self._rows)]
        widths = [max(len(line[i]) for line in table) for i in range(len(self._headings) - 1)]
        indent = sum(widths) + 2 * len(widths)
        lines = []
        for line in table:
            fixed = "".join(
                f"{cell:<{width + 2}}" for cell, width in zip(line, widths, strict=False)
            )
            last = textwrap.wrap(line[-1], 60) or [""]
            lines.append(fixed + last[0])
            lines.extend(" " * indent + more for more in last[1:])
        if self._verdict:
            for paragraph in self._verdict.splitlines():
                lines += ["", *textwrap.wrap(paragraph, 100)]
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__
