"""Plots of the gradient figures: growth through depth and time, and how rules agree."""

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
"""What sets groups apart."""


def titles(groups: Sequence[Group]) -> list[str]:
    """Which networks they are: what the groups do not share, their library at least."""
    varied = [name for name in NAMED if len({group[name] for group in groups}) > 1] or ["library"]
    return [", ".join(_said(name, group[name]) for name in varied) for group in groups]


def _said(name: str, value: Any) -> str:
    return f"tau_s = {value:g}" if name == "tau_s" else str(value)


def _rules(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(rule for group in groups for rule in group["rules"]))


def _layers(groups: Sequence[Group]) -> list[tuple[str, Group, int]]:
    """Each group's layers, from 0, and which they are."""
    return [
        (f"{title}, layer {layer + 1}", group, layer)
        for title, group in zip(titles(groups), groups, strict=True)
        for layer in range(len(group["cosine"]))
    ]


def through_depth(groups: Sequence[Group], *, columns: int = COLUMNS) -> Figure:
    """The norm of each layer's weight gradient, a line a rule."""
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
    """The norm of the drive's gradient at each step, a panel a layer."""
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
    """Cosines between the rules' weight gradients, a panel a layer."""
    chosen = _layers(groups)
    figure, axes = panels(len(chosen), columns)
    for axis, (title, group, layer) in zip(axes, chosen, strict=True):
        cosine, names = group["cosine"][layer], group["rules"]
        axis.imshow(cosine, cmap="RdBu", vmin=-1.5, vmax=1.5)  # pale enough to read on
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
    """A logarithmic axis has no place for 0."""
    return [norm if norm > 0 else float("nan") for norm in norms]
