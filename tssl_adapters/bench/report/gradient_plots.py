"""Plots of the gradient figures: growth through depth and time, and how rules agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from tssl_adapters.bench.report.plots import entitle, legend, looks, panels, plain_numbers

Group = dict[str, Any]
"""What :func:`tssl_adapters.bench.gradients.compare` returns."""


def title(group: Group) -> str:
    """Which network it is."""
    trained = f"{group['data']}, {group['network']}, {group['loss']}"
    return f"{trained}, tau_s = {group['tau_s']:g}, {group['library']}"


def _rules(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(rule for group in groups for rule in group["rules"]))


def _layers(groups: Sequence[Group]) -> list[tuple[Group, int]]:
    return [(group, layer) for group in groups for layer in range(len(group["cosine"]))]


def through_depth(groups: Sequence[Group]) -> Figure:
    """The norm of each layer's weight gradient, a line a rule."""
    figure, axes = panels(len(groups))
    styles = looks(_rules(groups))
    for axis, group in zip(axes, groups, strict=True):
        for rule, norms in group["norm"].items():
            axis.plot(range(1, len(norms) + 1), _positive(norms), label=rule, **styles[rule])
        entitle(axis, title(group))
        axis.set(xlabel="layer", ylabel="norm of the weight gradient")
        axis.set_yscale("log")
        plain_numbers(axis.yaxis)
        axis.xaxis.get_major_locator().set_params(integer=True)
    legend(figure, axes)
    return figure


def through_time(groups: Sequence[Group]) -> Figure:
    """The norm of the drive's gradient at each step, a panel a layer."""
    chosen = _layers(groups)
    figure, axes = panels(len(chosen))
    styles = looks(_rules(groups))
    for axis, (group, layer) in zip(axes, chosen, strict=True):
        for rule, norms in group["drive_norm"].items():
            steps = range(1, group["time_steps"] + 1)
            axis.plot(steps, _positive(norms[layer]), label=rule, **styles[rule])
        entitle(axis, f"{title(group)}, layer {layer + 1}")
        axis.set(xlabel="time step", ylabel="norm of the drive gradient")
        axis.set_yscale("log")
        plain_numbers(axis.yaxis)
        axis.xaxis.get_major_locator().set_params(integer=True)
    legend(figure, axes)
    return figure


def agreement(groups: Sequence[Group]) -> Figure:
    """Cosines between the rules' weight gradients, a panel a layer."""
    chosen = _layers(groups)
    figure, axes = panels(len(chosen))
    for axis, (group, layer) in zip(axes, chosen, strict=True):
        cosine, names = group["cosine"][layer], group["rules"]
        axis.imshow(cosine, cmap="Greys", vmin=-1.0, vmax=1.0)
        for line, values in enumerate(cosine):
            for column, value in enumerate(values):
                shade = "white" if value > 0.4 else "black"
                axis.text(column, line, f"{value:.2f}", ha="center", va="center", color=shade,
                          fontsize=min(9, 40 / len(names)))  # fmt: skip
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
        axis.set_yticks(range(len(names)), names, fontsize=7)
        entitle(axis, f"{title(group)}, layer {layer + 1}")
        axis.grid(visible=False)
    return figure


def _positive(norms: Sequence[float]) -> list[float]:
    """A logarithmic axis has no place for 0."""
    return [norm if norm > 0 else float("nan") for norm in norms]
