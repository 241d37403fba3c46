"""Decides how a layer's single steps are compiled, and tries the loops before their first use."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from tssl_adapters.elementwise import derived, identical, on_host
from tssl_adapters.engine.call.pins import are_memory, can_be_pinned, channels_last, records_plainly
from tssl_adapters.engine.call.settings import Settings
from tssl_adapters.engine.compiled import launch
from tssl_adapters.engine.compiled.form import Stepped
from tssl_adapters.engine.compiled.kernels import Backend, backend
from tssl_adapters.engine.compiled.memory import spreads
from tssl_adapters.engine.compiled.steps import TYPES, Steps
from tssl_adapters.engine.step.cell import Cell, Tensors, lines

_log = logging.getLogger(__name__)

TIMES = 4
"""A step is tested on this many times ``launch.NEURONS`` neurons."""
SHAPE = (2, 3)
"""The shape in which torch is asked what it computes, if all neurons have the same numbers."""

ByTorch: TypeAlias = "Callable[[Settings, Tensors, Tensors, Tensor | None], Stepped]"


class Described(NamedTuple):
    """A layer's step, for whoever compiles it.

    Attributes:
        cell: makes the cell that describes it in torch.
        pinned: the tensors from which, with the layer's attributes, its numbers are computed.
        by_torch: ``(settings, inputs, states, trace) -> results``: the step as torch computes it,
            against which the loops are tried. ``attach`` knows that of a layer with a linear
            charge, unless its numbers have a graph to what learns, which serves one trial.
    """

    cell: Callable[[], Cell]
    pinned: Tensors
    by_torch: ByTorch | None = None


def may_compile(settings: Settings, like: Tensor) -> bool:
    """Whether it is worth trying to compile steps in this dtype."""
    return (
        like.dtype in TYPES
        and settings.loops.get(_key(like)) is not False
        and settings.compiles_steps
        and records_plainly()
    )


def _key(like: Tensor) -> tuple[Any, ...]:
    return Steps, like.dtype, like.device


def compiled_step(
    settings: Settings,
    described: Described,
    inputs: Tensors,
    states: Tensors,
    trace: Tensor | None,
    fresh: bool = False,
) -> Stepped | None:
    """The results of a layer's step by what was, or now is, decided about its steps; ``None`` if
    torch is to compute it.

    Args:
        settings: the layer's.
        described: the step.
        inputs: its inputs.
        states: the potential before it, and the other states.
        trace: the PSC before it, ``None`` for zero.
        fresh: whether the states were made for this call; then they may be 0-dimensional.
    """
    found = settings.decided if isinstance(settings.decided, Steps) else None
    pinned = described.pinned
    if fresh:  # numbers for all neurons
        # One that is given keeps its shape, which natively decides that of the results, and graph.
        states = [s if s.ndim else s.expand(inputs[0].shape).contiguous() for s in states]
    if found is None or not found.fits(inputs, states, pinned, trace):
        if not may_compile(settings, inputs[0]):
            return None
        if found is None or not found.stands_for(inputs[0], pinned):
            with derived(), inputs[0].device:  # whatever the default device is
                found = _decided(settings, described, (*inputs, *states))
            settings.decided = found
        if found is None or not found.fits(inputs, states, pinned, trace):
            return None
    return found.run(inputs, states, trace, fresh)


def _decided(settings: Settings, described: Described, given: Tensors) -> Steps | None:
    """What can be decided about a layer's steps from one with these inputs and states."""
    like, loops, pinned = given[0], backend(settings.engine), described.pinned
    if loops is None or not loops.takes(like):
        return None
    if not can_be_pinned([tensor for tensor in pinned if on_host(tensor)]):
        return None
    if not are_memory(given, like.dtype, like.device):
        return None
    if any(tensor.ndim > like.ndim for tensor in pinned):
        return None
    if not like.ndim and any(torch.result_type(like, tensor) != like.dtype for tensor in pinned):
        return None  # without dimensions, they promote it
    key = _key(like)
    known = settings.loops.pop(key, None)
    steps = _tried(settings, described, like, loops, known)
    settings.loops[key] = False if steps is None else steps.content
    return steps


def _tried(
    settings: Settings, described: Described, like: Tensor, loops: Backend, known: Any
) -> Steps | None:
    """The layer's steps, compiled and tried; ``known``: the content of those that were before."""
    pinned, by_torch = described.pinned, described.by_torch
    assert by_torch is not None
    try:
        cell = described.cell()
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
    made = settings, cell, written, loops, like, pinned
    try:
        steps = Steps(*made)
        if known != steps.content and not _passes_trial(steps, cell, by_torch, like):
            return None
        if channels_last(like) is not None:
            steps = Steps(*made, formats=_keeps_format(settings, cell, by_torch, like))
    except Exception as error:  # compilers may raise anything
        _warn(settings, f"cannot be run ({type(error).__name__}: {error})")
        return None
    return steps


def _passes_trial(decided: Steps, cell: Cell, by_torch: ByTorch, like: Tensor) -> bool:
    """Whether two steps from noise match torch's bit for bit, and their gradients up to
    rounding. A number's gradient is a sum over neurons, which may happen to cancel to rounding, but
    hardly from other noise as well.
    """
    own = decided.settings

    def by_loops(
        settings: Settings, inputs: Tensors, states: Tensors, trace: Tensor | None
    ) -> Stepped:
        decided.settings = settings
        return decided.run(inputs, states, trace)

    for seed in (0, 2):
        try:
            theirs, expected = _went(by_torch, decided, cell, like, seed)
        except Exception:  # the step itself will raise it again
            _log.debug("layer '%s': torch cannot compute its trial", own.path, exc_info=True)
            return False
        try:
            values, grads = _went(by_loops, decided, cell, like, seed)
        finally:
            decided.settings = own
        if not all(map(identical, values, theirs)):  # as the library's kernels may
            _log.debug("layer '%s': torch computes its steps, as it rounds otherwise", own.path)
            return False
        if launch.alike(grads, expected):
            return True
    _warn(own, "does not give what torch gives")
    return False


@torch.enable_grad()
def _went(
    way: ByTorch, decided: Steps, cell: Cell, like: Tensor, seed: int
) -> tuple[list[Tensor], list[Tensor]]:
    """What two steps from noise give one way, and the gradients of a weighted sum of that."""
    learned = [known.tensor for known in decided.learned.values()]
    dtypes = [like.dtype, *(t.dtype for t in decided.pinned if t.is_floating_point())]
    # What torch computes from a number is as precise as that.
    coarse = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    generator, shape = torch.Generator().manual_seed(seed), _trial_shape(decided, like)

    def noise() -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu").to(like)

    states = [noise() for _ in range(cell.states)]
    inputs = [noise() for _ in range(2 * cell.inputs)]
    for k, given in enumerate(inputs):
        if k % cell.inputs >= cell.inputs - cell.gates:
            given.sigmoid_()
    with torch.no_grad():
        threshold = torch.as_tensor(cell.threshold(inputs[: cell.inputs], states))
        level, width = launch.around(threshold.to(like))
        states[0] = level + states[0] * width
        inputs = [given * width for given in inputs]
    start = noise().abs() if decided.traced else None
    leaves = [t.requires_grad_() for t in (*inputs, *states, start) if t is not None]

    settings = _aside(decided.settings)
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
    generator.manual_seed(seed + 1)
    # One number: given gradients of the outputs, torch would first import sympy.
    total = torch.stack([(value * noise()).sum() for value in found]).sum()
    grads = torch.autograd.grad(total, to, allow_unused=True)
    zeros = (torch.zeros_like(leaf) for leaf in to)
    both = zip(grads, zeros, strict=True)
    return found, [(zero if grad is None else grad).to(coarse) for grad, zero in both]


def _aside(settings: Settings) -> Settings:
    """A layer's settings for steps in torch that neither warn nor leave anything behind."""
    return replace(settings, engine="torch", loops={}, warned=True, watched=True)


def _keeps_format(settings: Settings, cell: Cell, by_torch: ByTorch, like: Tensor) -> bool:
    """Whether a step's results in torch lie in memory as ``like`` does, which ours do."""
    settings = _aside(settings)
    given = [torch.ones_like(like) for _ in range(cell.inputs + cell.states)]
    ran = by_torch(settings, given[: cell.inputs], given[cell.inputs :], None)
    return all(result.stride() == like.stride() for result in (ran.out, *ran.states))


def _trial_shape(decided: Steps, like: Tensor) -> tuple[int, ...]:
    """As many neurons as are enough, of which each has its numbers, in as many dimensions as the
    layer's.
    """
    if not decided.of_each:
        shape = (*(1,) * (like.ndim - 2), TIMES, launch.NEURONS)
        return shape[-like.ndim :] if like.ndim else shape
    each = like.shape[1:]
    if like.ndim < 2 or not all(spreads(t.shape, each) for t in decided.of_each.values()):
        return like.shape
    return -(-TIMES * launch.NEURONS // each.numel()), *each


def _warn(settings: Settings, why: str) -> None:
    launch.warn_of(settings.path, f"step of engine={settings.engine!r}", why)
