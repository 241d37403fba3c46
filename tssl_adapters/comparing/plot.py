"""A comparison as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from tssl_adapters.comparing.comparison import Comparison

_MOST_NAMES = 40
"""With more parameters than this, their numbers replace their names."""


def plot(found: Comparison) -> Figure:
    """Firing, widths and carry of each layer, and each parameter's gradients."""
    layers, parameters = found.layers, found.parameters
    figure = Figure(figsize=(11.0, 8.0), layout="constrained")
    figure.suptitle(f"Native and {' and '.join(found.rules)}")
    firing, widths, norms, cosines = figure.subplots(2, 2).flat
    names = [layer.path for layer in layers]

    firing.set_title("firing")
    _marks(firing, names, "o", [layer.rate for layer in layers], "rate")
    _marks(firing, names, "x", [layer.silent for layer in layers], "share of silent neurons")
    firing.set_ylim(-0.05, 1.05)

    widths.set_title("a step's rise and widths, as shares of theta")
    _marks(widths, names, "_", [layer.rise for layer in layers], "rise")
    _marks(widths, names, "o", [layer.native_width for layer in layers], "width, native")
    _marks(widths, names, "x", [layer.wrapped_width for layer in layers], "width, wrapped")
    _marks(widths, names, "^", [layer.carry for layer in layers], "carry over time")
    widths.set_yscale("log")

    names = [parameter.name for parameter in parameters]
    norms.set_title("norm of the gradient")
    _marks(norms, names, "o", [parameter.native for parameter in parameters], "native")
    _marks(norms, names, "x", [parameter.wrapped for parameter in parameters], "wrapped")
    norms.set_yscale("log")

    cosines.set_title("cosine of native and wrapped")
    _marks(cosines, names, "o", [parameter.cosine for parameter in parameters], None)
    cosines.set_ylim(-1.05, 1.05)
    return figure


def _marks(
    axes: Any, names: Sequence[str], marker: str, values: Sequence[float | None], label: str | None
) -> None:
    """A mark for each number; missing and non-finite ones have none."""
    numbers = [float("nan") if value is None else value for value in values]
    axes.plot(range(len(names)), numbers, marker, label=label)
    if len(names) <= _MOST_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    axes.set_xlim(-0.5, max(0.5, len(names) - 0.5))
    axes.grid(alpha=0.3)
    if label is not None:
        axes.legend(fontsize=7)
