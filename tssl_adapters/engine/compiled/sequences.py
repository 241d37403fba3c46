"""Compiled whole sequences of a layer, once it is decided that kernels compute them.

What a layer's first sequence found out about its neuron (:mod:`tssl_adapters.engine.attach`) holds
for the others as long as no attribute is set and no number in a tensor changes, so that a call only
checks that, as for single steps (:mod:`tssl_adapters.engine.compiled.steps`). Where a sequence
starts is for the adapter to say at each call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tssl_adapters.engine.call.once import first_order
from tssl_adapters.engine.call.pins import (
    Pin,
    all_hold,
    can_be_pinned,
    is_memory,
    records_plainly,
)
from tssl_adapters.engine.call.plan import EngineFunction, nothing
from tssl_adapters.engine.call.settings import Position, Settings
from tssl_adapters.engine.call.state import let_go, packed, tag
from tssl_adapters.engine.call.window import going_on, length
from tssl_adapters.engine.compiled import launch
from tssl_adapters.engine.compiled.form import Stepped
from tssl_adapters.engine.compiled.fused import Call, back_form
from tssl_adapters.engine.compiled.kernels import (
    Adjoints,
    Again,
    Given,
    Synapse,
    Variant,
    as_saved,
    memory,
)
from tssl_adapters.engine.compiled.memory import Zeros, room_of, zeros
from tssl_adapters.engine.compiled.steps import Steps
from tssl_adapters.engine.step.cell import Tensors

Rooms: TypeAlias = "tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]"
"""Buffers for the gradients of the drive, of a link that came in, F_v mu, and of the state: those
fields of :class:`tssl_adapters.engine.compiled.kernels.Adjoints`."""


class Sequences:
    """What was decided about a layer's sequences.

    Args:
        settings: the layer's.
        call: one of its calls.
        drive: that call's.
        pinned: the tensors from which, with the layer's attributes, its numbers are computed.
    """

    traced = False
    """They emit spikes."""

    def __init__(self, settings: Settings, call: Call, drive: Tensor, pinned: Tensors) -> None:
        self.settings, self.dtype = settings, drive.dtype
        self.device = None if drive.is_cpu else drive.device
        self.pinned, self.pins = pinned, [Pin.of(tensor) for tensor in pinned]
        self.call = call._replace(plan=call.plan._replace(position=None, linked=False))
        self.linked = call._replace(plan=self.call.plan._replace(linked=True))
        """Calls that start from a state without and with a link."""
        self.numbers = call.numbers(drive, drive.shape[1:])
        self.links = call.plan.links
        self.late = call.plan.neuron.timing == "delayed"
        self.goes_on = self.links > 0 or call.plan.rule.timed
        self.zeros: Zeros | None = None
        """The state that the last call started from, if that was 0 everywhere."""
        self.forward: Again | None = None
        self.backward: dict[Any, Again] = {}
        """Passes that were tried, to be called at once; back, by which gradients there are."""

    @classmethod
    def of(cls, settings: Settings, call: Call, drive: Tensor, pinned: Tensors) -> Sequences | None:
        """What holds for all sequences like this one, ``None`` if they may differ."""
        known = settings.decided
        if isinstance(known, Sequences) and known.stands_for(drive, pinned):
            return known
        plan, rule = call.plan, call.plan.rule
        asks = rule.windowed or rule.looks_ahead or rule.looks_around
        varies = any(tensor.numel() != 1 or tensor.requires_grad for tensor in pinned)
        varies = varies or bool(plan.neuron.tensors) or not can_be_pinned(pinned)
        if varies or asks or plan.keep_states or plan.functional or plan.tau_s != 1.0:
            return None
        return cls(settings, call, drive, pinned)

    def stands_for(self, drive: Tensor, pinned: Tensors) -> bool:
        """Whether it was made for sequences like this, of a neuron with the same numbers."""
        device = None if drive.is_cpu else drive.device
        return self.dtype is drive.dtype and self.device == device and self._holds(pinned)

    def _holds(self, pinned: Tensors) -> bool:
        """Whether the neuron's numbers are unchanged."""
        return len(pinned) == len(self.pins) and all_hold(self.pins, pinned)

    def fits(
        self, inputs: Tensors, states: Tensors, pinned: Tensors, trace: Tensor | None = None
    ) -> bool:
        """Whether what was decided holds for a sequence ``[T, batch, ...]`` from these states,
        tensors ``[batch, ...]`` or floats for all neurons, and a graph is to be recorded. They have
        no trace.
        """
        (drive,) = inputs
        shape, dtype, device = drive.shape, self.dtype, self.device
        if len(shape) < 2 or shape[0] < 2 or not is_memory(drive, dtype, device):
            return False
        for state in states:
            if not isinstance(state, float) and not (
                is_memory(state, dtype, device) and state.shape == shape[1:]
            ):
                return False
        return records_plainly() and shape.numel() > 0 and self._holds(pinned)

    def run(
        self, inputs: Tensors, states: Tensors, trace: Tensor | None = None, fresh: bool = False
    ) -> Stepped:
        """Run a sequence that :meth:`fits`. ``fresh``: the states were made for this call."""
        drive, settings = inputs[0], self.settings
        v, *rest = [s if isinstance(s, Tensor) else self._at_rest(s, drive) for s in states]
        link: tuple[Tensor, ...] = ()
        position: Position | None = None
        if self.goes_on:
            link, position = going_on(settings, v, self.links, fresh)
        let_go(v)
        current = rest[0] if rest else None
        out, after, leaked, *left = _apply(self, position, drive, v, current, packed(link))
        if position is not None:
            position = position.after(len(drive), None)
        if left or position is not None:
            tag(after, tuple(left) if after.requires_grad else (), None, position)
        return Stepped(out, (after,) if leaked is None else (after, leaked))

    def _at_rest(self, value: float, drive: Tensor) -> Tensor:
        known, shape = self.zeros, drive.shape[1:]
        if value or not drive.is_cpu:
            return drive.new_full(shape, value)
        if known is None or known.tensor.shape != shape:
            known = self.zeros = zeros(shape, self.dtype)
        return known.tensor

    def first_forward(
        self,
        drive: Tensor,
        state: Tensor,
        current: Tensor | None,
        out: Tensor,
        after: Tensor,
        leaked: Tensor | None,
    ) -> tuple[Tensor | None, bool]:
        """A forward pass by :func:`launch.forward`; if it may be, later ones are called at once."""
        call, given = self.call, self._given(drive, state, current, leaked)
        kept, compiled = launch.forward(call, given, out, after, None, None, True)
        if compiled:
            self.forward = call.backend.forward_again(call.spec, self.numbers)
        return kept, compiled

    def first_backward(
        self,
        which: Any,
        saved: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
        window: float,
        compiled: bool,
        grads: Sequence[Tensor | None],
        rooms: Rooms,
    ) -> None:
        """A backward pass by :func:`launch.backward`; if it may be, later ones of this kind are
        called at once.
        """
        drive, state, current, kept = saved
        grad_out, grad_after, link, grad_leaked = grads
        *_, shared, linked, _ = which
        call = self.linked if linked else self.call
        given = self._given(drive, state, current, None, window)
        back = back_form(call.plan, False, grad_out, grad_after, link)
        pace = 0 if shared else given.neurons
        adjoints = Adjoints(grad_out, pace, grad_after, 0, link, *rooms, None, None, grad_leaked)
        if launch.backward(call, call.spec, back, given, kept, compiled, adjoints):
            variant = Variant.of(call.spec, back, given, adjoints)
            again = call.backend.backward_again(variant, pace > 0, self.numbers)
            if again is not None:
                self.backward[which] = again

    def _given(
        self,
        drive: Tensor,
        state: Tensor,
        current: Tensor | None,
        leaked: Tensor | None,
        window: float = math.inf,
    ) -> Given:
        """A call's tensors as kernels take them."""
        k, synapse = self.call.leak, None
        if current is not None and k is not None:
            synapse = Synapse(current, k, torch.empty_like(current) if leaked is None else leaked)
        steps, neurons, numbers = len(drive), state.numel(), self.numbers
        return Given(
            steps, neurons, drive, state, None, numbers, 1.0, synapse=synapse, window=window
        )


class CompiledSequenceFunction(EngineFunction):
    """``(sequences, position, drive, state, current, link) -> out, state, current, link``."""

    @staticmethod
    def forward(
        ctx: Any,
        sequences: Sequences,
        position: Position | None,
        drive: Tensor,
        state: Tensor,
        current: Tensor | None,
        link: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        out, after = torch.empty_like(drive), torch.empty_like(state)
        leaked = None if current is None else torch.empty_like(current)
        tensors = drive, state, current, out, after, leaked
        kept, compiled = None, True
        if sequences.forward is None:
            kept, compiled = sequences.first_forward(*tensors)
        else:
            sequences.forward(len(drive), state.numel(), math.inf, tensors)
        ctx.made = sequences, position, link is not None, compiled, drive.shape
        ctx.save_for_backward(drive, state, current, kept)
        ctx.set_materialize_grads(False)
        if leaked is not None and not (ctx.needs_input_grad[2] or ctx.needs_input_grad[4]):
            ctx.mark_non_differentiable(leaked)  # the potential does not reach the current
        if not sequences.links:
            return out, after, leaked
        return out, after, leaked, nothing(drive, (sequences.links, *state.shape))

    @staticmethod
    @first_order
    def backward(
        ctx: Any,
        grad_out: Tensor | None,
        grad_after: Tensor | None,
        grad_leaked: Tensor | None,
        link: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        sequences: Sequences
        sequences, position, linked, compiled, shape = ctx.made
        drive, state, current, kept = ctx.saved_tensors
        dtype, step = sequences.dtype, shape[1:]
        drive, state = as_saved(drive, dtype, shape), as_saved(state, dtype, step)
        current = None if current is None else as_saved(current, dtype, step)
        wants, shared = ctx.needs_input_grad[3], False
        if grad_out is not None:
            shared = grad_out.stride(0) == 0  # the same at every time step
            grad_out = memory(grad_out[0] if shared else grad_out)
        grad_after = None if grad_after is None else memory(grad_after)
        grad_leaked = None if grad_leaked is None else memory(grad_leaked)
        link = None if link is None else memory(link)
        grads = grad_out, grad_after, link, grad_leaked
        which = (*[grad is None for grad in grads], shared, linked, wants)
        plan = (sequences.linked if linked else sequences.call).plan
        rooms = room_of(plan, drive, state, link, wants)
        again = sequences.backward.get(which) if compiled else None
        if again is None:
            saved = drive, state, current, kept
            sequences.first_backward(which, saved, length(position), compiled, grads, rooms)
        else:
            tensors = drive, state, current, *grads, *rooms
            again(len(drive), state.numel(), length(position), tensors)
        grad_drive, chain, through, entering = rooms
        entering = through if linked and not sequences.late else entering
        of_current = grad_drive[0].clone() if ctx.needs_input_grad[4] else None
        return None, None, grad_drive, entering, of_current, chain


_apply = super(torch.autograd.Function, CompiledSequenceFunction).apply
"""Without looking up the function's signature in every call."""

Decided: TypeAlias = "Steps | Sequences"
"""What was decided about a layer's calls."""
