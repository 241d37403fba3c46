"""The one place from which kernels are called, and why they may be.

Each compiled variant is tried once in a process, before its first use: on a few neurons, against
:mod:`tssl_adapters.engine.reference`. Where it gives something else, or cannot be compiled, torch
takes its place, with a warning. And a backend that is given memory which is not what a kernel was
compiled for raises :class:`tssl_adapters.engine.kernels.MismatchError` instead of calling it: torch
computes that call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from tssl_adapters.engine import reference
from tssl_adapters.engine.kernels import (
    RESET_VALUE,
    ROWS,
    Adjoints,
    Backend,
    BackForm,
    Given,
    MismatchError,
    Slope,
    Spec,
)
from tssl_adapters.engine.plan import LEARNED, Plan, working_dtype
from tssl_adapters.engine.reference import Reference, for_neurons
from tssl_adapters.engine.state import above_us
from tssl_adapters.errors import EngineWarning

NEURONS, STEPS = 101, 4
"""How many neurons and time steps a variant is tried on: more than fill a vector, and some over."""
SLOPE = Slope(2.0, 0.4)
"""A bound that a good part of the slopes reach, and a fallback that is wide enough to be seen."""
STRAY = 1
"""Neurons that rounding at the threshold may send another way."""

_tried: dict[Hashable, bool] = {}


class Kernels(Protocol):
    """What computes a layer: see :class:`tssl_adapters.engine.fused.Call`."""

    @property
    def path(self) -> str: ...
    @property
    def backend(self) -> Backend: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def spec(self) -> Spec: ...


def forward(
    kernels: Kernels,
    given: Given,
    out: Tensor,
    after: Tensor,
    charged: Tensor | None,
    again: bool,
) -> tuple[Tensor | None, bool]:
    """:meth:`Backend.forward`, and whether it was that, not torch."""
    backend, spec, keep = kernels.backend, kernels.spec, kernels.plan.keep_states
    key = (backend.name, spec, keep, charged is not None)
    good = _tried.get(key)
    if good is None:
        good = _try(kernels, key, "forward", partial(_forward_holds, kernels, given, key[-1]))
    if good:
        try:
            return backend.forward(spec, given, out, after, charged, keep, again), True
        except MismatchError:
            pass
    by_torch = Reference(kernels.plan)
    return by_torch.forward(spec, given, out, after, charged, keep, again), False


def backward(
    kernels: Kernels,
    spec: Spec,
    back: BackForm,
    slope: Slope,
    given: Given,
    kept: Tensor | None,
    compiled: bool,
    adjoints: Adjoints,
) -> None:
    """:meth:`Backend.backward`, after a forward pass that was ``compiled`` or was not."""
    backend = kernels.backend
    key = (backend.name, spec, back)
    good = _tried.get(key) if compiled else False
    if good is None:
        good = _try(kernels, key, "backward", partial(_backward_holds, kernels, spec, back, given))
    if good:
        try:
            backend.backward(spec, back, slope, given, kept, adjoints)
            return
        except MismatchError:
            pass
    Reference(kernels.plan).backward(spec, back, slope, given, kept, adjoints)


class Current(NamedTuple):
    """What computes a synaptic current that one number leaks.

    Attributes:
        path: the layer's.
        backend: its kernels.
        k: -dt/tau_syn.
    """

    path: str
    backend: Backend
    k: float

    def run(self, drive: Tensor, start: Tensor) -> Tensor:
        """:meth:`Backend.current`."""
        return self._called("current", drive, start, self.k)

    def back(self, grad_out: Tensor) -> Tensor:
        """:meth:`Backend.current_back`."""
        return self._called("current_back", grad_out, self.k)

    def _called(self, name: str, like: Tensor, *rest: Any) -> Tensor:
        kernel: Callable[..., Tensor] = getattr(self.backend, name)
        by_torch: Callable[..., Tensor] = getattr(reference, name)
        key = (self.backend.name, name, like.dtype)
        good = _tried.get(key)
        if good is None:
            noise = _Noise(like)
            few = (noise(STEPS, NEURONS), *(noise(NEURONS) for _ in rest[1:]), self.k)
            good = _try(self, key, name, lambda: _agree([kernel(*few)], [by_torch(*few)]))
        if good:
            try:
                return kernel(like, *rest)
            except MismatchError:
                pass
        return by_torch(like, *rest)


class _Noise:
    """Standard normal numbers like a tensor's, the same in every process."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.generator = torch.Generator(like.device).manual_seed(0)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        found = torch.randn(shape, generator=self.generator, device=self.like.device)
        return found.to(self.like.dtype if dtype is None else dtype)


def _try(kernels: Kernels | Current, key: Hashable, name: str, holds: Callable[[], bool]) -> bool:
    """Whether a variant gives what torch gives, remembered; warns where it does not."""
    try:
        good, why = holds(), "does not give what torch gives"
    except Exception as error:  # of a compiler, which may be any
        good, why = False, f"cannot be run ({type(error).__name__}: {error})"
    _tried[key] = good
    if not good:
        warnings.warn(
            f"tssl_adapters: layer '{kernels.path}': on a trial before its first use the compiled "
            f"{name} pass of engine={kernels.backend.name!r} for {key[1:]} {why}. "  # type: ignore[index]
            "Torch computes it instead, here and in every layer like this one; nothing is lost but "
            "time. Compiled code on disk may be damaged: empty numba's or Triton's cache.",
            EngineWarning,
            stacklevel=above_us(),
        )
    return good


def _few(kernels: Kernels, given: Given, steps: int, noise: _Noise) -> tuple[Plan, Given]:
    """A few of a call's neurons, around their threshold, with noise for a drive."""
    like = given.state
    chosen = torch.arange(NEURONS, device=like.device) % given.neurons
    neuron = for_neurons(kernels.plan.neuron, given, False, chosen)
    level = torch.as_tensor(neuron.threshold, dtype=like.dtype, device=like.device)
    state = torch.where(level.isfinite(), level, 0.0) + noise(NEURONS)
    trace = noise(NEURONS).abs() if kernels.spec.form.psc else None
    drive = noise(steps, NEURONS)
    values = [*neuron.values(), *[0.0] * (ROWS - len(neuron.values()))]
    dense = kernels.spec.form.dense
    numbers = kernels.backend.numbers(values, dense, drive, drive.shape[1:])
    few = Given(steps, NEURONS, drive, state, trace, numbers, given.tau_s)
    return kernels.plan._replace(neuron=neuron), few


def _forward_holds(kernels: Kernels, given: Given, tells: bool) -> bool:
    plan, few = _few(kernels, given, 1 if tells else STEPS, _Noise(given.drive))
    both = (kernels.backend, Reference(plan))
    return _agree(*(_went(plan, kernels.spec, backend, few, tells)[0] for backend in both))


def _went(
    plan: Plan, spec: Spec, backend: Backend, few: Given, tells: bool
) -> tuple[list[Tensor], Given, Tensor | None]:
    """What a forward pass writes, what a backward pass is given, and what is kept for it."""
    keep = plan.keep_states
    out, after = torch.empty_like(few.drive), torch.empty_like(few.drive if keep else few.state)
    charged = torch.empty_like(few.drive) if tells else None
    kept = backend.forward(spec, few, out, after, charged, keep, True)
    if charged is None:
        return [out, after], few, kept
    bits = [] if kept is None else [kept]
    return [out, after, charged, *bits], few._replace(drive=charged, trace=None), kept


def _backward_holds(kernels: Kernels, spec: Spec, back: BackForm, given: Given) -> bool:
    noise, form, keep = _Noise(given.drive), spec.form, kernels.plan.keep_states
    steps = 1 if form.told else STEPS
    plan, few = _few(kernels, given, steps, noise)
    grad_out = noise(steps, NEURONS) if back.output else None
    shape = (steps, NEURONS) if keep else (NEURONS,)
    grad_after = noise(*shape) if back.membrane else None
    late = form.timing == "delayed"
    linked = back.membrane or not late  # else the link's F_v mu would make a membrane's adjoint
    link = noise(3 if late else 2, NEURONS, dtype=working_dtype(given.drive))
    found = []
    for backend in (kernels.backend, Reference(plan)):
        _, start, kept = _went(plan, kernels.spec, backend, few, form.told)
        chain = link.clone()
        adjoints = Adjoints(
            grad_out,
            NEURONS,
            grad_after,
            NEURONS if keep and back.membrane else 0,
            chain if linked else None,
            torch.empty_like(few.drive),
            chain,
            chain[2] if late else torch.empty_like(chain[0]),
            torch.empty_like(chain[0]) if form.psc else None,
            chain.new_empty(LEARNED, NEURONS) if back.learns else None,
        )
        start = start._replace(earlier=given.earlier)
        backend.backward(spec, back, SLOPE, start, kept, adjoints)
        sums = adjoints.sums
        if sums is not None and form.kind != "value":
            sums = sums[:RESET_VALUE]  # there is no such number
        written = (adjoints.drive, chain, adjoints.through, adjoints.trace, sums)
        found.append([t for t in written if t is not None])
    return _agree(*found)


def _agree(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Whether two ways to compute the same differ by rounding, but for a stray neuron."""
    return all(map(_alike, ours, theirs))


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    if not ours.dtype.is_floating_point:
        return int((ours != theirs).sum()) <= STRAY
    rounding = torch.finfo(ours.dtype).eps ** 0.5
    ours, theirs = (t.double().view(-1, NEURONS) for t in (ours, theirs))
    # Sums that cancel out are as precise as what they were summed from.
    scale = theirs.abs().nan_to_num(0.0, 0.0).amax(0)
    near = torch.isclose(ours, theirs, rounding, 0.0, equal_nan=True)
    near |= (ours - theirs).abs() <= rounding * scale
    return int((~near.all(0)).sum()) <= STRAY
