"""Backward loops, in LLVM IR: a single step, and a whole sequence.

Laid out as in :mod:`tssl_adapters.engine.cpu.loops`.
"""

from __future__ import annotations

from collections.abc import Set
from functools import partial
from typing import NamedTuple

from tssl_adapters.engine.cpu.emit import SIZES, Code
from tssl_adapters.engine.cpu.function import AHEAD, BLOCK, RANGE, Function, Source
from tssl_adapters.engine.cpu.row import CACHE_LINE
from tssl_adapters.engine.step.spec import Spec
from tssl_adapters.engine.step.traced import CARRIED, LINK, SUMS, Back, backward, forward
from tssl_adapters.neuron import Timing
from tssl_adapters.rules import Rule


class BackwardPlaces(NamedTuple):
    """The addresses of what a backward loop reads and writes; 0 for what a variant does not need.
    They are laid out as :class:`tssl_adapters.engine.compiled.kernels.Adjoints` says.

    Attributes:
        large: no address: from how many bytes on a sequence is written past the caches.
        block: no address: how many neurons are gone through at a time.
        window: the number of time steps of the window, a float.
        drive: the drive ``[T, N]``, or h of a step that kept it.
        state: the incoming potential ``[N]``.
        values: the neuron's numbers.
        grad_drive: gradient of the drive ``[T, N]``.
        current: the incoming synaptic current ``[N]``.
        trace: the incoming trace ``[N]``; zero if there is none.
        bits: which traces of a step reach a gate, eight to a byte.
        fired: 1 where a neuron fires in the window ``[N]``.
        pace: no address: the stride of ``grad_out`` over time, 0 for one row.
        grad_out: gradient of the output.
        stride: no address: that of ``grad_after``, 0 for the last step's.
        grad_after: gradient of the potential.
        link: what comes back from the next call, a row each.
        grad_current: gradient of the synaptic current after the last step ``[N]``.
        chain: what goes back to the previous call, a row each.
        through: F_v mu ``[N]``.
        entering: gradient of the incoming potential ``[N]``.
        grad_trace: gradient of the incoming trace ``[N]``.
        sums: gradients of the neuron's numbers ``[5, N]``.
    """

    large: int
    block: int
    window: int
    drive: int
    state: int
    values: int
    grad_drive: int
    current: int = 0
    trace: int = 0
    bits: int = 0
    fired: int = 0
    pace: int = 0
    grad_out: int = 0
    stride: int = 0
    grad_after: int = 0
    link: int = 0
    grad_current: int = 0
    chain: int = 0
    through: int = 0
    entering: int = 0
    grad_trace: int = 0
    sums: int = 0


BACKWARD = (*RANGE, *BackwardPlaces._fields)
_HANDED = (0, 1, 3)
"""Rows that are stored in the link's memory; the other one may be stored elsewhere."""


def backward_step(
    name: str,
    spec: Spec,
    rule: Rule,
    back: Back,
    tau_s: float,
    unwanted: Set[str],
    vector_bits: int,
) -> Source:
    """One backward step, without the unwanted results."""
    function = Function(name, BACKWARD, spec.form.dtype, spec.form.dense, vector_bits)
    line = backward(spec, rule, back, tau_s)
    step = function.row(line, [target for target in line.outputs if target not in unwanted])
    code, start = function.code, "%first"
    flagged = spec.form.psc and spec.form.given_h and "trace" in function.rows[0].parameters
    places = {
        "drive": "%drive",
        "potential": "%state",
        "trace": "%trace",
        "grad_out": "%grad_out",
        "grad_potential": "%grad_after",
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
        function.unpack(count, start, flags)
        step(count, of(start) | {"trace": flags})
    return function.source()


def backward_sequence(
    name: str,
    spec: Spec,
    rule: Rule,
    back: Back,
    tau_s: float,
    unwanted: Set[str],
    vector_bits: int,
) -> Source:
    """A whole sequence backward, without the unwanted results. For each block, the forward pass is
    recomputed first; it keeps h in the place of the drive, unless there is a trace or a number
    learns, where the line takes the drive.
    """
    function = Function(name, BACKWARD, spec.form.dtype, spec.form.dense, vector_bits)
    return _Sequence(function, spec, rule, back, tau_s, unwanted).source()


class _Sequence:
    """The parts of :func:`backward_sequence`, in the order in which they run."""

    def __init__(
        self,
        function: Function,
        spec: Spec,
        rule: Rule,
        back: Back,
        tau_s: float,
        unwanted: Set[str],
    ) -> None:
        self.spec, self.back = spec, back
        self.function, self.code = function, function.code
        self.psc, self.synapse = spec.form.psc, spec.form.synapse
        self.given_h = not (self.psc or back.learns)
        line = backward(spec.given_h if self.given_h else spec, rule, back, tau_s)
        targets = line.without(unwanted)
        found = line.outputs["entering"].place
        held = (n for n in CARRIED if n in targets and line.outputs[n].place == found)
        self.entering = next(held, "entering")
        """Which result of the first step is the gradient of the incoming potential."""
        # What is stored already need not be stored again at every step.
        targets = [name for name in targets if name != "entering" or name == self.entering]
        # The gradient of a drive is that of the current before it, too.
        copies = {"grad_drive": "grad_current"} if self.synapse else {}
        self.near = function.row(line, targets, ["ahead", "to.ahead"], copies=copies)
        self.past = function.row(line, targets, ["ahead"], copies=copies, far="grad_drive")
        self.moves = not self.given_h or "potential" in function.rows[0].parameters
        """Whether the backward pass reads the potential before each step."""
        kept = ["potential", *(["trace"] if self.psc else [])]
        kept += [*(["charged"] if self.given_h else []), *(["current"] if self.synapse else [])]
        self.again = function.row(forward(spec, tau_s, self.psc), kept, ["ahead"])
        self.carried = [name for name in CARRIED if name in targets]

    def source(self) -> Source:
        """The whole module."""
        function, code = self.function, self.code
        room = self._take_memory()
        self.far = function.goes_far("%grad_drive")
        self.ahead = function.least("%steps", str(AHEAD))
        with code.counting("%first", "%last", "%block") as start:
            count = function.rest(start, "%block")
            numbers = function.numbers(start) | {"steps": "%window"}
            numbers["fired"] = function.at("%fired", start)
            self._begin(start, count)
            self._forward_again(start, count, numbers)
            self._backward(start, count, numbers)
            self._hand_back(start, count)
        function.written()
        code.do(f"call void @PyMem_RawFree(ptr {room})")
        return function.source()

    def _take_memory(self) -> str:
        """Room for a block: what the forward pass leaves, zeros, and what is carried backward."""
        function, code, both = self.function, self.code, self.psc or self.given_h
        history = code.get("add i64 %steps, 1")
        others = len(self.carried) + 2
        rows = code.get(f"add i64 {history if self.moves else '1'}, {others}")
        if both:
            rows = code.get(f"add i64 {rows}, {history}")
        values = code.get(f"mul i64 {rows}, %block")
        size = code.get(f"mul i64 {values}, {SIZES[function.kind]}")
        taken = code.get(
            f"call ptr @PyMem_RawMalloc(i64 {code.get(f'add i64 {size}, {CACHE_LINE}')})"
        )
        self.potentials = room = function.aligned(taken)
        held = code.get(f"mul i64 {history}, %block")
        self.others = self.none = function.at(room, held if self.moves else "%block")
        """Traces, or h of each step."""
        if both:
            self.none = function.at(self.none, held)
        self.at = {
            name: function.at(self.none, code.get(f"mul i64 %block, {k}"))
            for k, name in enumerate(self.carried, 1)
        }
        last = code.get(f"mul i64 %block, {len(self.carried) + 1}")
        self.outgoing = function.at(self.none, last)
        """i in the forward pass, then its gradient after a step."""
        function.copy(self.none, None, "%block")
        return taken

    def _begin(self, start: str, count: str) -> None:
        """A block's states before the first step, and what comes in after the last one."""
        function, at = self.function, self.at
        function.copy(self.potentials, function.at("%state", start), count)
        if self.psc:
            function.copy_given(self.others, "%trace", start, count)
        if self.synapse:
            function.copy(self.outgoing, function.at("%current", start), count)
        for k, name in enumerate(LINK):
            if name in at and (k in _HANDED or self.spec.form.timing == "delayed"):
                function.copy_given(at[name], "%link", start, count, k)
            elif name in at:
                function.copy(at[name], None, count)
        for name in (*SUMS, "grad_trace", "followed"):
            if name in at:
                function.copy(at[name], None, count)

    def _forward_again(self, start: str, count: str, numbers: dict[str, str]) -> None:
        function, code = self.function, self.code
        end = "%steps" if self.psc or self.given_h else code.get("sub i64 %steps, 1")
        with code.counting("0", end, "1") as t:
            now = then = self.potentials
            if self.moves:
                now, then = self._around(self.potentials, t)
            places = {"potential": now, "to.potential": then}
            if self.given_h:
                places["to.charged"] = self._held(self.others, t)
            if self.synapse:
                places |= {"current": self.outgoing, "to.current": self.outgoing}
            if self.psc:
                now, then = self._around(self.others, t)
                places |= {"trace": now, "to.trace": then}
            places |= {"drive": function.step_of("%drive", t, start)}
            after = code.get(f"add i64 {t}, {self.ahead}")
            beyond = code.get(f"sub i64 {after}, {end}")
            last = code.get(f"sub i64 {code.get('sub i64 %steps, 1')}, {beyond}")
            there = function.step_of("%grad_out", last, start, "%pace")
            here = function.step_of("%drive", after, start)
            places["ahead"] = self._ahead(beyond, here, there)
            self.again(count, numbers | places)
        if self.synapse:
            function.copy_given(self.outgoing, "%grad_current", start, count)

    def _backward(self, start: str, count: str, numbers: dict[str, str]) -> None:
        function, code, back, none = self.function, self.code, self.back, self.none
        with code.counting("0", "%steps", "1", down=True) as t:
            before = code.get(f"sub i64 {t}, 1")
            places = {
                "potential": self._held(self.potentials, t),
                "drive": self._held(self.others, t)
                if self.given_h
                else function.step_of("%drive", t, start),
                "grad_out": function.step_of("%grad_out", t, start, "%pace"),
                "to.grad_drive": function.step_of("%grad_drive", t, start),
                "grad_current": self.outgoing,
                "to.grad_current": self.outgoing,
                "to.ahead": function.step_of("%grad_drive", before, start),
            }
            if self.psc:
                places["trace"] = self._held(self.others, _next(code, t))
            if back.outside:
                places["grad_potential"] = _outside(function, t, start, none)
            if back.around:
                timing = self.spec.form.timing
                places["grad_beside"] = _beside(function, t, start, none, timing)
            for name, place in self.at.items():
                places |= {name: place, f"to.{name}": place}
            earlier = code.get(f"sub i64 {t}, {self.ahead}")
            beyond = code.get(f"sub i64 -1, {earlier}")
            there = function.step_of("%drive", beyond, code.get(f"add i64 {start}, %block"))
            here = function.step_of("%grad_out", earlier, start, "%pace")
            places = numbers | places | {"ahead": self._ahead(beyond, here, there)}
            step = partial(self.past, count, places), partial(self.near, count, places)
            function.either(self.far, *step)

    def _ahead(self, beyond: str, here: str, there: str) -> str:
        """What is read some steps later: ``here``, or ``there`` if that is ``beyond`` the pass."""
        inside = self.code.get(f"icmp slt i64 {beyond}, 0")
        return self.code.get(f"select i1 {inside}, ptr {here}, ptr {there}")

    def _hand_back(self, start: str, count: str) -> None:
        """What goes to the call before, and the sums."""
        function, at = self.function, self.at
        for k in _HANDED:
            if LINK[k] in at:
                function.hand_back("%chain", start, at[LINK[k]], count, k)
        ends = {"%through": "decayed_membrane", "%grad_trace": "grad_trace"}
        for base, name in (ends | {"%entering": self.entering}).items():
            if name in at:
                function.hand_back(base, start, at[name], count)
        for k, name in enumerate(SUMS):
            if name in at:
                function.copy(function.row_of("%sums", k, start), at[name], count)

    def _held(self, base: str, t: str) -> str:
        """The address of what a block holds of step ``t``."""
        return self.function.step_of(base, t, "0", "%block")

    def _around(self, base: str, t: str) -> tuple[str, str]:
        """The same before and after step ``t``."""
        after = _next(self.code, t)
        return self._held(base, t), self._held(base, after)


def _next(code: Code, t: str) -> str:
    return code.get(f"add i64 {t}, 1")


def _outside(function: Function, t: str, start: str, none: str) -> str:
    """The address of the gradient of the potential after step ``t``; zeros if only the last step
    has one and ``t`` is another.
    """
    code = function.code
    place = function.step_of("%grad_after", t, start, "%stride")
    each = code.get("icmp ne i64 %stride, 0")
    last = code.get(f"icmp eq i64 {_next(code, t)}, %steps")
    wanted = code.get(f"or i1 {each}, {last}")
    return code.get(f"select i1 {wanted}, ptr {place}, ptr {none}")


def _beside(function: Function, t: str, start: str, none: str, timing: Timing) -> str:
    """The address of the gradient of the potential on the other side of the reset from the one
    after step ``t``.
    """
    code = function.code
    other = _next(code, t) if timing == "delayed" else code.get(f"sub i64 {t}, 1")
    place = function.step_of("%grad_after", other, start, "%stride")
    inside = code.get(f"icmp ult i64 {other}, %steps")  # unsigned: false for -1
    return code.get(f"select i1 {inside}, ptr {place}, ptr {none}")
