"""A neuron's step with all of its states, forward and backward, as lines of operations.

Besides the potential, a neuron may have other states, several inputs, and any charge. With h the
potential before the spike test, theta the threshold, s the spike, and w the other states after the
step, all functions of the inputs, the previous states, and numbers::

    G       = grad of s, and through w and the PSC
    e, F_v  as in :mod:`tssl_adapters.engine.step.recursion`, F_v = dh/dv
    inputs, other states, numbers: e dh + (grad of theta) dtheta + (grads of w) dw at a fixed s
    the potential: what the recursion carries, and (grads of w) dw at a fixed s

At ``tau_s > 1`` the post-synaptic current a is one more state, which the layer emits. The
derivatives are those of the lines (:mod:`tssl_adapters.derivatives`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tssl_adapters.arithmetic import Line, Number, Symbol, where
from tssl_adapters.derivatives import adjoints
from tssl_adapters.engine.step.recursion import (
    Carried,
    Moment,
    added,
    current_after,
    fires,
    product,
    state_after,
    state_from,
    trace_after,
)
from tssl_adapters.engine.step.spec import LEARNED, RESET_VALUE, THRESHOLD, link_size
from tssl_adapters.engine.step.traced import LINK, Recorder
from tssl_adapters.engine.step.written import CannotWriteError, Derived, Function, Writer
from tssl_adapters.neuron import AtReset, LinearCharge, Neuron, Reset, Timing, Value
from tssl_adapters.rules import Rule

Tensors = Sequence[Tensor]
DECAYED = LINK.index("decayed_chain")
PASSED = 2
"""How many rows of a link get what a held neuron passes on: lambda and F_v lambda are then one."""


class Hold(NamedTuple):
    """How a neuron is held back after a spike. It keeps its potential and sends nothing, whatever
    its own step computed: there h = v, so that F_v = 1 and lambda is passed on unchanged.

    Attributes:
        over: ``states -> what is above 0 where the neuron is held``.
        slope: the derivative of that test, from ``over``.
        counters: ``(states, held, sent) -> the states that say how long``, after all others; held
            and sent are 0 or 1.
    """

    over: Callable[[Tensors], Tensor]
    slope: Callable[[Number], Number]
    counters: Callable[[Tensors, Tensor, Tensor], Tensors]


class Cell(NamedTuple):
    """What torch computes in one step of a neuron. ``states``: the potential, then the others.

    Attributes:
        charge: ``(inputs, states) -> h``, before any reset still due from the previous step.
        others: ``(inputs, states, spike) -> the other states after the step``.
        threshold: ``(inputs, states) -> theta``.
        reset: what a spike does to the potential.
        timing: as in :mod:`tssl_adapters.neuron`.
        strict: ``h > theta`` rather than ``>=``.
        detached: whether the library cuts the gradient through the reset.
        inputs: number of inputs.
        states: number of states.
        sends: whether the layer's spikes are wanted besides its PSC, e.g. to be fed back.
        hold: what holds it back, if it has a refractory period.
        after: ``(inputs, states, h, spike) -> the potential after the reset``, if the reset has a
            formula of its own; the rule is given its derivatives.
        value: as ``charge``, for h as the library rounds it, if that is in another form; ``charge``
            then is what the derivatives are of.
        gates: how many inputs, the last ones, are between 0 and 1.
        clears: whether a delayed reset to zero clears the inputs of the step that does it, too.
    """

    charge: Callable[[Tensors, Tensors], Tensor]
    others: Callable[[Tensors, Tensors, Tensor], Tensors]
    threshold: Callable[[Tensors, Tensors], Value]
    reset: Reset
    timing: Timing
    strict: bool
    detached: bool
    inputs: int
    states: int
    sends: bool = False
    hold: Hold | None = None
    after: Callable[[Tensors, Tensors, Tensor, Tensor], Tensor] | None = None
    value: Callable[[Tensors, Tensors], Tensor] | None = None
    gates: int = 0
    clears: bool = False


def linear_cell(neuron: Callable[[], Neuron], leak: Callable[[], Value] | None = None) -> Cell:
    """The cell of a neuron with a linear charge.

    Args:
        neuron: makes its record. It is made where it is written down, so that what its numbers are
            computed from is known.
        leak: k of a synaptic current in front of it (:func:`current_after`), which is then its
            second state.
    """

    def drive(inputs: Tensors, states: Tensors) -> Tensor:
        return inputs[0] if leak is None else states[1] + inputs[0]

    def charge(inputs: Tensors, states: Tensors) -> Tensor:
        linear = neuron().charge
        return linear.formula(states[0], drive(inputs, states), *linear.raw)

    def others(inputs: Tensors, states: Tensors, spike: Tensor) -> Tensors:
        if leak is None:
            return []
        return [current_after(drive(inputs, states), leak())]

    made = neuron()
    return Cell(
        charge,
        others,
        lambda inputs, states: neuron().threshold,
        made.reset,
        made.timing,
        made.strict,
        made.detached,
        inputs=1,
        states=1 if leak is None else 2,
    )


class Adjoint(NamedTuple):
    """A cell's backward step.

    Attributes:
        line: the line; it is given h and, if the rule asks where a neuron is active by its PSC,
            ``"active"``. Its incoming gradients are ``"g.out"``, ``"g.s0"``, ...
        grads: ``"x0"``, ..., ``"s0"``, ..., ``"trace"``; ``"s0.linked"`` if a link came with the
            potential, whose gradients are ``"link.0"``, ...; and per neuron ``"n0"``, ``"p0"``,
            ... for the learned numbers.
        kept: the inputs, previous states and functions that the line needs.
    """

    line: Line
    grads: dict[str, Symbol]
    kept: list[str]


class Lines(NamedTuple):
    """A cell's forward and backward step.

    Attributes:
        numbers: the values of the inputs ``"n0"``, ... of both lines.
        spread: those of ``"p0"``, ..., which have a number for each neuron.
        learned: those of either that take a gradient, by name.
        read: those of them that are on a GPU, by name.
        sources: the tensors that they were computed from.
        functions: what torch computes for the forward line, in order.
        line: the forward line; its inputs are ``"x0"``, ..., the states ``"s0"``, ... and, with a
            PSC, ``"trace"``.
        outputs: ``"out"``, ``"h"``, ``"s0"``, ...; with a PSC ``"trace"`` and, if wanted,
            ``"spike"``; with a delayed reset ``"due"``; ``"psc"`` if a neuron that is held back
            counts as active by another PSC than the one it emits, that of its own step.
        adjoint: the backward step.
        from_h: the same with h of the step before in the place of the potential, if that is all
            that the potential depends on, and the backward step needs it.
        links: number of parts of the link.
        reached: for each output, the inputs, states and numbers that its gradient reaches.
    """

    numbers: list[Value | Derived]
    spread: list[Tensor]
    learned: dict[str, Tensor]
    read: dict[str, Tensor]
    sources: list[Tensor]
    functions: list[Function]
    line: Line
    outputs: dict[str, Symbol]
    adjoint: Adjoint
    from_h: Adjoint | None
    links: int
    reached: dict[str, set[str]]


class _Written:
    """A cell's functions, written into a line.

    Args:
        cell: the functions.
        line: where to write them.
        like: a tensor with the dtype and device of the states, in a shape that suits the numbers.
        tau_s: synaptic time constant in steps.
        given_h: whether h is an input of the line.
        from_h: whether the potential is given as h of the step before.
    """

    def __init__(
        self,
        cell: Cell,
        line: Line,
        like: Tensor,
        tau_s: float,
        given_h: bool,
        from_h: bool = False,
    ) -> None:
        self.cell, self.line = cell, line
        self.writer = writer = Writer(line, like)
        self.inputs = [line.input(f"x{k}") for k in range(cell.inputs)]
        self.states = [line.input(f"s{k}") for k in range(cell.states)]
        given = [writer.stand_in(symbol) for symbol in self.inputs]
        states = [writer.stand_in(symbol) for symbol in self.states]
        with torch.no_grad(), writer:
            threshold = writer.symbol(cell.threshold(given, states))
        neuron = _record(cell, writer, threshold)
        potential: Any = self.states[0]
        if from_h:
            potential = state_from(neuron, potential)
            self.states[0], states[0] = potential, writer.stand_in(potential)
        before = None if cell.timing == "immediate" else fires(neuron, potential)
        self.clears = (
            before is not None and cell.clears and neuron.reset.lets_in(before) is not None
        )
        self.entering: Any = potential
        if before is not None and not self.clears:
            self.entering = neuron.reset.before_charge(potential, before, neuron.threshold)
            states[0] = writer.stand_in(self.entering)
        with torch.no_grad(), writer:
            self.formula = value = writer.symbol(cell.charge(given, states))
            if cell.value is not None:
                value = writer.symbol(cell.value(given, states))
        writer.forget(but=[value, self.formula, threshold])
        h: Any = line.input("h") if given_h else self._reset_late(neuron, value, before)
        if before is None:
            writer.known_as[self.formula.place] = h
        spike: Any = fires(neuron, h)
        self.moment = Moment(potential, h, before, h, spike)
        charged, fired, after = writer.stand_in(h), writer.stand_in(spike), None
        with torch.no_grad(), writer:
            self.others = [writer.symbol(other) for other in cell.others(given, states, fired)]
            if cell.after is not None:
                after = writer.symbol(cell.after(given, states, charged, fired))
        functions = (*writer.functions, *writer.derived)
        self.functions = {line.input(f.name).place: (f.argument, f.slope) for f in functions}
        self.neuron = neuron if after is None else replace(neuron, reset=self._reset(after))
        self.after: Any = state_after(self.neuron, h, spike, before)
        self.held: Any = None
        self.sent: Any = spike
        if cell.hold is not None:
            self._hold_back(cell.hold, states, given_h)
        trace: Any = line.input("trace")
        self.emitted: Any = trace_after(trace, self.sent, tau_s)
        self.psc = trace_after(trace, spike, tau_s)

    def _reset_late(self, neuron: Neuron, charged: Any, due: Any) -> Any:
        """h, after what follows the charge of a reset still due from the previous step."""
        reset = neuron.reset
        if due is None:
            return charged
        way = reset.apply if self.clears else reset.after_charge
        return way(charged, due, neuron.threshold)

    def _hold_back(self, hold: Hold, states: Tensors, given_h: bool) -> None:
        if self.cell.timing != "immediate":
            raise CannotWriteError("a neuron that is held back before its reset")
        writer, line, v = self.writer, self.line, self.moment.state
        with torch.no_grad(), writer:
            over = writer.symbol(hold.over(states))
        held = self.held = where(over > 0.0, 1.0, 0.0)
        self.functions[held.place] = (over, hold.slope(over))
        self.sent = (1.0 - held) * self.sent
        # Going back, the rule has the gradient of the neuron's own step.
        own = line.compute("held", self.after) if given_h else self.after
        self.own, self.after = own, (1.0 - held) * own + held * v
        with torch.no_grad(), writer:
            counters = hold.counters(states, *map(writer.stand_in, (held, self.sent)))
            self.others += [writer.symbol(counter) for counter in counters]

    def follows_from_h(self) -> bool:
        """Whether h and numbers that do not learn determine the potential after the step."""
        cell, neuron = self.cell, self.neuron
        if cell.timing != "immediate" or cell.hold is not None or cell.after is not None:
            return False
        numbers = (neuron.threshold, neuron.reset.number)
        symbols: list[Any] = [number for number in numbers if isinstance(number, Symbol)]
        of, writer = {*self.line.inputs(symbols)}, self.writer
        learn = {*writer.learned(), *(number.name for number in writer.derived)}
        return not of & learn and all(name[0] in "np" for name in of)

    def _reset(self, after: Symbol) -> Reset:
        """A reset given by a formula."""
        by = self.adjoints([(after, self.line.number(1.0))])
        zero, moment = self.line.number(0.0), self.moment
        partials: list[Any] = [by.get(s.place, zero) for s in (moment.charged, moment.spike)]  # type: ignore[attr-defined]
        value: Any = after
        return _Formula(value, *partials)

    def reached(self, symbol: Symbol) -> set[str]:
        """The inputs that a symbol's gradient reaches, including through spikes."""
        one, spike = self.line.number(1.0), self.moment.spike
        places = self.adjoints([(symbol, one)], through_h=self.cell.value is not None)
        if spike.place in places:  # type: ignore[attr-defined]
            more = [(self.moment.charged, one), (self.neuron.threshold, one)]
            places = places | self.adjoints(more, through_h=self.cell.value is not None)
        operations = (self.line.operations[place] for place in places)
        return {o.operands[0] for o in operations if o.name == "input"}

    def adjoints(
        self, seeds: Sequence[tuple[Any, Any]], through_h: bool = False
    ) -> dict[int, Symbol]:
        """Derivatives by everything the seeds depend on; a given h is held fixed unless
        ``through_h``.
        """
        functions = self.functions
        if through_h:
            h: Any = self.moment.charged
            functions = functions | {h.place: (self.formula, self.line.number(1.0))}
        return adjoints(self.line, seeds, functions)


def _record(cell: Cell, writer: Writer, threshold: Symbol) -> Neuron:
    """The neuron as symbols; F_v is filled in later."""
    reset = cell.reset.plain() if cell.after is None else Reset()
    if reset is None or (cell.after is not None and cell.timing != "immediate"):
        raise CannotWriteError("a reset that is no plain formula")
    if reset.numbered:
        number: Any = writer.symbol(cell.reset.number)
        reset = reset.with_number(number)
    charge = LinearCharge(1.0, 1.0, 0.0, _itself)
    theta: Any = threshold
    return Neuron(charge, reset, theta, cell.timing, cell.strict, cell.detached)


@dataclass(frozen=True)
class _Formula(Reset):
    """A reset to ``value``, with its derivatives by h and by the spike."""

    value: Tensor
    by_charged: Tensor
    by_spike: Tensor

    numbered = True

    @property
    def number(self) -> Value:
        return self.value

    def apply(self, charged: Tensor, due: Tensor, threshold: Value) -> Tensor:
        return self.value

    def removed(
        self, charged: Tensor, spike: Tensor, threshold: Value, decay: Value | None
    ) -> Value:
        return -self.by_spike

    def taken(self, charged: Tensor, spike: Tensor, due: Tensor) -> Tensor | None:
        return 1.0 - self.by_charged

    def learned(self, at: AtReset) -> tuple[Tensor | None, Tensor | None]:
        return -at.firing, at.after


def _itself(state: Any, drive: Any) -> Any:
    return drive


def lines(cell: Cell, rule: Rule, like: Tensor, tau_s: float = 1.0) -> Lines:
    """A cell's lines under a rule, for states with the dtype and device of ``like``, whose shape
    suits the cell's numbers.

    Raises:
        CannotWriteError: the cell computes something that a line cannot express.
    """
    line = Line()
    forth = _Written(cell, line, like, tau_s, given_h=False)
    moment, neuron = forth.moment, forth.neuron
    outputs: dict[str, Any] = {"out": forth.emitted, "h": moment.charged, "s0": forth.after}
    outputs |= {f"s{k}": other for k, other in enumerate(forth.others, 1)}
    if tau_s != 1.0:
        outputs |= {"trace": forth.emitted} | ({"spike": forth.sent} if cell.sends else {})
    if tau_s != 1.0 and cell.hold is not None and rule.active_from(tau_s) is not None:
        outputs["psc"] = forth.psc
    if moment.before is not None:
        outputs["due"] = moment.before
    writer = forth.writer

    def adjoint(from_h: bool) -> Adjoint:
        step = _Written(cell, Line(), like, tau_s, given_h=True, from_h=from_h)
        if step.writer.numbers != writer.numbers or not _equal(step.writer.spread, writer.spread):
            raise CannotWriteError("another step each time")
        grads = _back(step, rule, tau_s)
        wanted = {*step.line.inputs(grads.values())}
        return Adjoint(step.line, grads, [name for name in own if name in wanted])

    own = [
        *(f"x{k}" for k in range(cell.inputs)),
        *(f"s{k}" for k in range(cell.states)),
        *(function.name for function in writer.functions),
    ]
    back = adjoint(from_h=False)
    follows = "s0" in back.kept and forth.follows_from_h()
    links = link_size(neuron, rule)
    reached = {name: forth.reached(symbol) for name, symbol in outputs.items()}
    if tau_s != 1.0 or links or rule.resets_membrane(neuron.detached):
        # The potential carries the PSC and the link, and a rule goes through a reset that is due.
        reached["s0"] |= reached["out"]
    return Lines(
        writer.numbers,
        writer.spread,
        writer.learned(),
        writer.read(),
        [*writer.sources.values()],
        writer.functions,
        line,
        outputs,
        back,
        adjoint(from_h=True) if follows else None,
        links,
        reached,
    )


def _equal(one: Tensors, other: Tensors) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


class _Arriving(NamedTuple):
    """What comes back to a neuron's own step: the gradient of the potential after it, and those of
    the link; and what a neuron that is held passes on.
    """

    state: Any
    link: list[Any]
    passed: Any = None

    def but_where(self, held: Any) -> _Arriving:
        """The same without those that are held, which pass on lambda."""
        free = 1.0 - held
        passed = product(held, self.link[DECAYED]) if self.link else None
        return _Arriving(product(free, self.state), [product(free, p) for p in self.link], passed)


def _past_hold(step: _Written, back: _Arriving) -> list[tuple[Any, Any]]:
    """What being held, or not, owes to the potential and to the link, as seeds."""
    seeds = [(step.after, back.state)]
    if back.link:
        seeds.append((step.held, back.link[DECAYED] * (step.moment.state - step.own)))
    return seeds


def _back(step: _Written, rule: Rule, tau_s: float) -> dict[str, Symbol]:
    """The gradients computed by one step."""
    line, moment = step.line, step.moment
    traced = tau_s != 1.0
    zero: Any = line.number(0.0)
    learned = [line.input(name).place for name in step.writer.learned()]
    one = line.number(1.0)
    decay: Any = step.adjoints([(step.formula, one)]).get(step.entering.place, zero)
    charge = replace(step.neuron.charge, decay=decay)
    neuron = replace(step.neuron, charge=charge)
    spike: Any = moment.spike
    seeds = [(step.emitted, line.input("g.out"))]
    seeds += [(step.emitted, line.input("g.trace"))] if traced else []
    seeds += [(step.sent, line.input("g.spike"))] if traced and step.cell.sends else []
    seeds += [(other, line.input(f"g.s{k}")) for k, other in enumerate(step.others, 1)]
    links = link_size(neuron, rule)
    back = _Arriving(line.input("g.s0"), [line.input(f"link.{k}") for k in range(links)])
    if step.held is not None:
        seeds += _past_hold(step, back)
        back = back.but_where(step.held)
    through_others = step.adjoints(seeds, through_h=True)
    signal: Any = through_others[spike.place]
    active: Any = line.input("active") if traced and rule.active_from(tau_s) is not None else None
    numbers: dict[int, Any] = {THRESHOLD: neuron.threshold, RESET_VALUE: neuron.reset.number}
    leaves = {*learned, *(leaf.place for leaf in (*step.inputs, *step.states))}
    moving = {
        index: number
        for index, number in numbers.items()
        if isinstance(number, Symbol) and step.adjoints([(number, one)]).keys() & leaves
    }
    needs = [index in moving for index in range(LEARNED)]
    carried = Carried(*back.link)
    recorder = Recorder(
        neuron, rule, tau_s, needs, carried, None, line.input("steps")  # type: ignore[arg-type]
    )  # fmt: skip
    recorder.careful = True
    emitted: Any = recorder.step(moment, active, signal, back.state)
    entering: Any = added(recorder.entering(moment, linked=False), back.passed)
    linked: Any = recorder.entering(moment, linked=True)
    moved = [(number, recorder.sums[index]) for index, number in moving.items()]
    at_fixed_h = step.adjoints([(number, terms) for number, terms in moved if terms is not None])
    let_in = neuron.reset.lets_in(moment.before) if step.clears else None  # type: ignore[arg-type]
    charged = step.adjoints([(step.formula, emitted if let_in is None else emitted * let_in)])

    def total(place: int, *ways: dict[int, Any]) -> Any:
        found = [way[place] for way in ways if place in way]
        return sum(found[1:], found[0]) if found else zero

    ways = (through_others, at_fixed_h)
    grads: dict[str, Any] = {}
    for k, leaf in enumerate(step.inputs):
        grads[f"x{k}"] = total(leaf.place, charged, *ways)
    v = step.states[0].place
    for name, own in (("s0", entering), *((("s0.linked", linked),) if links else ())):
        grads[name] = total(v, *([] if own is None else [{v: own}]), *ways)
    for k, leaf in enumerate(step.states[1:], 1):
        grads[f"s{k}"] = total(leaf.place, charged, *ways)
    if traced:
        grads["trace"] = total(line.input("trace").place, through_others)
    for name in step.writer.learned():
        grads[name] = total(line.input(name).place, charged, *ways)
    for k, row in enumerate(recorder.carried[:links]):
        passed = back.passed if k < PASSED else None
        grads[f"link.{k}"] = zero if (whole := added(row, passed)) is None else whole
    return grads
