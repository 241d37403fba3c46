"""Arithmetic that is written once and runs on tensors, on numbers and in compiled code.

A function made of plain operators and the functions below computes on whatever it is given. Given a
``Symbol`` it computes nothing: the operations are recorded in a ``Line``, from which the engines
generate code. Python evaluates what it knows: an ``if`` on an option of a rule leaves no trace in
the line; one on a symbol is an error, and :func:`where` is what to use instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

Number: TypeAlias = Any
"""A float, a tensor or a :class:`Symbol`; for ``where``'s first argument, a condition on these."""

F = TypeVar("F", bound=Callable[..., Any])


def arithmetic(function: F) -> F:
    """Mark a function, e.g. a rule's ``slope``, as made of this module's arithmetic alone.

    Engines compile what is marked and run everything else in torch.
    """
    function.arithmetic = True  # type: ignore[attr-defined]
    return function


class Operation(NamedTuple):
    """One operation of a line.

    Attributes:
        name: ``"input"``, ``"number"`` or the operation's name.
        operands: the places of its operands; an input's name; a number.
        rounds: whether it is computed on the library's own tensors and rounds as they do.
    """

    name: str
    operands: tuple[Any, ...]
    rounds: bool = False


class Line:
    """A sequence of operations, each of them once."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._places: dict[Operation, int] = {}
        self._rounds = False

    @contextmanager
    def rounding(self) -> Iterator[None]:
        """Mark the operations added meanwhile as ones that ``rounds``.

        Half-precision tensors are rounded after every operation, and engines compute in float32.
        """
        before, self._rounds = self._rounds, True
        try:
            yield
        finally:
            self._rounds = before

    def input(self, name: str) -> Symbol:
        """A named input."""
        return self._written(Operation("input", (name,)))

    def _written(self, operation: Operation) -> Symbol:
        """The symbol of an operation."""
        if operation not in self._places:
            self._places[operation] = len(self.operations)
            self.operations.append(operation)
        return Symbol(self, self._places[operation])

    def number(self, value: float) -> Symbol:
        """A number that does not change."""
        # By its bits: 0.0 and -0.0 are equal.
        return self._written(Operation("number", (float(value).hex(),)))

    def compute(self, name: str, *operands: Number) -> Symbol:
        """An operation on symbols and numbers."""
        places = tuple(self._place(operand) for operand in operands)
        return self._written(Operation(name, places, self._rounds))

    def needed(self, results: Iterable[Symbol]) -> list[int]:
        """The places, in order, of all operations that these results depend on."""
        found: set[int] = set()
        open_ = [symbol.place for symbol in results]
        while open_:
            place = open_.pop()
            if place not in found:
                found.add(place)
                operation = self.operations[place]
                if operation.name not in ("input", "number"):
                    open_ += operation.operands
        return sorted(found)

    def inputs(self, results: Iterable[Symbol]) -> list[str]:
        """The names, in order, of the inputs that these results depend on."""
        needed = (self.operations[place] for place in self.needed(results))
        return [operation.operands[0] for operation in needed if operation.name == "input"]

    def bounds(self, place: int) -> tuple[float, float]:
        """Between which numbers the value at a place must lie, unless it is not a number."""
        found: dict[int, tuple[float, float]] = {}
        for one in self.needed([Symbol(self, place)]):
            found[one] = self._bounds(one, found)
        return found[place]

    def _bounds(self, place: int, of: dict[int, tuple[float, float]]) -> tuple[float, float]:
        """The same, from those of its operands."""
        name, operands, _ = self.operations[place]
        if name == "number":
            number = float.fromhex(operands[0])
            return number, number
        if name == "absolute":
            return 0.0, math.inf
        if name not in ("negate", "minimum", "maximum", "multiply"):
            return -math.inf, math.inf
        known = [of[operand] for operand in operands]
        if name == "negate":
            ((low, high),) = known
            return -high, -low
        if name == "multiply":
            # Zero times infinity is not a number.
            found = [a * b if a and b else 0.0 for a, b in product(*known)]
            return min(found), max(found)
        choose = min if name == "minimum" else max
        lows, highs = zip(*known, strict=True)
        return choose(lows), choose(highs)

    def _place(self, operand: Number) -> int:
        if isinstance(operand, Symbol):
            if operand.line is not self:
                raise ValueError("Two symbols of different lines cannot be combined.")
            return operand.place
        if isinstance(operand, bool) or not isinstance(operand, (int, float)):
            raise TypeError(
                f"{type(operand).__name__} cannot be compiled: arithmetic is of floats and of what "
                "it is given."
            )
        return self.number(operand).place


class Symbol:
    """A placeholder for a number; see :class:`Line`."""

    __slots__ = ("line", "place")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, line: Line, place: int) -> None:
        self.line = line
        self.place = place

    def __bool__(self) -> bool:
        raise TypeError(
            "An 'if' cannot ask for what is only known as the code runs; choose with "
            "tssl_adapters.arithmetic.where(condition, yes, no)."
        )

    def __add__(self, other: Number) -> Symbol:
        return self.line.compute("add", self, other)

    def __radd__(self, other: Number) -> Symbol:
        return self.line.compute("add", other, self)

    def __sub__(self, other: Number) -> Symbol:
        return self.line.compute("subtract", self, other)

    def __rsub__(self, other: Number) -> Symbol:
        return self.line.compute("subtract", other, self)

    def __mul__(self, other: Number) -> Symbol:
        return self.line.compute("multiply", self, other)

    def __rmul__(self, other: Number) -> Symbol:
        return self.line.compute("multiply", other, self)

    def __truediv__(self, other: Number) -> Symbol:
        return self.line.compute("divide", self, other)

    def __rtruediv__(self, other: Number) -> Symbol:
        return self.line.compute("divide", other, self)

    def __neg__(self) -> Symbol:
        return self.line.compute("negate", self)

    def __gt__(self, other: Number) -> Symbol:
        return self.line.compute("greater", self, other)

    def __ge__(self, other: Number) -> Symbol:
        return self.line.compute("at least", self, other)

    def __lt__(self, other: Number) -> Symbol:
        return self.line.compute("less", self, other)

    def __le__(self, other: Number) -> Symbol:
        return self.line.compute("at most", self, other)

    def __eq__(self, other: object) -> Symbol:  # type: ignore[override]
        return self.line.compute("equal", self, other)

    def __ne__(self, other: object) -> Symbol:  # type: ignore[override]
        return self.line.compute("unequal", self, other)


def _line_of(*values: Number) -> Line | None:
    return next((value.line for value in values if isinstance(value, Symbol)), None)


def where(condition: Number, yes: Number, no: Number) -> Number:
    """``yes`` where the condition holds, else ``no``."""
    if (line := _line_of(condition, yes, no)) is not None:
        if isinstance(condition, bool):
            return yes if condition else no
        return line.compute("where", condition, yes, no)
    if isinstance(condition, Tensor):
        return torch.where(condition, yes, no)
    return yes if condition else no


def exp(value: Number) -> Number:
    """The exponential of a number."""
    if isinstance(value, Symbol):
        return value.line.compute("exp", value)
    return value.exp() if isinstance(value, Tensor) else math.exp(value)


def sqrt(value: Number) -> Number:
    """The square root of a number."""
    if isinstance(value, Symbol):
        return value.line.compute("sqrt", value)
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)


def constant(value: float, like: Number) -> Number:
    """A constant in the form of ``like``: a symbol, a tensor of its shape, or a number."""
    if isinstance(like, Symbol):
        return like.line.number(value)
    return torch.full_like(like, value) if isinstance(like, Tensor) else value


def absolute(value: Number) -> Number:
    """The absolute value of a number."""
    return value.line.compute("absolute", value) if isinstance(value, Symbol) else abs(value)


def _extreme(line: Line, name: str, left: Number, right: Number) -> Number:
    """What engines compute by a comparison, which lets a NaN through that comes first."""
    if isinstance(left, Symbol) and isinstance(right, Symbol):
        return where(right != right, right, line.compute(name, left, right))
    return line.compute(name, *((left, right) if isinstance(left, Symbol) else (right, left)))


def minimum(left: Number, right: Number) -> Number:
    """The smaller of two numbers."""
    if (line := _line_of(left, right)) is not None:
        return _extreme(line, "minimum", left, right)
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return torch.minimum(left, right)
    if isinstance(left, Tensor):
        return left.clamp(max=right)
    return right.clamp(max=left) if isinstance(right, Tensor) else min(left, right)


def maximum(left: Number, right: Number) -> Number:
    """The larger of two numbers."""
    if (line := _line_of(left, right)) is not None:
        return _extreme(line, "maximum", left, right)
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return torch.maximum(left, right)
    if isinstance(left, Tensor):
        return left.clamp(min=right)
    return right.clamp(min=left) if isinstance(right, Tensor) else max(left, right)


def inverse(value: Number, most: float, factor: Number) -> Number:
    """``factor / value``, with ``1 / value`` clamped between 0 and ``most``. On tensors it uses one
    buffer.
    """
    if isinstance(value, Tensor):
        return value.reciprocal().clamp_(0.0, most).mul_(factor)
    return minimum(maximum(1.0 / value, 0.0), most) * factor


def bell(value: Number, level: Number, scale: Number, most: float, grad: Number) -> Number:
    """``grad`` times the derivative of ``1 / (1 + exp(-scale * (value - level)))`` by ``value``,
    with the exponent's magnitude clamped to ``most``. On tensors it uses two buffers.
    """
    if isinstance(value, Tensor):
        sigmoid = (value - level).mul_(scale).clamp_(-most, most).sigmoid_()
        return torch.ops.aten.sigmoid_backward.default(grad, sigmoid).mul_(scale)
    e = exp(maximum(absolute(value - level) * -scale, -most))
    return grad * (e * scale / ((1.0 + e) * (1.0 + e)))


def plus(base: Number, factor: Number, other: Number) -> Number:
    """``base + factor * other``, in one operation on tensors."""
    if isinstance(base, Tensor) and isinstance(factor, Tensor) and isinstance(other, Tensor):
        return torch.addcmul(base, factor, other)
    if isinstance(base, Tensor) and isinstance(other, Tensor):
        return torch.add(base, other, alpha=factor)
    return base + factor * other


def minus(base: Number, factor: Number, other: Number) -> Number:
    """``base - factor * other``, in one operation on tensors."""
    if isinstance(base, Tensor) and isinstance(factor, Tensor) and isinstance(other, Tensor):
        return torch.addcmul(base, factor, other, value=-1)
    return base - factor * other
