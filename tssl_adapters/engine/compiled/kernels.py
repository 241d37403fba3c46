"""The interface of compiled kernels: what they are compiled for and what they compute.

A backend compiles and launches kernels. Which calls it may take is decided in
:mod:`tssl_adapters.engine.compiled.takes`, what autograd keeps and what the results mean in
:mod:`tssl_adapters.engine.compiled.fused`, for all backends alike.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from tssl_adapters.arithmetic import Line, Symbol
from tssl_adapters.elementwise import cast
from tssl_adapters.engine.step.spec import ROWS, BackForm, Spec, looks_around
from tssl_adapters.engine.step.traced import Back
from tssl_adapters.neuron import Value

BITS = "bits"
"""The memory that says, eight neurons to a byte, which of them count as active by their PSC."""
LINK_NAME = "link"
LINKS = (LINK_NAME, f"to.{LINK_NAME}")
"""The tensors of more than one row: the parts of a link, as it comes in and as it goes out."""
RESULTS = {
    "chain": ("chain", "decayed_chain", "grad_spike"),
    "through": ("decayed_membrane",),
    "entering": ("entering",),
    "trace": ("grad_trace",),
}
"""The results of a backward step, by the field of :class:`Adjoints` whose memory holds them."""
COMPILERS = {"cpu": "llvmlite", "triton": "triton"}
"""The package that each engine compiles with."""


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


class Gate(NamedTuple):
    """From which number on which output of a step counts a neuron as active."""

    output: str
    least: float


class Given(NamedTuple):
    """The inputs of a call: contiguous memory on one device.

    Attributes:
        steps: T.
        neurons: N.
        drive: ``[T, N]`` in any shape; h[t] if the form is ``given_h``.
        state: the incoming potential ``[N]``.
        trace: the incoming PSC ``[N]``; ``None`` for zero, or if the form is ``given_h``.
        numbers: the neuron's numbers, as made by :meth:`Backend.numbers`.
        tau_s: synaptic time constant in steps.
        earlier: whether ``state`` is h of the previous step, not yet reset.
        gate: from which a[t] on the rule counts a neuron as active, if it asks.
        synapse: the current that turns the drive into a charge, if a sequence's form has one.
        fired: 1 where a neuron fires in the window ``[N]``, for ``windowed`` rules.
        window: the window's number of time steps, for rules that ask for it.
        turn: the tensors have the channels last, which are so many dimensions from the end of the
            layer's own; 0 if they are its own.
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
    window: float = math.inf
    turn: int = 0


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

    @classmethod
    def of(cls, tensor: Tensor, dtype: torch.dtype, count: int) -> MismatchError:
        """The error for a tensor that is not ``count`` values of a dtype in the right place."""
        return cls(
            f"{tuple(tensor.shape)} with strides {tensor.stride()} in {tensor.dtype} on "
            f"{tensor.device}, where a loop wants {count} values in {dtype}"
        )


def memory(tensor: Tensor, strides: tuple[int, ...] | None = None) -> Tensor:
    """A tensor as memory with these strides, by default contiguous, with a lazy permutation or
    negation resolved.
    """
    at_hand = tensor.is_contiguous() if strides is None else tensor.stride() == strides
    if at_hand and not tensor.is_neg():
        return tensor
    if strides is None:
        return tensor.resolve_neg().contiguous()
    return tensor.new_empty_strided(tensor.shape, strides).copy_(tensor)


def as_saved(
    tensor: Tensor,
    dtype: torch.dtype,
    shape: Sequence[int],
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """A tensor that autograd kept, as memory: the user's hooks may have saved it in another form.

    Raises:
        RuntimeError: a hook has given back another shape.
    """
    if tensor.shape != shape:
        raise RuntimeError(
            f"tssl_adapters: a hook on saved tensors gave back one of shape {tuple(tensor.shape)} "
            f"where {tuple(shape)} was saved. It has to undo what it did to the tensor."
        )
    return memory(cast(tensor, dtype), strides)


def rows(values: Sequence[Value], leak: float | None = None) -> list[Value]:
    """A neuron's values as :data:`ROWS` numbers, padded with 0. The leak of a synaptic current is
    the last one.
    """
    found = [*values, *[0.0] * (ROWS - len(values))]
    return found if leak is None else [*found[:-1], leak]


def tensor_of(name: str) -> tuple[str, int]:
    """The tensor that holds an input or output of a line, and the row: a link is one tensor."""
    tensor, _, row = name.rpartition(".")
    return (tensor, int(row)) if tensor in LINKS else (name, 0)


class Variant(NamedTuple):
    """What the code of a backward pass depends on.

    Attributes:
        spec: the neuron.
        back: the pass.
        absent: for each of the fields of :class:`Adjoints`, whether it is ``None``.
        each: whether the potential has a gradient after every step.
        single: whether there is one step.
        earlier: as in :class:`Given`.
        traced: whether a trace comes in.
        tau_s: as in :class:`Given`.
    """

    spec: Spec
    back: BackForm
    absent: tuple[bool, ...]
    each: bool
    single: bool
    earlier: bool
    traced: bool
    tau_s: float

    @classmethod
    def of(cls, spec: Spec, back: BackForm, given: Given, adjoints: Adjoints) -> Variant:
        """The variant for a call."""
        absent = tuple([room is None for room in adjoints])
        each, single, traced = adjoints.stride > 0, given.steps == 1, given.trace is not None
        return cls(spec, back, absent, each, single, given.earlier, traced, given.tau_s)

    def lacks(self, field: str) -> bool:
        """Whether a field of :class:`Adjoints` is ``None``."""
        return self.absent[Adjoints._fields.index(field)]

    @property
    def unwanted(self) -> frozenset[str]:
        """The results of a step that have no memory."""
        return frozenset(n for room, names in RESULTS.items() if self.lacks(room) for n in names)

    @property
    def form(self) -> Back:
        """The form of the backward step. What goes from step to step of a sequence starts as
        zeros.
        """
        back, linked = self.back, not self.lacks("link")
        late, sequence = self.spec.form.timing == "delayed", not self.single
        alone = not linked and self.lacks("chain")
        incoming: Literal["before"] | None = "before" if self.traced else None
        return Back(
            output=not self.lacks("out"),
            outside=not self.lacks("after"),
            current=self.spec.form.synapse,
            linked=linked,
            later=linked or sequence,
            membrane=(linked and late) or (sequence and back.membrane),
            traced=sequence,
            around=looks_around(back.rule, self.each, sequence, alone),
            learns=back.learns,
            adds=sequence,
            detached=back.detached,
            ends=back.ends,
            earlier=self.earlier,
            trace="after" if sequence or self.spec.form.given_h else incoming,
        )


class Passes(Protocol):
    """A call's forward and backward pass."""

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
        variant: Variant,
        given: Given,
        kept: Tensor | None,
        adjoints: Adjoints,
    ) -> None:
        """Write the adjoints of a forward pass, which is recomputed."""


class Again(Protocol):
    """A pass over whole sequences that was tried, for memory that was checked."""

    def __call__(
        self, steps: int, neurons: int, window: float, tensors: Sequence[Tensor | None], /
    ) -> None:
        """Compute it.

        Args:
            steps: T.
            neurons: N.
            window: the window's number of time steps.
            tensors: forward drive, state, current, out, the state and the current after the last
                step; backward drive, state, current, the gradients of out, of the state and link
                after the last step and of the current, then the buffers ``drive``, ``chain``,
                ``through`` and ``entering`` of :class:`Adjoints`. ``None`` is none.
        """


class RowLoop(Protocol):
    """A line, compiled for all neurons."""

    takes: tuple[str, ...]
    """The names of the tensors that it is called with: inputs, and outputs prefixed with ``"to."``,
    of one value per neuron each, or a row for each part of a link, and ``"bits"``, eight neurons to
    a byte.
    """

    def __call__(
        self, tensors: Sequence[Tensor], numbers: array[float], neurons: int, steps: float, /
    ) -> None:
        """Compute it.

        Args:
            tensors: as in ``takes``.
            numbers: the values of the line's numbers, in the loop's dtype.
            neurons: N.
            steps: the input ``"steps"``.
        """


class Backend(Passes, Protocol):
    """Kernels of one kind. On unsuitable memory they raise :class:`MismatchError` before launch."""

    name: str
    """The engine's name."""
    joins: bool
    """Whether its sequences can have a synaptic current in their neuron's loop."""

    @property
    def ways(self) -> tuple[Passes, ...]:
        """What is tried: itself and, if large sequences run other code, the same for any."""

    def takes(self, drive: Tensor) -> bool:
        """Whether it computes on tensors of this dtype, on this device."""

    def numbers(self, values: Sequence[Value], dense: bool, drive: Tensor, step: torch.Size) -> Any:
        """A neuron's :data:`ROWS` numbers as the kernels read them, a row each if ``dense``."""

    def forward_again(self, spec: Spec, numbers: Any) -> Again | None:
        """A sequence's forward pass without a PSC and without keeping states; ``None`` if there is
        no shorter way than :meth:`forward`.
        """

    def backward_again(self, variant: Variant, paced: bool, numbers: Any) -> Again | None:
        """The backward pass of a sequence without a PSC, a window or sums, likewise. ``paced``:
        whether the output's gradient differs between time steps.
        """

    def current(self, drive: Tensor, start: Tensor, k: float) -> Tensor:
        """i'[t] = i[t-1] + x[t] and i[t] = i'[t] + k i'[t], for ``[T, ...]`` and ``[...]``."""

    def current_back(self, grad_out: Tensor, k: float) -> Tensor:
        """The adjoint of :meth:`current`: from ``[T, ...]`` to the drive's gradient."""

    def row_loop(
        self,
        line: Line,
        outputs: Mapping[str, Symbol],
        numbers: Sequence[str],
        read: Collection[str],
        dtype: torch.dtype,
        gate: Gate | None = None,
    ) -> RowLoop:
        """A line for all neurons; the caller checks the tensors.

        Args:
            line: the operations. Inputs are one value per neuron; ``"active"`` is read from
                ``"bits"``.
            outputs: results by name.
            numbers: the inputs that are one number for all neurons.
            read: those of them that are read from a tensor of that name instead of being handed
                over.
            dtype: dtype of inputs and outputs.
            gate: if given, ``"bits"`` are written: whether its output reaches it.
        """


@cache
def backend(engine: str) -> Backend | None:
    """The kernels of an engine, importing its compiler; plain torch has none.

    There are none either if a model is loaded where the compiler of its engine is missing.
    """
    if engine == "torch" or find_spec(COMPILERS[engine]) is None:
        return None
    found: Backend = import_module(f"tssl_adapters.engine.{engine}.backend").KERNELS
    return found
