"""Compiled single steps of cells: recurrent and adaptive neurons, and those with a custom charge.

What a step computes, forward and backward, is recorded once from what torch computes
(:mod:`tssl_adapters.engine.step.cell`), compiled, and tested against the layer's own step: the
forward pass bit for bit, all gradients up to rounding. As in
:mod:`tssl_adapters.engine.compiled.thin`, a step then only checks that what was decided still
holds.
"""

from __future__ import annotations

import logging
import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from tssl_adapters.elementwise import cast, derived, identical, on_host
from tssl_adapters.engine.call.once import first_order
from tssl_adapters.engine.call.pins import Pin, Pins, can_be_pinned, is_memory, pin, records_plainly
from tssl_adapters.engine.call.plan import EngineFunction, nothing
from tssl_adapters.engine.call.settings import Position, Settings
from tssl_adapters.engine.call.state import Charged, charged_of, let_go, packed, tag
from tssl_adapters.engine.call.window import going_on, length
from tssl_adapters.engine.compiled import launch
from tssl_adapters.engine.compiled.kernels import Gate, RowBackend, RowLoop, backend, memory
from tssl_adapters.engine.compiled.memory import spreads
from tssl_adapters.engine.step.cell import Cell, Lines, lines
from tssl_adapters.neuron import Value

_log = logging.getLogger(__name__)

_TYPES = {torch.float32: "f", torch.float64: "d"}
ROWS = 4
"""A step is tested on this many times ``launch.NEURONS`` neurons."""
SHAPE = (2, 3)
"""The shape in which torch is asked what it computes, if all neurons have the same numbers."""

Tensors: TypeAlias = Sequence[Tensor]


class Ran(NamedTuple):
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


LongWay: TypeAlias = "Callable[[Settings, Tensors, Tensors, Tensor | None], Ran]"
"""``(settings, inputs, states, trace) -> results``: a layer's step as torch computes it."""


class CellSteps:
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
        loops: RowBackend,
        like: Tensor,
        pinned: Tensors,
    ) -> None:
        self.settings, self.dtype = settings, like.dtype
        self.device = _device(like)
        # The cell's functions are not kept: they may hold on to a step's states and their graph.
        self.num_inputs, self.num_states = cell.inputs, cell.states
        self.pins = [pin(tensor) for tensor in pinned]
        self.sources = found.sources
        self.names = [f"n{k}" for k in range(len(found.numbers))]
        self.numbers = array(_TYPES[self.dtype], map(_float, found.numbers))
        self.learned = {name: pin(tensor) for name, tensor in found.learned.items()}
        self.of_each = {f"p{k}": tensor.detach() for k, tensor in enumerate(found.spread)}
        self.spread: dict[str, Tensor] = {}
        """The same numbers in the shape of a step."""
        self.read = {name: tensor.detach() for name, tensor in found.read.items()}
        self.links = found.links
        self.key = (self,)
        self.content = (tuple(found.line.operations), tuple(found.back.operations))

        self.traced = "trace" in found.outputs
        gate = settings.rule.active_from(settings.tau_s) if self.traced else None
        self.flagged = gate is not None
        """Whether a bit per neuron is kept of the PSC."""

        def loop(line: Any, outputs: Any, gate: Gate | None = None) -> RowLoop:
            read = self.read.keys()
            return loops.row_loop(line, outputs, self.names, read, self.dtype, gate)

        given = [*(f"x{k}" for k in range(cell.inputs)), *(f"s{k}" for k in range(cell.states))]
        self.given = [*given, *(["trace"] if self.traced else []), *found.learned]
        self.results = [name for name in found.outputs if name not in ("h", "due", "psc")]
        self.reached = [(name, found.reached[name]) for name in self.results]
        """For each result of a step, the names of ``given`` that its gradient reaches."""
        self.kept = ["h", *found.kept, *(["bits"] if self.flagged else [])]
        copies = [name for name in found.kept if name.startswith("s")]
        self.copied = [int(name[1:]) for name in copies]
        outputs = found.outputs | {f"own.{name}": found.outputs[name] for name in copies}
        self.functions = [
            (f.name, f.compute, loop(found.line, {f.name: f.argument})) for f in found.functions
        ]
        self.outputs = [*outputs]
        links = (f"l{k}" for k in range(self.links))
        self.told = [*(f"g.{name}" for name in self.results), *links]
        """What comes in from the later steps, by its name in the backward line."""
        judged = "psc" if "psc" in outputs else "out"
        self.forward = loop(found.line, outputs, None if gate is None else Gate(judged, gate))
        grads = {
            name: symbol
            for name, symbol in found.grads.items()
            if found.back.operations[symbol.place].name != "number" or name.startswith("l")
        }
        first = {s.place: name for name, s in reversed(grads.items()) if name[0] != "l"}
        self.room = {n: n if n[0] == "l" else first[s.place] for n, s in grads.items()}
        """Whose memory holds a gradient: equal symbols share it, except for the link's."""
        self.backward = loop(found.back, {name: grads[name] for name in self.room.values()})

    def fits(
        self, inputs: Tensors, states: Tensors, pinned: Tensors, trace: Tensor | None = None
    ) -> bool:
        """Whether what was decided holds for this step, and a graph is to be recorded."""
        shape = inputs[0].shape
        for tensor in (*inputs, *states, *(() if trace is None else (trace,))):
            if not is_memory(tensor, self.dtype, self.device) or tensor.shape != shape:
                return False
        if not all(spreads(numbers.shape, shape) for numbers in self.of_each.values()):
            return False
        return records_plainly() and shape.numel() > 0 and self.holds(pinned)

    def holds(self, pinned: Tensors) -> bool:
        """Whether the neuron's numbers are unchanged, or are read at each step."""
        if len(pinned) != len(self.pins):
            return False
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
                self.learned[name], self.spread = Pins.of(known.tensor), {}
        elif known.view is not None and self.numbers[int(name[1:])] != known.view.value:
            self.numbers = array(self.numbers.typecode, self.numbers)
            self.numbers[int(name[1:])] = known.view.value

    def spread_over(self, like: Tensor) -> dict[str, Tensor]:
        """The numbers of each neuron, in a step's shape."""
        if any(numbers.shape != like.shape for numbers in self.spread.values()):
            self.spread = {}
        if len(self.spread) < len(self.of_each):
            self.spread = {
                name: torch.empty_like(like).copy_(numbers)
                for name, numbers in self.of_each.items()
            }
        return self.spread

    def stands_for(self, like: Tensor, pinned: Tensors) -> bool:
        """Whether it was made for a step like this."""
        same = self.dtype is like.dtype and self.device == _device(like)
        return same and self.holds(pinned)

    def run(
        self,
        inputs: Tensors,
        states: Tensors,
        trace: Tensor | None = None,
        fresh: bool = False,
    ) -> Ran:
        """Run a step that :meth:`fits`. ``trace``: a[t-1], ``None`` for zero; ``fresh``: the states
        were made for this call.
        """
        settings, v = self.settings, states[0]
        parts, position = going_on(settings, v, self.links, fresh)
        let_go(v)
        link = packed(parts)
        before = [charged_of(states[k], self.key) for k in self.copied]
        learned = [known.tensor for known in self.learned.values()]
        left: dict[str, Tensor] = {}
        traces = [torch.zeros_like(states[0]) if trace is None else trace] if self.traced else []
        given = (self, before, position, left, link, *inputs, *states, *traces, *learned)
        results = CellFunction.apply(*given)
        made = dict(zip(self.results, results, strict=False))
        new_link = results[len(self.results) :]
        after = [made[f"s{k}"] for k in range(self.num_states)]
        if position is not None:
            settings.last = position = position.after(1, None)
        new_trace, recorded = made.get("trace"), after[0].requires_grad
        copied = self.copied if recorded else ()
        kept = {k: Charged(left[f"own.s{k}"], self.key, after[k]) for k in copied}
        if recorded or new_trace is not None:
            tag(after[0], new_link if recorded else (), new_trace, position, kept.pop(0, None))
        for k, own in kept.items():
            tag(after[k], (), None, None, own)
        return Ran(made["out"], after, new_trace, made.get("spike"), left.get("due"))


class CellFunction(EngineFunction):
    """``(decided, own copies of states, position, left, link, *inputs, *states, trace, *learned
    numbers) -> *results, link``. What has no gradient is left in ``left``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        decided: CellSteps,
        before: Sequence[Tensor | None],
        position: Position | None,
        left: dict[str, Tensor],
        link: Tensor | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        x, inputs, count = tensors[0], decided.num_inputs, decided.num_states
        named = {f"x{k}": t for k, t in enumerate(tensors[:inputs])}
        states = tensors[inputs : inputs + count]
        named |= {f"s{k}": t for k, t in enumerate(states)}
        if decided.traced:
            named["trace"] = tensors[inputs + count]
        spread = decided.spread_over(x)
        named |= decided.read | spread
        numbers = decided.numbers
        for name, compute, loop in decided.functions:
            named[f"to.{name}"] = named[name] = torch.empty_like(x)
            loop(named, numbers, x.numel())
            compute(named[name])
        made = {name: torch.empty_like(x) for name in decided.outputs}
        named |= {f"to.{name}": tensor for name, tensor in made.items()}
        if decided.flagged:
            named["bits"] = x.new_empty(-(-x.numel() // 8), dtype=torch.uint8)
        decided.forward(named, numbers, x.numel())
        for k, own in zip(decided.copied, before, strict=True):
            if own is not None:
                named[f"s{k}"] = own
        ctx.decided, ctx.position = decided, position
        ctx.numbers, ctx.spread = numbers, spread
        ctx.linked = link is not None
        named["h"] = made["h"]
        ctx.save_for_backward(*(named[name] for name in decided.kept), *decided.sources)
        ctx.set_materialize_grads(False)
        needed = {
            n for n, need in zip(decided.given, ctx.needs_input_grad[5:], strict=True) if need
        }
        constant = (made[name] for name, reached in decided.reached if not needed & reached)
        ctx.mark_non_differentiable(*constant)
        left |= made
        links = (nothing(x, (decided.links, *x.shape)),) if decided.links else ()
        return *(made[name] for name in decided.results), *links

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        decided: CellSteps = ctx.decided
        named = {
            # Hooks may have saved them in another form.
            name: memory(cast(tensor, torch.uint8 if name == "bits" else decided.dtype))
            for name, tensor in zip(decided.kept, ctx.saved_tensors, strict=False)
        }
        named |= decided.read | ctx.spread
        h, results = named["h"], len(decided.results)
        link = grads[results] if decided.links else None
        rows = [None] * decided.links if link is None else memory(link).unbind()
        told = (*grads[:results], *rows)
        zeros = torch.zeros_like(h) if any(grad is None for grad in told) else h
        for name, grad in zip(decided.told, told, strict=True):
            named[name] = zeros if grad is None else memory(grad)
        room = {name: torch.empty_like(h) for name in decided.room.values()}
        chain = h.new_empty((decided.links, *h.shape)) if decided.links else None
        room |= {f"l{k}": chain[k] for k in range(decided.links)} if chain is not None else {}
        named |= {f"to.{name}": tensor for name, tensor in room.items()}
        steps = length(ctx.position)
        decided.backward(named, ctx.numbers, h.numel(), steps)

        arrived: set[str] = set()
        for (name, reached), grad in zip(decided.reached, told, strict=False):
            if grad is not None or (name == "s0" and link is not None):
                arrived |= reached

        def found(name: str) -> Tensor | None:
            if name not in arrived:  # e.g. the input of a last step that acts in the next one
                # Norse has a hook on recurrent weights, which takes no None.
                return torch.zeros_like(h) if name == "x1" else None
            own = "s0.linked" if name == "s0" and ctx.linked else name
            grad = room[decided.room[own]] if own in decided.room else None
            known = decided.learned.get(name)
            return grad if known is None else _summed(grad, known.tensor)

        own_link = chain if ctx.linked else None
        return *(None,) * 4, own_link, *map(found, decided.given)


def _device(like: Tensor) -> torch.device | None:
    """A tensor's device, ``None`` for the CPU, as :func:`is_memory` takes it."""
    return None if like.is_cpu else like.device


def _summed(terms: Tensor | None, like: Tensor) -> Tensor | None:
    if terms is None:
        return None
    total = terms.sum().reshape(like.shape) if like.numel() == 1 else terms.sum_to_size(like.shape)
    return total.to(like)


def may_compile(settings: Settings, like: Tensor) -> bool:
    """Whether it is worth trying to compile steps in this dtype."""
    return (
        like.dtype in _TYPES
        and settings.loops.get(_key(like)) is not False
        and settings.compiles_steps
        and records_plainly()
    )


def _key(like: Tensor) -> tuple[Any, ...]:
    return CellSteps, like.dtype, like.device


def compiled_steps(
    settings: Settings,
    make: Callable[[], Cell],
    inputs: Tensors,
    states: Tensors,
    trace: Tensor | None,
    pinned: Tensors,
    long_way: LongWay,
) -> CellSteps | None:
    """What was, or now is, decided about a layer's steps, if it holds for this step; ``None`` if
    torch is to compute it.

    Args:
        settings: the layer's.
        make: makes the cell that describes a step in torch.
        inputs: the step's inputs.
        states: the potential before it, and the other states.
        trace: the PSC before it, ``None`` for zero.
        pinned: the tensors from which, with the layer's attributes, its numbers are computed.
        long_way: the step in torch, against which the loops are tested.
    """
    # A layer whose numbers once did not learn may have another short way.
    found = settings.thin if isinstance(settings.thin, CellSteps) else None
    if found is not None and found.fits(inputs, states, pinned, trace):
        return found
    if not may_compile(settings, inputs[0]):
        return None
    if found is None or not found.stands_for(inputs[0], pinned):
        given = (*inputs, *states)
        with derived():
            settings.thin = found = _decided(settings, make, given, pinned, long_way)
    return found if found is not None and found.fits(inputs, states, pinned, trace) else None


def _decided(
    settings: Settings,
    make: Callable[[], Cell],
    given: Tensors,
    pinned: Tensors,
    long_way: LongWay,
) -> CellSteps | None:
    """What can be decided about a layer's steps from one with these inputs and states."""
    like, loops = given[0], backend(settings.engine)
    if not isinstance(loops, RowBackend) or not loops.takes(like):
        return None
    if not can_be_pinned([tensor for tensor in pinned if on_host(tensor)]):
        return None
    if not all(is_memory(t, like.dtype, like.device) and t.shape == like.shape for t in given):
        return None
    key = _key(like)
    known = settings.loops.get(key)
    settings.loops[key] = False  # until proven otherwise
    try:
        cell = make()
        alone = all(tensor.numel() == 1 for tensor in pinned)
        example = like.new_empty(SHAPE) if alone else like
        written = lines(cell, settings.rule, example, settings.tau_s)
    except Exception:  # a step may call anything in torch, and a stand-in may not suit it
        _log.debug("layer '%s': torch computes its steps", settings.path, exc_info=True)
        return None
    if {*map(id, written.sources)} - {*map(id, pinned)}:
        return None
    if not written.reached["out"] & {"s0", *(f"x{k}" for k in range(cell.inputs))}:
        # TorchScript may have specialised the library's step to a form that hides its derivative.
        _log.debug("layer '%s': torch computes its steps, whose gradient is hidden", settings.path)
        return None
    try:
        steps = CellSteps(settings, cell, written, loops, like, pinned)
        if known != steps.content and not _holds(steps, cell, long_way, like):
            return None
    except Exception as error:  # compilers may raise anything
        _warn(settings, f"cannot be run ({type(error).__name__}: {error})")
        return None
    settings.loops[key] = steps.content
    return steps


@torch.enable_grad()
def _holds(decided: CellSteps, cell: Cell, long_way: LongWay, like: Tensor) -> bool:
    """Whether two steps from noise match torch's bit for bit, and their gradients up to
    rounding.
    """
    learned = [known.tensor for known in decided.learned.values()]
    generator, shape = torch.Generator().manual_seed(0), _tried(decided, like)

    def noise() -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu").to(like)

    states = [noise() for _ in range(cell.states)]
    inputs = [noise() for _ in range(2 * cell.inputs)]
    for k, given in enumerate(inputs):
        if k % cell.inputs >= cell.inputs - cell.gates:
            given.sigmoid_()
    with torch.no_grad():
        level = torch.as_tensor(cell.threshold(inputs[: cell.inputs], states)).to(like)
        # An infinite threshold would make noise around it infinite, and the trial worthless.
        level = level.nan_to_num(0.0, 0.0, 0.0)
        width = level.abs().clamp(min=1.0)
        states[0] = level + states[0] * width
        inputs = [given * width for given in inputs]
    start = noise().abs() if decided.traced else None
    leaves = [t.requires_grad_() for t in (*inputs, *states, start) if t is not None]

    def went(way: LongWay) -> tuple[list[Tensor], list[Tensor]]:
        settings = replace(decided.settings, loops={}, last=None, warned=True, watched=True)
        now: Tensors = states
        first, trace = inputs[: cell.inputs], start
        # A PSC that begins has the dtype of the library's spikes, which a later one may promote.
        found = [way(settings, first, now, None).out] if decided.traced else []
        for x in (first, inputs[cell.inputs :]):
            ran = way(settings, x, now, trace)
            now, trace = ran.states, ran.trace
            found += [ran.out, *([] if ran.spike is None else [ran.spike])]
        found += [*now, *([] if trace is None else [trace])]
        to = [*leaves, *learned]
        generator.manual_seed(1)
        weights = [noise() for _ in found]
        grads = torch.autograd.grad(found, to, weights, allow_unused=True)
        zeros = (torch.zeros_like(leaf) for leaf in to)
        return found, [z if g is None else g for g, z in zip(grads, zeros, strict=True)]

    def short_way(
        settings: Settings, inputs: Tensors, states: Tensors, trace: Tensor | None
    ) -> Ran:
        decided.settings = settings
        return decided.run(inputs, states, trace)

    own = decided.settings
    try:
        try:
            theirs, expected = went(long_way)
        except Exception:  # the step itself will raise it again
            return False
        values, grads = went(short_way)
    finally:
        decided.settings = own
    if not all(map(identical, values, theirs)):  # the library rounds otherwise, as its kernels may
        _log.debug("layer '%s': torch computes its steps, as it rounds otherwise", own.path)
        return False
    if not launch.alike(grads, expected):
        _warn(own, "does not give what torch gives")
        return False
    return True


def _tried(decided: CellSteps, like: Tensor) -> tuple[int, ...]:
    """The shape of the trial: as many neurons as are enough, of which each has its numbers."""
    if not decided.of_each:
        return ROWS, launch.NEURONS
    each = like.shape[1:]
    if like.ndim < 2 or not all(spreads(t.shape, each) for t in decided.of_each.values()):
        return like.shape
    return -(-ROWS * launch.NEURONS // each.numel()), *each


def _warn(settings: Settings, why: str) -> None:
    launch.warn_of(settings.path, f"step of engine={settings.engine!r}", why)


def _float(number: Value) -> float:
    if not isinstance(number, Tensor):
        return number
    return float(number.detach()) if on_host(number) else math.nan
