"""The derivatives of snnTorch's surrogates, as its backward passes compute them.

Each is checked against the installed library's own before it is used:
:func:`tssl_adapters.rules.native.surrogate_of`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from tssl_adapters.adapters import Surrogate, surrogate_of
from tssl_adapters.arithmetic import Number, absolute, arithmetic, constant, exp, where


@arithmetic
def _arctan(x: Number, alpha: float) -> Number:
    scaled = math.pi / 2.0 * alpha * x
    return alpha / 2.0 / (1.0 + scaled * scaled)


@arithmetic
def _fast_sigmoid(x: Number, slope: float) -> Number:
    scale = slope * absolute(x) + 1.0
    return 1.0 / (scale * scale)


@arithmetic
def _sparse_fast_sigmoid(x: Number, slope: float, B: float) -> Number:
    return where(x > B, _fast_sigmoid(x, slope), 0.0)


@arithmetic
def _sigmoid(x: Number, slope: float) -> Number:
    # Far below the threshold, where exp overflows, this is NaN, as in the library; nowhere else.
    decayed = exp(-slope * x)
    scale = decayed + 1.0
    return slope * (decayed / (scale * scale))


@arithmetic
def _triangular(x: Number, threshold: float) -> Number:
    return where(x >= 0.0, constant(-threshold, x), threshold)


@arithmetic
def _spike_rate_escape(x: Number, beta: float, slope: float) -> Number:
    return slope * exp(-beta * absolute(x - 1.0))


@arithmetic
def _heaviside(x: Number) -> Number:
    return where(x > 0.0, constant(1.0, x), 0.0)


@arithmetic
def _straight_through(x: Number) -> Number:
    return constant(1.0, x)


@arithmetic
def _nothing(x: Number) -> Number:
    return constant(0.0, x)


FORMULAS: dict[str, tuple[Callable[..., Number], tuple[str, ...]]] = {
    "atan": (_arctan, ("alpha",)),
    "fast_sigmoid": (_fast_sigmoid, ("slope",)),
    "SFS": (_sparse_fast_sigmoid, ("slope", "B")),
    "sigmoid": (_sigmoid, ("slope",)),
    "triangular": (_triangular, ("threshold",)),
    "spike_rate_escape": (_spike_rate_escape, ("beta", "slope")),
    "heaviside": (_heaviside, ()),
    "straight_through_estimator": (_straight_through, ()),
    "_surrogate_bypass": (_nothing, ()),
}
"""By the name of the library's function: its derivative, and the arguments it was made with."""
_CLASSES = {
    "ATan": "atan",
    "FastSigmoid": "fast_sigmoid",
    "SparseFastSigmoid": "SFS",
    "Sigmoid": "sigmoid",
    "Triangular": "triangular",
    "SpikeRateEscape": "spike_rate_escape",
    "Heaviside": "heaviside",
    "StraightThroughEstimator": "straight_through_estimator",
}
"""The function behind each of the library's autograd classes; some versions take ``apply``."""


def surrogate(function: Any) -> Surrogate:
    """The derivative of a layer's ``spike_grad``."""
    name, given = _made_with(function)
    formula, names = FORMULAS.get(name, (None, ()))
    numbers = tuple(_number(given.get(one)) for one in names)
    if formula is None or None in numbers:
        return surrogate_of(function, ())
    return surrogate_of(function, [Surrogate(formula, numbers)])


def _made_with(function: Any) -> tuple[str, Mapping[str, Any]]:
    """Which of the library's functions it is, and with which arguments it was made."""
    apply = getattr(function, "__self__", None)
    if isinstance(apply, type) and _librarys(apply):
        taken = signature(apply.forward).parameters.values()  # type: ignore[attr-defined]
        return _CLASSES.get(apply.__name__, ""), {one.name: one.default for one in taken}
    if not _librarys(function):
        return "", {}
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    names = () if code is None else code.co_freevars
    values = [cell.cell_contents for cell in cells or ()]
    whose = function.__qualname__.removesuffix(".<locals>.inner").rpartition(".")[2]
    return whose, dict(zip(names, values, strict=True))


def _librarys(function: Any) -> bool:
    return (getattr(function, "__module__", None) or "").split(".")[0] == "snntorch"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
