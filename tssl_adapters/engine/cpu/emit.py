"""Emits LLVM IR: operations on the numbers of neighbouring neurons."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from tssl_adapters.arithmetic import Operation

TYPES = {"float32": "float", "float64": "double"}
SIZES = {"float": 4, "double": 8}
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
"""How many of the machine's vectors a row computes side by side: one alone waits for its own
results. With two, the backward pass of a sequence took 0.93 times as long."""


class Lanes(NamedTuple):
    """The type of what is computed at once: neighbouring neurons' numbers."""

    kind: str
    width: int

    def of(self, kind: str) -> str:
        """As many of another type."""
        return f"<{self.width} x {kind}>"

    @property
    def type(self) -> str:
        return self.of(self.kind)

    @property
    def whole(self) -> str:
        """Integers of the same size."""
        return self.of(f"i{8 * SIZES[self.kind]}")

    @property
    def suffix(self) -> str:
        """How the names of intrinsic functions end."""
        return f"v{self.width}f{8 * SIZES[self.kind]}"

    @property
    def bytes(self) -> int:
        return self.width * SIZES[self.kind]


def lanes(kind: str, bits: int) -> Lanes:
    """What a row computes at once on a machine whose vectors have so many bits."""
    return Lanes(kind, INTERLEAVED * bits // (8 * SIZES[kind]))


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

    def __init__(self, stem: str = "t") -> None:
        self.stem = stem
        self.lines: list[str] = []
        self.first: list[str] = []
        """Instructions for the start of the function."""
        self.externals: dict[str, None] = {}
        """Declarations of the functions that it calls."""
        self._count = 0

    def new(self, stem: str = "") -> str:
        """An unused name."""
        self._count += 1
        return f"{stem or self.stem}{self._count}"

    def do(self, text: str) -> None:
        """Add an instruction without a result."""
        self.lines.append(f"  {text}")

    def get(self, text: str) -> str:
        """Add an instruction and return its result."""
        name = "%" + self.new()
        self.do(f"{name} = {text}")
        return name

    def call(self, name: str, result: str, *operands: tuple[str, str]) -> str:
        """Call one of LLVM's functions with operands, each with its type before it; if it is of
        type ``void`` there is no result.
        """
        function = f"{result} @llvm.{name}"
        self.externals[f"declare {function}({', '.join(kind for kind, _ in operands)})"] = None
        text = f"call {function}({', '.join(map(' '.join, operands))})"
        if result != "void":
            return self.get(text)
        self.do(text)
        return ""

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


def constants(value: float, lanes: Lanes) -> str:
    """The same number in all lanes."""
    return f"splat ({lanes.kind} {constant(value, lanes.kind)})"


def emitted(code: Code, operation: Operation, operands: Sequence[str], lanes: Lanes) -> str:
    """The result of an operation, rounded as in the library: nothing is fused."""
    name, kind = operation.name, lanes.type
    if name in _BINARY:
        return code.get(f"{_BINARY[name]} {kind} {operands[0]}, {operands[1]}")
    if name in _COMPARED:
        return code.get(f"fcmp {_COMPARED[name]} {kind} {operands[0]}, {operands[1]}")
    if name == "negate":
        return code.get(f"fneg {kind} {operands[0]}")
    if name == "held":
        return operands[0]
    if name == "where":
        return _chosen(code, operands[0], operands[1], operands[2], lanes)
    if name in ("minimum", "maximum"):
        test = code.get(
            f"fcmp {'olt' if name == 'minimum' else 'ogt'} {kind} {operands[1]}, {operands[0]}"
        )
        return _chosen(code, test, operands[1], operands[0], lanes)
    if name in _CALLED:
        return _called(code, _CALLED[name], lanes, operands)
    raise NotImplementedError(name)


def _called(code: Code, name: str, lanes: Lanes, operands: Sequence[str]) -> str:
    taken = [(lanes.type, operand) for operand in operands]
    return code.call(f"{name}.{lanes.suffix}", lanes.type, *taken)


def _chosen(code: Code, test: str, yes: str, no: str, lanes: Lanes) -> str:
    return code.get(f"select {lanes.of('i1')} {test}, {lanes.type} {yes}, {lanes.type} {no}")


def exponential(code: Code, x: str, lanes: Lanes, bounds: tuple[float, float]) -> str:
    """exp of numbers within bounds, accurate to two units in the last place."""
    how, kind, whole = _EXPONENTIALS[lanes.kind], lanes.type, lanes.whole

    def number(value: float) -> str:
        return constants(value, lanes)

    def integers(value: int) -> str:
        return f"splat (i{8 * SIZES[lanes.kind]} {value})"

    def fused(*operands: str) -> str:
        """left * right + total, fused if the machine can."""
        return _called(code, "fmuladd", lanes, operands)

    rounded = fused(x, number(1.4426950408889634), number(how.rounding))
    k = code.get(f"fsub {kind} {rounded}, {number(how.rounding)}")
    r = fused(k, number(-how.low), fused(k, number(-how.high), x))
    found = number(2.0 / math.factorial(how.terms - 1))
    for term in range(how.terms - 2, -1, -1):
        found = fused(found, r, number(2.0 / math.factorial(term)))
    bits = code.get(f"bitcast {kind} {rounded} to {whole}")
    shifted = code.get(f"shl {whole} {bits}, {integers(how.mantissa)}")
    # 2^k itself may be too large though e^x is not.
    power = code.get(f"add {whole} {shifted}, {integers(how.half << how.mantissa)}")
    found = code.get(f"fmul {kind} {found}, {code.get(f'bitcast {whole} {power} to {kind}')}")
    least, most = bounds
    if most > how.largest:
        above = code.get(f"fcmp ogt {kind} {x}, {number(how.largest)}")
        found = _chosen(code, above, number(float("inf")), found, lanes)
    if least < how.smallest:
        below = code.get(f"fcmp olt {kind} {x}, {number(how.smallest)}")
        found = _chosen(code, below, number(0.0), found, lanes)
    return found
