"""Loops over neurons and time steps, in LLVM IR, around rows of neighbouring neurons.

A sequence is computed one block of neurons at a time, with time as the inner loop, so that its
states stay in the fastest caches. A single step is one row over all of its neurons. A function
takes the range of neurons ``first`` to ``last``, the numbers of time ``steps`` and ``neurons``, and
then addresses as named in :data:`FORWARD` and the others; those that a variant does not need may be
0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import NamedTuple

from tssl_adapters.arithmetic import Line, Symbol
from tssl_adapters.engine.compiled.kernels import Gate
from tssl_adapters.engine.cpu.emit import TYPES, Code, Row, constant, module, row
from tssl_adapters.engine.step.spec import Spec
from tssl_adapters.engine.step.traced import (
    CARRIED,
    LINK,
    NUMBERS,
    SUMS,
    Back,
    Traced,
    backward,
    current_step,
    current_step_back,
    forward,
)
from tssl_adapters.neuron import Timing
from tssl_adapters.rules import Rule

RANGE = ("first", "last", "steps", "neurons")
FORWARD = (
    *(*RANGE, "drive", "state", "trace", "values"),
    *("out", "after", "charged", "bits", "due", "current", "leaked"),
)
BACKWARD = (
    *(*RANGE, "block", "pace", "stride", "window"),
    *("drive", "state", "current", "trace", "bits", "fired", "values"),
    *("grad_out", "grad_after", "link", "grad_current"),
    *("grad_drive", "chain", "through", "entering", "grad_trace", "sums"),
)
CURRENT = (*RANGE, "values", "drive", "state", "out")
CURRENT_BACK = (*RANGE, "values", "grad_out", "grad_drive")
COUNTS = {*RANGE, "block", "pace", "stride"}
"""Parameters that are integers; all others are addresses."""
BLOCK = 8192
"""Neurons per block of the forward pass: their states stay in the L2 cache. With 1,024 of them a
sequence took 1.2 times as long, as too little of each prefetched stretch of memory is used."""
LINE = 64
"""Bytes per cache line."""
SIZES = {"float": 4, "double": 8}
EXTERNALS = (
    "declare ptr @PyMem_RawMalloc(i64)",
    "declare void @PyMem_RawFree(ptr)",
    "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)",
)


class Source(NamedTuple):
    """A module's text, the name of its function, and that function's parameters."""

    text: str
    name: str
    parameters: tuple[str, ...]


class _Function:
    """A function that calls rows."""

    def __init__(self, name: str, parameters: Sequence[str], dtype: str, dense: bool) -> None:
        self.name = name
        self.parameters = tuple(parameters)
        self.kind = TYPES[dtype]
        self.code = Code()
        self.dense = dense
        self.rows: list[Row] = []
        self.helpers: list[str] = []

    def row(
        self, traced: Traced, targets: Sequence[str]
    ) -> Callable[[str, Mapping[str, str]], None]:
        """Add a row that computes the ``targets`` of a line; returns a function that emits a call
        of it, given the number of neurons and the addresses of all inputs and outputs.
        """
        name = f"{self.name}.row{len(self.rows)}"
        outputs = {target: traced.outputs[target] for target in targets}
        common = frozenset({"steps"} if self.dense else {*NUMBERS, "steps"})
        made = row(name, traced.line, outputs, common, self.kind)
        self.rows.append(made)

        def call(count: str, places: Mapping[str, str]) -> None:
            pointers = "".join(f", ptr {places[parameter]}" for parameter in made.parameters)
            self.code.do(f"call void @{name}(i64 {count}{pointers})")

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
        left = self.code.get(f"sub i64 %last, {start}")
        less = self.code.get(f"icmp slt i64 {left}, {block}")
        return self.code.get(f"select i1 {less}, i64 {left}, i64 {block}")

    def copy(self, target: str, source: str | None, count: str) -> None:
        """Copy values, or zeros if there is no source."""
        with self.code.counting("0", count, "1") as j:
            value = constant(0.0, self.kind)
            if source is not None:
                value = self.code.get(f"load {self.kind}, ptr {self.at(source, j)}")
            self.code.do(f"store {self.kind} {value}, ptr {self.at(target, j)}")

    def fetch(self, place: str, count: str, *, write: bool = False) -> None:
        """Prefetch values into the L2 cache. Any address is harmless."""
        with self.code.counting("0", count, str(LINE // SIZES[self.kind])) as j:
            at = self.at(place, j)
            self.code.do(f"call void @llvm.prefetch.p0(ptr {at}, i32 {int(write)}, i32 2, i32 1)")

    def copy_given(self, target: str, base: str, index: str, count: str) -> None:
        """Copy from ``index`` of ``base``, or zeros if ``base`` is null."""
        with self.given(base) as (yes, no):
            yes(lambda: self.copy(target, self.at(base, index), count))
            no(lambda: self.copy(target, None, count))

    def hand_back(self, base: str, index: str, source: str, count: str) -> None:
        """Copy to ``index`` of ``base``, unless ``base`` is null."""
        with self.given(base) as (yes, no):
            yes(lambda: self.copy(self.at(base, index), source, count))
            no(lambda: None)

    def given(self, base: str) -> _Branch:
        """A branch on whether an address is not null."""
        return _Branch(self.code, self.code.get(f"icmp ne ptr {base}, null"))

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

    def source(self) -> Source:
        """The whole module."""
        taken = ", ".join(
            f"{'i64' if name in COUNTS else 'ptr'} %{name}" for name in self.parameters
        )
        text = "\n".join(
            [
                f"define internal void @{self.name}({taken}) nounwind noinline {{",
                "entry:",
                *self.code.first,
                *self.code.lines,
                "  ret void",
                "}",
            ]
        )
        return Source(
            module(self.rows, [*self.helpers, text], EXTERNALS), self.name, self.parameters
        )


class _Branch:
    """``with branch as (yes, no)``: each takes the body of its case."""

    def __init__(self, code: Code, test: str) -> None:
        self.code, self.test, self.name = code, test, code.new("if")

    def __enter__(self) -> tuple[Callable[[Callable[[], None]], None], ...]:
        code, name = self.code, self.name
        code.do(f"br i1 {self.test}, label %{name}.yes, label %{name}.no")

        def block(which: str) -> Callable[[Callable[[], None]], None]:
            def run(body: Callable[[], None]) -> None:
                code.label(f"{name}.{which}")
                body()
                code.do(f"br label %{name}.end")

            return run

        return block("yes"), block("no")

    def __exit__(self, *_: object) -> None:
        self.code.label(f"{self.name}.end")


def forward_step(
    name: str, spec: Spec, tau_s: float, traced: bool, tells: bool, gate: float | None
) -> Source:
    """One forward step; writes h if it ``tells``, and bits of which traces reach a ``gate``."""
    function = _Function(name, FORWARD, spec.form.dtype, spec.form.dense)
    late = spec.form.timing != "immediate"
    targets = ["output", "potential", *(["charged"] if tells else []), *(["due"] if late else [])]
    targets += ["current"] if spec.form.synapse else []
    step = function.row(forward(spec, tau_s, traced), targets)
    code = function.code
    count = code.get("sub i64 %last, %first")
    places = function.numbers("%first") | {
        "potential": function.at("%state", "%first"),
        "drive": function.at("%drive", "%first"),
        "to.output": function.at("%out", "%first"),
        "to.potential": function.at("%after", "%first"),
    }
    if traced:
        places["trace"] = function.at("%trace", "%first")
    if tells:
        places["to.charged"] = function.at("%charged", "%first")
    if late:
        places["to.due"] = function.at("%due", "%first")
    if spec.form.synapse:
        places["current"] = function.at("%current", "%first")
        places["to.current"] = function.at("%leaked", "%first")
    step(count, places)
    if gate is not None:
        _pack(function, count, places["to.output"], gate)
    return function.source()


def forward_sequence(name: str, spec: Spec, tau_s: float, keep: bool) -> Source:
    """A whole sequence forward; writes the potential after every step if it is to ``keep``."""
    function = _Function(name, FORWARD, spec.form.dtype, spec.form.dense)
    psc = spec.form.psc
    synapse = spec.form.synapse
    targets = ["output", "potential", *(["trace"] if psc else [])]
    step = function.row(forward(spec, tau_s, psc), targets + ["current"] * synapse)
    code, potential = function.code, function.room(BLOCK)
    trace = function.room(BLOCK) if psc else ""
    current = function.room(BLOCK) if synapse else ""
    with code.counting("%first", "%last", str(BLOCK)) as start:
        count = function.rest(start, str(BLOCK))
        numbers = function.numbers(start)
        function.copy(potential, function.at("%state", start), count)
        if psc:
            function.copy_given(trace, "%trace", start, count)
        if synapse:
            function.copy(current, function.at("%current", start), count)
        with code.counting("0", "%steps", "1") as t:
            before, after = potential, potential
            if keep:
                after = function.step_of("%after", t, start)
            step(
                count,
                numbers
                | {
                    "potential": before,
                    "trace": trace,
                    "drive": function.step_of("%drive", t, start),
                    "to.output": function.step_of("%out", t, start),
                    "to.potential": after,
                    "to.trace": trace,
                    "current": current,
                    "to.current": current,
                },
            )
            if keep:
                function.copy(potential, after, count)
        if synapse:
            function.copy(function.at("%leaked", start), current, count)
        if not keep:
            function.copy(function.at("%after", start), potential, count)
    return function.source()


def backward_step(
    name: str, spec: Spec, rule: Rule, back: Back, tau_s: float, unwanted: Set[str]
) -> Source:
    """One backward step, without the unwanted results."""
    function = _Function(name, BACKWARD, spec.form.dtype, spec.form.dense)
    line = backward(spec, rule, back, tau_s)
    step = function.row(line, [target for target in line.outputs if target not in unwanted])
    code, start = function.code, "%first"
    flagged = spec.form.psc and spec.form.told and "trace" in function.rows[0].parameters
    places = {
        "drive": "%drive",
        "potential": "%state",
        "trace": "%trace",
        "grad_out": "%grad_out",
        "grad_potential": "%grad_after",
        "grad_current": "%grad_current",
        "fired": "%fired",
        "to.grad_drive": "%grad_drive",
        "to.decayed_membrane": "%through",
        "to.entering": "%entering",
        "to.grad_trace": "%grad_trace",
    }

    def of(start: str) -> dict[str, str]:
        found = function.numbers(start) | {"steps": "%window"}
        found |= {key: function.at(base, start) for key, base in places.items()}
        found |= {key: function.row_of("%link", k, start) for k, key in enumerate(LINK)}
        found |= {f"to.{LINK[k]}": function.row_of("%chain", k, start) for k in _HANDED}
        found |= {f"to.{key}": function.row_of("%sums", k, start) for k, key in enumerate(SUMS)}
        return found

    if not flagged:
        step(code.get("sub i64 %last, %first"), of(start))
        return function.source()
    flags = function.room(BLOCK)
    with code.counting("%first", "%last", str(BLOCK)) as start:
        count = function.rest(start, str(BLOCK))
        _unpack(function, count, start, flags)
        step(count, of(start) | {"trace": flags})
    return function.source()


def backward_sequence(
    name: str, spec: Spec, rule: Rule, back: Back, tau_s: float, unwanted: Set[str]
) -> Source:
    """A whole sequence backward, without the unwanted results. For each block, the forward pass is
    recomputed first; h is kept if it replaces the drive, as it does behind a synapse.
    """
    function = _Function(name, BACKWARD, spec.form.dtype, spec.form.dense)
    psc, code = spec.form.psc, function.code
    told = not (psc or back.learns)
    line = backward(spec.told if told else spec, rule, back, tau_s)
    targets = line.without(unwanted)
    step = function.row(line, targets)
    moves = not told or "potential" in function.rows[0].parameters
    synapse = spec.form.synapse
    kept = ["potential", *(["trace"] if psc else []), *(["charged"] if told else [])]
    again = function.row(forward(spec, tau_s, psc), kept + ["current"] * synapse)
    history = code.get("add i64 %steps, 1")
    carried = [name for name in CARRIED if name in targets]
    rows = code.get(f"add i64 {history if moves else '1'}, {len(carried) + 1 + synapse}")
    if psc or told:
        rows = code.get(f"add i64 {rows}, {history}")
    values = code.get(f"mul i64 {rows}, %block")
    room = code.get(
        f"call ptr @PyMem_RawMalloc(i64 {code.get(f'mul i64 {values}, {SIZES[function.kind]}')})"
    )
    held = code.get(f"mul i64 {history}, %block")
    potentials = room
    traces = charges = after = function.at(room, held if moves else "%block")
    if psc or told:
        after = function.at(after, held)
    none = after
    at = {
        name: function.at(after, code.get(f"mul i64 %block, {k}"))
        for k, name in enumerate(carried, 1)
    }
    current = function.at(after, code.get(f"mul i64 %block, {len(carried) + 1}"))
    """i in the forward pass, then its gradient after the last step."""
    function.copy(none, None, "%block")
    with code.counting("%first", "%last", "%block") as start:
        count = function.rest(start, "%block")
        numbers = function.numbers(start) | {"steps": "%window"}
        numbers["fired"] = function.at("%fired", start)
        function.copy(potentials, function.at("%state", start), count)
        if psc:
            function.copy_given(traces, "%trace", start, count)
        if synapse:
            function.copy(current, function.at("%current", start), count)
        for k, name in enumerate(LINK):
            if name in at and (k in _HANDED or spec.form.timing == "delayed"):
                _copy_link(function, at[name], k, start, count)
            elif name in at:
                function.copy(at[name], None, count)
        for name in (*SUMS, "grad_trace", "followed"):
            if name in at:
                function.copy(at[name], None, count)
        ahead = "%steps" if psc or told else code.get("sub i64 %steps, 1")
        with code.counting("0", ahead, "1") as t:
            now = then = potentials
            if moves:
                now, then = (
                    function.step_of(potentials, k, "0", "%block") for k in (t, _next(code, t))
                )
            places = {"potential": now, "to.potential": then}
            if told:
                places["to.charged"] = function.step_of(charges, t, "0", "%block")
            if synapse:
                places |= {"current": current, "to.current": current}
            if psc:
                now, then = (
                    function.step_of(traces, k, "0", "%block") for k in (t, _next(code, t))
                )
                places |= {"trace": now, "to.trace": then}
            function.fetch(function.step_of("%drive", _next(code, t), start), count)
            again(count, numbers | places | {"drive": function.step_of("%drive", t, start)})
        if synapse:
            function.copy_given(current, "%grad_current", start, count)
        with code.counting("0", "%steps", "1", down=True) as t:
            places = {
                "potential": function.step_of(potentials, t, "0", "%block"),
                "drive": function.step_of(charges, t, "0", "%block")
                if told
                else function.step_of("%drive", t, start),
                "grad_out": function.step_of("%grad_out", t, start, "%pace"),
                "to.grad_drive": function.step_of("%grad_drive", t, start),
            }
            if psc:
                places["trace"] = function.step_of(traces, _next(code, t), "0", "%block")
            if back.outside:
                places["grad_potential"] = _outside(function, t, start, none)
            if back.around:
                places["grad_beside"] = _beside(function, t, start, none, spec.form.timing)
            if synapse:
                places["grad_current"] = _later_current(function, t, start, current)
            for name, place in at.items():
                places |= {name: place, f"to.{name}": place}
            before = code.get(f"sub i64 {t}, 1")
            if back.output:
                function.fetch(function.step_of("%grad_out", before, start, "%pace"), count)
            function.fetch(function.step_of("%grad_drive", before, start), count, write=True)
            step(count, numbers | places)
        for k in _HANDED:
            if LINK[k] in at:
                _hand_back_link(function, at[LINK[k]], k, start, count)
        for name, base in _ENDS.items():
            if name in at:
                function.hand_back(base, start, at[name], count)
        for k, name in enumerate(SUMS):
            if name in at:
                function.copy(function.row_of("%sums", k, start), at[name], count)
    code.do(f"call void @PyMem_RawFree(ptr {room})")
    return function.source()


_HANDED = (0, 1, 3)
"""Rows that are stored in the link's memory; the other one may be stored elsewhere."""
_ENDS = {
    "decayed_membrane": "%through",
    "grad_trace": "%grad_trace",
    "entering": "%entering",
}


def _next(code: Code, t: str) -> str:
    return code.get(f"add i64 {t}, 1")


def _copy_link(function: _Function, target: str, k: int, start: str, count: str) -> None:
    """Copy a row of the incoming link, or zeros."""
    with function.given("%link") as (yes, no):
        yes(lambda: function.copy(target, function.row_of("%link", k, start), count))
        no(lambda: function.copy(target, None, count))


def _hand_back_link(function: _Function, source: str, k: int, start: str, count: str) -> None:
    """Copy a row of the link that goes back to the previous call, if there is one."""
    with function.given("%chain") as (yes, no):
        yes(lambda: function.copy(function.row_of("%chain", k, start), source, count))
        no(lambda: None)


def _later_current(function: _Function, t: str, start: str, last: str) -> str:
    """The address of the gradient of the current after step ``t``, which is the next drive's."""
    code, after = function.code, _next(function.code, t)
    place = function.step_of("%grad_drive", after, start)
    ends = code.get(f"icmp eq i64 {after}, %steps")
    return code.get(f"select i1 {ends}, ptr {last}, ptr {place}")


def _outside(function: _Function, t: str, start: str, none: str) -> str:
    """The address of the gradient of the potential after step ``t``; zeros if only the last step
    has one and ``t`` is another.
    """
    code = function.code
    place = function.step_of("%grad_after", t, start, "%stride")
    each = code.get("icmp ne i64 %stride, 0")
    last = code.get(f"icmp eq i64 {_next(code, t)}, %steps")
    wanted = code.get(f"or i1 {each}, {last}")
    return code.get(f"select i1 {wanted}, ptr {place}, ptr {none}")


def _beside(function: _Function, t: str, start: str, none: str, timing: Timing) -> str:
    """The address of the gradient of the potential on the other side of the reset from the one
    after step ``t``.
    """
    code = function.code
    other = _next(code, t) if timing == "delayed" else code.get(f"sub i64 {t}, 1")
    place = function.step_of("%grad_after", other, start, "%stride")
    inside = code.get(f"icmp ult i64 {other}, %steps")  # unsigned: false for -1
    return code.get(f"select i1 {inside}, ptr {place}, ptr {none}")


def _pack(function: _Function, count: str, values: str, least: float) -> None:
    """Pack whether each value is at least ``least``, eight to a byte, from neuron ``first`` on."""
    code, kind = function.code, function.kind
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
            at = function.at(values, code.get(f"add i64 {start}, {bit}"))
            value = code.get(f"load {kind}, ptr {at}")
            test = code.get(f"fcmp oge {kind} {value}, {constant(least, kind)}")
            flag = code.get(f"zext i1 {test} to i8")
            placed = code.get(f"shl i8 {flag}, {code.get(f'trunc i64 {bit} to i8')}")
            before = code.get(f"load i8, ptr {slot}")
            code.do(f"store i8 {code.get(f'or i8 {before}, {placed}')}, ptr {slot}")
        found = code.get(f"load i8, ptr {slot}")
        code.do(f"store i8 {found}, ptr {code.offset('i8', base, byte)}")


def _unpack(function: _Function, count: str, start: str, flags: str) -> None:
    """Undo :func:`_pack` from neuron ``start`` on: flags, 0 or 1."""
    code, kind = function.code, function.kind
    with code.counting("0", count, "1") as j:
        at = code.get(f"add i64 {start}, {j}")
        byte = code.get(f"load i8, ptr {code.offset('i8', '%bits', code.get(f'lshr i64 {at}, 3'))}")
        bit = code.get(f"trunc i64 {code.get(f'and i64 {at}, 7')} to i8")
        flag = code.get(f"and i8 {code.get(f'lshr i8 {byte}, {bit}')}, 1")
        value = code.get(f"uitofp i8 {flag} to {kind}")
        code.do(f"store {kind} {value}, ptr {function.at(flags, j)}")


def row_over_all(
    name: str,
    line: Line,
    outputs: Mapping[str, Symbol],
    numbers: Sequence[str],
    dtype: str,
    gate: Gate | None = None,
) -> Source:
    """A line for all neurons. It takes ``values``, its numbers in this order; ``window``, which is
    ``steps``; then the other inputs and the outputs, prefixed with ``"to."``. With a ``gate``
    it writes ``bits`` of where its output reaches it; an input ``active`` is read from such
    ``bits``.
    """
    common = frozenset({*numbers, "steps"})
    made = row(f"{name}.row0", line, outputs, common, TYPES[dtype])
    own = [p for p in made.parameters if p not in common and p != "active"]
    unpacks = "active" in made.parameters
    bits = ["bits"] if unpacks or gate is not None else []
    function = _Function(name, (*RANGE, "values", "window", *own, *bits), dtype, dense=False)
    function.rows.append(made)
    code = function.code
    fixed = {key: function.at("%values", str(k)) for k, key in enumerate(numbers)}
    fixed |= {"steps": "%window"}

    def run(start: str, count: str) -> None:
        places = fixed | {key: function.at(f"%{key}", start) for key in own}
        if unpacks:
            _unpack(function, count, start, places.setdefault("active", flags))
        pointers = "".join(f", ptr {places[parameter]}" for parameter in made.parameters)
        code.do(f"call void @{made.name}(i64 {count}{pointers})")

    if unpacks:
        flags = function.room(BLOCK)
        with code.counting("%first", "%last", str(BLOCK)) as start:
            run(start, function.rest(start, str(BLOCK)))
    else:
        run("%first", code.get("sub i64 %last, %first"))
    if gate is not None:
        whole = code.get("sub i64 %last, %first")
        _pack(function, whole, function.at(f"%to.{gate.output}", "%first"), gate.least)
    return function.source()


def current(name: str, dtype: str) -> Source:
    """i'[t] = i[t-1] + x[t] and i[t] = i'[t] + k i'[t]; k is the first of the numbers."""
    return _scan(name, CURRENT, dtype, current_step(), ("drive",), "out", down=False)


def current_back(name: str, dtype: str) -> Source:
    """The adjoint of :func:`current`."""
    return _scan(
        name, CURRENT_BACK, dtype, current_step_back(), ("grad_out",), "grad_drive", down=True
    )


def _scan(
    name: str,
    parameters: Sequence[str],
    dtype: str,
    line: Traced,
    reads: Sequence[str],
    writes: str,
    down: bool,
) -> Source:
    """A recurrence of one ``state`` over time."""
    function = _Function(name, parameters, dtype, dense=False)
    step = function.row(line, ["state", writes])
    code, state = function.code, function.room(BLOCK)
    with code.counting("%first", "%last", str(BLOCK)) as start:
        count = function.rest(start, str(BLOCK))
        given = function.at("%state", start) if "state" in parameters else None
        function.copy(state, given, count)
        with code.counting("0", "%steps", "1", down) as t:
            places = {key: function.step_of(f"%{key}", t, start) for key in reads}
            places |= {"state": state, "to.state": state}
            places[f"to.{writes}"] = function.step_of(f"%{writes}", t, start)
            step(count, function.numbers(start) | places)
    return function.source()
