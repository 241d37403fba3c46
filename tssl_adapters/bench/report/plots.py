"""The report's plots: lines differ in dashes and markers, so that greyscale suffices."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from tssl_adapters.bench.report.tables import SETTING, Row, differing

STYLE: Any = {
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "svg.fonttype": "none",
}
# Okabe and Ito's colours, from dark to light
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
# Five and nine are coprime: even without colours no two of 45 lines look alike
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
MARKERS = "osD^vPX*<"
WIDTH, HEIGHT = 4.2, 3.0  # of one panel, in inches
COLUMNS = 3
"""Panels per row; a narrow window gets its own drawing, with one."""


def svg(figure: Figure) -> str:
    """A figure as an ``svg`` element, to be embedded in a page."""
    file = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def looks(rules: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The style of each rule's line, the same in every plot."""
    choices = zip(cycle(COLORS), cycle(DASHES), cycle(MARKERS), strict=False)
    return {
        rule: {"color": color, "linestyle": dash, "marker": marker, "markersize": 4}
        for rule, (color, dash, marker) in zip(rules, choices, strict=False)
    }


def panels(
    number: int, columns: int = COLUMNS, *, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Any]]:
    """A figure with that many axes; ``sharex`` and ``sharey`` give them the same limits."""
    columns = min(number, columns)
    lines = -(-number // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * columns, HEIGHT * lines), layout="constrained")
        layout: Any = figure.get_layout_engine()  # matplotlib's base class has no such argument
        layout.set(h_pad=0.1, w_pad=0.1)
        grid = figure.subplots(lines, columns, squeeze=False, sharex=sharex, sharey=sharey)
        axes = grid.flatten().tolist()
        for unused in axes[number:]:
            unused.set_axis_off()
        for axis in axes[:number]:
            axis.tick_params(labelbottom=True, labelleft=True)  # hidden by shared axes
    return figure, axes[:number]


def entitle(axis: Any, title: str) -> None:
    """Wrap a panel's title so that it does not touch the next panel's."""
    axis.set_title(textwrap.fill(title, 60), fontsize=8)


def plain_numbers(axis: Axis) -> None:
    """Label a logarithmic axis after drawing on it; matplotlib's own labels would overlap."""
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    within = (1.0, 2.0, 5.0) if decades < 2 else (1.0,)
    axis.set_major_locator(MaxNLocator(5) if decades < 1 else LogLocator(subs=within))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def settings(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each setting's title and epochs; titles leave out what all settings share."""
    varied = [name for name in SETTING if table[name].nunique() > 1] or ["library"]
    for keys, epochs in table.groupby(SETTING, sort=False):
        named = dict(zip(SETTING, keys, strict=True))
        yield ", ".join(_title(name, named[name]) for name in varied), epochs


def _title(name: str, value: Any) -> str:
    return f"tau_s = {float(value):g}" if name == "tau_s" else str(value)


def curves(table: pd.DataFrame) -> pd.DataFrame:
    """The settings trained for more than one epoch: a single one makes no curve."""
    return table[table.groupby(SETTING)["epoch"].transform("max") > 1]


def over_epochs(
    table: pd.DataFrame,
    column: str,
    label: str,
    factor: float = 1.0,
    *,
    share: bool = True,
    columns: int = COLUMNS,
) -> Figure:
    """A column against the epoch: the mean over seeds, with their range in grey.

    ``share`` gives all panels the same axis, for columns that mean the same in each.
    """
    groups = list(settings(table))
    figure, axes = panels(len(groups), columns, sharey=share)
    styles = looks(list(table["rule"].unique()))
    for axis, (title, epochs) in zip(axes, groups, strict=True):
        for rule, mine in epochs.groupby("rule", sort=False):
            over_seeds = mine.groupby("epoch")[column]
            mean, style = over_seeds.mean() * factor, styles[str(rule)]
            every = max(1, len(mean) // 10)
            axis.plot(mean.index, mean, label=rule, markevery=every, **style)
            low, high = over_seeds.min() * factor, over_seeds.max() * factor
            axis.fill_between(mean.index, low, high, color=style["color"], alpha=0.1, lw=0)
        entitle(axis, title)
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.get_major_locator().set_params(integer=True)
    legend(figure, axes)
    return figure


def compared(rows: Sequence[Row]) -> list[Row]:
    """The rows that have a difference to native."""
    return [row for row in rows if row.last_difference is not None]


def differences(rows: Sequence[Row], *, columns: int = COLUMNS) -> Figure:
    """Differences to native in points, with their intervals, one panel per setting.

    With one epoch the best is the last, and is not drawn.
    """
    shown = compared(rows)
    titles = list(dict.fromkeys(_setting(row, rows) for row in shown))
    figure, axes = panels(len(titles), columns, sharex=True)
    drawn = [(-0.12, "best", "o"), (0.12, "last", "s")]
    if max(row.epochs for row in shown) == 1:
        drawn = [(0.0, "last", "s")]
    for axis, title in zip(axes, titles, strict=True):
        mine = [row for row in shown if _setting(row, rows) == title]
        for offset, which, marker in drawn:
            found = [getattr(row, f"{which}_difference") for row in mine]
            axis.errorbar(
                [100 * estimate.mean for estimate in found],
                [place + offset for place in range(len(mine))],
                xerr=[100 * (estimate.half or 0.0) for estimate in found],
                fmt=marker,
                color="black" if which == "best" else "#777777",
                capsize=3,
                label=f"{which} epoch",
            )
        axis.axvline(0.0, color="black", linewidth=0.8)
        axis.set_yticks(range(len(mine)), [row.rule for row in mine])
        axis.set_ylim(len(mine) - 0.5, -0.5)
        entitle(axis, title)
        axis.set(xlabel="test accuracy minus native's (points)")
    legend(figure, axes)
    return figure


def costs(rows: Sequence[Row], *, columns: int = COLUMNS) -> Figure:
    """Seconds per epoch and MiB saved for the backward pass, a bar for each rule and setting."""
    columns = min(2, columns)
    figure, (time, memory) = panels(2, columns)
    height = max(HEIGHT, 0.25 * len(rows) + 0.8)
    figure.set_size_inches(1.5 * columns * WIDTH, height * 2 / columns)
    names = [f"{_setting(row, rows)}, {row.rule}" for row in rows]
    places = range(len(rows))
    time.barh(places, [row.seconds for row in rows], color="#777777")
    time.set_yticks(places, names)
    time.set(xlabel="training time (s per epoch)")
    memory.barh(places, [row.mebibytes or 0.0 for row in rows], color="#bbbbbb", hatch="//")
    memory.set_yticks(places, names if columns == 1 else [""] * len(rows))
    memory.set(xlabel="kept for backward (MiB per batch)")
    for axis in (time, memory):
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(axis="y", visible=False)
    return figure


def _setting(row: Row, rows: Sequence[Row]) -> str:
    return ", ".join(_title(name, row.setting[name]) for name in differing(rows))


def legend(figure: Figure, axes: Sequence[Any]) -> None:
    """One legend for all panels, with everything that any of them shows."""
    shown: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        shown.update(zip(labels, handles, strict=True))
    columns = min(max(1, int(figure.get_figwidth() / 2)), 4, len(shown))
    figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=columns)
