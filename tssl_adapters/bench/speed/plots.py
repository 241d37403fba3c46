"""Time against T and N, and the roofline: one panel per work, one line per contestant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from tssl_adapters.bench.report.plots import STYLE, legend, looks, panels, plain_numbers
from tssl_adapters.bench.speed.contestants import COPY

RESOLUTION = 150  # dots per inch
COPY_LOOK: dict[str, Any] = {"color": "#999999", "linestyle": "-", "linewidth": 4, "alpha": 0.7}


def over(table: pd.DataFrame, along: str, fixed: str, label: str) -> Figure | None:
    """Milliseconds against one column, another fixed at its most frequent or largest value."""
    timed = table[table["contestant"] != COPY].copy()
    timed["ms"] = 1e3 * timed["total_s"]
    groups: list[tuple[str, pd.DataFrame]] = []
    for title, mine in timed.groupby("title", sort=False):
        counts = mine.groupby(fixed)[along].nunique()
        value = counts[counts == counts.max()].index.max()
        shown = mine[mine[fixed] == value]
        if shown[along].nunique() > 1:
            name = "T" if fixed == "steps" else "neurons"
            groups.append((f"{title}\n{name} = {value}" if value else str(title), shown))
    return _lines(groups, along, "ms", label, "forward + backward (ms)")


def roofline(table: pd.DataFrame) -> Figure | None:
    """Bytes that must move, per second, against the drive's size; copying the drive is grey."""
    shown = table[table["bytes_per_s"].notna()].copy()
    shown["MiB"] = shown["drive_bytes"] / 2**20
    shown["GB/s"] = shown["bytes_per_s"] / 1e9
    groups: list[tuple[str, pd.DataFrame]] = []
    for title, mine in shown.groupby("title", sort=False):
        best = mine.groupby(["contestant", "MiB"], sort=False)["GB/s"].max().reset_index()
        if best["MiB"].nunique() > 1:
            groups.append((str(title), best))
    return _lines(groups, "MiB", "GB/s", "drive, T x batch x neurons (MiB)", "needed bytes (GB/s)")


def _lines(
    groups: list[tuple[str, pd.DataFrame]], x: str, y: str, x_label: str, y_label: str
) -> Figure | None:
    if not groups:
        return None
    figure, axes = panels(len(groups))
    names = dict.fromkeys(name for _, mine in groups for name in mine["contestant"])
    styles = looks([name for name in names if name != COPY]) | {COPY: COPY_LOOK}
    for axis, (title, mine) in zip(axes, groups, strict=True):
        for name in names:
            line = mine[mine["contestant"] == name].sort_values(x)
            if len(line):
                axis.plot(line[x], line[y], label=name, **styles[name])
        axis.set(title=title, xlabel=x_label, ylabel=y_label, xscale="log", yscale="log")
        for scale in (axis.xaxis, axis.yaxis):
            plain_numbers(scale)
    legend(figure, axes)
    return figure


def write(rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Write the plots for which there is enough data, from the runs with the fewest threads."""
    if not rows:
        return []
    table = pd.DataFrame(rows)
    table["neurons"] = table["neurons"].fillna(0).astype(int)  # a network has fixed sizes
    table = table[table["threads"] == table["threads"].min()]
    figures = {
        "time_over_steps": over(table, "steps", "neurons", "time steps T"),
        "time_over_neurons": over(table, "neurons", "steps", "neurons"),
        "roofline": roofline(table) if "bytes_per_s" in table else None,
    }
    written = []
    for name, figure in figures.items():
        if figure is not None:
            path = folder / f"{name}.png"
            with mpl.rc_context(STYLE):
                figure.savefig(path, dpi=RESOLUTION)
            written.append(path)
    return written
