"""The fast path for a step of a layer in which nothing has changed since the previous step.

:func:`tssl_adapters.engine.attach.attach` decides in every call what the layer's numbers are, which
loops compute it and whether they may. Here that is decided once, and a step only checks that it
still holds: setting an attribute invalidates the decision
(:meth:`tssl_adapters.adapters.base.Wrapped.__setattr__`), and numbers stored in tensors are
compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tssl_adapters.engine.call.once import first_order
from tssl_adapters.engine.call.pins import can_be_pinned, is_memory, pin, records_plainly
from tssl_adapters.engine.call.plan import EngineFunction, nothing, tells
from tssl_adapters.engine.call.settings import Position, Settings
from tssl_adapters.engine.call.state import (
    Charged,
    charged_of,
    let_go,
    packed,
    reset_of,
    tag,
)
from tssl_adapters.engine.call.window import going_on, length
from tssl_adapters.engine.compiled import launch
from tssl_adapters.engine.compiled.fused import Call, back_form, unseen, watch_call
from tssl_adapters.engine.compiled.kernels import Adjoints, Given, StepBackend, memory, rows
from tssl_adapters.engine.compiled.memory import Room, room_of
from tssl_adapters.engine.step.spec import ROWS
from tssl_adapters.neuron import Value

_backward: defaultdict[Any, dict[Any, Callable[..., None]]] = defaultdict(dict)
"""Tested loops, by what they were compiled for and by which gradients there are."""
_leaking: dict[Any, bool] = {}
"""Whether a loop with a synaptic current is correct, by its spec."""


class Ran(NamedTuple):
    """A step's results.

    Attributes:
        out: spikes ``[batch, ...]``.
        state: the outgoing membrane potential ``[batch, ...]``.
        due: r ``[batch, ...]`` if a reset comes one step after the spike, else ``None``.
        current: the outgoing synaptic current ``[batch, ...]``, if there is one.
    """

    out: Tensor
    state: Tensor
    due: Tensor | None
    current: Tensor | None


class Thin:
    """What was decided about a layer's steps.

    Args:
        settings: the layer's.
        call: a step of the layer that kernels computed.
        backend: those kernels.
        dtype: the drive's dtype.
        shape: the drive's shape.
        numbers: the neuron's, as the kernels read them; the leak of a current is the last one.
        leak: k in i' = i + x and i = i' + k i', if there is a synaptic current.
        pinned: the tensors from which, with the layer's attributes, ``numbers`` were computed.
    """

    def __init__(
        self,
        settings: Settings,
        call: Call,
        backend: StepBackend,
        dtype: torch.dtype,
        shape: torch.Size,
        numbers: Any,
        leak: float | None,
        pinned: Sequence[Tensor],
    ) -> None:
        self.settings = settings
        self.call = call
        self.numbers = numbers
        self.dtype = dtype
        self.pinned = pinned
        self.pins = [pin(tensor) for tensor in pinned]
        self.shape = shape if call.spec.form.dense else None
        """The shape that the numbers are in, if each neuron has its own."""
        self.reset = reset_of(call.plan.neuron)
        self.values = [v for v in call.plan.neuron.values() if isinstance(v, Tensor)]
        """Saved too, so that autograd rejects in-place changes to them, as it does natively."""
        self.links = call.plan.links
        self.looks = settings.rule.looks_ahead or settings.rule.looks_around
        self.late = call.plan.neuron.timing != "immediate"
        self.delayed = call.plan.neuron.timing == "delayed"
        self.backend = backend
        self.leak = leak
        self.spec = call.spec if leak is None else call.spec.behind_a_synapse
        self.forward = backend.step_loop(self.spec)
        detached = call.plan.neuron.detached
        self.backward = _backward[backend.name, self.spec, settings.rule, detached]

    def fits(
        self, x: Tensor, v: Tensor, pinned: Sequence[Tensor], current: Tensor | None = None
    ) -> bool:
        """Whether what was decided holds for this step, and a graph is to be recorded."""
        return (
            is_memory(x, self.dtype)
            and is_memory(v, self.dtype)
            and x.shape == v.shape
            and (current is None or (is_memory(current, self.dtype) and x.shape == current.shape))
            and records_plainly()
            and self.holds(pinned)
            and x.numel() > 0
            and (self.shape is None or x.shape == self.shape)
        )

    def holds(self, pinned: Sequence[Tensor]) -> bool:
        """Whether the neuron's numbers are unchanged."""
        return all(known.holds(now) for known, now in zip(self.pins, pinned, strict=True))

    def stands_for(self, call: Call, drive: Tensor, leak: Value | None) -> bool:
        """Whether it was made for a step like this."""
        same = self.call.spec is call.spec and self.dtype is drive.dtype and self.leak == leak
        return same and (self.shape is None or self.shape == drive.shape)

    def run(self, x: Tensor, v: Tensor, current: Tensor | None = None) -> Ran:
        """Run a step that :meth:`fits`."""
        parts, position = going_on(self.settings, v, self.links)
        let_go(v)
        earlier, link = charged_of(v, self.reset), packed(parts)
        left: list[Any] = []
        given = (self, x, v, current, earlier, link, position, left)
        out, after, leaked, *new_link = ThinFunction.apply_plainly(*given)
        h, due = left
        if position is not None:
            self.settings.last = position = position.after(1, None)
        recorded = after.requires_grad
        kept = Charged(h, self.reset, after) if recorded else None
        tag(after, tuple(new_link) if recorded else (), None, position, kept)
        return Ran(out, after, due, leaked)


def prepared(
    settings: Settings, call: Call, drive: Tensor, pinned: Sequence[Tensor], leak: Value | None
) -> Thin | None:
    """What can be decided about the layer's next steps, after one that kernels computed; ``None``
    if each needs the full check.
    """
    plan, neuron = call.plan, call.plan.neuron
    backend = call.backend
    if plan.tau_s != 1.0 or settings.rule.windowed or not tells(neuron):
        return None
    if plan.feedback is not None or not isinstance(backend, StepBackend):
        return None
    if any(isinstance(v, Tensor) and v.requires_grad for v in neuron.values()):
        return None
    if not can_be_pinned(pinned):
        return None
    if not launch.trusted(call):
        return None
    if not (leak is None or (isinstance(leak, float) and len(neuron.values()) < ROWS)):
        return None
    known = settings.thin
    if isinstance(known, Thin) and known.stands_for(call, drive, leak) and known.holds(pinned):
        return known
    dense, shape = call.spec.form.dense, drive.shape
    numbers = backend.numbers(rows(neuron.values(), leak), dense, drive, shape)
    call = call._replace(plan=plan._replace(position=None, linked=False))
    thin = Thin(settings, call, backend, drive.dtype, shape, numbers, leak, pinned)
    if leak is not None and thin.spec not in _leaking:
        _leaking[thin.spec] = _leaks_alike(thin, drive)
    return thin if leak is None or _leaking[thin.spec] else None


@torch.no_grad()
def _leaks_alike(thin: Thin, like: Tensor) -> bool:
    """Whether the loop with a synaptic current matches, bit for bit, torch's current followed by
    the loop without one, tested on noise.
    """
    generator = torch.Generator().manual_seed(0)
    n = launch.NEURONS if thin.shape is None else thin.shape.numel()
    x, v, current = torch.randn(3, n, generator=generator).to(like.dtype)
    found, expected = torch.empty(2, 4, n, dtype=like.dtype)
    drive = current + x
    expected[3] = drive + thin.leak * drive
    plain = thin.backend.step_loop(thin.call.spec)
    for loop, given, (out, after, h, leaked) in (
        (thin.forward, x, found),
        (plain, drive, expected),
    ):
        loop(given, v, thin.numbers, out, after, h, torch.empty_like(x), current, leaked)
    return torch.equal(found, expected)


class ThinFunction(EngineFunction):
    """``(thin, x, v, current, earlier, link, position, left) -> spikes, potential, current, link``.

    It leaves h and r in ``left``: as non-differentiable outputs they would cost a tenth of a step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        thin: Thin,
        x: Tensor,
        v: Tensor,
        current: Tensor | None,
        earlier: Tensor | None,
        link: Tensor | None,
        position: Position | None,
        left: list[Any],
    ) -> tuple[Tensor | None, ...]:
        out, after, h = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
        due = torch.empty_like(x) if thin.late else None
        leaked = None if current is None else torch.empty_like(x)
        thin.forward(x, v, thin.numbers, out, after, h, due, current, leaked)
        ctx.made = thin, position, earlier is not None, link is not None
        ctx.save_for_backward(h, v if earlier is None else earlier, *thin.values)
        ctx.set_materialize_grads(False)
        if leaked is not None and not (ctx.needs_input_grad[1] or ctx.needs_input_grad[3]):
            ctx.mark_non_differentiable(leaked)  # the potential does not reach the current
        left += h, due
        if not thin.links:
            return out, after, leaked
        return out, after, leaked, nothing(x, (thin.links, *x.shape))

    @staticmethod
    @first_order
    def backward(
        ctx: Any,
        grad_out: Tensor | None,
        grad_after: Tensor | None,
        grad_current: Tensor | None,
        link: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        thin, position, earlier, linked = ctx.made
        h, state, *_ = ctx.saved_tensors
        grad_out = None if grad_out is None else memory(grad_out)
        grad_after = None if grad_after is None else memory(grad_after)
        grad_current = None if grad_current is None else memory(grad_current)
        link = None if link is None else memory(link)
        if thin.looks and unseen(thin.settings, grad_after):
            call = thin.call._replace(plan=thin.call.plan._replace(position=position))
            step = Given(1, h.numel(), h, state, None, thin.numbers, 1.0, earlier)
            watch_call(call, thin.spec.told, step, grad_out, grad_after, link)
        wants = ctx.needs_input_grad[2]
        variant = (
            grad_out is None, grad_after is None, grad_current is None, link is None,
            linked, earlier, wants,
        )  # fmt: skip
        room = room_of(thin.call.plan, h, h.shape, linked, link, wants)
        steps = length(position)
        loop = thin.backward.get(variant)
        if loop is not None and _in_a_row(h, thin.dtype) and _in_a_row(state, thin.dtype):
            loop(h, state, thin.numbers, grad_out, grad_after, grad_current, link, room, steps)
        else:
            given = (grad_out, grad_after, grad_current, link)
            _try(thin, earlier, variant, h, state, given, room, steps)
        entering = room.through if linked and not thin.delayed else room.entering
        by_current = room.drive if ctx.needs_input_grad[3] else None
        return None, room.drive, entering, by_current, None, room.chain, None, None


def _in_a_row(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether what autograd saved is unchanged in form: hooks may have altered it."""
    return tensor.dtype is dtype and tensor.is_contiguous() and tensor.is_cpu


def _try(
    thin: Thin,
    earlier: bool,
    variant: Any,
    h: Tensor,
    state: Tensor,
    grads: tuple[Tensor | None, ...],
    room: Room,
    steps: float,
) -> None:
    """A fully checked backward step, which tests whether the loop can be used from here on."""
    call, n = thin.call, h.numel()
    grad_out, grad_after, grad_current, link = grads
    again = None if link is None else link.clone()
    back = back_form(call.plan, False, grad_out, grad_after, link, steps)
    given = Given(1, n, h, state, None, thin.numbers, 1.0, earlier)
    adjoints = Adjoints(grad_out, n, grad_after, 0, link, *room, None, None)
    good = launch.backward(call, call.spec.told, back, given, None, True, adjoints)
    if grad_current is not None:
        assert thin.leak is not None
        room.drive.add_(grad_current).add_(thin.leak * grad_current)
    if not good:
        return
    loop = thin.backend.step_back(thin.spec.told, back, given, adjoints, grad_current is not None)
    if thin.leak is not None:
        wants = room.through is not None or room.entering is not None
        second = room_of(call.plan, h, h.shape, room.chain is not None, again, wants)
        loop(h, state, thin.numbers, grad_out, grad_after, grad_current, again, second, steps)
        if not launch.alike(second, room):
            return
    thin.backward[variant] = loop
