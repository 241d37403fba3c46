"""Tables that print well and can be iterated: what ``inspect`` and ``supported`` return."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
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
        return (self.layer, f"{self.library} {self.version}", self.mode)


R = TypeVar("R", bound=Row)
COLUMNS = 100
"""The width of a printed table."""
_AT_LEAST = 36
"""The width that a column gets, if it needs that much, before names are broken."""


class Report(Sequence[R], Generic[R]):
    """Rows under headings, and closing lines; ``print`` it, iterate it, index it.

    Args:
        headings: one for each cell of a row; the first cell is a name, which may be dotted.
        rows: the lines.
        empty: what is printed if there are none.
        last: paragraphs below the table, the last of which says what to do next.
        once: a heading whose column is printed once below the table if it is the same in all rows.
    """

    def __init__(
        self,
        headings: tuple[str, ...],
        rows: Sequence[R],
        empty: str,
        last: Sequence[str] = (),
        once: str | None = None,
    ) -> None:
        self._headings, self._rows = headings, tuple(rows)
        self._empty, self._last, self._once = empty, tuple(last), once

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[R]:
        return iter(self._rows)

    def __str__(self) -> str:
        if not self._rows:
            return _filled(self._empty)
        columns = dict(
            zip(self._headings, zip(*(row.cells() for row in self._rows), strict=True), strict=True)
        )
        last = list(self._last)
        if self._once is not None and len(same := set(columns[self._once])) == 1:
            del columns[self._once]
            last.insert(0, f"{self._once}: {same.pop()}")
        return "\n\n".join([_table(columns), *map(_filled, last)])

    __repr__ = __str__


def _table(columns: Mapping[str, Sequence[str]]) -> str:
    """Texts under their headings, side by side."""
    from rich.console import Console  # imported here, as only printing a table needs it
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for heading in columns:
        table.add_column(heading, overflow="fold")
    names, *others = columns.values()
    needed = [max(map(len, (heading, *texts))) for heading, texts in columns.items()]
    room = COLUMNS - sum(2 + min(_AT_LEAST, width) for width in needed[1:])
    for name, *texts in zip(names, *others, strict=True):
        table.add_row(_broken_at_dots(name, max(room, _AT_LEAST // 2)), *texts)
    console = Console(
        file=io.StringIO(), width=COLUMNS, color_system=None, markup=False, emoji=False,
        highlight=False, legacy_windows=False, force_jupyter=False, _environ={},
    )  # fmt: skip
    with console.capture() as printed:
        console.print(table)
    return "\n".join(line.rstrip() for line in printed.get().splitlines())


def _broken_at_dots(name: str, width: int) -> str:
    if len(name) <= width:
        return name
    spaced = textwrap.wrap(name.replace(".", ". "), width, break_long_words=False)
    return "\n".join(line.replace(". ", ".") for line in spaced)


def _filled(paragraph: str) -> str:
    return textwrap.fill(paragraph, COLUMNS, break_long_words=False, break_on_hyphens=False)
