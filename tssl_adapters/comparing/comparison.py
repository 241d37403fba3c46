"""What a comparison found, as a table, as plain data and as a plot."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tssl_adapters.report import Report, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 100


@dataclass(frozen=True)
class LayerComparison:
    """A spiking layer in both passes. ``None`` stands for what was not seen.

    Attributes:
        path: dotted name in the model.
        layer: class name.
        status: ``"wrapped"``, or ``"skipped"`` or ``"refused"`` for a layer that stays native.
        detail: why a layer is refused, else how it is wrapped.
        rate: spikes per neuron and time step, natively.
        silent: share of its neurons that never fire, natively.
        wrapped_rate: as ``rate``, wrapped. The same at ``tau_s = 1``, except that steps that no
            gradient reaches are not counted here.
        wrapped_silent: as ``silent``, wrapped.
        scale: what a spike takes from a potential at the threshold: |theta - v_reset|, or |theta|
            where the reset is by subtraction or there is none.
        rise: root mean square of d[t], a step's rise, over ``scale``.
        native_width: full width at half maximum of the library's surrogate, over ``scale``.
        wrapped_width: that of the rule's slope around the threshold, over ``scale``.
        carry: the largest factor of the rule's chain over time on a gradient, over any stretch of
            the sequence: the root mean square over neurons and samples. The factors of spikes and
            of silent steps are multiplied along a sequence, so that a spike that makes the chain
            larger need not make it explode.
    """

    path: str
    layer: str
    status: str
    detail: str
    rate: float | None = None
    silent: float | None = None
    wrapped_rate: float | None = None
    wrapped_silent: float | None = None
    scale: float | None = None
    rise: float | None = None
    native_width: float | None = None
    wrapped_width: float | None = None
    carry: float | None = None

    def cells(self) -> tuple[str, ...]:
        return (
            self.path,
            _both(self.rate, self.wrapped_rate, ".3f"),
            _both(self.silent, self.wrapped_silent, ".0%"),
            *map(_number, (self.scale, self.rise, self.native_width, self.wrapped_width)),
            _number(self.carry),
            "" if self.status == "wrapped" else self.status,
        )


@dataclass(frozen=True)
class ParameterComparison:
    """A parameter's gradients in both passes; ``None`` where none arrived.

    Attributes:
        name: dotted name in the model.
        norm: of the parameter itself.
        native: norm of the gradient, natively.
        wrapped: norm of the gradient, wrapped.
        ratio: ``wrapped / native``.
        cosine: of the angle between the two.
    """

    name: str
    norm: float
    native: float | None
    wrapped: float | None
    ratio: float | None
    cosine: float | None

    def cells(self) -> tuple[str, ...]:
        numbers = (self.norm, self.native, self.wrapped, self.ratio, self.cosine)
        return (self.name, *map(_number, numbers))


@dataclass(frozen=True)
class Flag:
    """Something that keeps a network from learning.

    Attributes:
        kind: ``"dead"``, ``"exploding"``, ``"vanishing"``, ``"too narrow"``, ``"too wide"``,
            ``"not finite"``, ``"not fixed"`` or ``"remark"``.
        where: dotted names of layers or parameters; empty if it concerns the whole model.
        what: what is wrong.
        do: what to do.
    """

    kind: str
    where: tuple[str, ...]
    what: str
    do: str

    def __str__(self) -> str:
        names = ", ".join(self.where[:6])
        more = f" and {len(self.where) - 6} more" if len(self.where) > 6 else ""
        where = f" ({names}{more})" if names else ""
        return f"{self.kind}{where}: {self.what}. {self.do}".rstrip()


@dataclass(frozen=True)
class Comparison:
    """What :func:`tssl_adapters.compare` found: ``print`` it, or take it apart.

    Attributes:
        rules: the rules of the wrapped pass, with their ``tau_s``.
        native_loss: the loss, natively.
        wrapped_loss: the loss, wrapped; the same at ``tau_s = 1``.
        layers: every spiking layer.
        parameters: every parameter that takes a gradient.
        flags: what is wrong, and what to do.
    """

    rules: tuple[str, ...]
    native_loss: float
    wrapped_loss: float
    layers: tuple[LayerComparison, ...]
    parameters: tuple[ParameterComparison, ...]
    flags: tuple[Flag, ...]

    def __str__(self) -> str:
        losses = f"loss {_number(self.native_loss)} natively, {_number(self.wrapped_loss)} wrapped"
        layers = ("layer", "rate", "silent", "theta", "rise", "native", "wrapped", "carry", "")
        gradients = ("gradient of", "weights", "native", "wrapped", "ratio", "cosine")
        said = [
            *textwrap.wrap(f"Native and {' and '.join(self.rules)}: {losses}.", _COLUMNS),
            "",
            _table(layers, self.layers),
            "rise: of the potential in a step; native, wrapped: width of the spike's derivative;",
            "all three as shares of theta (|theta - v_reset|). carry: the most that the chain over",
            "time multiplies a gradient by, over any stretch of the sequence.",
            "",
            _table(gradients, self.parameters),
        ]
        for text in map(str, self.flags) if self.flags else ["Nothing stands out."]:
            said += ["", *textwrap.wrap(text, _COLUMNS, subsequent_indent="  ")]
        return "\n".join(said)

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, for ``json.dumps``.

        Numbers that are not finite become the strings ``"inf"``, ``"-inf"`` and ``"nan"``.
        """
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    def plot(self) -> Figure:
        """Firing rates, widths and gradients as a matplotlib figure.

        A notebook shows it after ``%matplotlib inline``.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from tssl_adapters.comparing.plot import plot
        except ImportError as error:
            if error.name is None or error.name.split(".")[0] != "matplotlib":
                raise
            raise ImportError(
                "plot() needs matplotlib, which is not installed: python -m pip install "
                "'tssl-adapters[bench]', or matplotlib alone. str() and to_dict() need nothing.",
                name=error.name,
            ) from error
        return plot(self)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _number(value: float | None, form: str = ".3g") -> str:
    return "-" if value is None else f"{value:{form}}"


def _both(native: float | None, wrapped: float | None, form: str) -> str:
    """A number, or those of both passes if they visibly differ."""
    left, right = _number(native, form), _number(wrapped, form)
    return left if right in (left, "-") else f"{left} > {right}"


class _Line(NamedTuple):
    """A row whose name was shortened to the width that the other columns leave."""

    texts: tuple[str, ...]

    def cells(self) -> tuple[str, ...]:
        return self.texts


def _table(headings: tuple[str, ...], rows: Sequence[Row]) -> str:
    texts = [row.cells() for row in rows]
    others = range(1, len(headings))
    taken = sum(2 + max(len(line[i]) for line in (headings, *texts)) for i in others)
    lines = [_Line((_shortened(line[0], _COLUMNS - taken), *line[1:])) for line in texts]
    return str(Report(headings, lines, "No parameter takes a gradient."))


def _shortened(name: str, length: int) -> str:
    return name if len(name) <= length else f"...{name[3 - length :]}"
