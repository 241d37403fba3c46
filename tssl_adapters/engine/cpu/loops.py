"""Forward loops over neurons and time steps, in LLVM IR, around rows of neighbouring neurons.

A sequence is computed one block of neurons at a time, with time as the inner loop, so that its
states stay in the fastest caches. A single step is one row over all of its neurons. A function
takes the range of neurons ``first`` to ``last``, the numbers of time ``steps`` and ``neurons``, and
then addresses as named in :data:`FORWARD` and its likes; those that a variant does not need may be
0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from tssl_adapters.arithmetic import Line, Symbol
from tssl_adapters.engine.compiled.kernels import Gate, tensor_of
from tssl_adapters.engine.cpu.emit import TYPES
from tssl_adapters.engine.cpu.function import AHEAD, BLOCK, CHUNK, RANGE, Function, Source
from tssl_adapters.engine.cpu.row import row
from tssl_adapters.engine.step.spec import Spec
from tssl_adapters.engine.step.traced import Traced, current_step, current_step_back, forward

FORWARD = (
    *(*RANGE, "large", "drive", "state", "trace", "values"),
    *("out", "after", "charged", "bits", "due", "current", "leaked"),
)
CURRENT = (*RANGE, "values", "drive", "state", "out")
CURRENT_BACK = (*RANGE, "values", "grad_out", "grad_drive")


def forward_step(
    name: str, spec: Spec, tau_s: float, traced: bool, keeps_h: bool, gate: float | None
) -> Source:
    """One forward step; writes h if it ``keeps_h``, and bits of which traces reach a ``gate``."""
    function = Function(name, FORWARD, spec.form.dtype, spec.form.dense)
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


def forward_sequence(name: str, spec: Spec, tau_s: float, keep: bool) -> Source:
    """A whole sequence forward; writes the potential after every step if it is to ``keep``."""
    function = Function(name, FORWARD, spec.form.dtype, spec.form.dense)
    psc = spec.form.psc
    synapse = spec.form.synapse
    two = psc or synapse  # states
    targets = ["output", "potential", *["trace"] * psc, *["current"] * synapse]
    line = forward(spec, tau_s, psc)
    near = function.row(line, targets)
    past = function.row(line, targets, ["ahead"] if two else [], far="output")
    code, trace = function.code, function.room(BLOCK) if psc else ""
    far = function.far("%out")
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
    gate: Gate | None = None,
) -> Source:
    """A line for all neurons. It takes ``values``, its numbers in this order; ``window``, which is
    ``steps``; then the other inputs and the outputs, prefixed with ``"to."``. With a ``gate``
    it writes ``bits`` of where its output reaches it; an input ``active`` is read from such
    ``bits``.
    """
    common = frozenset({*numbers, "steps"})
    made = row(f"{name}.row0", line, outputs, common, TYPES[dtype])
    own = {p: tensor_of(p) for p in made.parameters if p not in common and p != "active"}
    tensors = dict.fromkeys(tensor for tensor, _ in own.values())
    unpacks = "active" in made.parameters
    bits = ["bits"] if unpacks or gate is not None else []
    function = Function(name, (*RANGE, "values", "window", *tensors, *bits), dtype, dense=False)
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
    function = Function(name, parameters, dtype, dense=False)
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
