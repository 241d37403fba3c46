"""What is printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from tssl_adapters.bench.speed.cases import Row
from tssl_adapters.bench.speed.floors import Floor

Format = Callable[[float], str]
COLUMNS: dict[str, tuple[str, Format]] = {
    "forward ms": ("forward_s", lambda value: f"{1e3 * value:.2f}"),
    "backward ms": ("backward_s", lambda value: f"{1e3 * value:.2f}"),
    "ms": ("total_s", lambda value: f"{1e3 * value:.2f}"),
    "times faster": ("times_faster", lambda value: f"{value:.2f}"),
    "in processor time": ("times_less_processor", lambda value: f"{value:.2f}"),
    "kept MiB": ("bytes_kept", lambda value: f"{value / 2**20:.2f}"),
    "drives kept": ("drives_kept", lambda value: f"{value:.2f}"),
    "peak MiB": ("peak_bytes", lambda value: f"{value / 2**20:.1f}"),
    "GB/s": ("bytes_per_s", lambda value: f"{value / 1e9:.1f}"),
    "of copy": ("of_copy", lambda value: f"{value:.0%}"),
}
WIDTH = 180
VERDICTS = {True: "met", False: "missed", None: "not measured"}


def timings(rows: Sequence[Row]) -> list[Table]:
    """A table a work and number of threads, a section a size, a line a contestant."""
    tables = []
    for (title, threads), mine in groupby(rows, lambda row: (row["title"], row["threads"])):
        table = Table(title=f"{title}; threads: {threads}", title_justify="left")
        for heading in ("T", "batch", "neurons", "contestant"):
            table.add_column(heading)
        for heading in COLUMNS:
            table.add_column(heading, justify="right")
        for size, case in groupby(mine, lambda row: (row["steps"], row["batch"], row["neurons"])):
            for row in case:
                cells = (_cell(row.get(name), shown) for name, shown in COLUMNS.values())
                table.add_row(*map(str, size), row["contestant"], *cells)
            table.add_section()
        tables.append(table)
    return tables


def growths(rows: Sequence[Row]) -> Table:
    """Time per step of long sequences."""
    table = Table(title="time per step, T = 1000 over T = 100")
    for heading in ("work", "neurons", "contestant", "ratio"):
        table.add_column(heading)
    for row in rows:
        ratio = f"{row['ratio']:.2f}"
        table.add_row(row["title"], str(row["neurons"]), row["contestant"], ratio)
    return table


def network_steps(rows: Sequence[Row]) -> Table:
    """Training steps of the suite's networks."""
    table = Table(title="a training step; threads: 1", title_justify="left")
    for heading in ("network", "rule"):
        table.add_column(heading)
    headings = ("ms", "times faster", "in processor time")
    for heading in headings:
        table.add_column(heading, justify="right")
    for _, mine in groupby(rows, lambda row: row["network"]):
        for row in mine:
            shown = (COLUMNS[heading] for heading in headings)
            cells = (_cell(row[name], how) for name, how in shown)
            table.add_row(row["network"], row["rule"], *cells)
        table.add_section()
    return table


def verdicts(floors: Sequence[Floor]) -> Table:
    """The floors."""
    table = Table(title="floors")
    for heading in ("work", "figure", "floor", "measured", "by", ""):
        table.add_column(heading)
    for floor in floors:
        bound, measured = f"{floor.sense} {floor.bound:g}", _cell(floor.measured, "{:.2f}".format)
        table.add_row(floor.what, floor.figure, bound, measured, floor.by, VERDICTS[floor.met])
    return table


def show(tables: Sequence[Table], left_out: Sequence[str]) -> None:
    """Print tables that have lines, and what is missing; whole where this is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    for table in tables:
        if table.row_count:
            console.print(table)
    for line in left_out:
        console.print(f"left out: {line}", markup=False, highlight=False)


def _cell(value: float | None, shown: Format) -> str:
    return "" if value is None else shown(value)
