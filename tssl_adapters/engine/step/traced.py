"""A neuron's time step as a line of operations: the recursion, run on symbols.

Run on symbols instead of tensors, :mod:`tssl_adapters.engine.step.recursion` records its operations
for the engines that compile them.
"""

from __future__ import annotations

from collections.abc import Set
from functools import cache
from typing import Any, Literal, NamedTuple

from tssl_adapters.arithmetic import Line, where
from tssl_adapters.elementwise import at_least
from tssl_adapters.engine.step.recursion import (
    Backward,
    Carried,
    Moment,
    added,
    charge,
    current_after,
    fires,
    state_after,
    state_from,
    through_current,
    through_psc,
    trace_after,
)
from tssl_adapters.engine.step.spec import LEARNED, RESET_VALUE, Spec
from tssl_adapters.neuron import LinearCharge, Neuron
from tssl_adapters.rules import Rule

NUMBERS = ("decay", "gain", "offset", "threshold", "reset_value", "first", "second", "third")
"""A neuron's numbers in the order of their rows."""
SUMS = ("by_decay", "by_gain", "by_offset", "by_threshold", "by_reset_value")
"""Sums that give the gradients of the first of them."""

LINK = ("chain", "decayed_chain", "decayed_membrane", "grad_spike")
"""What a link may carry from one call back to the previous one, a row each."""
CARRIED = (*LINK, "grad_trace", "entering", "followed", *SUMS)
"""What goes from one step back to the previous one, and what a sequence's first step leaves."""


class Traced(NamedTuple):
    """A line, and its output symbols by name."""

    line: Line
    outputs: dict[str, Any]

    def without(self, unwanted: Set[str]) -> list[str]:
        """The results, without those that are unwanted and not needed by any wanted result of the
        previous step.
        """
        kept: list[str] = []
        while (more := [name for name in self.outputs if name not in unwanted]) != kept:
            kept = more
            places = self.line.needed(self.outputs[name] for name in kept)
            operations = (self.line.operations[place] for place in places)
            unwanted = unwanted - {o.operands[0] for o in operations if o.name == "input"}
        return kept


@cache
def forward(spec: Spec, tau_s: float, traced: bool) -> Traced:
    """From ``potential``, ``drive`` and, with a PSC, ``trace`` to the next potential and trace, and
    to ``output``, ``charged`` (h) and ``due`` (r). Unless ``traced``, the trace is zero.
    """
    line = Line()
    neuron = _record(spec, line, detached=False)
    drive, outputs = _input(line, "drive"), {}
    with line.rounding():
        if spec.form.synapse:
            drive = _input(line, "current") + drive
            outputs["current"] = current_after(drive, _input(line, NUMBERS[-1]))
        before, charged = charge(neuron, _input(line, "potential"), drive)
        spike = fires(neuron, charged)
        outputs["charged"] = charged
        outputs["potential"] = state_after(neuron, charged, spike, before)
        if spec.form.psc:
            outputs["trace"] = trace_after(_input(line, "trace") if traced else None, spike, tau_s)
    outputs["output"] = outputs.get("trace", spike)
    if before is not None:
        outputs["due"] = before
    return Traced(line, outputs)


class Back(NamedTuple):
    """What the line of a backward step is made for, besides the neuron and the rule.

    Attributes:
        output: whether the output has a gradient, ``grad_out``.
        outside: whether the outgoing state has a gradient, ``grad_potential``.
        current: whether the outgoing synaptic current has a gradient, ``grad_current``; the drive's
            gradient is then the incoming current's too.
        linked: whether a link came in from the next call.
        later: whether ``chain`` and ``decayed_chain`` come in from a later step, and ``grad_spike``
            if the rule asks; in a sequence without a link, only where ``followed`` is not 0.
        membrane: whether ``decayed_membrane`` comes in.
        traced: whether ``grad_trace`` comes in.
        around: whether the rule asks for ``grad_beside`` and it is there: c on the other side of
            the reset from ``grad_potential``.
        learns: whether gradient sums for the neuron's own numbers are wanted.
        adds: whether the sums of the later steps come in, to be added to.
        detached: whether the library cuts the gradient through the reset.
        ends: whether a step is the last of its window; in a sequence that is the one where
            ``followed`` is 0.
        earlier: whether ``potential`` is h of the previous step, from which the state follows.
        trace: whether ``trace`` is a[t] or a[t-1]; ``None`` if the latter was zero.
    """

    output: bool
    outside: bool
    current: bool
    linked: bool
    later: bool
    membrane: bool
    traced: bool
    around: bool
    learns: bool
    adds: bool
    detached: bool
    ends: bool
    earlier: bool
    trace: Literal["after", "before"] | None


@cache
def backward(spec: Spec, rule: Rule, back: Back, tau_s: float) -> Traced:
    """From the potential before a step, its drive (or h, if ``given_h``), and what comes in from
    the next step, to the gradient of the drive and what goes to the previous step: through a link,
    or all together as ``entering``, the gradient of the incoming potential.

    With a PSC and given h, ``trace`` is 1 where a[t] reaches the gate.
    """
    line, form = Line(), spec.form
    neuron = _record(spec, line, back.detached)
    state, drive = _input(line, "potential"), _input(line, "drive")
    with line.rounding():
        if back.earlier:
            state = state_from(neuron, state)
        if form.given_h:
            before, charged = None if form.timing == "immediate" else fires(neuron, state), drive
        else:
            before, charged = charge(neuron, state, drive)
        moment = Moment(state, drive, before, charged, fires(neuron, charged))
    outputs: dict[str, Any] = {}
    own = _input(line, "grad_out") if back.output else None
    later = _input(line, "grad_trace") if back.traced else None
    grad_trace, grad_spike = through_psc(own, later, tau_s)
    active = None
    if form.psc:
        outputs["grad_trace"] = grad_trace
        gate = rule.active_from(tau_s)
        if gate is not None:
            trace: Any = None if back.trace is None else _input(line, "trace")
            if back.trace != "after":
                with line.rounding():
                    trace = trace_after(trace, moment.spike, tau_s)
            active = trace if form.given_h else at_least(trace, gate)
    zero: Any = line.number(0.0)
    signal = zero if grad_spike is None else grad_spike
    later = _input(line, "grad_spike") if rule.takes_later and back.later else None
    if later is not None and not back.linked:
        later = where(_input(line, "followed") != 0.0, later, signal)
        outputs["followed"] = line.number(1.0)
    last: Any = 1.0 if back.ends else None
    if back.ends and back.adds:
        last = where(_input(line, "followed") != 0.0, 0.0, 1.0)
        outputs["followed"] = line.number(1.0)
    chained = back.later and rule.spike_chain
    arriving = Carried(
        _input(line, "chain") if chained else None,
        _input(line, "decayed_chain") if chained else None,
        _input(line, "decayed_membrane") if back.membrane else None,
        later,
    )
    needs = [back.learns] * LEARNED
    needs[RESET_VALUE] = back.learns and neuron.reset.numbered
    steps: Any = _input(line, "steps")
    fired = _input(line, "fired") if rule.windowed else None
    recorder = Recorder(neuron, rule, tau_s, needs, arriving, fired, steps)
    recorder.careful = True
    outside = _input(line, "grad_potential") if back.outside else None
    around = 0.5 * (outside + _input(line, "grad_beside")) if back.around else None
    grad_drive = recorder.step(moment, active, signal, outside, last=last, around=around)
    if back.current:
        leaked = _input(line, "grad_current")
        grad_drive = through_current(grad_drive, leaked, _input(line, NUMBERS[-1]))
    outputs["grad_drive"] = grad_drive
    outputs |= zip(LINK if rule.looks_ahead else LINK[:3], recorder.carried, strict=False)
    outputs["entering"] = recorder.entering(moment, linked=False)
    if back.learns:
        for name, term in zip(SUMS, recorder.sums, strict=True):
            total = _input(line, name) if back.adds else None
            outputs[name] = total if term is None else added(total, term)
    return Traced(line, {name: zero if one is None else one for name, one in outputs.items()})


@cache
def current_step() -> Traced:
    """A synaptic current: from i[t-1], the ``state``, and ``drive`` to i'[t], the ``out``, and
    i[t]. k is the first of the numbers.
    """
    line = Line()
    with line.rounding():
        charged = _input(line, "state") + _input(line, "drive")
        after = current_after(charged, _input(line, NUMBERS[0]))
    return Traced(line, {"state": after, "out": charged})


@cache
def current_step_back() -> Traced:
    """The adjoint of :func:`current_step`."""
    line = Line()
    own, later, k = (_input(line, name) for name in ("grad_out", "state", NUMBERS[0]))
    total = through_current(own, later, k)
    return Traced(line, {"state": total, "grad_drive": total})


class Recorder(Backward):
    """The recursion with each neuron's terms of a sum kept separate."""

    def _sum(self, index: int, terms: Any) -> None:
        self.sums[index] = terms


def _input(line: Line, name: str) -> Any:
    """A named input, typed so that the recursion takes it as a tensor."""
    return line.input(name)


def _record(spec: Spec, line: Line, detached: bool) -> Neuron:
    """A neuron of symbols."""
    numbers = [_input(line, name) for name in NUMBERS]
    decay, gain, offset, threshold, value, *raw = numbers
    form = spec.form
    raw = raw[: form.raw]
    charge = LinearCharge(decay, gain, offset, spec.charge, tuple(raw), form.centred)
    reset = spec.reset.with_number(value)
    return Neuron(charge, reset, threshold, form.timing, form.strict, detached)
