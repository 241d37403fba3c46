"""Attach a rule's gradient to the library's forward pass: the one door into the engine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tssl_adapters.elementwise import operand
from tssl_adapters.engine.call.plan import Plan, Values, tells
from tssl_adapters.engine.call.settings import OtherNeuronError, Position, Settings, Stretch
from tssl_adapters.engine.call.state import (
    Charged,
    Tag,
    charged_of,
    let_go,
    linked_tag,
    packed,
    reset_of,
    tag,
    unpacked,
)
from tssl_adapters.engine.call.window import time_of
from tssl_adapters.engine.compiled import fused
from tssl_adapters.engine.compiled.kernels import backend
from tssl_adapters.engine.compiled.thin import prepared
from tssl_adapters.engine.filter import synaptic_current
from tssl_adapters.engine.step.recursion import charge, fires, state_after
from tssl_adapters.engine.step.spec import link_size
from tssl_adapters.engine.torch.sequence import SequenceFunction, compute, spikes_of
from tssl_adapters.engine.torch.step import StepFunction
from tssl_adapters.errors import UnsupportedConfigError
from tssl_adapters.neuron import Neuron, Value
from tssl_adapters.rules import Feedback

ENOUGH = 4096
"""How many values must match bit for bit before the record replaces the library."""
ROUNDS = 32
SAME_NEURON = 0.02
"""Share of a probe's values that rounding may push across the threshold."""
FAR = 16.0
"""From this size on, a threshold is probed separately from the potentials in use."""


class Native(NamedTuple):
    """How to run the library's own forward pass without recording a graph.

    Attributes:
        input: the layer's input, ``[batch, ...]`` or ``[T, batch, ...]``.
        values: runs this call; returns spikes and potential (after every step if states are kept).
        probe: runs the layer, otherwise at rest, on another input and potential; also returns the
            membrane's drive: ``(input, potential) -> drive, spikes, potential``.
        steady: whether it rounds the same way in every call. If it may not, e.g. because it is
            compiled as it runs, it is run even if the record reproduced it.
    """

    input: Tensor
    values: Values
    probe: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    steady: bool = True


class Incoming(NamedTuple):
    """The synaptic current that a sequence starts from, i'[t] = i[t-1] + x[t].

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
        current: for a sequence with a synaptic current, that current after the last step
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
    native: Native | None,
    *,
    sequence: bool,
    keep_states: bool = False,
    fresh: bool = False,
    exposed: bool = False,
    carrier: Tensor | None = None,
    feedback: Feedback | None = None,
    pinned: Sequence[Tensor] | None = None,
    leak: Value | None = None,
    incoming: Incoming | None = None,
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
        pinned: the tensors from which, with the layer's attributes, the neuron's numbers are
            computed, for a layer whose next steps may use ``Thin``.
        leak: k of such a layer's synaptic current, i = i' + k i'.
        incoming: a synaptic current between the drive of a sequence and the membrane.

    Raises:
        UnsupportedConfigError: the rule needs the whole sequence, and this call continues another.

    Returns:
        The library's values with the rule's gradient.
    """
    links = link_size(neuron, settings.rule)
    carrier = state if carrier is None else carrier
    joined = None
    if incoming is not None:
        joined = None if keep_states else fused.joined(settings, neuron, *incoming, drive)
        if joined is None:
            drive = synaptic_current(settings, drive, *incoming)
    if not (drive.is_floating_point() and state.is_floating_point()):
        drive, state = _promoted(neuron, drive, state)
    asks = (links or settings.rule.windowed) and not fresh
    found = linked_tag(settings, carrier, links) if asks else None
    link = () if found is None else found.link
    position = _position(settings, found)
    if settings.rule.timed and found is None:
        position = time_of(settings, carrier)
    let_go(carrier)
    # Under torch.func the library's own attributes would hold tensors of another level, so the
    # engine computes the values itself from what autograd passes in.
    functional = torch._C._are_functorch_transforms_active()
    keeps = tells(neuron) and torch.is_grad_enabled() and not (sequence or exposed or functional)
    reset = reset_of(neuron) if keeps else ()
    earlier = charged_of(state, reset) if keeps and not fresh else None
    plan = Plan(
        neuron, settings.rule, settings.tau_s, links, bool(link), keep_states, functional, exposed,
        position, feedback, torch.is_grad_enabled(),
    )  # fmt: skip
    call = _Call(settings, neuron, state, sequence, keep_states, exposed)
    kernels = None
    if settings.engine != "torch" and not exposed:
        kernels = _compiled(call, plan, drive, trace, native)
    if kernels is not None and joined is not None:
        kernels = kernels.behind(joined)
    elif incoming is not None and joined is not None:
        drive = synaptic_current(settings, drive, *incoming)
    values = None
    if kernels is None and native is not None and not functional:
        known = call.reproduces(native) and native.steady and not exposed
        values = None if known else native.values
    charged, spike, before, leaked = None, None, None, None
    if kernels is not None:
        rest = (earlier, packed(link), *neuron.values())
        current = None if incoming is None or joined is None else incoming.current
        ran = kernels.run(drive, state, trace, *rest, current=current)
        out, membrane, told, due, leaked, *new_link = ran
        before = None if sequence else due
        if pinned is not None and told is not None and trace is None and native is not None:
            settings.thin = prepared(settings, kernels, drive, pinned, leak)
    else:
        parts = (*(unpacked(link) or (None,) * links), *neuron.values())
        given, told = (plan, values, drive, state, trace), None
        if sequence:
            out, membrane, *new_link = SequenceFunction.apply(*given, *parts)
        else:
            out, membrane, *made = StepFunction.apply(*given, earlier, *parts)
            charged, spike, _, before, _, *new_link = made
            told = charged if keeps and values is None else None
    # Clone: detach_() refuses views, and the caller may write to the output in place.
    last = membrane[-1].clone() if keep_states else membrane
    new_trace = None
    if settings.tau_s != 1.0:
        new_trace = (out[-1] if sequence else out).clone()
    if position is not None:
        spikes = None
        if settings.rule.windowed:
            spikes = spikes_of(out if sequence else out[None], trace, settings.tau_s)
        position = position.after(len(drive) if sequence else 1, spikes)
        if settings.rule.timed:
            settings.last = position
    recorded = last.requires_grad
    kept = Charged(told, reset, last) if told is not None and recorded else None
    tag(last, tuple(new_link) if recorded else (), new_trace, position, kept)
    states = membrane if keep_states else None
    fired = out if spike is None else spike
    before = before if values is None else None
    if incoming is not None and leaked is None:
        charging = drive if keep_states else drive[-1]
        leaked = charging + operand(incoming.k, charging) * charging
    return Result(out, last, states, new_trace, before, charged, fired, leaked)


def _promoted(neuron: Neuron, drive: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Convert integers and booleans to the dtype that the library's first sum gives them."""
    dtype = torch.result_type(drive, state)
    for value in neuron.values():
        dtype = torch.result_type(drive.new_empty(1, dtype=dtype), value)
    return drive.to(dtype), state if state.is_floating_point() else state.to(dtype)


def _position(settings: Settings, found: Tag | None) -> Position | None:
    """Where in its window a call starts, for a rule that asks for it."""
    if not settings.rule.windowed:
        return None if found is None else found.position
    if found is None or found.position is None:
        return Position(Stretch(settings))
    if settings.rule.whole:
        raise UnsupportedConfigError(
            f"Layer '{settings.path}': {settings.rule} needs a sequence in one call, and this call "
            "goes on from another one's state. Detach the state to start anew, or use "
            "credit='spike'."
        )
    return found.position


def _compiled(
    call: _Call, plan: Plan, drive: Tensor, trace: Tensor | None, native: Native | None
) -> fused.Call | None:
    """The call for compiled kernels, if they support the layer and round as the library does (they
    may do so even where torch's operations on the record do not).
    """
    settings, neuron, sequence = call.settings, call.neuron, call.sequence
    kernels = backend(settings.engine)
    if kernels is None or (native is not None and not native.steady):
        return None
    step = drive.shape[1:] if sequence else drive.shape
    dense = fused.layout(kernels, drive, step, call.state, trace, neuron.values())
    if dense is None:
        return None
    key = (
        neuron.charge.formula, type(neuron.reset), neuron.timing, neuron.strict, neuron.quantiser,
        drive.dtype, drive.device, dense, sequence, plan.keep_states,
        None if native is None else native.input.dtype,
    )  # fmt: skip
    if key not in settings.loops:
        found = None
        if fused.why_not(plan) is None:
            found = fused.call_of(plan, drive.dtype, dense, sequence, kernels, settings.path)
            if native is None:
                same = found.rounds_alike(drive, call.state)
            else:
                same = call._replace(kernels=found).reproduces(native)
            found = found if same else None
        settings.loops[key] = None if found is None else found.spec
    spec = settings.loops[key]
    if spec is None:
        return None
    return fused.Call(plan, spec, sequence, kernels, settings.path)


class _Call(NamedTuple):
    """What decides whether a layer's record, computed by torch or by compiled kernels, reproduces
    the library in a call.
    """

    settings: Settings
    neuron: Neuron
    state: Tensor
    sequence: bool
    keep_states: bool
    exposed: bool
    kernels: fused.Call | None = None

    def reproduces(self, native: Native) -> bool:
        """Whether the record's forward pass matches the library's bit for bit.

        Tested once per configuration, dtype and device, on random potentials around the threshold,
        and also around zero if the threshold is far from the potentials in use. If only the
        rounding differs, e.g. because a library's kernel fuses operations, the library keeps
        computing the values.

        Raises:
            OtherNeuronError: the layer computes another neuron.
        """
        neuron, given = self.neuron, native.input
        key = (
            None if self.kernels is None else self.kernels.spec,
            neuron.charge.formula, type(neuron.reset), neuron.timing, neuron.strict,
            neuron.quantiser,
            given.dtype, self.state.dtype, self.state.ndim == 0,  # a scalar does not promote
            given.device, self.sequence, self.keep_states, native.steady,
            *(value.dtype for value in neuron.values() if isinstance(value, Tensor)),
        )  # fmt: skip
        known = self.settings.reproduces.get(key)
        if known is None and given.numel() and given.is_floating_point() and not given.is_meta:
            try:
                known = self._try(native)
            except OtherNeuronError as error:
                known = str(error)
            self.settings.reproduces[key] = known
        if isinstance(known, str):
            raise OtherNeuronError(known)
        return bool(known)

    @torch.no_grad()
    def _try(self, native: Native) -> bool:
        given = native.input
        shape = given.shape[1:] if self.sequence else given.shape
        if self.exposed or not self.state.ndim:  # a custom charge may change the shape
            shape = self.state.shape
        generator = torch.Generator(given.device).manual_seed(0)
        # As precise as the layer's own numbers: sums of coarser ones would hardly ever round.
        dtype = torch.promote_types(torch.promote_types(given.dtype, self.state.dtype), torch.float)

        def noise(size: torch.Size, width: Tensor | float) -> Tensor:
            flat = torch.rand(size, generator=generator, device=given.device, dtype=dtype)
            return (2.0 * flat - 1.0) * width

        same, shares = True, []
        for (centre, width), _ in itertools.product(
            _probed(self.neuron.threshold), range(min(ROUNDS, -(-ENOUGH // given.numel())))
        ):
            state = (centre + noise(shape, width)).to(self.state.dtype)
            if not self.state.ndim:  # it would promote
                state = state.reshape(-1)[0]
            largest = 2.0 * float(width.max())
            drive, *theirs = native.probe(noise(given.shape, largest).to(given.dtype), state)
            if self.kernels is not None and not self.kernels.knows(drive):
                return False  # states of another dtype promote it
            ours = self._compute(drive, state)
            pairs = list(zip(ours, theirs, strict=True))
            # The library's spikes and numbers may be less precise than its states.
            involved = (given, self.state, *ours, *theirs, *self.neuron.values())
            rounding = 64.0 * max(
                torch.finfo(t.dtype).eps
                for t in involved
                if isinstance(t, Tensor) and t.is_floating_point()
            )
            shares.append([apart(a, b, rounding, largest) for a, b in pairs])
            same = same and all(_same(a, b) for a, b in pairs)
        # Of all rounds together: a round may be of one neuron, which rounding moves once.
        spikes, potentials = (sum(share) / len(shares) for share in zip(*shares, strict=True))
        if max(spikes, potentials) > SAME_NEURON:
            raise OtherNeuronError(
                f"Layer '{self.settings.path}' does not compute the neuron that its adapter "
                f"knows: on a probe {potentials:.1%} of its membrane potentials and "
                f"{spikes:.1%} of its spikes differ. Undo what was changed of it since it was "
                "wrapped, use a version of the library that tssl_adapters was tested with, make a "
                "layer of another neuron a class of its own, or skip this layer."
            )
        return same

    def _compute(self, drive: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if self.kernels is not None:
            return self.kernels.values(drive, state)
        if self.sequence:
            return compute(self.neuron, drive, state, self.keep_states)
        before, charged = charge(self.neuron, state, drive)
        spike = fires(self.neuron, charged)
        return spike, state_after(self.neuron, charged, spike, before)


def _probed(threshold: Value) -> list[tuple[Tensor, Tensor]]:
    """The centres around which potentials are probed, with their widths.

    Around the threshold, with its magnitude as the width, since floats are spaced in proportion;
    and around zero, where the potentials in use lie, if the first range hardly covers them.
    """
    if isinstance(threshold, Tensor):
        centre = threshold.detach()
    else:
        centre = torch.tensor(threshold, device="cpu")  # whatever the default device is
    finite = centre.isfinite()
    near = bool((finite & (centre.abs() < FAR)).all())
    centre = torch.where(finite, centre, torch.zeros_like(centre))
    around = (centre, centre.abs().clamp(min=1.0))
    return [around] if near else [around, (torch.zeros_like(centre), torch.ones_like(centre))]


def apart(ours: Tensor, theirs: Tensor, rounding: float, largest: float = 1.0) -> float:
    """The share of values that differ by more than rounding, given the largest magnitude."""
    near = torch.isclose(
        ours.double(), theirs.double(), rounding, rounding * largest, equal_nan=True
    )
    return 1.0 - float(near.double().mean())


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return (
        ours.dtype == theirs.dtype
        and ours.shape == theirs.shape
        and torch.allclose(ours, theirs, rtol=0.0, atol=0.0, equal_nan=True)
    )
