"""A line of operations as a Triton function: Python source, one statement per operation.

Triton's ``/`` is fast rather than correctly rounded, and torch rounds a half-precision tensor after
every operation. So division and rounding are explicit function calls.
"""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

import triton
import triton.language as tl

from tssl_adapters.arithmetic import Line, Operation, Symbol
from tssl_adapters.engine.compiled.kernels import Gate, tensor_of
from tssl_adapters.engine.step.spec import Spec
from tssl_adapters.engine.step.traced import (
    CARRIED,
    NUMBERS,
    Back,
    Traced,
    backward,
    current_step,
    current_step_back,
    forward,
)
from tssl_adapters.engine.triton.parts import (
    divided,
    divided_by_number,
    load,
    load_bits,
    store_bits,
    to_bfloat16,
    to_float16,
)
from tssl_adapters.rules import Rule

_HALF = ("float16", "bfloat16")
_INEXACT = {"add", "subtract", "multiply", "divide", "exp", "sqrt"}
_COMPARED = {
    "greater": "{} > {}",
    "at least": "{} >= {}",
    "less": "{} < {}",
    "at most": "{} <= {}",
    "equal": "{} == {}",
    "unequal": "{} != {}",
}
_WRITTEN = {
    "add": "{} + {}",
    "subtract": "{} - {}",
    "multiply": "{} * {}",
    "negate": "-{}",
    "held": "{}",
    "where": "tl.where({}, {}, {})",
    # If one operand is NaN, Triton's own functions may return the other one.
    "minimum": "tl.where({1} < {0}, {1}, {0})",
    "maximum": "tl.where({1} > {0}, {1}, {0})",
    "absolute": "tl.abs({})",
    "exp": "tl.exp({})",
    "sqrt": "tl.sqrt({})",
    **_COMPARED,
}


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return not isinstance(divided, triton.runtime.JITFunction)


@cache
def forward_step(spec: Spec, tau_s: float, on_gpu: bool) -> Any:
    """From ``(potential, drive, trace, numbers)`` to the output, the potential and trace after the
    step, h and, if the reset of an incoming potential may be due, r.
    """
    line, given = forward(spec, tau_s, True), ("potential", "drive", "trace", "numbers")
    late = spec.form.timing != "immediate"
    results = ("output", "potential", "trace", "charged", *(("due",) if late else ()))
    return _function(line, given, results, spec.form.dtype, on_gpu)


@cache
def backward_step(spec: Spec, rule: Rule, back: Back, tau_s: float, on_gpu: bool) -> Any:
    """From ``(potential, drive, trace, grad_out, grad_potential, grad_beside, carried, fired,
    numbers, steps)`` to the drive's gradient and what is :data:`CARRIED` to the previous step.
    """
    arriving = ("grad_out", "grad_potential", "grad_beside", "carried", "fired")
    given = ("potential", "drive", "trace", *arriving, "numbers", "steps")
    line = backward(spec, rule, back, tau_s)
    return _function(line, given, ("grad_drive", *CARRIED), spec.form.dtype, on_gpu)


@cache
def current(dtype: str, on_gpu: bool) -> Any:
    """From ``(state, drive, numbers)`` of a synaptic current to its state and its output."""
    given = ("state", "drive", "numbers")
    return _function(current_step(), given, ("state", "out"), dtype, on_gpu)


@cache
def current_back(dtype: str, on_gpu: bool) -> Any:
    """From the adjoint's ``(state, grad_out, numbers)`` to its state and the drive's gradient."""
    given = ("state", "grad_out", "numbers")
    return _function(current_step_back(), given, ("state", "grad_drive"), dtype, on_gpu)


def _function(
    traced: Traced, given: tuple[str, ...], results: Sequence[str], dtype: str, on_gpu: bool
) -> Any:
    """A line as a function, for drives of this dtype.

    Args:
        traced: the line; a result that it does not compute is the input of the same name.
        given: the function's parameters; ``numbers`` and ``carried`` are tuples of inputs.
        results: the names of what it returns, in this order.
        dtype: the drive's dtype. Half precision is passed as float32.
        on_gpu: whether torch would compute on a GPU. The libraries have no kernels for half
            precision, so torch's own operations are the reference there; in float32 it is
            SpikingJelly's kernels, which divide.
    """
    inputs = {name: name for name in given}
    inputs |= {name: f"numbers[{k}]" for k, name in enumerate(NUMBERS)}
    inputs |= {name: f"carried[{k}]" for k, name in enumerate(CARRIED)}
    inputs["steps"] = f"tl.cast(steps, {_wide(dtype)})"
    body = _statements(traced.line, traced.outputs, inputs, dtype, on_gpu)
    places = {name: f"t{symbol.place}" for name, symbol in traced.outputs.items()}
    returned = [places[name] if name in places else inputs[name] for name in results]
    return _compiled(given, (*body, f"return {', '.join(returned)}"))


def row(
    line: Line,
    outputs: Mapping[str, Symbol],
    numbers: Sequence[str],
    read: Collection[str],
    dtype: str,
    gate: Gate | None,
    on_gpu: bool,
) -> tuple[Any, tuple[str, ...]]:
    """A kernel that computes a line for all neurons, and the names of the tensors that it takes
    after ``neurons, values, steps``: see
    :meth:`tssl_adapters.engine.compiled.kernels.RowBackend.row_loop`. ``on_gpu``: whether torch,
    whose operations the line has, would compute them on a GPU.
    """
    inputs = {name: f"tl.load(values + {k})" for k, name in enumerate(numbers) if name not in read}
    known = [o for o in line.operations if o.name == "number" or o.operands[0] in inputs]
    inverse = known if on_gpu else ()
    inputs["steps"] = f"tl.cast(steps, {_wide(dtype)})"
    inputs["active"] = f"load_bits(bits, j, neurons).to({_wide(dtype)})"
    wanted = line.inputs(outputs.values())
    given = [name for name in wanted if name not in inputs]
    bits = ["bits"] if gate is not None or "active" in wanted else []
    of_each = [*given, *(f"to.{name}" for name in outputs)]
    taken = tuple(dict.fromkeys([*bits, *(tensor_of(name)[0] for name in of_each)]))
    variables = {name: name.replace(".", "_") for name in taken}
    rows = {name: _row_of(variables, *tensor_of(name)) for name in of_each}
    for name in given:
        one, each = f"tl.load({name}).to({_wide(dtype)})", f"load({rows[name]}, j, here)"
        inputs[name] = one if name in read else each
    body = [
        "j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)",
        "here = j < neurons",
        *_statements(line, outputs, inputs, dtype, on_gpu, inverse),
    ]
    for name, symbol in outputs.items():
        body.append(f"tl.store({rows[f'to.{name}']} + j, t{symbol.place}, mask=here)")
    if gate is not None:
        judged = outputs[gate.output].place
        body.append(f"store_bits(bits, t{judged} >= {gate.least}, neurons, BLOCK)")
    parameters = ("neurons", "values", "steps", *variables.values(), "BLOCK: tl.constexpr")
    return _compiled(parameters, tuple(body)), taken


def _row_of(variables: Mapping[str, str], tensor: str, row: int) -> str:
    """The address of a tensor's row."""
    start = f" + tl.cast(neurons, tl.int64) * {row}" if row else ""
    return f"{variables[tensor]}{start}"


def _wide(dtype: str) -> str:
    """The dtype that a drive of this dtype is computed in."""
    return "tl.float64" if dtype == "float64" else "tl.float32"


def _statements(
    line: Line,
    outputs: Mapping[str, Symbol],
    inputs: Mapping[str, str],
    dtype: str,
    on_gpu: bool,
    inverse: Collection[Operation] = (),
) -> list[str]:
    """A line as assignments, one per operation that the outputs need, to ``t`` and its place.

    Args:
        line: the operations.
        outputs: results by name.
        inputs: the source of each input.
        dtype: the drive's dtype.
        on_gpu: as for :func:`_function`.
        inverse: the numbers by whose reciprocal torch multiplies where a line divides by them.
    """
    operations, found = line.operations, []
    for place in line.needed(outputs.values()):
        operation = operations[place]
        if operation.name == "input":
            source = inputs[operation.operands[0]]
        elif operation.name == "number":
            source = f"tl.full((), {_literal(operation.operands[0])}, {_wide(dtype)})"
        elif dtype in _HALF and operation.rounds:
            source = _rounded(operation, operations, f"to_{dtype}", on_gpu)
        else:
            by_number = operations[operation.operands[-1]] in inverse
            divide = "divided_by_number" if by_number else "divided"
            source = _written(operation.name, [f"t{k}" for k in operation.operands], divide)
        found.append(f"t{place} = {source}")
    return found


def _written(name: str, operands: Sequence[str], divide: str) -> str:
    """The source of an operation on variables."""
    if name == "divide":
        return f"{divide}({', '.join(operands)})"
    return _WRITTEN[name].format(*operands)


def _rounded(
    operation: Operation, operations: Sequence[Operation], rounded: str, on_gpu: bool
) -> str:
    """The source of an operation on half-precision tensors."""
    name, operands = operation.name, [f"t{k}" for k in operation.operands]
    if name in _COMPARED:  # torch first rounds a number to the tensor's dtype
        operands = [
            f"{rounded}({text})" if operations[k].name in ("input", "number") else text
            for k, text in zip(operation.operands, operands, strict=True)
        ]
    found = _written(name, operands, "divided_by_number" if on_gpu else "divided")
    return f"{rounded}({found})" if name in _INEXACT else found


def _literal(bits: str) -> str:
    """A number written by :meth:`tssl_adapters.arithmetic.Line.number`, as Python source."""
    value = repr(float.fromhex(bits))
    return value if value[-1].isdigit() else f'float("{value}")'


@cache
def _compiled(parameters: tuple[str, ...], body: tuple[str, ...]) -> Any:
    """The unique function of these statements. Triton distinguishes functions by name."""
    rest = "".join([f"({', '.join(parameters)}):\n", *(f"    {line}\n" for line in body)])
    name = "step_" + hashlib.sha256(rest.encode()).hexdigest()[:16]
    source = f"def {name}{rest}"
    scope = {
        "divided": divided,
        "divided_by_number": divided_by_number,
        "load": load,
        "load_bits": load_bits,
        "store_bits": store_bits,
        "to_float16": to_float16,
        "to_bfloat16": to_bfloat16,
        "tl": tl,  # Triton needs it in scope
        "__name__": __name__,
    }
    # Triton reads a function's source through inspect, which finds it there.
    file = f"<{__name__}.{name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), scope)
    return triton.jit(scope[name])
