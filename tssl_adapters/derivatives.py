"""Derivatives of a line of operations, added to that line as further operations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from tssl_adapters.arithmetic import Line, Operation, Symbol, where


def adjoints(
    line: Line,
    seeds: Iterable[tuple[Symbol, Symbol]],
    functions: Mapping[int, tuple[Symbol, Symbol]],
) -> dict[int, Symbol]:
    """The derivative of a weighted sum of symbols by everything that they were computed from.

    Args:
        line: the symbols' line; what is computed here is added to it.
        seeds: the symbols and their weights.
        functions: for inputs that are functions of other symbols, by place: the argument and the
            derivative.

    Returns:
        The derivatives by place. What the sum does not depend on is missing; comparisons have no
        derivative.
    """
    found: dict[int, Symbol] = {}

    def add(place: int, term: Symbol) -> None:
        found[place] = found[place] + term if place in found else term

    for symbol, weight in seeds:
        add(symbol.place, weight)
    for place in range(max(found, default=-1), -1, -1):
        if place not in found:
            continue
        if place in functions:
            argument, slope = functions[place]
            add(argument.place, found[place] * slope)
            continue
        for operand, term in _terms(line, place, found[place]):
            if line.operations[operand].name != "number":
                add(operand, term)
    return found


def _terms(line: Line, place: int, adjoint: Symbol) -> Iterator[tuple[int, Symbol]]:
    """What an operation adds to the adjoints of its operands."""
    operation = line.operations[place]
    if operation.name in ("input", "number", "held"):
        return
    result, operands = Symbol(line, place), operation.operands
    yield from zip(
        operands, _derived(operation, [Symbol(line, o) for o in operands], result, adjoint),
        strict=False,
    )  # fmt: skip


def _derived(
    operation: Operation, of: list[Symbol], result: Symbol, adjoint: Symbol
) -> tuple[Symbol, ...]:
    """The terms of the operands, in order; the one of a ``where``'s condition is unused."""
    name = operation.name
    if name == "add":
        return adjoint, adjoint
    if name == "subtract":
        return adjoint, -adjoint
    if name == "multiply":
        return adjoint * of[1], adjoint * of[0]
    if name == "divide":
        share = adjoint / of[1]
        return share, -(share * result)
    if name == "negate":
        return (-adjoint,)
    if name == "exp":
        return (adjoint * result,)
    if name == "sqrt":
        return (adjoint / (2.0 * result),)
    if name == "absolute":
        return (where(of[0] > 0.0, adjoint, where(of[0] < 0.0, -adjoint, 0.0)),)
    if name == "where":
        return adjoint, where(of[0], adjoint, 0.0), where(of[0], 0.0, adjoint)
    if name in ("minimum", "maximum"):
        other = of[1] < of[0] if name == "minimum" else of[1] > of[0]
        return where(other, 0.0, adjoint), where(other, adjoint, 0.0)
    return ()  # a comparison
