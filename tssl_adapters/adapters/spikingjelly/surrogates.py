"""The derivatives of SpikingJelly's surrogate functions, as its backward passes compute them.

Each is checked against the installed library's own before it is used:
:func:`tssl_adapters.rules.native.surrogate_of`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tssl_adapters.adapters import Surrogate, from_library, surrogate_of
from tssl_adapters.arithmetic import (
    Number,
    absolute,
    arithmetic,
    constant,
    exp,
    minimum,
    where,
)

LONGEST = 16
"""The highest power that is computed as a product."""


@arithmetic
def _sigmoid(x: Number, alpha: float) -> Number:
    s = 1.0 / (1.0 + exp(-(x * alpha)))
    return (1.0 - s) * s * alpha


@arithmetic
def _arctan(x: Number, alpha: float) -> Number:
    half = alpha / 2.0
    scaled = math.pi * half * x
    return half / (1.0 + scaled * scaled)


@arithmetic
def _soft_sign(x: Number, alpha: float) -> Number:
    scale = 1.0 / alpha + absolute(x)
    return 1.0 / (2.0 * alpha * (scale * scale))


@arithmetic
def _superspike(x: Number, alpha: float) -> Number:
    scale = absolute(x) + 1.0
    return alpha / (scale * scale)


@arithmetic
def _piecewise_quadratic(x: Number, alpha: float) -> Number:
    size = absolute(x)
    return where(size > 1.0 / alpha, 0.0, alpha - alpha * alpha * size)


@arithmetic
def _piecewise_exp(x: Number, alpha: float) -> Number:
    return alpha / 2.0 * exp(-alpha * absolute(x))


@arithmetic
def _piecewise_leaky_relu(x: Number, w: float, c: float) -> Number:
    return where(absolute(x) < w, constant(1.0 / (2.0 * w), x), c)


@arithmetic
def _nonzero_sign_log_abs(x: Number, alpha: float) -> Number:
    return 1.0 / (1.0 / alpha + absolute(x))


@arithmetic
def _erf(x: Number, alpha: float) -> Number:
    scaled = x * alpha
    return exp(-(scaled * scaled)) * (alpha / math.sqrt(math.pi))


@arithmetic
def _s2nn(x: Number, alpha: float, beta: float) -> Number:
    return where(x < 0.0, _sigmoid(x, alpha), beta / (x + 1.0))


@arithmetic
def _q_pseudo_spike(x: Number, alpha: float) -> Number:
    base = 1.0 + 2.0 / (alpha - 1.0) * absolute(x)
    product = base
    for _ in range(1, min(int(alpha), LONGEST)):  # torch computes all other powers
        product = product * base
    return 1.0 / product


@arithmetic
def _leaky_k_relu(x: Number, leak: float, k: float) -> Number:
    return where(x >= 0.0, constant(k, x), leak)


@arithmetic
def _fake_numerical_gradient(x: Number, alpha: float) -> Number:
    return minimum(where(x >= 0.0, constant(1.0, x), -1.0) / x, alpha)


@arithmetic
def _log_tailed_relu(x: Number, alpha: float) -> Number:
    beyond = where(x > 1.0, 1.0 / x, 1.0)
    return where(x <= 0.0, alpha, beyond)


@arithmetic
def _rect(x: Number, alpha: float) -> Number:
    return where(absolute(x) < 0.5 / alpha, constant(alpha, x), 0.0)


@arithmetic
def nothing(x: Number) -> Number:
    """The derivative of spikes without a gradient."""
    return constant(0.0, x)


@arithmetic
def _straight_through(x: Number) -> Number:
    return constant(1.0, x)


FORMULAS: dict[str, tuple[Callable[..., Number], tuple[str, ...]]] = {
    "Sigmoid": (_sigmoid, ("alpha",)),
    "ATan": (_arctan, ("alpha",)),
    "SoftSign": (_soft_sign, ("alpha",)),
    "SuperSpike": (_superspike, ("alpha",)),
    "PiecewiseQuadratic": (_piecewise_quadratic, ("alpha",)),
    "PiecewiseExp": (_piecewise_exp, ("alpha",)),
    "PiecewiseLeakyReLU": (_piecewise_leaky_relu, ("w", "c")),
    "NonzeroSignLogAbs": (_nonzero_sign_log_abs, ("alpha",)),
    "Erf": (_erf, ("alpha",)),
    "S2NN": (_s2nn, ("alpha", "beta")),
    "QPseudoSpike": (_q_pseudo_spike, ("alpha",)),
    "LeakyKReLU": (_leaky_k_relu, ("leak", "k")),
    "FakeNumericalGradient": (_fake_numerical_gradient, ("alpha",)),
    "LogTailedReLU": (_log_tailed_relu, ("alpha",)),
    "Rect": (_rect, ("alpha",)),
    "DeterministicPass": (_straight_through, ()),
}
"""By the name of the library's class: its derivative, and the attributes that parametrise it."""
_OTHER: tuple[None, tuple[str, ...]] = (None, ())
_COMPARED: tuple[type, ...] = (float, int)


def own(function: Any) -> tuple[Any, ...]:
    """A surrogate function and those of its attributes that its derivative depends on."""
    held = getattr(function, "__dict__", {})
    _, names = FORMULAS.get(type(function).__name__, _OTHER)
    # Lists, for speed at every step; a tensor's value is read by autograd itself.
    values = [held.get(name) for name in names]
    numbers = [value if type(value) in _COMPARED else None for value in values]
    return (function, held.get("spiking"), *numbers)


def surrogate(function: Any) -> Surrogate:
    """The derivative of a layer's surrogate function."""
    formula, names = FORMULAS.get(type(function).__name__, _OTHER)
    numbers: list[Any] = [getattr(function, name, None) for name in names]
    plain = all(isinstance(number, int | float) for number in numbers)
    if formula is None or not plain or not from_library("spikingjelly", type(function)):
        return surrogate_of(function, ())
    return surrogate_of(function, [Surrogate(formula, tuple(map(float, numbers)))])
