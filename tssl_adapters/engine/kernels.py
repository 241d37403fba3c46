"""The interface of compiled kernels: what they are compiled for and what they compute.

A backend compiles and launches kernels; which calls it may take, what autograd keeps and what the
results mean is decided in :mod:`tssl_adapters.engine.fused`, for all backends alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from tssl_adapters.arithmetic import Line, Symbol
from tssl_adapters.neuron import Reset, Timing, Value
from tssl_adapters.rules import Rule

COMPILERS = {"cpu": "llvmlite", "triton": "triton"}
"""The package that each engine compiles with."""
DECAY, GAIN, OFFSET, THRESHOLD, RESET_VALUE = range(5)
GRAD_SPIKE = 3
"""The row of a link that holds G."""
ROWS = 8
"""How many numbers a neuron has: those five, then up to three of its charge's own."""


class Form(NamedTuple):
    """The compile-time constants of a neuron's step, besides its formulas.

    Attributes:
        dtype: name of the drive's dtype, e.g. ``"float32"``.
        dense: whether the numbers are given per neuron rather than once for all neurons.
        raw: how many numbers of its own the charge's formula takes.
        timing: as in :mod:`tssl_adapters.neuron`.
        strict: ``h > theta`` rather than ``>=``.
        psc: whether the output is the trace rather than the spikes.
        centred: index of the raw number that the decay is relative to, if not to 0.
        told: whether a backward pass is given h[t] instead of the drive.
        synapse: whether a synaptic current precedes the membrane; its leak is the last number.
    """

    dtype: str
    dense: bool
    raw: int
    timing: Timing
    strict: bool
    psc: bool
    centred: int | None = None
    told: bool = False
    synapse: bool = False


@dataclass(frozen=True, eq=False)
class Spec:
    """A neuron as kernels see it: charge and reset in plain arithmetic, and how they are combined.

    :func:`spec_of` makes one object per spec, because every call looks up what was compiled for it.
    """

    charge: Callable[..., Any]
    reset: Reset
    form: Form

    def shaped(self, **fields: Any) -> Spec:
        """The same neuron in another form."""
        return spec_of(self.charge, self.reset, self.form._replace(**fields))

    @cached_property
    def told(self) -> Spec:
        """The same neuron with a backward pass that is given h[t]."""
        return self.shaped(told=True)

    @cached_property
    def behind_a_synapse(self) -> Spec:
        """The same neuron with a synaptic current in front of it."""
        return self.shaped(synapse=True)


@cache
def spec_of(charge: Callable[..., Any], reset: Reset, form: Form) -> Spec:
    """The unique :class:`Spec` for these arguments."""
    return Spec(charge, reset, form)


class BackForm(NamedTuple):
    """The compile-time constants of a backward pass, besides the neuron.

    Attributes:
        output: whether the output has a gradient.
        learns: whether gradient sums for the neuron's own numbers are wanted.
        membrane: whether there is an adjoint of a loss on the membrane potential; without it
            c[t] and mu[t] are 0.
        detached: whether the library cuts the gradient through the reset.
        rule: the learning rule.
        ends: whether its last step is the window's last, for ``windowed`` rules.
        steps: the window's number of time steps, for rules that ask for it; not compiled in.
    """

    output: bool
    learns: bool
    membrane: bool
    detached: bool
    rule: Rule
    ends: bool = False
    steps: float = math.inf

    @property
    def variant(self) -> BackForm:
        """The part that is compiled in."""
        return self._replace(steps=math.inf)


class Synapse(NamedTuple):
    """A synaptic current in front of the membrane: i'[t] = i[t-1] + x[t], i[t] = i'[t] + k i'[t].

    Attributes:
        current: the incoming i ``[N]``.
        k: -dt/tau_syn, also the last of the numbers.
        leaked: buffer for i after the last step ``[N]``.
    """

    current: Tensor
    k: float
    leaked: Tensor


class Given(NamedTuple):
    """The inputs of a call: contiguous memory on one device.

    Attributes:
        steps: T.
        neurons: N.
        drive: ``[T, N]`` in any shape; h[t] if the form is ``told``.
        state: the incoming potential ``[N]``.
        trace: the incoming PSC ``[N]``; ``None`` for zero, or if the form is ``told``.
        numbers: the neuron's numbers, as made by :meth:`Backend.numbers`.
        tau_s: synaptic time constant in steps.
        earlier: whether ``state`` is h of the previous step, not yet reset.
        gate: from which a[t] on the rule counts a neuron as active, if it asks.
        synapse: the current that turns the drive into a charge, if a sequence's form has one.
        fired: 1 where a neuron fires in the window ``[N]``, for ``windowed`` rules.
    """

    steps: int
    neurons: int
    drive: Tensor
    state: Tensor
    trace: Tensor | None
    numbers: Any
    tau_s: float
    earlier: bool = False
    gate: float | None = None
    synapse: Synapse | None = None
    fired: Tensor | None = None


class Adjoints(NamedTuple):
    """The inputs and output buffers of a backward pass. ``None`` is zero, or not wanted.

    Attributes:
        out: gradient of the output ``[T, N]``, or ``[N]`` if it is the same at every time step.
        pace: stride of ``out`` over time: N, or 0.
        after: gradient of the potential after every step ``[T, N]``, or after the last one ``[N]``.
        stride: stride of ``after`` over time: N, or 0 if there is only one.
        link: lambda, F_v lambda and, with a delayed reset, F_v mu of the next call, and G if
            the rule looks ahead: :func:`link_rows` rows, ``[2 to 4, N]``.
        drive: gradient of the drive ``[T, N]``.
        chain: lambda, F_v lambda and G for the previous call, rows as in ``link``, whose memory it
            may share.
        through: F_v mu for the previous call ``[N]``; may share the link's memory.
        entering: the whole gradient of the incoming potential ``[N]``, if no link came in.
        trace: gradient of the incoming trace ``[N]``.
        sums: gradients of decay, gain, offset, threshold and reset value, per neuron, ``[5, N]``.
        leaked: gradient of the synaptic current after the last step ``[N]``, if there is one;
            the incoming current's gradient equals the first drive's.
    """

    out: Tensor | None
    pace: int
    after: Tensor | None
    stride: int
    link: Tensor | None
    drive: Tensor
    chain: Tensor | None
    through: Tensor | None
    entering: Tensor | None
    trace: Tensor | None
    sums: Tensor | None
    leaked: Tensor | None = None


class MismatchError(Exception):
    """The memory is not what a kernel was compiled for, so it is not called."""


def memory(tensor: Tensor) -> Tensor:
    """A tensor as contiguous memory, with a lazy permutation or negation resolved."""
    if tensor.is_contiguous() and not tensor.is_neg():
        return tensor
    return tensor.resolve_neg().contiguous()


def rows(values: Sequence[Value], leak: float | None = None) -> list[Value]:
    """A neuron's values as :data:`ROWS` numbers, padded with 0. The leak of a synaptic current is
    the last one.
    """
    found = [*values, *[0.0] * (ROWS - len(values))]
    return found if leak is None else [*found[:-1], leak]


def link_rows(timing: Timing, rule: Rule) -> int:
    """How many rows a link has, if there is one: the leading fields of
    :class:`tssl_adapters.engine.recursion.Carried`. Without a delay the third stays zero.
    """
    if rule.looks_ahead:
        return 4
    return 3 if timing == "delayed" else 2


class Backend(Protocol):
    """Kernels of one kind. On unsuitable memory they raise :class:`MismatchError` before launch."""

    name: str
    """The engine's name."""

    def takes(self, drive: Tensor) -> bool:
        """Whether it computes on tensors of this dtype, on this device."""

    def numbers(self, values: Sequence[Value], dense: bool, drive: Tensor, step: torch.Size) -> Any:
        """A neuron's :data:`ROWS` numbers as the kernels read them, a row each if ``dense``."""

    def forward(
        self,
        spec: Spec,
        given: Given,
        out: Tensor,
        after: Tensor,
        charged: Tensor | None,
        due: Tensor | None,
        keep: bool,
        again: bool,
    ) -> Tensor | None:
        """Write the output ``[T, N]`` and the potential (after every step if ``keep``); if given,
        also h[t] into ``charged [T, N]`` and, for a single step, r, the spike of an incoming
        potential whose reset is still due, into ``due [N]``.

        Returns:
            What to keep for :meth:`backward` if ``again`` says that one may follow. For a step
            with a trace and ``charged`` that is one bit per neuron, whether a[t] reaches the gate:
            :meth:`backward` will be given h[t] and no trace.
        """

    def backward(
        self,
        spec: Spec,
        back: BackForm,
        given: Given,
        kept: Tensor | None,
        adjoints: Adjoints,
    ) -> None:
        """Write the adjoints of a forward pass, which is recomputed."""

    def current(self, drive: Tensor, start: Tensor, k: float) -> Tensor:
        """i'[t] = i[t-1] + x[t] and i[t] = i'[t] + k i'[t], for ``[T, ...]`` and ``[...]``."""

    def current_back(self, grad_out: Tensor, k: float) -> Tensor:
        """The adjoint of :meth:`current`: from ``[T, ...]`` to the drive's gradient."""


@runtime_checkable
class StepBackend(Backend, Protocol):
    """A backend with unchecked loops for single steps at ``tau_s = 1``, and with a synaptic current
    in its neuron's loop.
    """

    def step_loop(self, spec: Spec) -> Callable[..., None]:
        """One forward step that also writes h[t]; the caller has checked the tensors:
        ``(drive, state, numbers, out, after, charged, due, current, leaked)``.
        """

    def step_back(
        self, spec: Spec, back: BackForm, given: Given, adjoints: Adjoints, current: bool
    ) -> Callable[..., None]:
        """One backward step from h[t], for memory like this; ``current``: whether the outgoing
        synaptic current has a gradient. The caller has checked the tensors:
        ``(charged, state, numbers, grad_out, grad_after, grad_current, link, room, steps)``.
        """


@runtime_checkable
class RowBackend(Backend, Protocol):
    """A backend that can compile any line."""

    def row_loop(
        self, line: Line, outputs: Mapping[str, Symbol], numbers: Sequence[str], dtype: torch.dtype
    ) -> tuple[Callable[..., None], tuple[str, ...]]:
        """A loop over neurons, and the names of its arguments: after the addresses of ``numbers``
        and ``"steps"`` it takes those of the inputs, and of the outputs prefixed with ``"to."``.
        """


@cache
def backend(engine: str) -> Backend | None:
    """The kernels of an engine, importing its compiler; plain torch has none.

    There are none either if a model is loaded where the compiler of its engine is missing.
    """
    if engine == "torch" or find_spec(COMPILERS[engine]) is None:
        return None
    if engine == "cpu":
        from tssl_adapters.engine.cpu.backend import CpuBackend

        return CpuBackend()
    from tssl_adapters.engine.triton.backend import TritonBackend

    return TritonBackend()


def plain(drive: Tensor) -> bool:
    """Whether a tensor is plain memory: not empty, no subclass, no active mode or transform."""
    return (
        type(drive) is Tensor
        and drive.numel() > 0
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
    )
