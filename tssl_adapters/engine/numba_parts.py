"""Pieces of a time step for compiled loops, and how a loop names the pieces that it is made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

import numpy
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from tssl_adapters.engine.kernels import DECAY, RESET_VALUE, THRESHOLD, Spec
from tssl_adapters.engine.numba_compile import named

_FUNCTIONS: dict[str, Any] = {}


class Parts(NamedTuple):
    """Names of the pieces, for :func:`call`; ``p`` are a neuron's numbers.

    Attributes:
        charge: ``(v, x, p) -> r, h``.
        fires: ``(h, p) -> s``.
        after: ``(h, s, r, p) -> u``, the state handed on.
        removed: ``(h, p) -> R``.
        read: ``(rows, j) -> p``.
        rows: ``(values, start, n)`` -> the numbers of ``n`` neurons, a row for each.
    """

    charge: str
    fires: str
    after: str
    removed: str
    read: str
    rows: str


def call(name: str, *arguments: Any) -> Any:
    """Calls the piece of this name.

    A loop that closed over compiled functions would be compiled anew in every process; one that
    names them is found on disk.
    """
    raise NotImplementedError


@overload(call, prefer_literal=True)
def _call(name: Any, *arguments: Any) -> Any:
    if not isinstance(name, types.StringLiteral):
        return None
    function = _FUNCTIONS[name.literal_value]

    def implementation(name: Any, *arguments: Any) -> Any:
        return function(*arguments)

    return named(implementation)


def known(function: Callable[..., Any]) -> str:
    """Makes a piece of a function, and gives its name: a hash of all that goes into it.

    Pieces that it calls are closed over by their names, or compiled, and so are part of that.
    """
    name = named(function).__name__
    _FUNCTIONS.setdefault(name, njit(error_model="numpy")(function))
    return name


@intrinsic
def pointer(context: Any, address: Any) -> Any:
    """An address as a pointer: numbers are handed to compiled code faster than arrays."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@cache
def name_of(formula: Callable[..., Any], dtype: str) -> str:
    """Name of a formula with its constants in this dtype, which compiled code would not adapt."""
    code = formula.__code__
    number = numpy.dtype(dtype).type
    constants = tuple(number(c) if isinstance(c, float) else c for c in code.co_consts)
    copy = FunctionType(code.replace(co_consts=constants), formula.__globals__, formula.__name__)
    return known(copy)


def _raw(count: int) -> Callable[[Any], Any]:
    """Picks the charge's own numbers out of a neuron's."""
    picks: tuple[Callable[[Any], Any], ...] = (
        lambda p: (),
        lambda p: (p[5],),
        lambda p: (p[5], p[6]),
        lambda p: (p[5], p[6], p[7]),
    )
    return njit(named(picks[count]))


@cache
def parts(spec: Spec) -> Parts:
    """The pieces of a neuron's time step."""
    form = spec.form
    number = getattr(numpy, form.dtype)
    one, zero = number(1.0), number(0.0)
    formula: Any = _FUNCTIONS[name_of(spec.charge, form.dtype)]
    reset: Any = None if spec.reset is None else _FUNCTIONS[name_of(spec.reset, form.dtype)]
    strict, dense, told = form.strict, form.dense, form.told
    to_value, subtracts, early = (form.kind == kind for kind in ("value", "subtract", "early"))
    immediate, delayed = form.timing == "immediate", form.timing == "delayed"
    reset_operand = RESET_VALUE if to_value else THRESHOLD
    raw = _raw(form.raw)

    def fires(h: Any, p: Any) -> Any:
        if strict:
            return one if h > p[THRESHOLD] else zero
        return one if h >= p[THRESHOLD] else zero

    name = known(fires)
    test = _FUNCTIONS[name]

    def charge(v: Any, x: Any, p: Any) -> Any:
        if told:
            return zero if immediate else test(v, p), x
        if immediate:
            return zero, formula(v, x, *raw(p))
        r = test(v, p)
        if to_value:
            return r, formula((one - r) * v, x, *raw(p))
        if early:
            return r, formula(reset(v, r, p[THRESHOLD]), x, *raw(p))
        h = formula(v, x, *raw(p))
        if subtracts:
            return r, h - r * p[THRESHOLD]
        return r, h

    def after(h: Any, s: Any, r: Any, p: Any) -> Any:
        if delayed:
            return h
        if to_value or subtracts or early:
            return reset(h, s - r, p[reset_operand])
        return h

    def removed(h: Any, p: Any) -> Any:
        if to_value:
            return h - p[RESET_VALUE]
        if subtracts and delayed:
            return p[THRESHOLD] / p[DECAY]
        if subtracts or early:
            return p[THRESHOLD]
        return zero

    def read(own: Any, j: int) -> Any:
        return (
            own[0][j], own[1][j], own[2][j], own[3][j], own[4][j], own[5][j], own[6][j], own[7][j],
        )  # fmt: skip

    def rows(values: Any, start: int, n: int) -> Any:
        first = start if dense else 0
        last = first + (n if dense else 1)
        return (
            values[0, first:last], values[1, first:last], values[2, first:last],
            values[3, first:last], values[4, first:last], values[5, first:last],
            values[6, first:last], values[7, first:last],
        )  # fmt: skip

    return Parts(
        known(charge),
        name,
        known(after),
        known(removed),
        known(read),
        known(rows),
    )


@cache
def exponential(dtype: str) -> str:
    """exp(-y) for 0 <= y <= 8, in arithmetic that vectorises.

    A polynomial of degree 7 at y / 2^n, squared n times: n weighs what the polynomial leaves out
    against the rounding that squaring amplifies.
    """
    number = getattr(numpy, dtype)
    squarings = 4 if dtype == "float32" else 8
    one, scale = number(1.0), number(-1.0 / 2**squarings)
    c2, c3, c4, c5, c6, c7 = (number(1.0 / k) for k in range(2, 8))

    def exponential_of(y: Any) -> Any:
        u = y * scale
        found = one + u * c4 * (one + u * c5 * (one + u * c6 * (one + u * c7)))
        found = one + u * (one + u * c2 * (one + u * c3 * found))
        for _ in range(squarings):
            found = found * found
        return found

    return known(exponential_of)
