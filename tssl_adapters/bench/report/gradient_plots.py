"""Plots of the gradients: growth through depth and time, and agreement of the rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from tssl_adapters.bench.report.plots import (
    COLUMNS,
    entitle,
    legend,
    looks,
    panels,
    plain_numbers,
)

Group = dict[str, Any]
"""What :func:`tssl_adapters.bench.gradients.compare` returns."""


NAMED = ("data", "network", "loss", "tau_s", "library")
"""The fields in which groups may differ."""


def titles(groups: Sequence[Group]) -> list[str]:
    """Titles that tell the groups apart: what they do not share, the library at least."""
    varied = [name for name in NAMED if len({group[name] for group in groups}) > 1] or ["library"]
    return [", ".join(_said(name, group[name]) for name in varied) for group in groups]


def _said(name: str, value: Any) -> str:
    return f"tau_s = {value:g}" if name == "tau_s" else str(value)


def _rules(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(rule for group in groups for rule in group["rules"]))


def _layers(groups: Sequence[Group]) -> list[tuple[str, Group, int]]:
    """Each group's layers, counted from 0, with a title each."""
    return [
        (f"{title}, layer {layer + 1}", group, layer)
        for title, group in zip(titles(groups), groups, strict=True)
        for layer in range(len(group["cosine"]))
    ]


def through_depth(groups: Sequence[Group], *, columns: int = COLUMNS) -> Figure:
    """The norm of each layer's weight gradient, one line per rule."""
    figure, axes = panels(len(groups), columns, sharey=True)
    styles = looks(_rules(groups))
    for axis, title, group in zip(axes, titles(groups), groups, strict=True):
        for rule, norms in group["norm"].items():
            axis.plot(range(1, len(norms) + 1), _positive(norms), label=rule, **styles[rule])
        entitle(axis, title)
        axis.set(xlabel="layer", ylabel="norm of the weight gradient")
        axis.set_yscale("log")
        axis.xaxis.get_major_locator().set_params(integer=True)
    plain_numbers(axes[0].yaxis)  # all have it
    legend(figure, axes)
    return figure


def through_time(groups: Sequence[Group], *, columns: int = COLUMNS) -> Figure:
    """The norm of the drive gradient at each time step, one panel per layer."""
    chosen = _layers(groups)
    figure, axes = panels(len(chosen), columns, sharey=True)
    styles = looks(_rules(groups))
    for axis, (title, group, layer) in zip(axes, chosen, strict=True):
        for rule, norms in group["drive_norm"].items():
            steps = range(1, group["time_steps"] + 1)
            axis.plot(steps, _positive(norms[layer]), label=rule, **styles[rule])
        entitle(axis, title)
        axis.set(xlabel="time step", ylabel="norm of the drive gradient")
        axis.set_yscale("log")
        axis.xaxis.get_major_locator().set_params(integer=True)
    plain_numbers(axes[0].yaxis)
    legend(figure, axes)
    return figure


def agreement(groups: Sequence[Group], *, columns: int = COLUMNS) -> Figure:
    """Cosines between the rules' weight gradients, one panel per layer."""
    chosen = _layers(groups)
    figure, axes = panels(len(chosen), columns)
    for axis, (title, group, layer) in zip(axes, chosen, strict=True):
        cosine, names = group["cosine"][layer], group["rules"]
        axis.imshow(cosine, cmap="RdBu", vmin=-1.5, vmax=1.5)  # pale enough for text on top
        for line, values in enumerate(cosine):
            for column, value in enumerate(values):
                axis.text(column, line, f"{value:.2f}", ha="center", va="center",
                          fontsize=min(9, 40 / len(names)))  # fmt: skip
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
        axis.set_yticks(range(len(names)), names, fontsize=7)
        entitle(axis, title)
        axis.grid(visible=False)
    return figure


def _positive(norms: Sequence[float]) -> list[float]:
    """A logarithmic axis cannot show 0."""
    return [norm if norm > 0 else float("nan") for norm in norms]
