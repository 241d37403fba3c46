"""Compiled single steps of a layer.

What a step computes, forward and backward, is recorded once from what torch computes
(:mod:`tssl_adapters.engine.step.cell`), compiled, and tried
(:mod:`tssl_adapters.engine.compiled.deciding`). All else is decided then too, so that a step only
checks that it still holds: setting an attribute invalidates the decision
(:meth:`tssl_adapters.adapters.base.Wrapped.__setattr__`), numbers stored in tensors are compared,
and those that learn are read anew.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tssl_adapters.arithmetic import Line, Symbol
from tssl_adapters.elementwise import cast, on_host
from tssl_adapters.engine.call.once import first_order
from tssl_adapters.engine.call.pins import (
    Pin,
    Pins,
    all_hold,
    are_memory,
    channels_last,
    pin,
    records_plainly,
)
from tssl_adapters.engine.call.plan import EngineFunction, nothing
from tssl_adapters.engine.call.settings import Position, Settings
from tssl_adapters.engine.call.state import Charged, charged_of, let_go, packed, tag
from tssl_adapters.engine.call.window import going_on, length
from tssl_adapters.engine.compiled.kernels import BITS, LINK, Backend, Gate, RowLoop, memory
from tssl_adapters.engine.compiled.memory import spreads
from tssl_adapters.engine.compiled.step_loops import Backward, Forward
from tssl_adapters.engine.step.cell import Cell, Lines, Tensors
from tssl_adapters.neuron import Value

TYPES = {torch.float32: "f", torch.float64: "d"}
"""The dtypes that steps are compiled for, as arrays of numbers know them."""
NOTHING, ZEROS = -1, -2
"""Gradients that no room holds."""


class Stepped(NamedTuple):
    """A step's results.

    Attributes:
        out: PSC, or spikes at ``tau_s == 1``.
        states: the states after the step.
        trace: a[t] for the next step, at ``tau_s > 1``.
        spike: the spikes, at ``tau_s > 1`` if the cell ``sends`` them.
        due: r if the reset is delayed.
    """

    out: Tensor
    states: Tensors
    trace: Tensor | None = None
    spike: Tensor | None = None
    due: Tensor | None = None


class Steps:
    """What was decided about a layer's steps.

    Args:
        settings: the layer's.
        cell: what torch computes.
        found: the same as lines.
        loops: the backend that compiles it.
        like: a tensor with the dtype and device of inputs and states.
        pinned: the tensors from which, with the layer's attributes, its numbers are computed.
    """

    def __init__(
        self,
        settings: Settings,
        cell: Cell,
        found: Lines,
        loops: Backend,
        like: Tensor,
        pinned: Tensors,
    ) -> None:
        self.settings, self.dtype = settings, like.dtype
        self.device = None if like.is_cpu else like.device
        # The cell's functions are not kept: they may hold on to a step's states and their graph.
        self.num_states = cell.states
        self.pinned, self.pins = pinned, [pin(tensor) for tensor in pinned]
        self.least_dims = max((tensor.ndim for tensor in pinned), default=0)
        """With fewer, torch's results would have the shape of a number."""
        fixed = [known for known in self.pins if isinstance(known, Pin) and known.fixed]
        self.fixed = fixed if len(fixed) == len(self.pins) else None
        self.numbers = array(TYPES[self.dtype], map(_float, found.numbers))
        self.learned = {name: pin(tensor) for name, tensor in found.learned.items()}
        self.of_each = {f"p{k}": tensor.detach() for k, tensor in enumerate(found.spread)}
        self.read = [tensor.detach() for tensor in found.read.values()]
        self.in_tensors: list[Tensor] = self.read
        """Copies of each neuron's numbers, in a step's shape; those on a GPU, where they lie."""
        self.formats: bool | None = None
        """Whether torch's results keep :func:`channels_last`, if known."""
        self.links = found.links
        self.goes_on = self.links > 0 or settings.rule.timed
        """Whether a step is told more of the one before than the states."""
        self.key = (self,)
        self.content = (tuple(found.line.operations), tuple(found.adjoint.line.operations))

        def compiled(line: Line, outputs: Mapping[str, Symbol], gate: Gate | None) -> RowLoop:
            names = [f"n{k}" for k in range(len(found.numbers))]
            return loops.row_loop(line, outputs, names, found.read.keys(), self.dtype, gate)

        given = [*(f"x{k}" for k in range(cell.inputs)), *(f"s{k}" for k in range(cell.states))]
        self.traced = "trace" in found.outputs
        given += ["trace"] if self.traced else []
        self.count = len(given)
        self.given = [*given, *found.learned]
        gate = settings.rule.active_from(settings.tau_s) if self.traced else None
        numbers = [*self.of_each, *found.read]
        self.forward = forward = Forward(found, given, numbers, compiled, gate)
        self.reached = [(found.reached[name] & {*self.given}) for name in forward.results]
        """For each result of a step, the names of ``given`` that its gradient reaches."""
        self.kept = ["h", *found.adjoint.kept, *([BITS] if forward.bits else [])]
        self.kept_at = [forward.names.index(_made(name)) for name in self.kept]
        self.copied_at = [self.kept.index(f"s{k}") for k in forward.copies]
        come_in = [f"g.{name}" for name in forward.results]
        given = [*self.kept, *numbers, *come_in, *([LINK] if self.links else [])]
        self.backward = Backward(found.adjoint, given, self.given, compiled)
        # Where h of the step before is kept for the potential:
        self.from_h = None
        if found.from_h is not None:
            self.from_h = Backward(found.from_h, given, self.given, compiled)
        self.constants: dict[tuple[bool, ...], list[int]] = {}
        """The results without a gradient, by which of ``given`` need one."""
        self.arriving: dict[tuple[bool, ...], list[int]] = {}
        """What :meth:`places` found."""

    def fits(
        self, inputs: Tensors, states: Tensors, pinned: Tensors, trace: Tensor | None = None
    ) -> bool:
        """Whether what was decided holds for this step, and a graph is to be recorded."""
        shape = inputs[0].shape
        given = (*inputs, *states) if trace is None else (*inputs, *states, trace)
        if not are_memory(given, self.dtype, self.device, self.formats):
            return False
        if len(shape) < self.least_dims:
            return False
        if self.of_each and not all(spreads(each.shape, shape) for each in self.of_each.values()):
            return False
        return records_plainly() and shape.numel() > 0 and self.holds(pinned)

    def holds(self, pinned: Tensors) -> bool:
        """Whether the neuron's numbers are unchanged, or are read at each step."""
        if len(pinned) != len(self.pins):
            return False
        if self.fixed is not None:
            return all_hold(self.fixed, pinned)
        for now, known in zip(pinned, self.pins, strict=True):
            read = known.learns or (isinstance(known, Pin) and known.view is None)
            if not (known.stays(now) if read else known.holds(now)):
                return False
        for name, known in self.learned.items():
            self._look(name, known)
        return True

    def _look(self, name: str, known: Pin | Pins) -> None:
        """Take over what a number that learns is now; steps before keep what it was."""
        if isinstance(known, Pins):
            if not torch.equal(known.values, known.tensor):
                self.learned[name], self.in_tensors = Pins.of(known.tensor), self.read
        elif known.view is not None and self.numbers[int(name[1:])] != known.view.value:
            self.numbers = array(self.numbers.typecode, self.numbers)
            self.numbers[int(name[1:])] = known.view.value

    def numbers_for(self, like: Tensor) -> list[Tensor]:
        """The numbers that are in tensors, those of each neuron in a step's shape."""
        known, count = self.in_tensors, len(self.of_each)
        fits = len(known) > len(self.read) and known[0].shape == like.shape
        if count and not (fits and known[0].stride() == like.stride()):
            each = [torch.empty_like(like).copy_(numbers) for numbers in self.of_each.values()]
            self.in_tensors = known = [*each, *self.read]
        return known  # not the attribute, which another thread may have set since

    def stands_for(self, like: Tensor, pinned: Tensors) -> bool:
        """Whether it was made for a step like this."""
        same = self.dtype is like.dtype and self.device == (None if like.is_cpu else like.device)
        known = self.formats is not None or channels_last(like) is None
        return same and known and self.holds(pinned)

    def run(
        self,
        inputs: Tensors,
        states: Tensors,
        trace: Tensor | None = None,
        fresh: bool = False,
    ) -> Stepped:
        """Run a step that :meth:`fits`. ``trace``: a[t-1], ``None`` for zero; ``fresh``: the states
        were made for this call.
        """
        settings, v, count = self.settings, states[0], self.num_states
        parts, position = going_on(settings, v, self.links, fresh) if self.goes_on else ((), None)
        let_go(v)
        copies = self.forward.copies
        before = [charged_of(states[k], self.key) for k in copies] if copies else ()
        traces = () if not self.traced else (torch.zeros_like(v) if trace is None else trace,)
        learned = [known.tensor for known in self.learned.values()] if self.learned else ()
        left: list[Tensor] = []
        given = (self, before, position, left, packed(parts), *inputs, *states, *traces, *learned)
        found = _apply(*given)
        results = len(self.forward.results)
        after, rest = found[1 : 1 + count], found[1 + count : results]
        recorded = after[0].requires_grad
        if position is not None:
            position = position.after(1, None)
        new_trace = rest[0] if self.traced else None
        if recorded or new_trace is not None or position is not None:
            own = self._charged(0, left, after) if recorded and 0 in copies else None
            tag(after[0], found[results:] if recorded else (), new_trace, position, own)
        for k in copies if recorded else ():
            if k:
                tag(after[k], (), None, None, self._charged(k, left, after))
        spike = rest[1] if len(rest) > 1 else None
        due = self.forward.due
        return Stepped(found[0], after, new_trace, spike, None if due is None else left[due])

    def _charged(self, k: int, left: Tensors, after: Tensors) -> Charged:
        return Charged(left[self.forward.copies[k]], self.key, after[k])

    def constant(self, needs: tuple[bool, ...]) -> list[int]:
        """The results that have no gradient, if these of ``given`` need one."""
        known = self.constants.get(needs)
        if known is None:
            needed = {name for name, need in zip(self.given, needs, strict=True) if need}
            known = [k for k, reached in enumerate(self.reached) if not needed & reached]
            self.constants[needs] = known
        return known

    def places(
        self, backward: Backward, grads: tuple[Tensor | None, ...], linked: bool
    ) -> list[int]:
        """Which room holds the gradient of each of ``given`` if these arrive, those of the results
        and the link; or that there is none, or zeros.
        """
        which = (backward is self.from_h, linked, *[grad is not None for grad in grads])
        known = self.arriving.get(which)
        if known is None:
            there, link = which[2:], any(which[2 + len(self.reached) :])
            # The link comes with the potential, the second result.
            reached = [r for k, r in enumerate(self.reached) if there[k] or (k == 1 and link)]
            known = []
            for name, place in zip(self.given, backward.at[linked], strict=True):
                arrives = any(name in names for names in reached)
                # Norse has a hook on recurrent weights, which takes no None, even where their input
                # is that of a last step that acts in the next one.
                missing = ZEROS if name == "x1" and not arrives else NOTHING
                known.append(place if arrives and place is not None else missing)
            self.arriving[which] = known
        return known


class CompiledStepFunction(EngineFunction):
    """``(steps, own copies of states, position, left, link, *inputs, *states, trace, *learned
    numbers) -> *results, link``. What has no gradient is left in ``left``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        steps: Steps,
        before: Sequence[Tensor | None],
        position: Position | None,
        left: list[Tensor],
        link: Tensor | None,
        *given: Tensor,
    ) -> tuple[Tensor, ...]:
        x, forward, numbers = given[0], steps.forward, steps.numbers
        in_tensors, taken = steps.in_tensors, given
        if steps.of_each or steps.read or steps.learned:
            in_tensors = steps.numbers_for(x)
            taken = (*given[: steps.count], *in_tensors)
        tensors, made = forward.run(taken, numbers)
        kept = [tensors[k] for k in steps.kept_at]
        by_h = False
        if before:
            for at, own in zip(steps.copied_at, before, strict=True):
                if own is not None:
                    kept[at] = own
                    by_h = by_h or (steps.from_h is not None and steps.kept[at] == "s0")
        strides = channels_last(x) if steps.formats else None
        ctx.made = steps, position, numbers, in_tensors, strides, link is not None, by_h
        ctx.save_for_backward(*kept, *steps.read)
        ctx.set_materialize_grads(False)
        results = len(forward.results)
        constant = steps.constant(ctx.needs_input_grad[5:])
        if constant:
            ctx.mark_non_differentiable(*(made[k] for k in constant))
        left += made[results:]
        links = (nothing(x, (steps.links, *x.shape)),) if steps.links else ()
        return *made[:results], *links

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        steps: Steps
        steps, position, numbers, in_tensors, strides, linked, by_h = ctx.made
        kept = [
            # Hooks may have saved them in another form.
            memory(cast(tensor, torch.uint8)) if name == BITS
            else memory(cast(tensor, steps.dtype), strides)
            for name, tensor in zip(steps.kept, ctx.saved_tensors, strict=False)
        ]  # fmt: skip
        h, results, links = kept[0], len(steps.reached), steps.links
        incoming = [
            torch.zeros_like(h) if grad is None else memory(grad, strides)
            for grad in grads[:results]
        ]
        backward = steps.from_h if by_h and steps.from_h is not None else steps.backward
        rooms = [torch.empty_like(h) for _ in range(backward.rooms)]
        chain: list[Tensor] = []
        if links:
            link = grads[results]
            # A link's gradient is the next step's, for this one alone, which may overwrite it.
            rows = None if strides is None else (h.numel(), *strides)
            link = memory(h.new_zeros((links, *h.shape)) if link is None else link, rows)
            incoming, chain = [*incoming, link], [link]
        tensors = [*kept, *in_tensors, *incoming, *rooms, *chain]
        backward.loop(tensors, numbers, h.numel(), length(position))
        found = [
            rooms[place] if place >= 0 else None if place == NOTHING else torch.zeros_like(h)
            for place in steps.places(backward, grads, linked)
        ]
        if steps.learned:
            for k, known in enumerate(steps.learned.values(), steps.count):
                found[k] = _summed(found[k], known.tensor)
        own_link = chain[0] if linked else None
        return None, None, None, None, own_link, *found


_apply = super(torch.autograd.Function, CompiledStepFunction).apply
"""Without looking up the function's signature in every call."""


def _made(name: str) -> str:
    return "to.h" if name == "h" else name


def _summed(terms: Tensor | None, like: Tensor) -> Tensor | None:
    if terms is None:
        return None
    total = terms.sum().reshape(like.shape) if like.numel() == 1 else terms.sum_to_size(like.shape)
    return total.to(like)


def _float(number: Value) -> float:
    if not isinstance(number, Tensor):
        return number
    return float(number.detach()) if on_host(number) else math.nan
