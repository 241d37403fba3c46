"""Arithmetic that is written once: on tensors, on numbers, written down, and compiled."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from llvmlite import binding
from torch import Tensor

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.arithmetic import (
    Line,
    absolute,
    arithmetic,
    bell,
    constant,
    exp,
    inverse,
    maximum,
    minimum,
    minus,
    plus,
    where,
)
from tssl_adapters.engine.cpu import backward, loops
from tssl_adapters.engine.cpu import compile as compiling
from tssl_adapters.engine.cpu.function import RANGE, Function
from tssl_adapters.engine.step.spec import Form, spec_of
from tssl_adapters.engine.step.traced import Back, Traced
from tssl_adapters.resets import Subtract, ToValue, _to_value, reset_by_subtraction

FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b + 1.0,
    "add to a number": lambda a, b: 2.0 + a,
    "subtract": lambda a, b: a - b - 1.0,
    "subtract from a number": lambda a, b: 2.0 - a,
    "multiply": lambda a, b: a * b * 3.0,
    "divide": lambda a, b: a / b / 3.0,
    "divide a number": lambda a, b: 1.0 / a,
    "negate": lambda a, b: -a,
    "greater": lambda a, b: where(a > b, a, 0.5),
    "at least": lambda a, b: where(a >= b, 0.5, b),
    "less": lambda a, b: where(a < 0.0, a, b),
    "at most": lambda a, b: where(a <= 0.0, a, b),
    "equal": lambda a, b: where(a == b, 1.0, a),
    "unequal": lambda a, b: where(a != b, 1.0, a),
    "minimum": minimum,
    "minimum with a number": lambda a, b: minimum(a, 0.25),
    "maximum": maximum,
    "maximum with a number": lambda a, b: maximum(0.25, a),
    "absolute": lambda a, b: absolute(a),
    "plus": lambda a, b: plus(a, b, a),
    "plus times a number": lambda a, b: plus(a, 2.0, b),
    "minus": lambda a, b: minus(a, b, a),
    "exp": lambda a, b: exp(a),
    "inverse": lambda a, b: inverse(a, 8.0, b),
    "bell": lambda a, b: bell(a, 0.5, 5.0, 8.0, b),
}
VALUES = [0.0, -0.0, 1.0, -1.0, 0.25, 3.5, -80.0, 1e-30, 1e30, math.inf, -math.inf, math.nan]


def given(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Every pair of special values, and some hundred others."""
    special = torch.cartesian_prod(*(torch.tensor(VALUES, dtype=dtype),) * 2)
    generator = torch.Generator().manual_seed(0)
    pairs = torch.cat([special, 3.0 * torch.randn(501, 2, generator=generator).to(dtype)])
    return pairs[:, 0].clone(), pairs[:, 1].clone()


def compiled(function: Callable[[Any, Any], Any], a: Tensor, b: Tensor) -> Tensor:
    """What the loop of a row gives."""
    line = Line()
    found = Traced(line, {"out": function(line.input("drive"), line.input("state"))})
    name = f"test{next(_names)}"
    parameters = (*RANGE, *loops.CurrentPlaces._fields)
    made = Function(name, parameters, str(a.dtype).removeprefix("torch."), False, 128)
    call = made.row(found, ["out"])
    count = made.code.get("sub i64 %last, %first")
    places = {name: made.at(f"%{name}", "%first") for name in ("drive", "state", "out")}
    call(count, {**places, "to.out": places["out"]})
    out = torch.full_like(a, math.nan)
    loop = compiling.compiled(made.source())
    loop(0, len(a), 1, len(a), 0, a.data_ptr(), b.data_ptr(), out.data_ptr())
    return out


_names = iter(range(10**6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_operation_is_what_it_is_on_tensors(name: str, dtype: torch.dtype) -> None:
    a, b = given(dtype)
    expected = torch.as_tensor(FUNCTIONS[name](a, b), dtype=dtype)
    found = compiled(FUNCTIONS[name], a, b)
    if name == "exp":
        tiny = expected < torch.finfo(dtype).tiny  # loops have no subnormal results
        assert (found[tiny] == 0.0).all()
        eps = 2.0 * torch.finfo(dtype).eps
        found, expected = found[~tiny], expected[~tiny]
        torch.testing.assert_close(found, expected, rtol=eps, atol=0.0, equal_nan=True)
        return
    if name.startswith(("plus", "minus")):  # in torch a product and a sum are rounded once
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
        return
    if name == "bell":  # far from 0 a difference to 1, in torch
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-7, equal_nan=True)
        return
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))
    either = name.startswith(("minimum", "maximum"))  # of two zeros, either is the smaller one
    there = ~found.isnan() & ((found != 0.0) | (not either))
    assert torch.equal(found.signbit()[there], expected.signbit()[there])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exp_from_the_smallest_to_the_largest_number(dtype: torch.dtype) -> None:
    """Also where 2^k, by which it is computed, is larger than that."""
    limit = math.log(torch.finfo(dtype).max)
    ranges = (limit - 1.0, limit - 1e-4), (limit + 1e-4, limit + 1.0), (-1.0, 2.0)
    ranges = *ranges, (2.0 - limit, 3.0 - limit)
    near = [torch.linspace(*ends, 101, dtype=dtype) for ends in ranges]
    a = torch.cat(near)
    eps = 2.0 * torch.finfo(dtype).eps
    torch.testing.assert_close(compiled(FUNCTIONS["exp"], a, a), a.exp(), rtol=eps, atol=0.0)


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - {"plus", "minus"}))
def test_every_operation_on_numbers(name: str) -> None:
    a, b = given(torch.float64)
    usable = (a.abs() < 50.0) & (b.abs() > 0.0) & (a.abs() > 0.0)
    for one, other in zip(a[usable][::7].tolist(), b[usable][::7].tolist(), strict=True):
        tensors = torch.tensor([one], dtype=torch.float64), torch.tensor([other]).double()
        if math.isfinite(one) and math.isfinite(other):
            tensors = tensors[0], torch.tensor([other], dtype=torch.float64)
            found = FUNCTIONS[name](one, other)
            expected = float(torch.as_tensor(FUNCTIONS[name](*tensors)))
            assert found == pytest.approx(expected, rel=1e-15)


def test_an_operation_is_written_once() -> None:
    line = Line()
    x = line.input("x")
    total = (x + 1.0) * (x + 1.0)
    assert [operation.name for operation in line.operations] == [
        "input",
        "number",
        "add",
        "multiply",
    ]
    assert line.operations[total.place].operands[0] == line.operations[total.place].operands[1]


def test_zeros_of_either_sign_are_two_numbers() -> None:
    line = Line()
    assert line.number(0.0).place != line.number(-0.0).place


def test_what_cannot_be_written_down_is_refused() -> None:
    x = Line().input("x")
    with pytest.raises(TypeError, match=r"choose with tssl_adapters\.arithmetic\.where"):
        bool(x > 0.0)
    with pytest.raises(TypeError, match="Tensor cannot be compiled"):
        x + torch.ones(1)
    with pytest.raises(ValueError, match="different lines"):
        x + Line().input("x")


@arithmetic
def wide(x: Any) -> Any:
    return 0.5 / (1.0 + x * x)


def test_a_rule_compiles_where_its_answers_are_marked() -> None:
    assert rules.SurrogateGradient(wide).compiled
    assert not rules.SurrogateGradient(lambda x: 0.5 / (1.0 + x * x)).compiled
    for name, rule in rules.BY_NAME.items():
        assert name == "native" or rule().compiled  # that is compiled where its surrogate is

    class Own(rules.SmoothTSSLBP):
        def slope(self, step: rules.Step) -> Tensor:
            return torch.ones_like(step.charged)

    assert not Own().compiled


def a_sequence_back(**fields: Any) -> Back:
    there = ("output", "outside", "later", "membrane", "learns", "adds", "detached")
    return Back(**{**{name: name in there for name in Back._fields}, **fields})


TARGETS = [
    "x86_64-unknown-linux-gnu",
    "aarch64-unknown-linux-gnu",
    "x86_64-apple-darwin",
    "arm64-apple-darwin",
    "x86_64-pc-windows-msvc",
]


@pytest.mark.parametrize("triple", TARGETS)
def test_loops_compile_for_other_machines(triple: str) -> None:
    """To object code; whether that is right, each process finds out before it is used."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple(triple).create_target_machine(opt=3, jit=True)
    form = Form("float32", False, 1, "delayed", True, True)
    spec = spec_of(lambda v, x, beta: beta * v + x, Subtract(reset_by_subtraction), form)
    hard = spec_of(
        lambda v, x: v + x, ToValue(0.0, _to_value), form._replace(raw=0, dtype="float64")
    )
    back = a_sequence_back(traced=True, trace="after")
    for source in (
        loops.forward_sequence("f", spec, 3.0, True, 128),
        backward.backward_sequence("b", spec, rules.TSSLBP(), back, 3.0, frozenset(), 128),
        loops.forward_step("s", hard, 1.0, False, True, None, 128),
        backward.backward_sequence("d", hard, rules.SmoothTSSLBP(), back, 3.0, frozenset(), 128),
    ):
        module = compiling.optimised(source.text, machine)
        assert len(machine.emit_object(module)) > 500
    assert len(machine.emit_object(compiling.optimised(compiling._CALL, machine))) > 100


def test_a_loop_with_more_parameters_than_a_call_holds_is_not_compiled() -> None:
    names = (*RANGE, *(f"p{k}" for k in range(compiling.MOST - len(RANGE))))
    run = compiling.compiled(Function("most", names, "float32", False, 128).source())
    assert run(*range(len(names))) is None
    with pytest.raises(ValueError, match=f"257 parameters, more than {compiling.MOST}"):
        compiling.compiled(Function("more", (*names, "last one"), "float32", False, 128).source())


def test_nothing_compiled_is_written_to_a_disk(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    snntorch = pytest.importorskip("snntorch")
    for variable in ("HOME", "XDG_CACHE_HOME", "TMPDIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    layer = tssl_adapters.wrap(snntorch.Leaky(beta=0.6, threshold=0.77), engine="cpu")
    x = torch.randn(2, 3, 5, requires_grad=True)
    _, mem = layer(x[0])
    layer(x[1], mem)[0].sum().backward()
    assert not [*tmp_path.rglob("*")]


BOUNDS: dict[str, tuple[Callable[[Any], Any], tuple[float, float]]] = {
    "x": (lambda x: x, (-math.inf, math.inf)),
    "2": (lambda x: constant(2.0, x), (2.0, 2.0)),
    "|x|": (lambda x: absolute(x), (0.0, math.inf)),
    "0 |x|": (lambda x: absolute(x) * 0.0, (0.0, 0.0)),
    "-3 |x|": (lambda x: absolute(x) * -3.0, (-math.inf, 0.0)),
    "max(-3 |x|, -8)": (lambda x: maximum(absolute(x) * -3.0, -8.0), (-8.0, 0.0)),
    "-min(|x|, 8)": (lambda x: -minimum(absolute(x), 8.0), (-8.0, 0.0)),
    "min(x, 8) max(x, -2)": (lambda x: minimum(x, 8.0) * maximum(x, -2.0), (-math.inf, math.inf)),
    "min(|x|, 8)^2": (lambda x: minimum(absolute(x), 8.0) * minimum(absolute(x), 8.0), (0.0, 64.0)),
    "|x| + 1": (lambda x: absolute(x) + 1.0, (-math.inf, math.inf)),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds(name: str) -> None:
    computed, expected = BOUNDS[name]
    line = Line()
    assert line.bounds(computed(line.input("x")).place) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("most", [5.0, 86.9, 87.0, 89.0, 1e9], ids=str)
def test_exp_of_a_bounded_number(most: float, dtype: torch.dtype) -> None:
    def decay(a: Any, b: Any) -> Any:
        return exp(maximum(absolute(a) * -1.0, -most))

    a = torch.tensor([0.0, 0.5, 4.9, 5.1, 86.0, 88.0, 700.0, math.inf, math.nan], dtype=dtype)
    found, expected = compiled(decay, a, a), a.neg().clamp(min=-most).exp()
    tiny = expected < torch.finfo(dtype).tiny * 1.5  # loops have no subnormal results
    assert (found[tiny] <= expected[tiny]).all()
    eps = 2.0 * torch.finfo(dtype).eps
    torch.testing.assert_close(found[~tiny], expected[~tiny], rtol=eps, atol=0.0, equal_nan=True)
