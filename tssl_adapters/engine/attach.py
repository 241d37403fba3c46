"""Attach a rule's gradient to one call of a layer with a linear charge.

A single step takes the short way of :mod:`tssl_adapters.engine.compiled.steps` where it can.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from tssl_adapters.elementwise import operand
from tssl_adapters.engine.call.plan import Plan, Values, h_determines_state
from tssl_adapters.engine.call.settings import Settings
from tssl_adapters.engine.call.state import (
    Charged,
    charged_of,
    let_go,
    packed,
    reset_of,
    tag,
    unpacked,
)
from tssl_adapters.engine.call.window import going_on
from tssl_adapters.engine.compiled import fused, takes
from tssl_adapters.engine.compiled.deciding import Described, compiled_step, may_compile
from tssl_adapters.engine.compiled.form import Stepped
from tssl_adapters.engine.compiled.sequences import Sequences
from tssl_adapters.engine.filter import synaptic_current
from tssl_adapters.engine.probe import NativeForward, Record, compiled
from tssl_adapters.engine.step.cell import Tensors
from tssl_adapters.engine.step.recursion import current_after, fires
from tssl_adapters.engine.step.spec import link_size
from tssl_adapters.engine.torch.sequence import SequenceFunction, spikes_of
from tssl_adapters.engine.torch.step import StepFunction
from tssl_adapters.neuron import Neuron, Value
from tssl_adapters.rules import Feedback


class Incoming(NamedTuple):
    """The synaptic current that a call starts from, i'[t] = i[t-1] + x[t].

    Attributes:
        current: i ``[batch, ...]``.
        k: its leak, i[t] = i'[t] + k i'[t].
    """

    current: Tensor
    k: Value


class Result(NamedTuple):
    """What a call returns.

    Attributes:
        out: PSC, or spikes at ``tau_s == 1``, ``[batch, ...]`` or ``[T, batch, ...]``.
        state: membrane potential after the last step ``[batch, ...]``; carries the link.
        states: potential after every step ``[T, batch, ...]`` if requested, else ``None``.
        trace: a[T-1] ``[batch, ...]`` at ``tau_s > 1``, else ``None``.
        before: for a step that the library did not compute itself, the spike of the incoming
            state if its reset was still due.
        charged: h[t] of an exposed step, with a gradient of its own.
        fired: s[t] of an exposed step, likewise; the output itself at ``tau_s == 1``.
        current: of a layer with a synaptic current, that current after the last step
            ``[batch, ...]``, or after every step with ``states``.
    """

    out: Tensor
    state: Tensor
    states: Tensor | None
    trace: Tensor | None
    before: Tensor | None
    charged: Tensor | None = None
    fired: Tensor | None = None
    current: Tensor | None = None


def attach(
    settings: Settings,
    neuron: Neuron,
    drive: Tensor,
    state: Tensor,
    trace: Tensor | None,
    native: NativeForward | None,
    *,
    sequence: bool,
    keep_states: bool = False,
    fresh: bool = False,
    exposed: bool = False,
    carrier: Tensor | None = None,
    feedback: Feedback | None = None,
    incoming: Incoming | None = None,
    described: Described | None = None,
) -> Result:
    """Run one call of a layer.

    Args:
        settings: the layer's path, rule and tau_s.
        neuron: the layer's record.
        drive: ``[batch, ...]``, or ``[T, batch, ...]`` for a sequence.
        state: incoming membrane potential, broadcasts against ``[batch, ...]``.
        trace: incoming trace, ``None`` for zero.
        native: the library's own forward pass. It is run unless the record was found to
            reproduce it bit for bit; with ``None`` the record is used untested.
        sequence: whether the first dimension is time.
        keep_states: for a sequence, whether to return the potential after every step.
        fresh: whether ``state`` was made for this call rather than handed in.
        exposed: for a step, whether the layer has other states that depend on h[t] or s[t], or may
            send several spikes. The library then computes every value, even if the record
            reproduces its potential.
        carrier: the tensor that carries the link, if ``state`` was computed from it.
        feedback: how the layer's spikes feed back to it, if the drive already includes this call's.
        incoming: a synaptic current between the drive and the membrane.
        described: the layer's step, if the record tells all about it. A single one is compiled by
            it; of sequences, what was decided holds until its numbers change.

    Raises:
        UnsupportedConfigError: the rule needs the whole sequence, and this call continues another.

    Returns:
        The library's values with the rule's gradient.
    """
    if described is not None and native is not None and not sequence:
        found = _by_steps(settings, described, neuron, drive, state, trace, native, incoming, fresh)
        if found is not None:
            return found
    links = link_size(neuron, settings.rule)
    carrier = state if carrier is None else carrier
    joined = None
    if incoming is not None:
        alone = keep_states or not sequence
        joined = None if alone else takes.joined(settings, neuron, *incoming, drive)
        if joined is None:
            drive = synaptic_current(settings, drive, *incoming, sequence=sequence)
    if not (drive.is_floating_point() and state.is_floating_point()):
        drive, state = _promoted(neuron, drive, state)
    link, position = going_on(settings, carrier, links, fresh)
    let_go(carrier)
    # Under torch.func the library's own attributes would hold tensors of another level, so the
    # engine computes the values itself from what autograd passes in.
    functional = torch._C._are_functorch_transforms_active()
    keeps = (
        h_determines_state(neuron)
        and torch.is_grad_enabled()
        and not (sequence or exposed or functional)
    )
    reset = reset_of(neuron) if keeps else ()
    earlier = charged_of(state, reset) if keeps and not fresh else None
    kept = neuron if functional else _as_now(neuron)
    plan = Plan(
        kept, settings.rule, settings.tau_s, links, bool(link), keep_states, functional, exposed,
        position, feedback, torch.is_grad_enabled(),
    )  # fmt: skip
    record = Record(settings, neuron, state, sequence, keep_states, exposed)
    kernels = None
    if settings.engine != "torch" and not exposed:
        kernels = compiled(record, plan, drive, trace, native)
    if kernels is not None:
        current = None
        if incoming is not None and joined is not None:
            kernels, current = kernels.behind(joined), incoming.current
        if described is not None and sequence and (incoming is None or joined is not None):
            states: Tensors = (state,) if current is None else (state, current)
            found = _by_sequences(settings, kernels, drive, states, described.pinned, fresh)
            if found is not None:
                return found
        ran = _by_kernels(kernels, drive, state, trace, current, earlier, link)
    else:
        if incoming is not None and joined is not None:
            drive = synaptic_current(settings, drive, *incoming)
        values = None
        if native is not None and not functional:
            known = record.reproduces(native) and native.steady and not exposed
            values = None if known else native.values
        ran = _by_torch(plan, values, drive, state, trace, earlier, link, sequence, keeps)
    if incoming is not None and ran.leaked is None:
        charging = drive if keep_states or not sequence else drive[-1]
        ran = ran._replace(leaked=current_after(charging, operand(incoming.k, charging)))
    return _handed_on(settings, plan, ran, trace, len(drive) if sequence else None, reset)


def _as_now(neuron: Neuron) -> Neuron:
    """The neuron with copies of the numbers that the user may write to before the backward pass."""
    if not (neuron.tensors and torch.is_grad_enabled() and any(map(_may_change, neuron.tensors))):
        return neuron
    return neuron.with_values([v.clone() if _may_change(v) else v for v in neuron.values()])


def _may_change(value: Value) -> TypeGuard[Tensor]:
    """Whether it is a tensor that autograd lets the user write to: one that does not learn."""
    return isinstance(value, Tensor) and not value.requires_grad


def _by_steps(
    settings: Settings,
    described: Described,
    neuron: Neuron,
    drive: Tensor,
    state: Tensor,
    trace: Tensor | None,
    native: NativeForward,
    incoming: Incoming | None,
    fresh: bool,
) -> Result | None:
    """The result of a single step that is compiled, else ``None``."""
    if not (native.steady and may_compile(settings, drive) and state.dtype == drive.dtype):
        return None
    if not Record(settings, neuron, state, False, False, False).reproduces(native):
        return None

    def by_torch(
        settings: Settings, inputs: Tensors, states: Tensors, trace: Tensor | None
    ) -> Stepped:
        given = None if incoming is None else Incoming(states[1], incoming.k)
        ran = attach(
            settings, neuron, inputs[0], states[0], trace, None, sequence=False, incoming=given
        )
        after = (ran.state,) if ran.current is None else (ran.state, ran.current)
        return Stepped(ran.out, after, ran.trace)

    states: Tensors = (state,) if incoming is None else (state, incoming.current)
    step = described if described.by_torch else described._replace(by_torch=by_torch)
    ran = compiled_step(settings, step, (drive,), states, trace, fresh)
    if ran is None:
        return None
    current = None if incoming is None else ran.states[1]
    return Result(
        out=ran.out,
        state=ran.states[0],
        states=None,
        trace=ran.trace,
        before=_due(neuron, ran),
        fired=ran.out if settings.tau_s == 1.0 else None,
        current=current,
    )


@torch.no_grad()
def _due(neuron: Neuron, ran: Stepped) -> Tensor | None:
    """r of a compiled step, which may leave it to be computed."""
    return ran.due if ran.before is None else fires(neuron, ran.before[0])


def _by_sequences(
    settings: Settings,
    kernels: fused.Call,
    drive: Tensor,
    states: Tensors,
    pinned: Tensors,
    fresh: bool,
) -> Result | None:
    """The result of a sequence by what was, or now is, decided about a layer's; ``None`` if that
    does not fit.
    """
    decided = settings.decided = Sequences.of(settings, kernels, drive, pinned)
    if decided is None or not decided.fits((drive,), states, pinned):
        return None
    ran = decided.run((drive,), states, fresh=fresh)
    current = ran.states[1] if len(states) > 1 else None
    return Result(ran.out, ran.states[0], None, None, None, fired=ran.out, current=current)


class _Computed(NamedTuple):
    """What an engine computed in a call.

    Attributes:
        out: the output.
        membrane: the potential, after every step if states are kept.
        link: the outgoing link's parts.
        kept_h: h[t] of a step, if it stands for the state in the next call.
        before: as in :class:`Result`.
        charged: as in :class:`Result`.
        fired: as in :class:`Result`, if it is not the output.
        leaked: the outgoing synaptic current, if the engine computed it.
    """

    out: Tensor
    membrane: Tensor
    link: tuple[Tensor, ...]
    kept_h: Tensor | None
    before: Tensor | None
    charged: Tensor | None = None
    fired: Tensor | None = None
    leaked: Tensor | None = None


def _by_kernels(
    kernels: fused.Call,
    drive: Tensor,
    state: Tensor,
    trace: Tensor | None,
    current: Tensor | None,
    earlier: Tensor | None,
    link: tuple[Tensor, ...],
) -> _Computed:
    rest = (earlier, packed(link), *kernels.plan.neuron.values())
    ran = kernels.run(drive, state, trace, *rest, current=current)
    out, membrane, kept_h, due, leaked, *new_link = ran
    before = None if kernels.sequence else due
    return _Computed(out, membrane, tuple(new_link), kept_h, before, leaked=leaked)


def _by_torch(
    plan: Plan,
    values: Values | None,
    drive: Tensor,
    state: Tensor,
    trace: Tensor | None,
    earlier: Tensor | None,
    link: tuple[Tensor, ...],
    sequence: bool,
    keeps: bool,
) -> _Computed:
    parts = (*(unpacked(link) or (None,) * plan.links), *plan.neuron.values())
    given = (plan, values, drive, state, trace)
    if sequence:
        out, membrane, *new_link = SequenceFunction.apply(*given, *parts)
        return _Computed(out, membrane, tuple(new_link), None, None)
    out, membrane, *made = StepFunction.apply(*given, earlier, *parts)
    charged, spike, _, before, _, *new_link = made
    if values is not None:
        return _Computed(out, membrane, tuple(new_link), None, None, charged, spike)
    kept_h = charged if keeps else None
    return _Computed(out, membrane, tuple(new_link), kept_h, before, charged, spike)


def _handed_on(
    settings: Settings,
    plan: Plan,
    ran: _Computed,
    trace: Tensor | None,
    steps: int | None,
    reset: tuple[Any, ...],
) -> Result:
    """The results, with what the next call needs attached to the state. ``steps``: the sequence's,
    ``None`` for a step; ``reset``: :func:`reset_of` the neuron.
    """
    out, sequence = ran.out, steps is not None
    # Clone: detach_() refuses views, and the caller may write to the output in place.
    last = ran.membrane[-1].clone() if plan.keep_states else ran.membrane
    new_trace = None
    if settings.tau_s != 1.0:
        new_trace = (out[-1] if sequence else out).clone()
    position = plan.position
    if position is not None:
        spikes = None
        if settings.rule.windowed:
            spikes = spikes_of(out if sequence else out[None], trace, settings.tau_s)
        position = position.after(1 if steps is None else steps, spikes)
    recorded = last.requires_grad
    kept = Charged(ran.kept_h, reset, last) if ran.kept_h is not None and recorded else None
    place = position if plan.recorded else None  # without gradients no window begins
    tag(last, ran.link if recorded else (), new_trace, place, kept)
    states = ran.membrane if plan.keep_states else None
    fired = out if ran.fired is None and settings.tau_s == 1.0 else ran.fired
    return Result(out, last, states, new_trace, ran.before, ran.charged, fired, ran.leaked)


def _promoted(neuron: Neuron, drive: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Convert integers and booleans to the dtype that the library's first sum gives them."""
    dtype = torch.result_type(drive, state)
    for value in neuron.values():
        dtype = torch.result_type(drive.new_empty(1, dtype=dtype), value)
    return drive.to(dtype), state if state.is_floating_point() else state.to(dtype)
