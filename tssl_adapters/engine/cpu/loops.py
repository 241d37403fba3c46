"""Forward loops over neurons and time steps, in LLVM IR, around rows of neighbouring neurons.

A sequence is computed one block of neurons at a time, with time as the inner loop, so that its
states stay in a cache. A single step is one row over all of its neurons, or over blocks of them
where flags are unpacked for it. A function takes the range of neurons ``first`` to ``last``, the
numbers of time ``steps`` and ``neurons``, and then what :class:`ForwardPlaces` and its likes name.
All functions are made for vectors of so many ``vector_bits``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from tssl_adapters.arithmetic import Line, Symbol
from tssl_adapters.engine.compiled.kernels import Gate, tensor_of
from tssl_adapters.engine.cpu.emit import TYPES, lanes
from tssl_adapters.engine.cpu.function import AHEAD, BLOCK, CHUNK, RANGE, Function, Source
from tssl_adapters.engine.cpu.row import row
from tssl_adapters.engine.step.spec import Spec
from tssl_adapters.engine.step.traced import Traced, current_step, current_step_back, forward


class ForwardPlaces(NamedTuple):
    """The addresses of what a forward loop reads and writes; 0 for what a variant does not need.

    Attributes:
        large: no address: from how many bytes on a sequence is written past the caches.
        drive: the drive ``[T, N]``.
        state: the incoming potential ``[N]``.
        values: the neuron's numbers.
        out: output ``[T, N]``.
        after: the potential after the last step ``[N]``, or after every step ``[T, N]``.
        trace: the incoming trace ``[N]``; zero if there is none.
        charged: h of a step ``[N]``.
        bits: which traces of a step reach a gate, eight to a byte.
        due: r of a step ``[N]``.
        current: the incoming synaptic current ``[N]``.
        leaked: that current after the last step ``[N]``.
    """

    large: int
    drive: int
    state: int
    values: int
    out: int
    after: int
    trace: int = 0
    charged: int = 0
    bits: int = 0
    due: int = 0
    current: int = 0
    leaked: int = 0


class CurrentPlaces(NamedTuple):
    """The addresses of what :func:`current` reads and writes.

    Attributes:
        values: k.
        drive: x ``[T, N]``.
        state: i before the first step ``[N]``.
        out: i' ``[T, N]``.
    """

    values: int
    drive: int
    state: int
    out: int


class CurrentBackPlaces(NamedTuple):
    """The addresses of what :func:`current_back` reads and writes.

    Attributes:
        values: k.
        grad_out: gradient of i' ``[T, N]``.
        grad_drive: that of x ``[T, N]``.
    """

    values: int
    grad_out: int
    grad_drive: int


FORWARD = (*RANGE, *ForwardPlaces._fields)


def forward_step(
    name: str,
    spec: Spec,
    tau_s: float,
    traced: bool,
    keeps_h: bool,
    gate: float | None,
    vector_bits: int,
) -> Source:
    """One forward step; writes h if it ``keeps_h``, and bits of which traces reach a ``gate``."""
    function = Function(name, FORWARD, spec.form.dtype, spec.form.dense, vector_bits)
    late = spec.form.timing != "immediate"
    targets = ["output", "potential", *(["charged"] if keeps_h else []), *(["due"] if late else [])]
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
    if keeps_h:
        places["to.charged"] = function.at("%charged", "%first")
    if late:
        places["to.due"] = function.at("%due", "%first")
    step(count, places)
    if gate is not None:
        function.pack(count, places["to.output"], gate)
    return function.source()


def forward_sequence(name: str, spec: Spec, tau_s: float, keep: bool, vector_bits: int) -> Source:
    """A whole sequence forward; writes the potential after every step if it is to ``keep``."""
    function = Function(name, FORWARD, spec.form.dtype, spec.form.dense, vector_bits)
    psc = spec.form.psc
    synapse = spec.form.synapse
    two = psc or synapse  # states
    targets = ["output", "potential", *["trace"] * psc, *["current"] * synapse]
    line = forward(spec, tau_s, psc)
    near = function.row(line, targets)
    past = function.row(line, targets, ["ahead"] if two else [], far="output")
    code, trace = function.code, function.room(BLOCK) if psc else ""
    far = function.goes_far("%out")
    block = code.get(f"select i1 {far}, i64 {CHUNK}, i64 {BLOCK}") if two else str(BLOCK)
    with code.counting("%first", "%last", block) as start:
        count = function.rest(start, block)
        function.copy(function.at("%after", start), function.at("%state", start), count)
        if psc:
            function.copy_given(trace, "%trace", start, count)
        if synapse:
            function.copy(function.at("%leaked", start), function.at("%current", start), count)
        current = function.at("%leaked", start)
        with code.counting("0", "%steps", "1") as t:
            before = after = function.at("%after", start)  # starts as the incoming state
            if keep:
                back = code.get(f"sub i64 {t}, 1")
                earlier = code.get(f"call i64 @llvm.smax.i64(i64 {back}, i64 0)")
                before, after = (function.step_of("%after", k, start) for k in (earlier, t))
            places = function.numbers(start) | {
                "potential": before,
                "trace": trace,
                "drive": function.step_of("%drive", t, start),
                "ahead": function.step_of("%drive", code.get(f"add i64 {t}, {AHEAD}"), start),
                "to.output": function.step_of("%out", t, start),
                "to.potential": after,
                "to.trace": trace,
                "current": current,
                "to.current": current,
            }
            function.either(far, partial(past, count, places), partial(near, count, places))
    function.written()
    return function.source()


def row_over_all(
    name: str,
    line: Line,
    outputs: Mapping[str, Symbol],
    numbers: Sequence[str],
    dtype: str,
    gate: Gate | None,
    vector_bits: int,
) -> Source:
    """A line for all neurons. It takes ``values``, its numbers in this order; ``window``, which is
    ``steps``; then the other inputs and the outputs, prefixed with ``"to."``. With a ``gate``
    it writes ``bits`` of where its output reaches it; an input ``active`` is read from such
    ``bits``.
    """
    common = frozenset({*numbers, "steps"})
    made = row(f"{name}.row0", line, outputs, common, lanes(TYPES[dtype], vector_bits))
    own = {p: tensor_of(p) for p in made.parameters if p not in common and p != "active"}
    tensors = dict.fromkeys(tensor for tensor, _ in own.values())
    unpacks = "active" in made.parameters
    bits = ["bits"] if unpacks or gate is not None else []
    parameters = (*RANGE, "values", "window", *tensors, *bits)
    function = Function(name, parameters, dtype, False, vector_bits)
    code, step = function.code, function.add(made)
    fixed = {key: function.at("%values", str(k)) for k, key in enumerate(numbers)}
    fixed |= {"steps": "%window"}

    def run(start: str, count: str) -> None:
        places = fixed | {p: function.row_of(f"%{t}", k, start) for p, (t, k) in own.items()}
        if unpacks:
            function.unpack(count, start, places.setdefault("active", flags))
        step(count, places)

    if unpacks:
        flags = function.room(BLOCK)
        with code.counting("%first", "%last", str(BLOCK)) as start:
            run(start, function.rest(start, str(BLOCK)))
    else:
        run("%first", code.get("sub i64 %last, %first"))
    if gate is not None:
        whole = code.get("sub i64 %last, %first")
        function.pack(whole, function.at(f"%to.{gate.output}", "%first"), gate.least)
    return function.source()


def current(name: str, dtype: str, vector_bits: int) -> Source:
    """A synaptic current over a sequence."""
    function = Function(name, (*RANGE, *CurrentPlaces._fields), dtype, False, vector_bits)
    return _scan(function, current_step(), "drive", "out", down=False)


def current_back(name: str, dtype: str, vector_bits: int) -> Source:
    """The adjoint of :func:`current`."""
    function = Function(name, (*RANGE, *CurrentBackPlaces._fields), dtype, False, vector_bits)
    return _scan(function, current_step_back(), "grad_out", "grad_drive", down=True)


def _scan(function: Function, line: Traced, reads: str, writes: str, down: bool) -> Source:
    """A recurrence of one ``state`` over time."""
    step = function.row(line, ["state", writes])
    code, state = function.code, function.room(BLOCK)
    with code.counting("%first", "%last", str(BLOCK)) as start:
        count = function.rest(start, str(BLOCK))
        given = function.at("%state", start) if "state" in function.parameters else None
        function.copy(state, given, count)
        with code.counting("0", "%steps", "1", down) as t:
            places = {
                "state": state,
                "to.state": state,
                reads: function.step_of(f"%{reads}", t, start),
                f"to.{writes}": function.step_of(f"%{writes}", t, start),
            }
            step(count, function.numbers(start) | places)
    return function.source()
