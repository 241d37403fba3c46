"""What compiled kernels of a call are made for, and what they are asked to do.

A backend knows how to compile and launch; which call it may take, what autograd keeps and what the
results mean is the business of :mod:`tssl_adapters.engine.fused`, the same for all of them.
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
"""What an engine compiles with."""
DECAY, GAIN, OFFSET, THRESHOLD, RESET_VALUE = range(5)
GRAD_SPIKE = 3
"""Row of a link that is G."""
ROWS = 8
"""A neuron's numbers: those five, then up to three of its charge's own."""


class Form(NamedTuple):
    """What is fixed of a neuron's step when its kernels are compiled, beside its formulas.

    Attributes:
        dtype: name of the drive's dtype, ``"float32"``, say.
        dense: whether a neuron's numbers are given one by one rather than once for all neurons.
        raw: how many numbers of its own the charge's formula takes.
        timing: as in :mod:`tssl_adapters.neuron`.
        strict: ``h > theta`` rather than ``>=``.
        psc: whether the output is the trace rather than the spikes.
        centred: which of those numbers the decay counts from, if not from 0.
        told: whether a backward pass is given h[t] in the drive's place.
        synapse: whether there is a synaptic current in front of the membrane, whose leak is the
            last of the numbers.
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
    """A neuron as kernels know it: charge and reset in plain arithmetic, and how they are put
    together.

    Made by :func:`spec_of`, one object each, because what is compiled for one is looked up in every
    call.
    """

    charge: Callable[..., Any]
    reset: Reset
    form: Form

    def shaped(self, **fields: Any) -> Spec:
        """The same neuron in another form."""
        return spec_of(self.charge, self.reset, self.form._replace(**fields))

    @cached_property
    def told(self) -> Spec:
        """The same neuron, whose backward pass is given h[t]."""
        return self.shaped(told=True)

    @cached_property
    def behind_a_synapse(self) -> Spec:
        """The same neuron with a synaptic current in front of it."""
        return self.shaped(synapse=True)


@cache
def spec_of(charge: Callable[..., Any], reset: Reset, form: Form) -> Spec:
    """The one :class:`Spec` of these."""
    return Spec(charge, reset, form)


class BackForm(NamedTuple):
    """What is fixed of a backward pass beside the neuron.

    Attributes:
        output: whether the output has a gradient.
        learns: whether sums for the neuron's own numbers are wanted.
        membrane: whether there is an adjoint of a loss on the membrane potential; without it
            c[t] and mu[t] are 0.
        detached: whether the library cuts the gradient through the reset.
        rule: the learning rule.
        ends: whether its last step is the window's last, for rules that are ``windowed``.
        steps: how many time steps its window has, for rules that ask for it; no part of what is
            compiled.
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
        """What is compiled."""
        return self._replace(steps=math.inf)


class Synapse(NamedTuple):
    """A synaptic current in front of the membrane: i'[t] = i[t-1] + x[t], i[t] = i'[t] + k i'[t].

    Attributes:
        current: the incoming i ``[N]``.
        k: -dt/tau_syn, the last of the numbers too.
        leaked: room for i after the last step ``[N]``.
    """

    current: Tensor
    k: float
    leaked: Tensor


class Given(NamedTuple):
    """What a call is computed from: contiguous memory on one device.

    Attributes:
        steps: T.
        neurons: N.
        drive: ``[T, N]`` in whatever shape; h[t] where the form says ``told``.
        state: the incoming potential ``[N]``.
        trace: the incoming PSC ``[N]``, ``None`` for zero, and where the form says ``told``.
        numbers: the neuron's, as :meth:`Backend.numbers` made them.
        tau_s: synaptic time constant in steps.
        earlier: whether ``state`` is h of the step before, not yet reset.
        gate: what a[t] has to reach for the rule to count a neuron as active, if it asks.
        synapse: what makes a charge of the drive, where the form of a sequence has it.
        fired: 1 where a neuron fires in the window ``[N]``, for rules that are ``windowed``.
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
    """What a backward pass starts from and where it writes to. ``None`` is zero, or not wanted.

    Attributes:
        out: gradient of the output ``[T, N]``, or ``[N]`` where every time step has the same.
        pace: how far the time steps of ``out`` lie apart: N, or 0.
        after: gradient of the potential after every step ``[T, N]``, or after the last one ``[N]``.
        stride: how far the time steps of ``after`` lie apart: N, or 0 where there is one.
        link: lambda, F_v lambda and, with a delayed reset, F_v mu of the call after, and G where
            the rule looks ahead, :func:`link_rows` of them ``[2 to 4, N]``.
        drive: gradient of the drive ``[T, N]``.
        chain: lambda, F_v lambda and G for the call before, rows like those of the link, where it
            may lie.
        through: F_v mu for the call before ``[N]``; may lie where the link lies.
        entering: the whole gradient of the potential that came in ``[N]``, where no link did.
        trace: gradient of the incoming trace ``[N]``.
        sums: gradients of decay, gain, offset, threshold and reset value, neuron by neuron,
            ``[5, N]``.
        leaked: gradient of the synaptic current after the last step ``[N]``, where there is one;
            that of the incoming current is the one of the first drive.
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
    """Memory is not what a kernel was compiled for: the call is not made."""


def memory(tensor: Tensor) -> Tensor:
    """A tensor as memory in a row: what torch only notes of it, an order or a sign, done."""
    if tensor.is_contiguous() and not tensor.is_neg():
        return tensor
    return tensor.resolve_neg().contiguous()


def rows(values: Sequence[Value], leak: float | None = None) -> list[Value]:
    """A neuron's values as :data:`ROWS` numbers: those that it has not are 0. The leak of a
    synaptic current is the last one.
    """
    found = [*values, *[0.0] * (ROWS - len(values))]
    return found if leak is None else [*found[:-1], leak]


def link_rows(timing: Timing, rule: Rule) -> int:
    """How many rows a link has, where there is one: the first of those that
    :class:`tssl_adapters.engine.recursion.Carried` has. The third stays zero without delay.
    """
    if rule.looks_ahead:
        return 4
    return 3 if timing == "delayed" else 2


class Backend(Protocol):
    """Kernels of one kind. All of them raise :class:`MismatchError` before they are launched."""

    name: str
    """The engine that they are."""

    def takes(self, drive: Tensor) -> bool:
        """Whether it computes on tensors of this dtype, on this device."""

    def numbers(self, values: Sequence[Value], dense: bool, drive: Tensor, step: torch.Size) -> Any:
        """A neuron's :data:`ROWS` numbers as its kernels read them, a row each where ``dense``."""

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
        """Write the output ``[T, N]``, the potential, after every step where ``keep``, and h[t]
        into ``charged [T, N]``, and of a step r, the spike of an incoming potential whose reset is
        still due, into ``due [N]``, where there are these.

        Returns:
            What it wants kept for :meth:`backward`, where ``again`` says that one may follow. Of a
            step with a trace and ``charged`` that is whether a[t] reaches the gate, a bit a
            neuron: :meth:`backward` will be told h[t] and no trace.
        """

    def backward(
        self,
        spec: Spec,
        back: BackForm,
        given: Given,
        kept: Tensor | None,
        adjoints: Adjoints,
    ) -> None:
        """The adjoints of a forward pass, which it computes anew."""

    def current(self, drive: Tensor, start: Tensor, k: float) -> Tensor:
        """i'[t] = i[t-1] + x[t] and i[t] = i'[t] + k i'[t], for ``[T, ...]`` and ``[...]``."""

    def current_back(self, grad_out: Tensor, k: float) -> Tensor:
        """The adjoint of :meth:`current`: from ``[T, ...]`` to the drive's gradient."""


@runtime_checkable
class StepBackend(Backend, Protocol):
    """A backend with loops of single steps that can be called without a further look, at
    ``tau_s = 1``, and with a synaptic current in the loop of its neuron.
    """

    def step_loop(self, spec: Spec) -> Callable[..., None]:
        """One step forward that tells h[t], to be called with tensors that are right:
        ``(drive, state, numbers, out, after, charged, due, current, leaked)``.
        """

    def step_back(
        self, spec: Spec, back: BackForm, given: Given, adjoints: Adjoints, current: bool
    ) -> Callable[..., None]:
        """One step back from h[t], for memory like this, and where the synaptic current that it
        hands on has a gradient, to be called with tensors that are right:
        ``(charged, state, numbers, grad_out, grad_after, grad_current, link, room, steps)``.
        """


@runtime_checkable
class RowBackend(Backend, Protocol):
    """A backend that compiles a line as it is."""

    def row_loop(
        self, line: Line, outputs: Mapping[str, Symbol], numbers: Sequence[str], dtype: torch.dtype
    ) -> tuple[Callable[..., None], tuple[str, ...]]:
        """A loop over neurons, and what it takes, by address, after the addresses of its
        ``numbers`` and of ``"steps"``: inputs, and outputs with ``"to."`` before their names.
        """


@cache
def backend(engine: str) -> Backend | None:
    """The kernels of an engine, importing what they are compiled with; plain torch has none.

    Nor has a model that was saved where there was more, and loaded where there is not.
    """
    if engine == "torch" or find_spec(COMPILERS[engine]) is None:
        return None
    if engine == "cpu":
        from tssl_adapters.engine.cpu.backend import CpuBackend

        return CpuBackend()
    from tssl_adapters.engine.triton.backend import TritonBackend

    return TritonBackend()


def plain(drive: Tensor) -> bool:
    """Whether a tensor is plain memory: not empty, no subclass, no mode or transform at work."""
    return (
        type(drive) is Tensor
        and drive.numel() > 0
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
    )
