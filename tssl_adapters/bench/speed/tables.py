"""Tables of results for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table

from tssl_adapters.bench.speed.cases import Row
from tssl_adapters.bench.speed.floors import Floor

WIDTH = 100
Format = Callable[[float], str]
COLUMNS: dict[str, tuple[str, Format]] = {
    "forward ms": ("forward_s", lambda value: f"{1e3 * value:.2f}"),
    "backward ms": ("backward_s", lambda value: f"{1e3 * value:.2f}"),
    "ms": ("total_s", lambda value: f"{1e3 * value:.2f}"),
    "faster": ("times_faster", lambda value: f"{value:.2f}"),
    "by CPU": ("times_less_processor", lambda value: f"{value:.2f}"),
    "kept MiB": ("bytes_kept", lambda value: f"{value / 2**20:.2f}"),
    "drives kept": ("drives_kept", lambda value: f"{value:.2f}"),
    "peak MiB": ("peak_bytes", lambda value: f"{value / 2**20:.1f}"),
    "GB/s": ("bytes_per_s", lambda value: f"{value / 1e9:.1f}"),
    "of copy": ("of_copy", lambda value: f"{value:.0%}"),
}
VERDICTS = {True: "met", False: "missed", None: "not measured"}


def timings(rows: Sequence[Row]) -> list[Table]:
    """A table per work, number of threads and size; a line per contestant, no empty columns."""
    tables = []
    for (title, threads, size), case in groupby(rows, _case):
        mine = list(case)
        measured = {
            heading: (name, shown)
            for heading, (name, shown) in COLUMNS.items()
            if any(row.get(name) is not None for row in mine)
        }
        table = Table(
            title=f"{title}; threads: {threads}; {size}",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            padding=0,
            collapse_padding=True,
        )
        table.add_column("contestant", no_wrap=True)
        for heading in measured:
            table.add_column(heading, justify="right", overflow="fold")
        for row in mine:
            cells = (_cell(row.get(name), shown) for name, shown in measured.values())
            table.add_row(row["contestant"], *cells)
        tables.append(table)
    return tables


def _case(row: Row) -> tuple[str, int, str]:
    """What was timed: work, number of threads, size."""
    neurons = f", neurons = {row['neurons']}" if row["neurons"] else ""  # a network has fixed sizes
    return row["title"], row["threads"], f"T = {row['steps']}, batch = {row['batch']}{neurons}"


def growths(rows: Sequence[Row]) -> Table:
    """Table of the time per step of long sequences."""
    table = Table(title="time per step, T = 1000 over T = 100")
    for heading in ("work", "neurons", "contestant", "ratio"):
        table.add_column(heading)
    for row in rows:
        ratio = f"{row['ratio']:.2f}"
        table.add_row(row["title"], str(row["neurons"]), row["contestant"], ratio)
    return table


def network_steps(rows: Sequence[Row]) -> Table:
    """Table of the training steps of the suite's networks."""
    table = Table(title="a training step; threads: 1", title_justify="left")
    for heading in ("network", "rule"):
        table.add_column(heading)
    headings = ("ms", "faster", "by CPU")
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
    """Table of the floors."""
    table = Table(title="floors")
    for heading in ("work", "figure", "floor", "measured", "by", ""):
        table.add_column(heading)
    for floor in floors:
        bound, measured = f"{floor.sense} {floor.bound:g}", _cell(floor.measured, "{:.2f}".format)
        table.add_row(floor.what, floor.figure, bound, measured, floor.by, VERDICTS[floor.met])
    return table


def show(tables: Sequence[Table], left_out: Sequence[str]) -> None:
    """Print non-empty tables, and what was left out; 100 columns wide if this is no terminal."""
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
