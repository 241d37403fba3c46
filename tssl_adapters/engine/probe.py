"""Whether a layer's record reproduces its library, found out on noise before it is relied upon.

The one place that answers this, for torch and for compiled kernels alike; what it found is kept in
the layer's settings.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from tssl_adapters.elementwise import identical
from tssl_adapters.engine.call.plan import Plan, Values
from tssl_adapters.engine.call.settings import OtherNeuronError, Settings
from tssl_adapters.engine.compiled import fused, takes
from tssl_adapters.engine.compiled.kernels import backend
from tssl_adapters.engine.step.recursion import charge, fires, state_after
from tssl_adapters.engine.torch.sequence import compute
from tssl_adapters.neuron import Neuron, Value

ENOUGH = 4096
"""How many values must match bit for bit before the record replaces the library."""
ROUNDS = 32
SAME_NEURON = 0.02
"""Share of a probe's values that rounding may push across the threshold."""
FAR = 16.0
"""From this size on, a threshold is probed separately from the potentials in use."""


class NativeForward(NamedTuple):
    """How to run the library's own forward pass without recording a graph.

    Attributes:
        input: the layer's input, ``[batch, ...]`` or ``[T, batch, ...]``.
        values: runs this call; returns spikes and potential (after every step if states are kept).
        probe: runs the layer, otherwise at rest and without its quantiser, on another input and
            potential; also returns the membrane's drive: ``(input, potential) -> drive, spikes,
            potential``.
        steady: whether it rounds the same way in every call. If it may not, e.g. because it is
            compiled as it runs, it is run even if the record reproduced it.
    """

    input: Tensor
    values: Values
    probe: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    steady: bool = True


class Record(NamedTuple):
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

    def reproduces(self, native: NativeForward) -> bool:
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
            *(value.dtype for value in neuron.tensors),
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
    def _try(self, native: NativeForward) -> bool:
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
            _probed(self.neuron.threshold, _limit(given, self.state)),
            range(min(ROUNDS, -(-ENOUGH // given.numel()))),
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
            same = same and all(identical(a, b) for a, b in pairs) and self._rounds_to(ours[1])
        # Of all rounds together: a round may be of one neuron, which rounding moves once.
        spikes, potentials = (sum(share) / len(shares) for share in zip(*shares, strict=True))
        if self.kernels is not None:  # if they differ, torch's operations on the record decide
            return same
        if max(spikes, potentials) > SAME_NEURON:
            raise OtherNeuronError(self._beyond_range() or self._differs(potentials, spikes))
        return same

    def _beyond_range(self) -> str | None:
        """What to say if the threshold is infinite in the potential's dtype alone."""
        threshold = torch.as_tensor(self.neuron.threshold)
        dtype = self.state.dtype
        if not (threshold.isfinite() & threshold.to(dtype).isinf()).any():
            return None
        return (
            f"Layer '{self.settings.path}' has a threshold of {float(threshold.max()):g}, which is "
            f"infinite in {dtype}, the dtype of its membrane potential. Give it an input of "
            "torch.float32 or a threshold below that dtype's largest number, or skip this layer."
        )

    def _differs(self, potentials: float, spikes: float) -> str:
        return (
            f"Layer '{self.settings.path}' does not compute the neuron that its adapter knows: on "
            f"a probe {potentials:.1%} of its membrane potentials and {spikes:.1%} of its spikes "
            "differ. Undo what was changed of it since it was wrapped, use a version of the "
            "library that tssl_adapters was tested with, make a layer of another neuron a class "
            "of its own, or skip this layer."
        )

    def _rounds_to(self, potential: Tensor) -> bool:
        """Whether the quantiser keeps the dtype, which that of the library's spikes may follow."""
        quantiser = self.neuron.quantiser
        return quantiser is None or quantiser(potential.new_zeros(1)).dtype == potential.dtype

    def _compute(self, drive: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if self.kernels is not None:
            return self.kernels.values(drive, state)
        neuron = replace(self.neuron, quantiser=None)  # the probe leaves it out
        if self.sequence:
            return compute(neuron, drive, state, self.keep_states)
        before, charged = charge(neuron, state, drive)
        spike = fires(neuron, charged)
        return spike, state_after(neuron, charged, spike, before)


def _limit(*tensors: Tensor) -> float:
    """From which size on noise around a number may be infinite in one of their dtypes."""
    return min(torch.finfo(tensor.dtype).max for tensor in tensors) / 8.0


def _probed(threshold: Value, limit: float) -> list[tuple[Tensor, Tensor]]:
    """The centres around which potentials are probed, with their widths.

    Around the threshold if that is below the limit, with its magnitude as the width, since floats
    are spaced in proportion; and around zero, where the potentials in use lie, if the first range
    hardly covers them.
    """
    if isinstance(threshold, Tensor):
        centre = threshold.detach()
    else:
        centre = torch.tensor(threshold, device="cpu")  # whatever the default device is
    finite = centre.abs() < limit
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


def compiled(
    call: Record, plan: Plan, drive: Tensor, trace: Tensor | None, native: NativeForward | None
) -> fused.Call | None:
    """The call for compiled kernels, if they support the layer and round as the library does (they
    may do so even where torch's operations on the record do not).
    """
    settings, neuron, sequence = call.settings, call.neuron, call.sequence
    kernels = backend(settings.engine)
    if kernels is None or (native is not None and not native.steady):
        return None
    step = drive.shape[1:] if sequence else drive.shape
    dense = takes.layout(kernels, drive, step, call.state, trace, neuron.tensors)
    if dense is None:
        return None
    key = (
        neuron.charge.formula, type(neuron.reset), neuron.timing, neuron.strict, neuron.quantiser,
        drive.dtype, drive.device, dense, sequence, plan.keep_states,
        None if native is None else native.input.dtype,
    )  # fmt: skip
    spec = settings.loops.get(key, key)
    if spec is key:
        found = None
        if takes.why_not(plan) is None:
            found = takes.call_of(plan, drive.dtype, dense, sequence, kernels, settings.path)
            if native is None:
                same = found.rounds_alike(drive, call.state)
            else:
                same = call._replace(kernels=found).reproduces(native)
            found = found if same else None
        settings.loops[key] = spec = None if found is None else found.spec
    if spec is None:
        return None
    return fused.Call(plan, spec, sequence, kernels, settings.path)
