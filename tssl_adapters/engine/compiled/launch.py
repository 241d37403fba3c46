"""The only place that calls kernels, after testing them.

Each compiled variant is tested once per process, before its first use, on some neurons against
:mod:`tssl_adapters.engine.compiled.reference`. If it gives different results or cannot be compiled,
torch replaces it, with a warning. A backend given memory that a kernel was not compiled for raises
:class:`tssl_adapters.engine.compiled.kernels.MismatchError` instead of calling it, and torch
computes that call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from tssl_adapters.engine.call.plan import Plan, working_dtype
from tssl_adapters.engine.call.settings import above_us
from tssl_adapters.engine.compiled import reference
from tssl_adapters.engine.compiled.kernels import (
    Adjoints,
    Backend,
    Given,
    MismatchError,
    Passes,
    Variant,
    rows,
)
from tssl_adapters.engine.compiled.reference import Reference, for_neurons
from tssl_adapters.engine.step.spec import LEARNED, RESET_VALUE, BackForm, Spec, link_rows
from tssl_adapters.errors import EngineWarning

NEURONS, STEPS = 1031, 4
"""How many neurons and time steps a variant is tested on: more than one block of vectors, and
enough to reach a rule's bounds.
"""
LINES = 1040
"""As many, of which every row begins with a cache line, as large sequences are to have it."""
STRAY = 1
"""How many neurons may differ because of rounding at the threshold."""
OUT_OF_REACH = 1e6
"""From this size on, a threshold is there to have no spikes."""

_tried: dict[Hashable, bool] = {}


class Kernels(Protocol):
    """What computes a layer: see :class:`tssl_adapters.engine.compiled.fused.Call`."""

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
    due: Tensor | None,
    again: bool,
) -> tuple[Tensor | None, bool]:
    """Run :meth:`Backend.forward`, or torch; also returns whether it was the backend."""
    backend, spec, keep = kernels.backend, kernels.spec, kernels.plan.keep_states
    keeps_h = charged is not None
    single, traced, gate = given.steps == 1, given.trace is not None, given.gate
    key = (backend.name, spec, keep, keeps_h, single, traced, given.tau_s, gate)
    good = _tried.get(key)
    if good is None:
        good = _try(kernels, key, "forward", partial(_forward_holds, kernels, given, keeps_h))
    if good:
        try:
            return backend.forward(spec, given, out, after, charged, due, keep, again), True
        except MismatchError:
            pass
    by_torch = Reference(kernels.plan)
    return by_torch.forward(spec, given, out, after, charged, due, keep, again), False


def backward(
    kernels: Kernels,
    spec: Spec,
    back: BackForm,
    given: Given,
    kept: Tensor | None,
    compiled: bool,
    adjoints: Adjoints,
) -> bool:
    """Run :meth:`Backend.backward`, or torch; returns whether it was the backend. ``compiled``:
    whether kernels computed the forward pass.
    """
    backend, variant = kernels.backend, Variant.of(spec, back, given, adjoints)
    key = (backend.name, variant)
    good = _tried.get(key) if compiled else False
    if good is None:
        holds = partial(_backward_holds, kernels, variant, given, adjoints)
        good = _try(kernels, key, "backward", holds)
    if good:
        try:
            backend.backward(variant, given, kept, adjoints)
            return True
        except MismatchError:
            pass
    Reference(kernels.plan).backward(variant, given, kept, adjoints)
    return False


class Current(NamedTuple):
    """Computes a synaptic current whose leak is one number.

    Attributes:
        path: the layer's.
        backend: the kernels.
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
    """Standard normal numbers with a tensor's dtype and device, the same in every process."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.generator = torch.Generator(like.device).manual_seed(0)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        found = torch.randn(shape, generator=self.generator, device=self.like.device)
        return found.to(self.like.dtype if dtype is None else dtype)


def _try(kernels: Kernels | Current, key: Hashable, name: str, holds: Callable[[], bool]) -> bool:
    """Test whether a variant gives what torch gives, and remember it; warns if it does not."""
    try:
        good, why = holds(), "does not give what torch gives"
    except Exception as error:  # compilers may raise anything
        good, why = False, f"cannot be run ({type(error).__name__}: {error})"
    _tried[key] = good
    if not good:
        what = f"{name} pass of engine={kernels.backend.name!r} for {key[1:]}"  # type: ignore[index]
        warn_of(kernels.path, what, why, ", here and in every layer like this one")
    return good


def warn_of(path: str, what: str, why: str, where: str = "") -> None:
    """Warn that a trial of compiled code failed."""
    warnings.warn(
        f"tssl_adapters: layer '{path}': in a trial before its first use the compiled {what} "
        f"{why}. Torch computes it instead{where}; nothing is lost but time. Please report it, "
        "with the versions of what this engine compiles with.",
        EngineWarning,
        stacklevel=above_us(),
    )


def around(threshold: Tensor) -> tuple[Tensor, Tensor]:
    """What a trial's noise is around, and how wide it is. Much narrower than a threshold is far
    from 0 it would be rounding, and around one that nothing reaches it says nothing.
    """
    level = threshold.where(threshold.abs() < OUT_OF_REACH, 0.0)
    return level, level.abs().clamp(min=1.0)


def _few(
    kernels: Kernels, given: Given, steps: int, neurons: int, noise: _Noise
) -> tuple[Plan, Given]:
    """A few of a call's neurons, around their threshold, with noise as the drive."""
    like = given.state
    chosen = torch.arange(neurons, device=like.device) % given.neurons
    neuron = for_neurons(kernels.plan.neuron, given, False, chosen)
    # As kernels have them: of numbers in half precision torch would compute others in that.
    exact = [v.to(like.dtype) if isinstance(v, Tensor) else v for v in neuron.values()]
    neuron = neuron.with_values(exact)
    level, width = around(torch.as_tensor(neuron.threshold, dtype=like.dtype, device=like.device))
    state = level + noise(neurons) * width
    traced = kernels.spec.form.psc and (steps > 1 or given.trace is not None)
    trace = noise(neurons).abs() if traced else None
    drive = noise(steps, neurons) * width
    dense, synapse = kernels.spec.form.dense, given.synapse
    if synapse is not None:
        current = noise(neurons) * width
        synapse = synapse._replace(current=current, leaked=noise(neurons))
    values = rows(neuron.values(), None if synapse is None else synapse.k)
    numbers = kernels.backend.numbers(values, dense, drive, drive.shape[1:])
    fired = None
    if given.fired is not None:
        fired = (noise(neurons, dtype=given.fired.dtype) > 0).to(given.fired)
    few = Given(
        steps,
        neurons,
        drive,
        state,
        trace,
        numbers,
        given.tau_s,
        gate=given.gate,
        synapse=synapse,
        fired=fired,
        window=given.window,
    )
    return kernels.plan._replace(neuron=neuron), few


def _tried_on(kernels: Kernels, given: Given) -> list[tuple[Passes, int, int]]:
    """The kernels that are tried for a call, with the time steps and neurons of a trial."""
    if given.steps == 1:
        return [(kernels.backend, 1, NEURONS)]
    sizes = (NEURONS, LINES)
    return [(way, STEPS, n) for way, n in zip(kernels.backend.ways, sizes, strict=False)]


def _forward_holds(kernels: Kernels, given: Given, keeps_h: bool) -> bool:
    for way, steps, neurons in _tried_on(kernels, given):
        plan, few = _few(kernels, given, steps, neurons, _Noise(given.drive))
        if few.synapse is not None and not _charges_alike(plan, kernels, way, few):
            return False
        both = (way, Reference(plan))
        if not _agree(*(_went(plan, kernels.spec, passes, few, keeps_h)[0] for passes in both)):
            return False
    return True


def _charges_alike(plan: Plan, kernels: Kernels, way: Passes, few: Given) -> bool:
    """Whether a loop with a synapse matches, bit for bit, torch's current followed by the loop
    without one, which is known to match the library.
    """
    assert few.synapse is not None
    charging = reference.charging(few)
    expected = [few.synapse.leaked.clone()]
    plain = kernels.spec.shaped(synapse=False)
    expected += _went(plan, plain, way, charging, False)[0]
    found = _went(plan, kernels.spec, way, few, False)[0]
    return all(map(torch.equal, [few.synapse.leaked, *found], expected))


def _went(
    plan: Plan, spec: Spec, passes: Passes, few: Given, keeps_h: bool
) -> tuple[list[Tensor], Given, Tensor | None]:
    """What a forward pass writes, the backward pass's inputs, and what is kept for it."""
    keep = plan.keep_states
    out, after = torch.empty_like(few.drive), torch.empty_like(few.drive if keep else few.state)
    charged = torch.empty_like(few.drive) if keeps_h else None
    late = few.steps == 1 and spec.form.timing != "immediate"
    due = torch.empty_like(few.drive[0]) if late else None
    kept = passes.forward(spec, few, out, after, charged, due, keep, True)
    written = [out, after, *([] if due is None else [due])]
    if few.synapse is not None:
        written.append(few.synapse.leaked.clone())
    if charged is None:
        return written, few, kept
    bits = [] if kept is None else [kept]
    return [*written, charged, *bits], few._replace(drive=charged, trace=None), kept


def _backward_holds(kernels: Kernels, variant: Variant, given: Given, like: Adjoints) -> bool:
    tried = _tried_on(kernels, given)
    return all(_goes_back(kernels, variant, given, like, *each) for each in tried)


def _goes_back(
    kernels: Kernels,
    variant: Variant,
    given: Given,
    like: Adjoints,
    way: Passes,
    steps: int,
    neurons: int,
) -> bool:
    """Whether a backward pass of so many steps and neurons is torch's."""
    spec, back, keep = variant.spec, variant.back, kernels.plan.keep_states
    noise, form = _Noise(given.drive), spec.form
    plan, few = _few(kernels, given, steps, neurons, noise)
    grad_out = noise(steps, neurons) if back.output else None
    shape = (steps, neurons) if keep else (neurons,)
    grad_after = noise(*shape) if like.after is not None else None
    late, linked = form.timing == "delayed", like.link is not None
    link = noise(link_rows(form.timing, back.rule), neurons, dtype=working_dtype(given.drive))
    if not late:
        link[2:3] = 0.0
    leaked = None if like.leaked is None else noise(neurons)
    found = []
    for passes in (way, Reference(plan)):
        _, start, kept = _went(plan, kernels.spec, passes, few, form.given_h)
        chain = link.clone()
        adjoints = Adjoints(
            grad_out,
            neurons,
            grad_after,
            neurons if keep and grad_after is not None else 0,
            chain if linked else None,
            torch.empty_like(few.drive),
            None if like.chain is None else chain,
            None if like.through is None else (chain[2] if late else torch.empty_like(chain[0])),
            None if like.entering is None else torch.empty_like(chain[0]),
            None if like.trace is None else torch.empty_like(chain[0]),
            chain.new_empty(LEARNED, neurons) if back.learns else None,
            leaked,
        )
        start = start._replace(earlier=given.earlier)
        passes.backward(variant, start, kept, adjoints)
        sums = adjoints.sums
        if sums is not None and not spec.reset.numbered:
            sums = sums[:RESET_VALUE]  # there is no such number
        _, _, _, _, _, *written = adjoints._replace(sums=sums, leaked=None)
        found.append([t for t in written if t is not None])
    ours, theirs = found
    return _agree(ours, theirs, plan.neuron.tensors)


def alike(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None]) -> bool:
    """Whether two computations, of any shape, agree up to rounding, wherever the second one has a
    number.
    """
    for one, other in zip(ours, theirs, strict=True):
        if one is not None and other is not None:
            rounding = torch.finfo(one.dtype).eps ** 0.5
            scale = rounding * float(other.abs().nan_to_num(0.0, 0.0).max())
            near = torch.isclose(one, other, rounding, scale)
            if not bool((near | other.isnan()).all()):
                return False
    return True


def _agree(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], numbers: Sequence[Tensor] = ()
) -> bool:
    """Whether two ways to compute the same differ by rounding, but for a stray neuron.

    Torch computes what follows from a neuron's numbers in their precision, kernels in float32 at
    least.
    """
    coarse = max((torch.finfo(number.dtype).eps for number in numbers), default=0.0)
    return all(_alike(*pair, coarse) for pair in zip(ours, theirs, strict=True))


def _alike(ours: Tensor, theirs: Tensor, coarse: float) -> bool:
    if not ours.dtype.is_floating_point:
        return int((ours != theirs).sum()) <= STRAY
    eps = torch.finfo(ours.dtype).eps
    rounding = max(eps**0.5, 16.0 * coarse)
    ours, theirs = (t.double().view(-1, ours.shape[-1]) for t in (ours, theirs))
    # Sums that cancel, in one step or in all, are only as precise as their terms.
    scale = theirs.abs().nan_to_num(0.0, 0.0).amax(0)
    near = torch.isclose(ours, theirs, rounding, 0.0, equal_nan=True)
    near |= (ours - theirs).abs() <= torch.maximum(rounding * scale, 16.0 * eps * scale.max())
    return int((~near.all(0)).sum()) <= STRAY
