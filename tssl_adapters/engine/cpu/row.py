"""Emits LLVM IR: one row of neighbouring neurons, from a line of operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tssl_adapters.arithmetic import Line, Symbol
from tssl_adapters.engine.cpu.emit import (
    SIZES,
    Code,
    Lanes,
    constants,
    emitted,
    exponential,
)

CACHE_LINE = 64
"""Its bytes. Blocks and the ranges of threads begin at multiples of as many neurons as it holds, on
which writing past the caches relies."""


class Row(NamedTuple):
    """An LLVM function that computes a line for ``n`` neighbouring neurons.

    Attributes:
        name: the function's name.
        text: its definition.
        externals: declarations of what it calls.
        parameters: the names of the pointers that it takes after ``n``: to one value per neuron, or
            to one for all neurons. Outputs are prefixed with ``to.``. What is prefetched comes
            last.
    """

    name: str
    text: str
    externals: tuple[str, ...]
    parameters: tuple[str, ...]


def row(
    name: str,
    line: Line,
    outputs: Mapping[str, Symbol],
    common: frozenset[str],
    lanes: Lanes,
    ahead: Sequence[str] = (),
    far: str | None = None,
) -> Row:
    """The row of a line.

    Args:
        name: the function's name.
        line: the operations.
        outputs: results by name. They may overwrite an input, neuron by neuron.
        common: inputs that are one number for all neurons.
        lanes: what is computed at once.
        ahead: more parameters, what is prefetched meanwhile, to be written to if prefixed with
            ``to.``; any address is harmless.
        far: an output that is written past the caches; its row begins with a cache line.
    """
    body = _Body(line, outputs, common, lanes)
    code, width = body.code, body.lanes.width
    code.label("all")
    code.do("%j = phi i64 [ 0, %entry ], [ %next, %all ]")
    code.do(f"%next = add nuw nsw i64 %j, {width}")
    for pointer in ahead:
        body.prefetch(pointer, "%j")
    body.compute("%j", far=far)
    code.do(f"%after = add nuw nsw i64 %next, {width}")
    code.do("%more = icmp sle i64 %after, %n")
    code.do("br i1 %more, label %all, label %rest")
    code.label("rest")
    code.do("%start = phi i64 [ 0, %entry ], [ %next, %all ]")
    code.do("%left = sub i64 %n, %start")
    code.do("%some = icmp sgt i64 %left, 0")
    code.do("br i1 %some, label %few, label %end")
    code.label("few")
    body.compute("%start", only="%left")
    code.do("br label %end")
    parameters = (*body.parameters, *ahead)
    taken = ", ".join(["i64 %n", *(f"ptr %p.{source}" for source in parameters)])
    text = "\n".join(
        [
            f"define internal void @{name}({taken}) nounwind noinline {{",
            "entry:",
            *body.entry.lines,
            f"  %any = icmp sge i64 %n, {width}",
            "  br i1 %any, label %all, label %rest",
            *code.lines,
            "end:",
            "  ret void",
            "}",
        ]
    )
    return Row(name, text, tuple(code.externals), parameters)


class _Body:
    """What a row computes for as many neurons as the machine takes at once, or for fewer."""

    def __init__(
        self, line: Line, outputs: Mapping[str, Symbol], common: frozenset[str], lanes: Lanes
    ) -> None:
        self.line, self.outputs, self.common, self.lanes = line, outputs, common, lanes
        self.size = SIZES[lanes.kind]
        self.code, self.entry = Code(), Code("e")
        self.parameters: dict[str, None] = {}
        self._spread: dict[str, str] = {}
        """The numbers that are the same for all neurons, in all lanes."""

    def prefetch(self, pointer: str, index: str) -> None:
        """Prefetch as much of it as is computed at once into the L2 cache."""
        code, write = self.code, str(int(pointer.startswith("to.")))
        at = code.offset(self.lanes.kind, f"%p.{pointer}", index)
        how = [("i32", number) for number in (write, "2", "1")]
        for k in range(0, self.lanes.bytes, CACHE_LINE):
            code.call("prefetch.p0", "void", ("ptr", code.offset("i8", at, str(k))), *how)

    def compute(self, index: str, only: str | None = None, far: str | None = None) -> None:
        """Compute the neurons from an index on.

        Args:
            index: the first one's.
            only: how many, if fewer than the lanes.
            far: the output that is written past the caches.
        """
        code, line, lanes = self.code, self.line, self.lanes
        mask = None if only is None else self._first(only)
        places: dict[int, str] = {}
        for place in line.needed(self.outputs.values()):
            operation = line.operations[place]
            if operation.name == "number":
                places[place] = constants(float.fromhex(operation.operands[0]), lanes)
            elif operation.name == "input":
                places[place] = self._given(operation.operands[0], index, mask)
            elif operation.name == "exp":
                (of,) = operation.operands
                places[place] = exponential(code, places[of], lanes, line.bounds(of))
            else:
                operands = [places[operand] for operand in operation.operands]
                places[place] = emitted(code, operation, operands, lanes)
        for target, symbol in self.outputs.items():
            self.parameters[f"to.{target}"] = None
            at = code.offset(lanes.kind, f"%p.to.{target}", index)
            self._store(places[symbol.place], at, mask, past=target == far)

    def _first(self, count: str) -> str:
        """A mask of the first lanes."""
        numbers = ", ".join(f"i64 {k}" for k in range(self.lanes.width))
        counts = _in_all(self.code, "i64", count, self.lanes)
        return self.code.get(f"icmp slt {self.lanes.of('i64')} <{numbers}>, {counts}")

    def _given(self, source: str, index: str, mask: str | None) -> str:
        """An input."""
        self.parameters[source] = None
        lanes, code = self.lanes, self.code
        if source in self.common:
            if source not in self._spread:
                value = self.entry.get(f"load {lanes.kind}, ptr %p.{source}")
                self._spread[source] = _in_all(self.entry, lanes.kind, value, lanes)
            return self._spread[source]
        at = code.offset(lanes.kind, f"%p.{source}", index)
        if mask is None:
            return code.get(f"load {lanes.type}, ptr {at}, align {self.size}")
        return code.call(
            f"masked.load.{lanes.suffix}.p0",
            lanes.type,
            *(("ptr", at), ("i32", str(self.size)), (lanes.of("i1"), mask)),
            (lanes.type, "zeroinitializer"),
        )

    def _store(self, value: str, at: str, mask: str | None, past: bool) -> None:
        code, lanes = self.code, self.lanes
        if mask is not None:
            code.call(
                f"masked.store.{lanes.suffix}.p0",
                "void",
                *((lanes.type, value), ("ptr", at), ("i32", str(self.size))),
                (lanes.of("i1"), mask),
            )
            return
        aligned = min(CACHE_LINE, lanes.bytes) if past else self.size
        how = ", !nontemporal !0" if past else ""
        code.do(f"store {lanes.type} {value}, ptr {at}, align {aligned}{how}")


def _in_all(code: Code, kind: str, value: str, lanes: Lanes) -> str:
    """A number in all lanes."""
    vector = lanes.of(kind)
    first = code.get(f"insertelement {vector} poison, {kind} {value}, i64 0")
    places = f"{lanes.of('i32')} zeroinitializer"
    return code.get(f"shufflevector {vector} {first}, {vector} poison, {places}")


def module(rows: Sequence[Row], functions: Sequence[str], externals: Sequence[str]) -> str:
    """A module of these rows and functions, with declarations of what the functions call."""
    called = [external for row in rows for external in row.externals]
    declared = dict.fromkeys([*externals, *called])
    return "\n".join([*declared, *(row.text for row in rows), *functions, "!0 = !{i32 1}", ""])
