"""The derivatives of Norse's threshold functions, as its backward passes compute them.

Each is checked against the installed library's own before it is used:
:func:`tssl_adapters.rules.native.surrogate_of`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tssl_adapters.adapters import Surrogate, surrogate_of
from tssl_adapters.adapters.norse.values import number, spikes, spiking
from tssl_adapters.arithmetic import (
    Number,
    absolute,
    arithmetic,
    constant,
    exp,
    maximum,
    sqrt,
)

_ROOT_OF_PI = 1.7724539041519165
"""As in the library, which takes the root in float32."""


@arithmetic
def _superspike(x: Number, alpha: float) -> Number:
    scale = absolute(x) + 1.0
    return 1.0 / (scale * scale)


@arithmetic
def _steep_superspike(x: Number, alpha: float) -> Number:
    """The derivative in older versions."""
    scale = alpha * absolute(x) + 1.0
    return 1.0 / (scale * scale)


@arithmetic
def _triangle(x: Number, alpha: float) -> Number:
    return alpha * maximum(1.0 - absolute(x), 0.0)


@arithmetic
def _tanh(x: Number, alpha: float) -> Number:
    # 1 - tanh(z)^2 = 4 e / (1 + e)^2 with e = exp(-2 |z|)
    decayed = exp(-2.0 * absolute(alpha * x))
    scale = 1.0 + decayed
    return 4.0 * decayed / (scale * scale)


@arithmetic
def _circ(x: Number, alpha: float, alphas: float) -> Number:
    square = x * x
    squares = alphas + square  # alpha's square as the library rounds it
    root = sqrt(squares)
    return (1.0 / (2.0 * root) - square / (2.0 * squares * root)) * 2.0 * alpha


@arithmetic
def _erfc(x: Number, alpha: float) -> Number:
    scaled = alpha * x
    return 2.0 * exp(-(scaled * scaled)) / _ROOT_OF_PI


@arithmetic
def _nothing(x: Number, alpha: float) -> Number:
    return constant(0.0, x)


FORMULAS: dict[str, tuple[Callable[..., Number], ...]] = {
    "super": (_superspike, _steep_superspike),
    "triangle": (_triangle,),
    "tanh": (_tanh,),
    "circ": (_circ,),
    "heavi_erfc": (_erfc,),
    "heaviside": (_nothing,),
}
"""By the ``method`` of a layer's parameters: its derivative, in every version."""


def own(layer: Any) -> tuple[Any, ...]:
    """What a layer's surrogate depends on."""
    p = spiking(layer.p)
    alpha = number(p.alpha)
    return p.method, alpha if isinstance(alpha, float) else id(alpha)


def surrogate(layer: Any) -> Surrogate:
    """The derivative of a layer's threshold function."""
    p = spiking(layer.p)
    alpha = number(p.alpha)
    known = FORMULAS.get(p.method, ()) if isinstance(alpha, int | float) else ()
    numbers = (alpha, p.alpha**2) if p.method == "circ" else (alpha,)
    return surrogate_of(
        spikes(layer), [Surrogate(one, tuple(map(float, numbers))) for one in known]
    )
