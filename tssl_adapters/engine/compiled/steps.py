"""Compiled single steps of a layer.

What a step computes, forward and backward, is recorded once from what torch computes
(:mod:`tssl_adapters.engine.step.cell`), compiled, and tried
(:mod:`tssl_adapters.engine.compiled.deciding`). All else is decided then too, and the functions
that a step calls are written out for it (:mod:`tssl_adapters.engine.compiled.straight`), so that it
only checks that what was decided still holds: setting an attribute invalidates it
(:meth:`tssl_adapters.adapters.base.Wrapped.__setattr__`), numbers stored in tensors are compared,
and those that learn are read anew.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tssl_adapters.arithmetic import Line, Symbol
from tssl_adapters.elementwise import on_host
from tssl_adapters.engine.call.pins import Pin, Pins, all_hold, channels_last, pin
from tssl_adapters.engine.call.settings import Settings
from tssl_adapters.engine.compiled.form import NOTHING, StepForm, Stepped
from tssl_adapters.engine.compiled.kernels import BITS, Backend, Gate, RowLoop
from tssl_adapters.engine.compiled.memory import spreads
from tssl_adapters.engine.compiled.step_loops import BackwardLoop, ForwardLoop
from tssl_adapters.engine.compiled.straight import straight
from tssl_adapters.engine.step.cell import Cell, Lines, Tensors
from tssl_adapters.engine.step.written import Derived
from tssl_adapters.neuron import Value

TYPES = {torch.float32: "f", torch.float64: "d"}
"""The dtypes that steps are compiled for, as arrays of numbers know them."""


class Steps:
    """What was decided about a layer's steps.

    Args:
        settings: the layer's.
        cell: what torch computes.
        found: the same as lines.
        loops: the backend that compiles it.
        like: a tensor with the dtype and device of inputs and states.
        pinned: the tensors from which, with the layer's attributes, its numbers are computed.
        formats: whether torch's results keep :func:`channels_last`, if known.
    """

    fits: Callable[..., bool]
    """``(inputs, states, pinned, trace=None)``: whether what was decided holds for this step, and a
    graph is to be recorded."""
    run: Callable[..., Stepped]
    """``(inputs, states, trace=None, fresh=False)``: a step that ``fits``. ``trace``: a[t-1],
    ``None`` for zero; ``fresh``: the states were made for this call."""
    code: str
    """The text of both, and of the autograd function that they use."""

    def __init__(
        self,
        settings: Settings,
        cell: Cell,
        found: Lines,
        loops: Backend,
        like: Tensor,
        pinned: Tensors,
        formats: bool | None = None,
    ) -> None:
        self.settings, self.dtype, self.formats = settings, like.dtype, formats
        self.device = None if like.is_cpu else like.device
        # The cell's functions are not kept: they may hold on to a step's states and their graph.
        self.pinned, self.pins = pinned, [pin(tensor) for tensor in pinned]
        fixed = [known for known in self.pins if isinstance(known, Pin) and known.fixed]
        self.fixed = fixed if len(fixed) == len(self.pins) else None
        self.numbers = array(TYPES[self.dtype], map(_float, found.numbers))
        self.derived = [(k, n) for k, n in enumerate(found.numbers) if isinstance(n, Derived)]
        self.learned = {name: pin(tensor) for name, tensor in found.learned.items()}
        self.of_each = {f"p{k}": tensor.detach() for k, tensor in enumerate(found.spread)}
        self.read = [tensor.detach() for tensor in found.read.values()]
        self.in_tensors: list[Tensor] = self.read
        """Copies of each neuron's numbers, in a step's shape; those on a GPU, where they lie."""
        self.key = (self,)
        self.last: tuple[Any, ...] | None = None
        """A weak reference to the last potential that was returned, its version and address, and h
        with the same values, which the user cannot write to."""
        self.content = (tuple(found.line.operations), tuple(found.adjoint.line.operations))
        self.traced = "trace" in found.outputs
        self.form = form = self._form(cell, found, loops)
        self._constants: dict[Any, list[int]] = {}
        self._places: dict[Any, list[int]] = {}
        self.fits, self.run, self.code = straight(self, form)

    def _form(self, cell: Cell, found: Lines, loops: Backend) -> StepForm:
        rule, tau_s = self.settings.rule, self.settings.tau_s

        def compiled(line: Line, outputs: Mapping[str, Symbol], gate: Gate | None) -> RowLoop:
            names = [f"n{k}" for k in range(len(found.numbers))]
            return loops.row_loop(line, outputs, names, found.read.keys(), self.dtype, gate)

        given = [*(f"x{k}" for k in range(cell.inputs)), *(f"s{k}" for k in range(cell.states))]
        given = [*given, *(["trace"] if self.traced else []), *found.learned]
        gate = rule.active_from(tau_s) if self.traced else None
        forward = ForwardLoop(found, compiled, gate, self.fixed is not None)
        return StepForm(
            dtype=self.dtype,
            device=self.device,
            formats=bool(self.formats),
            inputs=cell.inputs,
            states=cell.states,
            traced=self.traced,
            timed=rule.timed,
            links=found.links,
            # With fewer, torch's results would have the shape of a number.
            least_dims=max((tensor.ndim for tensor in self.pinned), default=0),
            fixed=self.fixed,
            of_each=[*self.of_each],
            read=[*found.read],
            learned=[known.tensor for known in self.learned.values()],
            forward=forward,
            backward=BackwardLoop(found.adjoint, given, compiled),
            from_h=None if found.from_h is None else BackwardLoop(found.from_h, given, compiled),
            given=given,
            reached=[(found.reached[name] & {*given}) for name in forward.results],
            kept=["h", *found.adjoint.kept, *([BITS] if forward.bits else [])],
        )

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
            numbers = array(self.numbers.typecode, self.numbers)
            numbers[int(name[1:])] = known.view.value
            for place, number in self.derived:
                if number.of is known.tensor:
                    numbers[place] = number.value()
            self.numbers = numbers

    def numbers_for(self, like: Tensor) -> list[Tensor]:
        """The numbers that are in tensors, those of each neuron in a step's shape."""
        known, count = self.in_tensors, len(self.of_each)
        fits = len(known) > len(self.read) and known[0].shape == like.shape
        if count and not (fits and known[0].stride() == like.stride()):
            each = [torch.empty_like(like).copy_(numbers) for numbers in self.of_each.values()]
            self.in_tensors = known = [*each, *self.read]
        return known  # not the attribute, which another thread may have set since

    def spread_over(self, shape: torch.Size) -> bool:
        """Whether each neuron of a step of this shape has its numbers."""
        return all(spreads(each.shape, shape) for each in self.of_each.values())

    def stands_for(self, like: Tensor, pinned: Tensors) -> bool:
        """Whether it was made for a step like this."""
        same = self.dtype is like.dtype and self.device == (None if like.is_cpu else like.device)
        known = self.formats is not None or channels_last(like) is None
        return same and known and self.holds(pinned)

    def constant(self, needs: tuple[bool, ...]) -> list[int]:
        """:meth:`StepForm.constant`, remembered."""
        known = self._constants.get(needs)
        if known is None:
            known = self._constants[needs] = self.form.constant(needs)
        return known

    def placed(
        self, backward: BackwardLoop, rooms: Tensors, like: Tensor, *which: Any
    ) -> list[Tensor | None]:
        """The gradients by :meth:`StepForm.places` of ``which``, from a loop's rooms."""
        key = (backward, *which)
        known = self._places.get(key)
        if known is None:
            known = self._places[key] = self.form.places(backward, *which)
        return [
            rooms[place] if place >= 0 else None if place == NOTHING else torch.zeros_like(like)
            for place in known
        ]


def _float(number: Value | Derived) -> float:
    if isinstance(number, Derived):
        return number.value()
    if not isinstance(number, Tensor):
        return number
    return float(number.detach()) if on_host(number) else math.nan
