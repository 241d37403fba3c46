"""Emits LLVM IR: one row of neighbouring neurons, from a line of operations."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from tssl_adapters.arithmetic import Line, Operation, Symbol

TYPES = {"float32": "float", "float64": "double"}
_WHOLE = {"float": "i32", "double": "i64"}
_SUFFIX = {"float": "f32", "double": "f64"}
_BINARY = {"add": "fadd", "subtract": "fsub", "multiply": "fmul", "divide": "fdiv"}
_COMPARED = {
    "greater": "ogt",
    "at least": "oge",
    "less": "olt",
    "at most": "ole",
    "equal": "oeq",
    "unequal": "une",
}
_CALLED = {"absolute": "fabs", "sqrt": "sqrt"}
INTERLEAVED = 2
"""How many vectors a row computes side by side: one alone waits for its own results. With two, the
backward pass of a sequence took 0.93 times as long."""
PAST = 3
"""The metadata of stores past the caches."""
DECLARATIONS = "".join(
    f"declare {kind} @llvm.{name}.{suffix}({kind})\n"
    for kind, suffix in _SUFFIX.items()
    for name in _CALLED.values()
) + "".join(
    f"declare {kind} @llvm.fmuladd.{suffix}({kind}, {kind}, {kind})\n"
    for kind, suffix in _SUFFIX.items()
)


class _Exponential(NamedTuple):
    """How exp is computed: 2^(k-1) 2 e^r with integer k and abs(r) at most ln(2)/2.

    ``high + low`` is ln 2, and multiples of ``high`` are exact; e^r is its Taylor series with
    ``terms`` terms; beyond ``largest`` and ``smallest`` k - 1 would not fit an exponent, and the
    result is infinite or 0. Adding ``rounding`` rounds a number to an integer, held in its last
    bits; ``mantissa`` is the number of bits below the exponent, and ``half`` is the exponent of a
    half.
    """

    high: float
    low: float
    terms: int
    largest: float
    smallest: float
    mantissa: int
    half: int

    @property
    def rounding(self) -> float:
        """1.5 times the number from which on only integers can be represented."""
        return 1.5 * 2.0**self.mantissa


_EXPONENTIALS = {
    "float": _Exponential(0.693359375, -2.12194440e-4, 8, 88.9, -86.9, 23, 126),
    "double": _Exponential(
        0.693147180369123816490, 1.90821492927058770002e-10, 14, 709.9, -707.9, 52, 1022
    ),
}


class Code:
    """LLVM IR text with unique names."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.first: list[str] = []
        """Instructions for the start of the function."""
        self._count = 0

    def new(self, stem: str = "t") -> str:
        """An unused name."""
        self._count += 1
        return f"{stem}{self._count}"

    def do(self, text: str) -> None:
        """Add an instruction without a result."""
        self.lines.append(f"  {text}")

    def get(self, text: str) -> str:
        """Add an instruction and return its result."""
        name = "%" + self.new()
        self.do(f"{name} = {text}")
        return name

    def label(self, name: str) -> None:
        """Start a basic block."""
        self.lines.append(f"{name}:")

    @contextmanager
    def counting(self, start: str, end: str, step: str, down: bool = False) -> Iterator[str]:
        """A loop over ``start``, ``start + step``, ... below ``end``; with ``down``, from
        ``end - 1`` down to ``start`` in steps of 1.
        """
        slot, name = "%" + self.new("at"), self.new("loop")
        self.first.append(f"  {slot} = alloca i64")
        self.do(f"store i64 {end if down else start}, ptr {slot}")
        self.do(f"br label %{name}.test")
        self.label(f"{name}.test")
        at = self.get(f"load i64, ptr {slot}")
        more = self.get(f"icmp sgt i64 {at}, {start}" if down else f"icmp slt i64 {at}, {end}")
        self.do(f"br i1 {more}, label %{name}.body, label %{name}.end")
        self.label(f"{name}.body")
        index = self.get(f"sub i64 {at}, 1") if down else at
        yield index
        after = index if down else self.get(f"add i64 {index}, {step}")
        self.do(f"store i64 {after}, ptr {slot}")
        self.do(f"br label %{name}.test")
        self.label(f"{name}.end")

    def offset(self, kind: str, pointer: str, index: str) -> str:
        """The address of an element."""
        return self.get(f"getelementptr {kind}, ptr {pointer}, i64 {index}")


def constant(value: float, kind: str) -> str:
    """A number in LLVM's notation, rounded to the type."""
    if kind == "float":
        try:
            (value,) = struct.unpack("f", struct.pack("f", value))
        except OverflowError:
            value = float("inf") if value > 0 else float("-inf")
    return f"0x{struct.unpack('Q', struct.pack('d', value))[0]:016X}"


def _emitted(code: Code, operation: Operation, operands: Sequence[str], kind: str) -> str:
    """The result of an operation, rounded as in the library: nothing is fused."""
    name = operation.name
    if name in _BINARY:
        return code.get(f"{_BINARY[name]} {kind} {operands[0]}, {operands[1]}")
    if name in _COMPARED:
        return code.get(f"fcmp {_COMPARED[name]} {kind} {operands[0]}, {operands[1]}")
    if name == "negate":
        return code.get(f"fneg {kind} {operands[0]}")
    if name == "held":
        return operands[0]
    if name == "where":
        return _chosen(code, operands[0], operands[1], operands[2], kind)
    if name in ("minimum", "maximum"):
        test = code.get(
            f"fcmp {'olt' if name == 'minimum' else 'ogt'} {kind} {operands[1]}, {operands[0]}"
        )
        return _chosen(code, test, operands[1], operands[0], kind)
    if name in _CALLED:
        return code.get(f"call {kind} @llvm.{_CALLED[name]}.{_SUFFIX[kind]}({kind} {operands[0]})")
    raise NotImplementedError(name)


def _chosen(code: Code, test: str, yes: str, no: str, kind: str) -> str:
    return code.get(f"select i1 {test}, {kind} {yes}, {kind} {no}")


def _exponential(code: Code, x: str, kind: str, bounds: tuple[float, float]) -> str:
    """exp of a number within bounds in arithmetic that vectorises, accurate to two units in the
    last place.
    """
    how, whole = _EXPONENTIALS[kind], _WHOLE[kind]

    def number(value: float) -> str:
        return constant(value, kind)

    def fused(left: str, right: str, total: str) -> str:
        """left * right + total, fused if the machine can."""
        operands = ", ".join(f"{kind} {operand}" for operand in (left, right, total))
        return code.get(f"call {kind} @llvm.fmuladd.{_SUFFIX[kind]}({operands})")

    rounded = fused(x, number(1.4426950408889634), number(how.rounding))
    k = code.get(f"fsub {kind} {rounded}, {number(how.rounding)}")
    r = fused(k, number(-how.low), fused(k, number(-how.high), x))
    found = number(2.0 / math.factorial(how.terms - 1))
    for term in range(how.terms - 2, -1, -1):
        found = fused(found, r, number(2.0 / math.factorial(term)))
    bits = code.get(f"bitcast {kind} {rounded} to {whole}")
    shifted = code.get(f"shl {whole} {bits}, {how.mantissa}")
    # 2^k itself may be too large though e^x is not.
    power = code.get(f"add {whole} {shifted}, {how.half << how.mantissa}")
    found = code.get(f"fmul {kind} {found}, {code.get(f'bitcast {whole} {power} to {kind}')}")
    least, most = bounds
    if most > how.largest:
        above = code.get(f"fcmp ogt {kind} {x}, {number(how.largest)}")
        found = _chosen(code, above, number(float("inf")), found, kind)
    if least < how.smallest:
        below = code.get(f"fcmp olt {kind} {x}, {number(how.smallest)}")
        found = _chosen(code, below, number(0.0), found, kind)
    return found


class Row(NamedTuple):
    """An LLVM function that computes a line for ``n`` neighbouring neurons.

    Attributes:
        name: the function's name.
        text: its definition.
        parameters: the names of the pointers that it takes after ``n``: to one value per neuron, or
            to one for all neurons. Outputs are prefixed with ``to.``.
    """

    name: str
    text: str
    parameters: tuple[str, ...]


def row(
    name: str, line: Line, outputs: Mapping[str, Symbol], common: frozenset[str], kind: str
) -> Row:
    """The row of a line.

    Args:
        name: the function's name.
        line: the operations.
        outputs: results by name. They may overwrite an input, neuron by neuron.
        common: inputs that are one number for all neurons.
        kind: ``"float"`` or ``"double"``.
    """
    code, entry = Code(), Code()
    places: dict[int, str] = {}
    parameters: dict[str, None] = {}
    for place in line.needed(outputs.values()):
        operation = line.operations[place]
        if operation.name == "number":
            places[place] = constant(float.fromhex(operation.operands[0]), kind)
        elif operation.name == "input":
            (source,) = operation.operands
            parameters[source] = None
            if source in common:
                places[place] = f"%v.{source}"
                entry.do(f"%v.{source} = load {kind}, ptr %p.{source}")
            else:
                at = code.offset(kind, f"%p.{source}", "%j")
                places[place] = code.get(f"load {kind}, ptr {at}, !llvm.access.group !0")
        else:
            operands = [places[operand] for operand in operation.operands]
            if operation.name == "exp":
                bounds = line.bounds(*operation.operands)
                places[place] = _exponential(code, operands[0], kind, bounds)
            else:
                places[place] = _emitted(code, operation, operands, kind)
    for target, symbol in outputs.items():
        parameters[f"to.{target}"] = None
        at = code.offset(kind, f"%p.to.{target}", "%j")
        code.do(f"store {kind} {places[symbol.place]}, ptr {at}, !llvm.access.group !0")
    taken = ", ".join(["i64 %n", *(f"ptr %p.{source}" for source in parameters)])
    text = "\n".join(
        [
            f"define internal void @{name}({taken}) nounwind noinline {{",
            "entry:",
            *entry.lines,
            "  %any = icmp sgt i64 %n, 0",
            "  br i1 %any, label %loop, label %end",
            "loop:",
            "  %j = phi i64 [ 0, %entry ], [ %next, %loop ]",
            *code.lines,
            "  %next = add nuw nsw i64 %j, 1",
            "  %more = icmp slt i64 %next, %n",
            # Neurons do not touch each other's memory, even if arrays coincide.
            "  br i1 %more, label %loop, label %end, !llvm.loop !LOOP",
            "end:",
            "  ret void",
            "}",
        ]
    )
    return Row(name, text, tuple(parameters))


def module(rows: Sequence[Row], functions: Sequence[str], externals: Sequence[str]) -> str:
    """A module of these rows and functions, with the metadata of their loops."""
    texts = []
    metadata = [
        "!0 = distinct !{}",
        '!1 = !{!"llvm.loop.parallel_accesses", !0}',
        f'!2 = !{{!"llvm.loop.interleave.count", i32 {INTERLEAVED}}}',
        f"!{PAST} = !{{i32 1}}",
    ]
    for number, one in enumerate(rows, PAST + 1):
        texts.append(one.text.replace("!LOOP", f"!{number}"))
        metadata.append(f"!{number} = distinct !{{!{number}, !1, !2}}")
    return "\n".join([DECLARATIONS, *externals, *texts, *functions, *metadata, ""])
