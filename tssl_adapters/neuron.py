"""The record of a neuron: what the engine needs to know of a layer, from whatever library.

One step of a neuron, with the carried state ``v``, the drive ``x`` and the spike ``s``:

==============  =======================================  ==================================
timing          charge                                   state handed to the next step
==============  =======================================  ==================================
``immediate``   h = decay v + gain x + offset            u = reset(h, s)
``delayed``     r = spike of v; h = charge(reset(v, r))  h (its own reset comes a step later)
``both``        r = spike of v; h = charge(reset(v, r))  u = reset(h, s - r)
==============  =======================================  ==================================

SpikingJelly and Norse reset immediately; snnTorch's ``reset_delay=True`` is ``delayed`` and
``reset_delay=False`` is ``both``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, TypeVar

from torch import Tensor

Value: TypeAlias = "float | Tensor"
Timing: TypeAlias = Literal["immediate", "delayed", "both"]


F = TypeVar("F", bound=Callable[..., Any])


def computes(plain: Callable[..., Any]) -> Callable[[F], F]:
    """Give a formula's computation for one neuron in plain arithmetic, in the same order.

    Compiled loops are generated from it. It takes the formula's arguments as numbers, writes
    numbers as floats, and calls nothing. A formula that is so itself is marked
    :func:`tssl_adapters.arithmetic.arithmetic` instead.
    """

    def mark(formula: F) -> F:
        formula.plain = plain  # type: ignore[attr-defined]
        return formula

    return mark


def plainly(formula: Callable[..., Any]) -> Callable[..., Any] | None:
    """A formula in plain arithmetic: itself, if it is :func:`arithmetic`, or what :func:`computes`
    gave it.
    """
    return formula if getattr(formula, "arithmetic", False) else getattr(formula, "plain", None)


@dataclass(frozen=True)
class LinearCharge:
    """``h = decay * (v - centre) + gain * x + offset``.

    ``decay``, ``gain`` and ``offset`` broadcast against one step ``[batch, ...]`` and may carry a
    graph to the library's parameters: the engine differentiates with respect to them.
    ``formula(v, x, *raw)`` computes the same charge in the library's own order of operations, so
    that it can be recomputed bit for bit. The centre is 0 or, with ``centred``, that element of
    ``raw``, which then has no graph: a potential may be far from 0 and close to what it decays to.
    """

    decay: Value
    gain: Value
    offset: Value
    formula: Callable[..., Tensor]
    raw: tuple[Value, ...] = ()
    centred: int | None = None


class AtReset(NamedTuple):
    """The gradients at a step's threshold and reset, ``[batch, ...]``; ``None`` is zero.

    Attributes:
        firing: the gradient of the potential through the spike.
        due: where the potential is reset, s or s - r.
        after: the gradient of the potential after the reset.
        before: r, where a reset was due at the charge.
        charged: the gradient of h.
        decay: the decay of the potential per step.
        delayed: whether the step's own reset comes only with the next step.
        along: whether a reset moves along with the threshold.
    """

    firing: Tensor
    due: Tensor
    after: Tensor | None
    before: Tensor | None
    charged: Tensor | None
    decay: Value
    delayed: bool
    along: bool


class Reset:
    """What a spike does to the potential; :mod:`tssl_adapters.resets` has each kind's arithmetic.

    It takes tensors ``[batch, ...]`` or symbols. ``due`` is 1 where a reset is due, else 0; with
    timing ``both`` it is -1 where one was done and no spike followed. The methods here are those of
    a reset that does nothing.
    """

    happens: ClassVar[bool] = True
    """Whether a spike does anything to the potential."""
    numbered: ClassVar[bool] = False
    """Whether there is a :attr:`number`."""
    follows_charge: ClassVar[bool] = False
    """Whether a delayed reset is done after the next charge."""
    stepwise: ClassVar[bool] = False
    """Whether :meth:`at` recomputes the number at each step."""

    @property
    def number(self) -> Value:
        """The reset's own number, besides the threshold."""
        return 0.0

    def with_number(self, number: Value) -> Reset:
        """The same reset with another number."""
        return self

    @property
    def target(self) -> Value | None:
        """The value to which a spike sets the potential; ``None`` if it does not set it."""
        return None

    def taking(self, amount: Value) -> Reset:
        """The same reset, but a spike takes this amount instead of the threshold."""
        return self

    def plain(self) -> Reset | None:
        """The same reset without its number and in plain arithmetic (:func:`plainly`), for
        compiled loops; ``None`` if that was not given.
        """
        return self

    def at(self, charged: Tensor, due: Tensor) -> Reset:
        """The same reset with its number at one step."""
        return self

    def apply(self, charged: Tensor, due: Tensor, threshold: Value) -> Tensor:
        """The potential after the spike test, in the library's own order of operations."""
        return charged

    def before_charge(self, state: Tensor, due: Tensor, threshold: Value) -> Tensor:
        """What enters the charge from a state whose reset is due."""
        return state

    def after_charge(self, charged: Tensor, due: Tensor, threshold: Value) -> Tensor:
        """The potential after the part of a due reset that follows the charge."""
        return charged

    def left(self, state: Tensor, due: Tensor, threshold: Value, removed: Value) -> Tensor:
        """u[t-1], from a state whose reset is due and takes :meth:`removed` from it."""
        return self.before_charge(state, due, threshold)

    def lets_in(self, due: Tensor) -> Tensor | None:
        """The derivative of :meth:`before_charge` by the state; ``None`` is 1."""
        return None

    def removed(
        self, charged: Tensor, spike: Tensor, threshold: Value, decay: Value | None
    ) -> Value:
        """R[t] = -du/ds; for a delayed reset, the next step's ``decay`` is given."""
        return 0.0

    def step_down(self, threshold: Value, decay: Value | None) -> Value | None:
        """R if it does not depend on the potential, else ``None``."""
        return None

    def drop(self, threshold: Value) -> Value:
        """What a spike takes from a potential that is at the threshold; the threshold if it takes
        nothing.
        """
        return threshold

    def taken(self, charged: Tensor, spike: Tensor, due: Tensor) -> Tensor | None:
        """1 - du/dh at a fixed spike; ``None`` is zero."""
        return None

    def learned(self, at: AtReset) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of the threshold and of the number, neuron by neuron."""
        return -at.firing, None


@dataclass(frozen=True)
class Traits:
    """What a rule may ask of a layer before it is wrapped.

    Attributes:
        nonlinear: why the charge is not linear in potential and input, or why a spike changes more
            than the potential; ``None`` for an integrate-and-fire neuron.
        reset: what a spike does to the potential.
        decay: the decay of the potential per step.
        threshold: what the potential is compared with.
        synapse: the decay per step of a synaptic current between the input and the potential, or
            ``None`` if the input charges the potential directly.
        refractory: whether there is a refractory period.
        recurrent: whether the layer feeds its own spikes back to itself.
        graded: whether the output is a spike times a factor.
        sequence: whether the engine gets whole sequences in one call; for a recurrent layer, if the
            rule leaves out its feedback.
        delayed: whether the reset comes one step after the spike.
        written: whether the CPU loops take its steps although it is nonlinear or refractory,
            recorded from what torch computes.
        several: whether a step may have several spikes.
    """

    nonlinear: str | None
    reset: Reset
    decay: Value = 1.0
    threshold: Value = 1.0
    synapse: Value | None = None
    refractory: bool = False
    recurrent: bool = False
    graded: bool = False
    sequence: bool = False
    delayed: bool = False
    written: bool = False
    several: bool = False


@dataclass(frozen=True)
class Neuron:
    """A layer's neuron: charge, reset, threshold and comparison (``>`` if strict, else ``>=``).

    ``detached`` says whether the library cuts the gradient through the reset's spike. ``quantiser``
    rounds h to the values that a state may take; the gradient goes straight through it.
    """

    charge: LinearCharge
    reset: Reset
    threshold: Value
    timing: Timing = "immediate"
    strict: bool = True
    detached: bool = False
    quantiser: Callable[[Tensor], Tensor] | None = None

    def values(self) -> tuple[Value, ...]:
        """Every number of the neuron in a fixed order: what autograd must see as inputs."""
        return self._values

    @cached_property
    def _values(self) -> tuple[Value, ...]:
        charge = self.charge
        numbers = (charge.decay, charge.gain, charge.offset, self.threshold, self.reset.number)
        return (*numbers, *charge.raw)

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those of :meth:`values` that are tensors."""
        return tuple(value for value in self._values if isinstance(value, Tensor))

    def with_values(self, values: Sequence[Value]) -> Neuron:
        """The same neuron with other numbers, in the order of :meth:`values`."""
        decay, gain, offset, threshold, value, *raw = values
        parts = (decay, gain, offset, self.charge.formula, tuple(raw), self.charge.centred)
        charge = LinearCharge(*parts)
        reset = self.reset.with_number(value)
        return replace(self, charge=charge, reset=reset, threshold=threshold)
