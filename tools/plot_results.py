"""Draw the plots of docs/results.md from its own tables, so that each figure is written once.

python tools/plot_results.py --out docs/assets

The same tables give the same files.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plot_networks import STYLE

PAGE = Path(__file__).parent.parent / "docs" / "results.md"
ROW = re.compile(r"^\|(.+)\|$")

Row = Mapping[str, str]


def table(page: str, *headings: str) -> list[Row]:
    """The rows of the page's first table with these headings, by heading; repeated ones get a 2."""
    lines = iter(page.splitlines())
    for line in lines:
        names = _cells(line)
        if tuple(names) == headings:
            next(lines)
            keys = [f"{name} 2" if name in names[:i] else name for i, name in enumerate(names)]
            return [dict(zip(keys, cells, strict=True)) for cells in _rows(lines)]
    raise ValueError(f"{PAGE} has no table with the headings {headings}")


def _rows(lines: Iterator[str]) -> Iterator[Sequence[str]]:
    for line in lines:
        if not (cells := _cells(line)):
            return
        yield cells


def _cells(line: str) -> Sequence[str]:
    found = ROW.match(line)
    return [cell.strip().replace("`", "") for cell in found[1].split("|")] if found else []


def differences(axes: Axes, rows: Sequence[Row], columns: Mapping[str, str], sign: float) -> None:
    """Differences with their intervals; ``columns`` gives a column's dots a label."""
    rows = [row for row in rows if row[next(iter(columns))]]
    axes.axvline(0, color="0.6", linewidth=1)
    for number, (column, label) in enumerate(columns.items()):
        found = [[float(part) for part in row[column].split(" ± ")] for row in rows]
        places = [place + 0.2 * (number - 0.5) for place in range(len(rows))]
        means, halves = [sign * mean for mean, _ in found], [half for _, half in found]
        axes.errorbar(means, places, xerr=halves, fmt="o", markersize=4, capsize=2, label=label)
    _finish(axes, [row["gradient"] for row in rows])
    axes.figure.legend(loc="outside upper right", frameon=False, ncols=2)


def _finish(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    axes.grid(axis="x", alpha=0.3)


def surrogates(page: str) -> Figure:
    """Each surrogate minus TSSL-BP, at the best and last epochs."""
    headings = ("set", "library", "gradient", "best", *2 * ("TSSL-BP ahead by", "last"))
    rows = table(page, *headings[:-1])
    rows = [{**row, "gradient": f"{row['library']}: {row['gradient']}"} for row in rows]
    drawn = Figure(figsize=(7, 3), layout="constrained")
    axes = drawn.subplots()
    columns = {"TSSL-BP ahead by": "best epoch", "TSSL-BP ahead by 2": "last epoch"}
    differences(axes, rows, columns, sign=-1)
    axes.set_xlabel("test accuracy less TSSL-BP's, in points")
    return drawn


def parts(page: str) -> Figure:
    """TSSL-BP with one part removed or replaced, for both kinds of output."""
    headings = ("gradient", "spikes, cross-entropy", "difference")
    rows = table(page, *headings, "PSCs, tau_s = 3, kernel loss", "difference")
    drawn = Figure(figsize=(7, 3.4), layout="constrained")
    axes = drawn.subplots()
    differences(axes, rows, {"difference": "spikes", "difference 2": "PSCs, tau_s = 3"}, sign=1)
    axes.set(xlim=(-4, 2.5), xlabel="test accuracy less TSSL-BP's, in points")
    for place, row in enumerate(rows[1:]):
        if float(row["difference"].split()[0]) < -4:
            beyond = f"\N{LEFTWARDS ARROW} {row['difference']} and {row['difference 2']}"
            axes.annotate(beyond, (-3.9, place), va="center")
    return drawn


def further_rules(page: str) -> Figure:
    """Last epochs: one dot per seed, and a bar at their mean."""
    rows = table(
        page, "task", "hidden", "gradient", "last epoch, by seed", "mean", "mean of best epochs"
    )
    drawn = Figure(figsize=(7, 4.4), layout="constrained")
    axes = drawn.subplots()
    for place, row in enumerate(rows):
        seeds = [float(seed) for seed in row["last epoch, by seed"].split(", ")]
        style = {"color": f"C{place % 3}"}
        axes.plot(seeds, [place] * len(seeds), "o", alpha=0.4, markersize=4, **style)
        axes.plot(float(row["mean"]), place, "|", markersize=13, mew=3, **style)
    axes.set_xlabel("test accuracy in the last epoch, %")
    _finish(axes, [f"{row['task']}, {row['hidden']}: {row['gradient']}" for row in rows])
    return drawn


PLOTS = {"surrogates": surrogates, "parts": parts, "further-rules": further_rules}


def main() -> None:
    """Write the plots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the .svg files")
    out: Path = parser.parse_args().out
    page = PAGE.read_text()
    with mpl.rc_context(STYLE):
        for name, draw in PLOTS.items():
            draw(page).savefig(out / f"{name}.svg", metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
