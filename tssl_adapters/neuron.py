"""The record of a neuron: what the engine has to know of one layer, whatever library it is from.

One step of a neuron, with the carried state ``v``, the drive ``x`` and the spike ``s``:

==============  =======================================  ==================================
timing          charge                                   state handed to the next step
==============  =======================================  ==================================
``immediate``   h = decay v + gain x + offset            u = reset(h, s)
``delayed``     r = spike of v; h = charge(reset(v, r))  h (its own reset comes a step later)
``both``        r = spike of v; h = charge(reset(v, r))  u = reset(h, s - r)
==============  =======================================  ==================================

SpikingJelly and Norse reset at once; snnTorch's ``reset_delay=True`` is ``delayed`` and
``reset_delay=False`` is ``both``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, TypeVar

from torch import Tensor

Value: TypeAlias = "float | Tensor"
Timing: TypeAlias = Literal["immediate", "delayed", "both"]


F = TypeVar("F", bound=Callable[..., Any])


def computes(plain: Callable[..., Any]) -> Callable[[F], F]:
    """Say in plain arithmetic what a formula computes for one neuron, in the same order.

    Compiled loops are made of it. It takes the formula's arguments as numbers, writes numbers as
    floats, and calls nothing.
    """

    def mark(formula: F) -> F:
        formula.plain = plain  # type: ignore[attr-defined]
        return formula

    return mark


@dataclass(frozen=True)
class LinearCharge:
    """``h = decay * (v - centre) + gain * x + offset``.

    ``decay``, ``gain`` and ``offset`` broadcast against one step ``[batch, ...]`` and may carry a
    graph to the library's parameters: the engine differentiates with respect to them.
    ``formula(v, x, *raw)`` computes the same charge in the library's own order of operations, so
    that it can be recomputed bit for bit. The centre is 0 or, where ``centred`` says so, that one
    of ``raw``, which has no graph then: a potential may lie far from 0, and close to what it
    decays to.
    """

    decay: Value
    gain: Value
    offset: Value
    formula: Callable[..., Tensor]
    raw: tuple[Value, ...] = ()
    centred: int | None = None


class Told(NamedTuple):
    """What arrives at a step's threshold and at its reset, ``[batch, ...]``; ``None`` is zero.

    Attributes:
        firing: what reaches the potential through the spike.
        due: where the potential is reset, s or s - r.
        after: what the potential after that is told.
        before: r, where the charge met a reset that was due.
        charged: what h is told.
        decay: what multiplies the potential in a step.
        delayed: whether the step's own reset only comes with the next one.
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

    It takes tensors ``[batch, ...]`` or symbols. ``due`` is 1 where a reset is to be done, else 0;
    with timing ``both`` it is -1 where one was done without a spike to follow. The answers here are
    those of a reset that does nothing.
    """

    happens: ClassVar[bool] = True
    """Whether a spike does anything to the potential."""
    numbered: ClassVar[bool] = False
    """Whether there is a :attr:`number`."""
    follows_charge: ClassVar[bool] = False
    """Whether, with delay, it is done after the next charge."""
    stepwise: ClassVar[bool] = False
    """Whether :meth:`at` makes that number anew at each step."""

    @property
    def number(self) -> Value:
        """A number of its own, beside the threshold."""
        return 0.0

    def with_number(self, number: Value) -> Reset:
        """The same with another number."""
        return self

    @property
    def target(self) -> Value | None:
        """Where a spike sets the potential, whatever it was; ``None`` where it does not."""
        return None

    def taking(self, amount: Value) -> Reset:
        """The same, but that what a spike takes is this and not the threshold."""
        return self

    def plain(self) -> Reset | None:
        """The same without its number and in plain arithmetic (:func:`computes`), for compiled
        loops; ``None`` where nobody said it so.
        """
        return self

    def at(self, charged: Tensor, due: Tensor) -> Reset:
        """The same with its number at one step."""
        return self

    def apply(self, charged: Tensor, due: Tensor, threshold: Value) -> Tensor:
        """The potential after the spike test, in the library's own order of operations."""
        return charged

    def before_charge(self, state: Tensor, due: Tensor, threshold: Value) -> Tensor:
        """What a charge takes of a state whose reset is due."""
        return state

    def after_charge(self, charged: Tensor, due: Tensor, threshold: Value) -> Tensor:
        """The potential after the charge, for what the reset only does then."""
        return charged

    def left(self, state: Tensor, due: Tensor, threshold: Value, removed: Value) -> Tensor:
        """u[t-1], from a state whose reset is due and of which :meth:`removed` goes."""
        return self.before_charge(state, due, threshold)

    def lets_in(self, due: Tensor) -> Tensor | None:
        """The derivative of :meth:`before_charge` by the state; ``None`` is 1."""
        return None

    def removed(
        self, charged: Tensor, spike: Tensor, threshold: Value, decay: Value | None
    ) -> Value:
        """R[t] = -du/ds; with delay, the next step's ``decay`` is given."""
        return 0.0

    def step_down(self, threshold: Value, decay: Value | None) -> Value | None:
        """R where it is the same whatever the potential, else ``None``."""
        return None

    def drop(self, threshold: Value) -> Value:
        """What a spike takes from a potential that is at the threshold; where it takes nothing,
        the threshold.
        """
        return threshold

    def taken(self, charged: Tensor, spike: Tensor, due: Tensor) -> Tensor | None:
        """1 - du/dh at a fixed spike; ``None`` is zero."""
        return None

    def learned(self, told: Told) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of the threshold and of the number, neuron by neuron."""
        return -told.firing, None


@dataclass(frozen=True)
class Traits:
    """What a rule may ask of a layer before it is wrapped.

    Attributes:
        nonlinear: why the charge is not linear in potential and input, or why a spike changes more
            than the potential; ``None`` where it is an integrate-and-fire neuron.
        reset: what a spike does to the potential.
        decay: what multiplies the potential in a step.
        threshold: what the potential is compared with.
        synapse: the decay a step of a synaptic current between the input and the potential, or
            ``None`` where the input charges the potential itself.
        refractory: whether spikes are held back for a while after one.
        recurrent: whether the layer feeds its own spikes back to itself.
        graded: whether the output is a spike times a factor.
        sequence: whether the engine gets whole sequences of it in one call; of a recurrent layer,
            where the rule leaves out what comes back to it.
        delayed: whether the reset comes one step after the spike.
        written: whether the CPU's loops take steps of it though it is nonlinear, at ``tau_s = 1``,
            written down from what torch computes.
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
        """Every number of the neuron in a fixed order: what autograd has to see as inputs."""
        charge = self.charge
        numbers = (charge.decay, charge.gain, charge.offset, self.threshold, self.reset.number)
        return (*numbers, *charge.raw)

    def with_values(self, values: Sequence[Value]) -> Neuron:
        """The same neuron with other numbers, in the order of :meth:`values`."""
        decay, gain, offset, threshold, value, *raw = values
        parts = (decay, gain, offset, self.charge.formula, tuple(raw), self.charge.centred)
        charge = LinearCharge(*parts)
        reset = self.reset.with_number(value)
        return replace(self, charge=charge, reset=reset, threshold=threshold)
