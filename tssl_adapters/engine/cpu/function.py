"""Builds a function in LLVM IR that calls rows of neighbouring neurons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from tssl_adapters.engine.cpu.emit import SIZES, TYPES, Code, constant, lanes
from tssl_adapters.engine.cpu.row import CACHE_LINE, Row, module, row
from tssl_adapters.engine.step.traced import NUMBERS, Traced

RANGE = ("first", "last", "steps", "neurons")
COUNTS = {*RANGE, "large", "block", "pace", "stride"}
"""Parameters that are integers; all others are addresses."""
AHEAD = 8
"""How many steps ahead what a pass reads is prefetched, over the ends of passes and blocks: a
backward pass then took 0.6 to 0.95 times as long as with the next step's alone."""
BLOCK = 16384
"""Neurons per block of the forward pass: their states stay in the L2 cache. With a quarter of it a
sequence took 1.2 times as long, as too little of each prefetched stretch of memory is used."""
CHUNK = 1024
"""Neurons with two states go through all time steps so many at a time if their output is written
past the caches: their states stay in the L1 cache. With the drives prefetched a sequence took 0.95
times as long; with one state 1.02 times."""
LARGE = 2**21
"""From this many bytes on, what a sequence writes goes past the caches, which would have to read it
first and lose all else: a layer alone took 0.8 to 0.95 times as long, one among others the same."""
EXTERNALS = (
    "declare ptr @PyMem_RawMalloc(i64)",
    "declare void @PyMem_RawFree(ptr)",
    "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1 immarg)",
    "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1 immarg)",
    "declare i64 @llvm.smax.i64(i64, i64)",
    "declare i64 @llvm.smin.i64(i64, i64)",
)


class Source(NamedTuple):
    """A module's text, the name of its function, and that function's parameters."""

    text: str
    name: str
    parameters: tuple[str, ...]


Call: TypeAlias = Callable[[str, Mapping[str, str]], None]
"""Emits a call of a row: ``(number of neurons, addresses by parameter)``."""


class Function:
    """A function that calls rows.

    Args:
        name: its name.
        parameters: their names.
        dtype: ``"float32"`` or ``"float64"``.
        dense: whether each neuron has its own numbers.
        bits: the size of the machine's vectors.
    """

    def __init__(
        self, name: str, parameters: Sequence[str], dtype: str, dense: bool, bits: int
    ) -> None:
        self.name = name
        self.parameters = tuple(parameters)
        self.kind = TYPES[dtype]
        self.lanes = lanes(self.kind, bits)
        self.code = Code()
        self.dense = dense
        self.rows: list[Row] = []
        self.common = frozenset({"steps"} if dense else {*NUMBERS, "steps"})
        """Inputs that are one number for all neurons."""

    def row(
        self,
        traced: Traced,
        targets: Sequence[str],
        ahead: Sequence[str] = (),
        far: str | None = None,
        copies: Mapping[str, str] | None = None,
    ) -> Call:
        """Add a row that computes the ``targets`` of a line; returns a function that emits a call
        of it, given the number of neurons and the addresses of all inputs and outputs.

        Args:
            traced: the line.
            targets: the results that are written.
            ahead: what is prefetched, as :func:`tssl_adapters.engine.cpu.row.row` takes it.
            far: the result that is written past the caches.
            copies: results that are written to a second place: their names there.
        """
        name = f"{self.name}.row{len(self.rows)}"
        outputs = {target: traced.outputs[target] for target in targets}
        outputs |= {copy: traced.outputs[target] for target, copy in (copies or {}).items()}
        return self.add(row(name, traced.line, outputs, self.common, self.lanes, ahead, far))

    def add(self, made: Row) -> Call:
        """Add a row; returns what :meth:`row` does."""
        self.rows.append(made)

        def call(count: str, places: Mapping[str, str]) -> None:
            pointers = "".join(f", ptr {places[parameter]}" for parameter in made.parameters)
            self.code.do(f"call void @{made.name}(i64 {count}{pointers})")

        return call

    def at(self, pointer: str, index: str) -> str:
        """The address of a value."""
        return self.code.offset(self.kind, pointer, index)

    def numbers(self, start: str) -> dict[str, str]:
        """The addresses of the numbers of the neurons from ``start`` on."""
        if not self.dense:
            return {name: self.at("%values", str(k)) for k, name in enumerate(NUMBERS)}
        found = {}
        for k, name in enumerate(NUMBERS):
            whole = self.code.get(f"mul i64 %neurons, {k}")
            found[name] = self.at("%values", self.code.get(f"add i64 {whole}, {start}"))
        return found

    def rest(self, start: str, block: str) -> str:
        """How many neurons there are from ``start`` on, up to a block."""
        return self.least(self.code.get(f"sub i64 %last, {start}"), block)

    def least(self, left: str, right: str) -> str:
        """The smaller one of two integers."""
        return self.code.get(f"call i64 @llvm.smin.i64(i64 {left}, i64 {right})")

    def copy(self, target: str, source: str | None, count: str) -> None:
        """Copy values, or zeros if there is no source."""
        size = self.code.get(f"mul i64 {count}, {SIZES[self.kind]}")
        if source is None:
            self.code.do(f"call void @llvm.memset.p0.i64(ptr {target}, i8 0, i64 {size}, i1 0)")
        else:
            places = f"ptr {target}, ptr {source}"
            self.code.do(f"call void @llvm.memcpy.p0.p0.i64({places}, i64 {size}, i1 0)")

    def goes_far(self, base: str) -> str:
        """Whether the rows of ``[T, N]`` are written past the caches: they are ``large``, and each
        begins with a cache line.
        """
        code = self.code
        row = code.get(f"mul i64 %neurons, {SIZES[self.kind]}")
        size = code.get(f"mul i64 %steps, {row}")
        many = code.get(f"icmp sge i64 {size}, %large")
        begins = code.get(f"or i64 {row}, {code.get(f'ptrtoint ptr {base} to i64')}")
        rest = code.get(f"and i64 {begins}, {CACHE_LINE - 1}")
        return code.get(f"and i1 {many}, {code.get(f'icmp eq i64 {rest}, 0')}")

    def aligned(self, pointer: str) -> str:
        """The address of the cache line that begins there or next."""
        code = self.code
        after = code.get(f"getelementptr i8, ptr {pointer}, i64 {CACHE_LINE - 1}")
        line = code.get(f"and i64 {code.get(f'ptrtoint ptr {after} to i64')}, {-CACHE_LINE}")
        return code.get(f"inttoptr i64 {line} to ptr")

    def written(self) -> None:
        """Order what was written past the caches before all that follows, for other threads. On x86
        this is an instruction that empties the buffers of such writes.
        """
        self.code.do("fence seq_cst")

    def copy_given(self, target: str, base: str, start: str, count: str, row: int = 0) -> None:
        """Copy from neuron ``start`` on in a row of ``base``, or zeros if ``base`` is null."""

        def given() -> None:
            self.copy(target, self.row_of(base, row, start), count)

        self.either(self.there(base), given, lambda: self.copy(target, None, count))

    def hand_back(self, base: str, start: str, source: str, count: str, row: int = 0) -> None:
        """Copy to neuron ``start`` and on in a row of ``base``, unless ``base`` is null."""

        def copy() -> None:
            self.copy(self.row_of(base, row, start), source, count)

        self.either(self.there(base), copy, lambda: None)

    def there(self, base: str) -> str:
        """Whether an address is not null."""
        return self.code.get(f"icmp ne ptr {base}, null")

    def either(self, test: str, one: Callable[[], None], other: Callable[[], None]) -> None:
        """Run one body if the test holds, else the other."""
        code, name = self.code, self.code.new("if")
        code.do(f"br i1 {test}, label %{name}.yes, label %{name}.no")
        for which, body in (("yes", one), ("no", other)):
            code.label(f"{name}.{which}")
            body()
            code.do(f"br label %{name}.end")
        code.label(f"{name}.end")

    def row_of(self, pointer: str, number: int, start: str) -> str:
        """The address of neuron ``start`` in row ``number``; each row holds all neurons."""
        if not number:
            return self.at(pointer, start)
        whole = self.code.get(f"mul i64 %neurons, {number}")
        return self.at(pointer, self.code.get(f"add i64 {whole}, {start}"))

    def step_of(self, pointer: str, t: str, start: str, pace: str = "%neurons") -> str:
        """The address of neuron ``start`` at step ``t``, with stride ``pace`` over time."""
        whole = self.code.get(f"mul i64 {t}, {pace}")
        return self.at(pointer, self.code.get(f"add i64 {whole}, {start}"))

    def room(self, values: int) -> str:
        """A buffer on the stack."""
        name = "%" + self.code.new("room")
        self.code.first.append(f"  {name} = alloca [{values} x {self.kind}], align 64")
        return name

    def pack(self, count: str, values: str, least: float) -> None:
        """Pack whether each value is at least ``least``, eight to a byte, from ``first`` on."""
        code, kind = self.code, self.kind
        base = code.offset("i8", "%bits", code.get("lshr i64 %first, 3"))
        full = code.get(f"add i64 {count}, 7")
        with code.counting("0", code.get(f"lshr i64 {full}, 3"), "1") as byte:
            slot = "%" + code.new("byte")
            code.first.append(f"  {slot} = alloca i8")
            code.do(f"store i8 0, ptr {slot}")
            start = code.get(f"shl i64 {byte}, 3")
            left = code.get(f"sub i64 {count}, {start}")
            less = code.get(f"icmp slt i64 {left}, 8")
            end = code.get(f"select i1 {less}, i64 {left}, i64 8")
            with code.counting("0", end, "1") as bit:
                at = self.at(values, code.get(f"add i64 {start}, {bit}"))
                value = code.get(f"load {kind}, ptr {at}")
                test = code.get(f"fcmp oge {kind} {value}, {constant(least, kind)}")
                flag = code.get(f"zext i1 {test} to i8")
                placed = code.get(f"shl i8 {flag}, {code.get(f'trunc i64 {bit} to i8')}")
                before = code.get(f"load i8, ptr {slot}")
                code.do(f"store i8 {code.get(f'or i8 {before}, {placed}')}, ptr {slot}")
            found = code.get(f"load i8, ptr {slot}")
            code.do(f"store i8 {found}, ptr {code.offset('i8', base, byte)}")

    def unpack(self, count: str, start: str, flags: str) -> None:
        """Undo :meth:`pack` from neuron ``start`` on: flags, 0 or 1."""
        code, kind = self.code, self.kind
        with code.counting("0", count, "1") as j:
            at = code.get(f"add i64 {start}, {j}")
            byte = code.get(
                f"load i8, ptr {code.offset('i8', '%bits', code.get(f'lshr i64 {at}, 3'))}"
            )
            bit = code.get(f"trunc i64 {code.get(f'and i64 {at}, 7')} to i8")
            flag = code.get(f"and i8 {code.get(f'lshr i8 {byte}, {bit}')}, 1")
            value = code.get(f"uitofp i8 {flag} to {kind}")
            code.do(f"store {kind} {value}, ptr {self.at(flags, j)}")

    def source(self) -> Source:
        """The whole module."""
        taken = []
        for k, name in enumerate(self.parameters):
            taken.append(f"  %at.{name} = getelementptr i64, ptr %given, i64 {k}")
            taken.append(f"  %{name} = load {'i64' if name in COUNTS else 'ptr'}, ptr %at.{name}")
        text = "\n".join(
            [
                f"define void @{self.name}(ptr %given) nounwind {{",
                "entry:",
                *taken,
                *self.code.first,
                *self.code.lines,
                "  ret void",
                "}",
            ]
        )
        return Source(module(self.rows, [text], EXTERNALS), self.name, self.parameters)
