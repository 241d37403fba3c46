"""Derivatives of lines of operations against autograd's, and lines written from torch's code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tssl_adapters.arithmetic import Line, Symbol, absolute, exp, maximum, minimum, sqrt, where
from tssl_adapters.derivatives import adjoints
from tssl_adapters.engine.step import written
from tssl_adapters.engine.step.written import CannotWriteError, Writer

_TORCH: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "subtract": torch.subtract,
    "multiply": torch.multiply,
    "divide": torch.divide,
    "negate": torch.negative,
    "greater": torch.greater,
    "at least": torch.greater_equal,
    "less": torch.less,
    "at most": torch.less_equal,
    "equal": torch.eq,
    "unequal": torch.ne,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "absolute": torch.abs,
    "exp": torch.exp,
    "sqrt": torch.sqrt,
    "where": torch.where,
    "held": lambda value: value,
}


def value_of(symbol: Symbol, given: dict[str, Tensor]) -> Tensor:
    """What a line's symbol is, computed by torch from its inputs."""
    like = next(iter(given.values()))
    found: list[Tensor] = []
    for name, operands, _ in symbol.line.operations[: symbol.place + 1]:
        if name == "input":
            found.append(given[operands[0]])
        elif name == "number":
            found.append(torch.full_like(like, float.fromhex(operands[0])))
        else:
            found.append(_TORCH[name](*(found[operand] for operand in operands)))
    return found[symbol.place]


def numbers() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 400, generator=generator, dtype=torch.float64)
    return a, b


FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b + a,
    "subtract": lambda a, b: 2.0 - (a - b),
    "multiply": lambda a, b: a * b * a,
    "divide": lambda a, b: a / (b * b + 1.0),
    "negate": lambda a, b: -(a * b),
    "exp": lambda a, b: exp(a * b),
    "sqrt": lambda a, b: sqrt(a * a + b * b + 1.0),
    "absolute": lambda a, b: absolute(a - b) * a,
    "where": lambda a, b: where(a > b, a * b, b * 3.0),
    "minimum": lambda a, b: minimum(a * b, b),
    "maximum": lambda a, b: maximum(a * b, 0.25) * b,
    "shared": lambda a, b: (a * b + 1.0) * (a * b) - a * b,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_are_autograds(name: str) -> None:
    function = FUNCTIONS[name]
    line = Line()
    symbols = [line.input("a"), line.input("b")]
    result = function(*symbols)
    found = adjoints(line, [(result, line.input("weight"))], {})
    a, b = (number.requires_grad_() for number in numbers())
    weight = torch.linspace(-1.0, 2.0, 400, dtype=torch.float64)
    expected = torch.autograd.grad(function(a, b), [a, b], weight)
    given = {"a": a.detach(), "b": b.detach(), "weight": weight}
    for symbol, grad in zip(symbols, expected, strict=True):
        ours = value_of(found[symbol.place], given)
        torch.testing.assert_close(ours, grad, rtol=1e-14, atol=1e-14)


def test_a_sum_of_two_results() -> None:
    line = Line()
    a, b = line.input("a"), line.input("b")
    found = adjoints(line, [(a * b, line.number(2.0)), (a, line.number(3.0)), (a, b)], {})
    x, y = numbers()
    given = {"a": x, "b": y}
    torch.testing.assert_close(value_of(found[a.place], given), 3.0 * y + 3.0)
    torch.testing.assert_close(value_of(found[b.place], given), 2.0 * x)


def test_what_is_held_or_compared_has_no_derivative() -> None:
    line = Line()
    a, b = line.input("a"), line.input("b")
    result = line.compute("held", a) * b + where(a > b, 1.0, 0.0)
    found = adjoints(line, [(result, line.number(1.0))], {})
    assert b.place in found
    assert a.place not in found


# ------------------------------------------------- written from torch's code


def reset_in_place(x: Tensor, v: Tensor) -> Tensor:
    h = v * 0.5
    h += x
    h.sub_(v.detach() * v)
    return h


def over_one_step(x: Tensor, v: Tensor) -> Tensor:
    steps = [v + step / 3 for step in x.unsqueeze(0).unbind(0)]
    return torch.stack(steps)[0].clone()


LIKE = torch.ones(2, 3, dtype=torch.float64)
K = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
TAU = torch.tensor(2.0, dtype=torch.float64)
WRITTEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "numbers": lambda x, v: 1 - (x - v) / 2.0 + v * 3,
    "in place": reset_in_place,
    "a step of a sequence": over_one_step,
    "a learned number": lambda x, v: torch.relu(K * (v + (x - v) / TAU)) * K,
    "functions": lambda x, v: torch.exp((x - v) / 2.0) * torch.sigmoid(v) + torch.exp(v),
    "powers": lambda x, v: x**2 * v + v.square(),
    "spikes": lambda x, v: (x > v).to(x) * x + (v >= 0.25).double() * (1.0 - v),
    "chosen": lambda x, v: torch.where(x < v, x, v.clamp(-0.5, 0.5)),
    "filled": lambda x, v: x + torch.ones_like(v) - torch.full_like(x, 0.25) * v,
    "numbers of numbers": lambda x, v: x * (1 / (TAU * 3.0)) + v * -TAU,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_torchs_code_written_down(name: str) -> None:
    """The values to the last digit, the derivatives by torch's autograd."""
    code = WRITTEN[name]
    line = Line()
    writer = Writer(line, LIKE)
    symbols = [line.input("x"), line.input("v")]
    stand_ins = [writer.stand_in(symbol) for symbol in symbols]
    with torch.no_grad(), writer:
        result = writer.symbol(code(*stand_ins))
    slopes = {line.input(f.name).place: (f.argument, f.slope) for f in writer.functions}
    grads = adjoints(line, [(result, line.number(1.0))], slopes)

    x, v = (number.requires_grad_() for number in numbers())
    given = {"x": x.detach(), "v": v.detach()}
    given |= {
        f"n{k}": torch.full_like(given["x"], float(torch.as_tensor(n).detach()))
        for k, n in enumerate(writer.numbers)
    }
    for function in writer.functions:
        given[function.name] = function.compute(value_of(function.argument, given).clone())
    expected = code(x, v)
    assert torch.equal(value_of(result, given), expected)
    leaves = [x, v, *([K] if name == "a learned number" else [])]
    places = [*symbols, *(line.input(n) for n in writer.learned())]
    assert len(leaves) == len(places)
    for leaf, symbol in zip(leaves, places, strict=True):
        (theirs,) = torch.autograd.grad(expected.sum(), leaf, retain_graph=True)
        ours = value_of(grads[symbol.place], given)
        ours = ours.sum() if leaf is K else ours
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_numbers_of_numbers_are_torchs_own() -> None:
    """A float32 parameter times a Python number is rounded before it meets a float64 tensor."""
    p, line = torch.tensor(0.3), Line()
    writer = Writer(line, LIKE)
    x = writer.stand_in(line.input("x"))
    with torch.no_grad(), writer:
        writer.symbol(x * (0.001 * p))
    (number,) = writer.numbers
    assert float(number) == float(0.001 * p) != 0.001 * float(p)
    assert [*writer.sources.values()] == [p]


def test_numbers_on_a_gpu_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch computes of them is part of the line, which holds whatever they are."""
    monkeypatch.setattr(written, "on_host", lambda tensor: False)
    line, tau = Line(), torch.tensor(2.0, dtype=torch.float64)
    writer = Writer(line, LIKE)
    x = writer.stand_in(line.input("x"))
    with torch.no_grad(), writer:
        result = writer.symbol(x * (1 / (tau * 3.0)))
        with pytest.raises(CannotWriteError):
            writer.symbol(x * float(tau))
    ((name, number),) = writer.read().items()
    assert number is tau
    given = {f"n{k}": torch.as_tensor(n) for k, n in enumerate(writer.numbers)}
    given |= {"x": numbers()[0], name: torch.tensor(5.0, dtype=torch.float64)}
    assert torch.equal(value_of(result, given), given["x"] * (1 / (given[name] * 3.0)))


def test_numbers_of_each_neuron_are_an_input_of_the_line() -> None:
    line, beta = Line(), torch.tensor([0.5, 0.25, 2.0], dtype=torch.float64, requires_grad=True)
    writer = Writer(line, LIKE)
    x = writer.stand_in(line.input("x"))
    with torch.no_grad(), writer:
        result = writer.symbol(x * beta.clamp(0.0, 1.0))
    assert writer.spread[0] is beta
    assert [*writer.sources] == [id(beta)]
    assert [*writer.learned()] == ["p0"]
    given = {f"n{k}": torch.as_tensor(n) for k, n in enumerate(writer.numbers)}
    given |= {"x": LIKE, "p0": beta.detach()}
    assert torch.equal(value_of(result, given), LIKE * beta.detach().clamp(0.0, 1.0))


REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "a value that is looked at": lambda x: x * float(x.sum() > 0),
    "what a line has no word for": lambda x: x.sin(),
    "a factor that torch multiplies by as it adds": lambda x: torch.add(x, x, alpha=2),
    "neurons that meet": lambda x: x - x.mean(),
    "another order": lambda x: x.flip(0),
    "another precision": lambda x: x.float(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_is_refused(name: str) -> None:
    line = Line()
    writer = Writer(line, LIKE)
    x = writer.stand_in(line.input("x"))
    with pytest.raises(CannotWriteError), torch.no_grad(), writer:
        writer.symbol(REFUSED[name](x))


def test_a_neuron_at_rest_is_not_moved_by_its_rectifier() -> None:
    """At 0, where a silent input leaves it, torch's slope is 0."""
    line = Line()
    writer = Writer(line, LIKE)
    symbol = line.input("x")
    x = writer.stand_in(symbol)
    with torch.no_grad(), writer:
        result = writer.symbol(torch.relu(2.0 * x))
    found = adjoints(line, [(result, line.number(1.0))], {})
    given = {"x": torch.tensor([-1.0, 0.0, 1.0]), "n0": torch.full((3,), 2.0)}
    assert value_of(found[symbol.place], given).tolist() == [0.0, 0.0, 2.0]
