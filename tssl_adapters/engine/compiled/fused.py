"""A layer's calls in one autograd function, computed by compiled kernels.

It replaces :class:`tssl_adapters.engine.torch.sequence.SequenceFunction` and
:class:`tssl_adapters.engine.torch.step.StepFunction` where the kernels support the neuron and the
rule, with the same results. A single step is a sequence of length one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tssl_adapters.engine.call.once import first_order
from tssl_adapters.engine.call.pins import channels_last
from tssl_adapters.engine.call.plan import (
    EngineFunction,
    Like,
    Plan,
    h_determines_state,
    nothing,
    reduced,
    working_dtype,
)
from tssl_adapters.engine.call.settings import Settings
from tssl_adapters.engine.call.window import ends, reshaped, watch_times
from tssl_adapters.engine.compiled import launch
from tssl_adapters.engine.compiled.kernels import (
    Adjoints,
    Backend,
    Given,
    Synapse,
    memory,
    rows,
)
from tssl_adapters.engine.compiled.memory import room_of, spread, turned, turned_back
from tssl_adapters.engine.step.recursion import charge, fires
from tssl_adapters.engine.step.spec import (
    GAIN,
    GRAD_SPIKE,
    LEARNED,
    BackForm,
    Spec,
)
from tssl_adapters.engine.torch.sequence import arriving, watches
from tssl_adapters.engine.torch.sequence import compute as sequence_values
from tssl_adapters.engine.torch.step import watch
from tssl_adapters.neuron import Neuron, Value

ENOUGH = 4096
"""How many values must match bit for bit before the kernels replace torch."""


class Call(NamedTuple):
    """A call that the kernels support: the plan, the spec they are compiled for, whether time is
    the first dimension, the backend, the layer's path, and the leak k of a synaptic current in the
    same loop.
    """

    plan: Plan
    spec: Spec
    sequence: bool
    backend: Backend
    path: str = ""
    leak: float | None = None

    def behind(self, k: float) -> Call:
        """The call with a synaptic current in front, which receives the drive."""
        return self._replace(spec=self.spec.behind_a_synapse, leak=k)

    def run(
        self,
        drive: Tensor,
        state: Tensor,
        trace: Tensor | None,
        *rest: Any,
        current: Tensor | None = None,
    ) -> Any:
        """Run the call with the rule's gradient.

        Returns output, membrane potential, h[t] of a step if it is kept, r of a step whose incoming
        potential may still be due its reset, the outgoing synaptic current if a ``current`` came
        in, and the link.

        ``rest``: h of the previous step (``None`` if unknown), the incoming link as one tensor
        ``[links, batch, ...]`` or ``None``, and the neuron's values.
        """
        if not torch.is_grad_enabled():
            given = self.given(drive, state, trace, current=current)
            out, after, due, *_ = compute(self, given, None, again=False)
            return out, after, None, due, leaked_of(given)
        left: list[Tensor | None] = []
        tensors = (drive, state, trace, current, *rest)
        out, after, leaked, *link = FusedFunction.apply(self, left, *tensors)
        return out, after, *left, leaked, *link

    def numbers(self, drive: Tensor, step: torch.Size) -> Any:
        """The neuron's numbers as the kernels read them, for steps of this shape."""
        values = rows(self.plan.neuron.values(), self.leak)
        return self.backend.numbers(values, self.spec.form.dense, drive, step)

    def knows(self, drive: Tensor) -> bool:
        """Whether the kernels are compiled for drives of this dtype."""
        return str(drive.dtype) == f"torch.{self.spec.form.dtype}"

    def shape(self, drive: Tensor) -> tuple[int, torch.Size]:
        """The number of time steps, and the shape of one."""
        return (drive.shape[0], drive.shape[1:]) if self.sequence else (1, drive.shape)

    def turn(self, drive: Tensor, state: Tensor, current: Tensor | None) -> int:
        """How many dimensions from the end the channels are, if a sequence's steps follow one
        another in ``channels_last`` and the state lies as they do; 0 if kernels take a copy.
        """
        plain = drive.is_contiguous() or current is not None or self.spec.form.dense
        if plain or not self.sequence or self.plan.rule.windowed:
            return 0
        step, one = drive[0], state.numel() == 1
        strides = channels_last(step)
        if strides is None or drive.stride(0) != step.numel():
            return 0
        alike = state.shape == step.shape and state.stride() == strides
        return step.ndim - 1 if one or alike else 0

    def given(
        self,
        drive: Tensor,
        state: Tensor,
        trace: Tensor | None,
        numbers: Any = None,
        earlier: bool = False,
        current: Tensor | None = None,
        turn: int | None = None,
        window: float = math.inf,
    ) -> Given:
        """The call's tensors as plain memory; ``numbers`` and ``turn`` if they were made before."""
        steps, step = self.shape(drive)
        turn = self.turn(drive, state, current) if turn is None else turn
        synapse = None
        if current is not None and self.leak is not None:
            current = spread(current, step, drive)
            synapse = Synapse(current, self.leak, torch.empty_like(current))
        if numbers is None:
            numbers = self.numbers(drive, step)
        start, trace = spread(state, step, drive, turn), spread(trace, step, drive, turn)
        room = (memory(turned(drive, turn)), start, trace, numbers)
        tau_s, gate = self.plan.tau_s, self.plan.rule.active_from(self.plan.tau_s)
        count = step.numel()
        return Given(steps, count, *room, tau_s, earlier, gate, synapse, None, window, turn)

    @torch.no_grad()
    def values(self, drive: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Spikes and potential, as in :data:`tssl_adapters.engine.call.plan.Values`."""
        call = self._replace(plan=self.plan._replace(tau_s=1.0), spec=self.spec.shaped(psc=False))
        return compute(call, call.given(drive, state, None), None, again=False)[:2]

    @torch.no_grad()
    def rounds_alike(self, drive: Tensor, state: Tensor) -> bool:
        """Whether the kernels match torch bit for bit, tested on noise."""
        steps, step = self.shape(drive)
        shape = (max(steps, -(-ENOUGH // step.numel())), *step)
        generator = torch.Generator(drive.device).manual_seed(0)
        dtype = working_dtype(drive)
        noise = torch.randn(shape, dtype=dtype, device=drive.device, generator=generator)
        noise = (2.0 * noise).to(drive.dtype)
        theirs = sequence_values(self.plan.neuron, noise, state, self.plan.keep_states)
        ours = self._replace(sequence=True).values(noise, state)
        return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def compute(
    call: Call, given: Given, charged: Tensor | None, again: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, bool]:
    """Output and membrane potential, as the autograd functions return them; r of a single step
    whose incoming potential may still be due its reset; what to keep; and whether kernels ran.

    ``charged`` receives h[t] if wanted.
    """
    drive, keep = turned_back(given.drive, given.turn), call.plan.keep_states
    out = torch.empty_like(drive)
    after = torch.empty_like(drive if keep or not call.sequence else drive[0])
    rooms = turned(out, given.turn), turned(after, given.turn)
    late = given.steps == 1 and call.plan.neuron.timing != "immediate"
    due = torch.empty_like(given.state) if late else None
    return out, after, due, *launch.forward(call, given, *rooms, charged, due, again)


def leaked_of(given: Given) -> Tensor | None:
    """The buffer for the synaptic current after the last step, if there is one."""
    return None if given.synapse is None else given.synapse.leaked


class FusedFunction(EngineFunction):
    """``(call, left, drive, state, trace, current, earlier, link, *neuron values) -> out, states,
    current, link``.

    It leaves h[t] of a single step and r in ``left``: as non-differentiable outputs they would cost
    a tenth of a step. The step keeps h[t]: it replaces the drive and, as ``earlier`` in the next
    call, the state.
    """

    @staticmethod
    def forward(
        ctx: Any,
        call: Call,
        left: list[Tensor | None],
        drive: Tensor,
        state: Tensor,
        trace: Tensor | None,
        current: Tensor | None,
        earlier: Tensor | None,
        link: Tensor | None,
        *values: Value,
    ) -> tuple[Tensor | None, ...]:
        again = any(ctx.needs_input_grad)
        given = call.given(drive, state, trace, current=current)
        needs_drive = ctx.needs_input_grad[8 + GAIN]
        keeps_h = (
            again and not call.sequence and h_determines_state(call.plan.neuron) and not needs_drive
        )
        charged = torch.empty_like(given.drive) if keeps_h else None
        out, after, due, kept, ctx.compiled = compute(call, given, charged, again)
        ctx.call, ctx.numbers, ctx.turn = call, given.numbers, given.turn
        ctx.kept_h, ctx.earlier, ctx.trace = keeps_h, earlier is not None, Like.of(trace)
        tensors = (v for v in values if isinstance(v, Tensor))
        before = state if earlier is None else earlier
        trace = None if keeps_h else trace  # the kernels kept one bit per neuron of it
        ctx.save_for_backward(charged if keeps_h else drive, before, trace, kept, current, *tensors)
        ctx.set_materialize_grads(False)
        left += charged, due
        leaked = leaked_of(given)
        if leaked is not None and not (ctx.needs_input_grad[2] or ctx.needs_input_grad[5]):
            ctx.mark_non_differentiable(leaked)  # the potential does not reach the current
        links, (_, step) = call.plan.links, call.shape(drive)
        results = (out, after, leaked)
        return (*results, nothing(drive, (links, *step))) if links else results

    @staticmethod
    @first_order
    def backward(
        ctx: Any,
        grad_out: Tensor | None,
        grad_after: Tensor | None,
        grad_leaked: Tensor | None,
        link: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        call: Call = ctx.call
        plan, turn = call.plan, ctx.turn
        drive, state, trace, kept, current, *_ = ctx.saved_tensors
        known = (ctx.numbers, ctx.earlier, current, turn, plan.steps())
        given = call.given(drive, state, trace, *known)
        if turn:
            told = [turned(grad, turn) for grad in (grad_out, grad_after, link)]
            grad_out, grad_after, link = told
        spec = call.spec.given_h if ctx.kept_h else call.spec
        needs, compiled = ctx.needs_input_grad[8:][:LEARNED], ctx.compiled
        watch_call(call, spec, given, grad_out, grad_after, link)
        window = None
        if plan.rule.windowed:
            window = _of_window(call, spec, given, grad_out, link)
            call, given, kept, again, grad_out = window[:5]
            spec, compiled = call.spec.given_h if ctx.kept_h else call.spec, compiled and again
        ending = ends(plan.position, given.steps - 1)
        back = back_form(plan, any(needs), grad_out, grad_after, link, ending)
        wants = (ctx.needs_input_grad[3], window is None and ctx.trace is not None)
        adjoints = adjoints_of(call, given, back, wants, grad_out, grad_after, link, grad_leaked)
        launch.backward(call, spec, back, given, kept, compiled, adjoints)
        entering, trace = entering_of(plan, adjoints), adjoints.trace
        if window is not None:
            trace = window.trace
            if plan.rule.looks_ahead and adjoints.chain is not None:
                adjoints.chain[GRAD_SPIKE] = window.first
        made = (adjoints.drive, entering, trace, adjoints.chain)
        drive_grad, entering, trace, chain = [turned_back(grad, turn) for grad in made]
        return (
            None,
            None,
            drive_grad,
            reduced(entering, state),
            reduced(trace, ctx.trace) if ctx.trace is not None else None,
            reduced(adjoints.drive[0].clone(), current) if ctx.needs_input_grad[5] else None,
            None,
            chain,
            *_learned(call, adjoints.sums, needs),
        )


def back_form(
    plan: Plan,
    learns: bool,
    grad_out: Tensor | None,
    grad_after: Tensor | None,
    link: Tensor | None,
    ending: bool = False,
) -> BackForm:
    """The compile-time form of a backward pass with these gradients. ``ending``: whether it
    includes the window's last step.
    """
    neuron, rule = plan.neuron, plan.rule
    membrane = grad_after is not None or (link is not None and neuron.timing == "delayed")
    output, ending = grad_out is not None, ending and rule.windowed
    return BackForm(output, learns, membrane, neuron.detached, rule, ending)


class _Windowed(NamedTuple):
    """A call whose gradients a windowed rule has replaced.

    Attributes:
        call: the remaining call, whose output is spikes.
        given: its tensors.
        kept: what its forward pass kept.
        compiled: whether kernels computed that pass.
        grad_out: the replacement for G, ``[T, batch, ...]``, or ``[batch, ...]`` for a step.
        first: G of the first step.
        trace: gradient of the incoming trace; ``None`` is zero.
    """

    call: Call
    given: Given
    kept: Tensor | None
    compiled: bool
    grad_out: Tensor
    first: Tensor
    trace: Tensor | None


def _of_window(
    call: Call, spec: Spec, given: Given, grad_out: Tensor | None, link: Tensor | None
) -> _Windowed:
    """Apply :meth:`tssl_adapters.rules.Rule.cotangent` to a call."""
    plan, like, dtype = call.plan, given.state, working_dtype(given.drive)
    window = plan.window(plan.neuron, dtype)
    assert plan.position is not None
    assert window is not None
    if grad_out is not None and not call.sequence:
        grad_out = grad_out[None]
    arrived = arriving(grad_out, given.steps, like, plan.tau_s, dtype)
    found, grads = zip(*arrived, strict=True)
    call = call._replace(plan=plan._replace(tau_s=1.0), spec=call.spec.shaped(psc=False))
    fired = spread(window.active, like.shape, like.to(dtype))
    given = given._replace(trace=None, tau_s=1.0, gate=None, fired=fired)
    kept, compiled = None, True
    if call.sequence:
        out, _, _, kept, compiled = compute(call, given, None, again=True)
        spikes = out.to(dtype).unbind()
    else:
        spikes = (_fired(spec, plan.neuron, given).to(dtype),)
    later = link[GRAD_SPIKE] if link is not None and plan.rule.looks_ahead else None
    made = reshaped(plan.position, window, grads[::-1], spikes, later)
    if not call.sequence:
        told_out = made[0]
    elif all(one is made[0] for one in made):
        told_out = made[0].expand(len(made), *like.shape)
    else:
        told_out = torch.stack([one.expand(like.shape) for one in made])
    return _Windowed(call, given, kept, compiled, told_out, grads[-1], found[-1])


def watch_call(
    call: Call,
    spec: Spec,
    given: Given,
    grad_out: Tensor | None,
    grad_after: Tensor | None,
    link: Tensor | None,
) -> None:
    """Warn if the gradients show that the loss does not suit the rule."""
    plan, rule = call.plan, call.plan.rule
    if plan.position is None or not (rule.takes_later or rule.looks_around):
        return
    later = None if link is None else link[GRAD_SPIKE]
    if not call.sequence:
        if unseen(plan.position.stretch.settings, grad_after):
            spikes = None if grad_after is None else _fired(spec, plan.neuron, given)
            watch(plan, grad_out, later, grad_after, spikes)
    elif grad_out is not None and watches(plan):
        watch_times(plan.position, grad_out.unbind(), later)


def unseen(settings: Settings, grad_after: Tensor | None) -> bool:
    """Whether a single step's gradients may still call for a warning."""
    return not (settings.watched and (settings.seen_around or grad_after is None))


def _fired(spec: Spec, neuron: Neuron, given: Given) -> Tensor:
    """s of a single step, shaped like its potential."""
    if spec.form.given_h:
        return fires(neuron, given.drive)
    return fires(neuron, charge(neuron, given.state, given.drive)[1])


def adjoints_of(
    call: Call,
    given: Given,
    back: BackForm,
    wants: tuple[bool, bool],
    grad_out: Tensor | None,
    grad_after: Tensor | None,
    link: Tensor | None,
    grad_leaked: Tensor | None,
) -> Adjoints:
    """The incoming gradients, contiguous, and buffers for the outgoing ones. ``wants``: whether the
    incoming state and the trace take a gradient.
    """
    plan, drive, neurons = call.plan, given.drive, given.neurons
    step, dtype = given.state.shape, working_dtype(drive)
    state, trace = wants
    link = None if link is None else memory(link)
    out, pace = _paced(grad_out, neurons, call.sequence)
    each = plan.keep_states and grad_after is not None
    return Adjoints(
        out,
        pace,
        None if grad_after is None else memory(grad_after),
        neurons if each else 0,
        link,
        *room_of(plan, drive, given.state, link, state),
        torch.empty_like(given.state, dtype=dtype) if trace else None,
        drive.new_empty((LEARNED, *step), dtype=dtype) if back.learns else None,
        None if grad_leaked is None else memory(grad_leaked),
    )


def entering_of(plan: Plan, adjoints: Adjoints) -> Tensor | None:
    """The gradient of the incoming potential, without what goes back through a link."""
    linked = plan.linked and plan.neuron.timing != "delayed"
    return adjoints.through if linked else adjoints.entering


def _paced(grad: Tensor | None, neurons: int, sequence: bool) -> tuple[Tensor | None, int]:
    """The output's gradient and its stride over time: 0 if all steps share one tensor."""
    if grad is not None and sequence and grad.stride(0) == 0:
        return memory(grad[0]), 0
    return None if grad is None else memory(grad), neurons


def _learned(call: Call, sums: Tensor | None, needs: tuple[bool, ...]) -> list[Tensor | None]:
    values = call.plan.neuron.values()
    found: list[Tensor | None] = [None] * len(values)
    if sums is not None:
        for k, (value, needed) in enumerate(zip(values, needs, strict=False)):
            if needed and isinstance(value, Tensor):
                found[k] = reduced(sums[k], value)
    return found
