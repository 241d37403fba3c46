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
from typing import Any, Literal, TypeAlias, TypeVar

from torch import Tensor

from tssl_adapters.elementwise import operand

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


def _to_value(charged: Any, due: Any, value: Any) -> Any:
    return (1.0 - due) * charged + due * value


def _by_subtraction(charged: Any, due: Any, threshold: Any) -> Any:
    return charged - due * threshold


@computes(_to_value)
def reset_to_value(charged: Tensor, due: Tensor, value: Value) -> Tensor:
    """``(1 - due) * charged + due * value``."""
    kept = (operand(1.0, due) - due).mul_(charged)
    return kept if isinstance(value, float) and value == 0.0 else kept.add_(due * value)


@computes(_by_subtraction)
def reset_by_subtraction(charged: Tensor, due: Tensor, threshold: Value) -> Tensor:
    """``charged - due * threshold``."""
    return charged - due * threshold


@dataclass(frozen=True)
class ToValue:
    """A spike sets the membrane potential to ``value``.

    ``formula(charged, due, value)`` does so in the library's own order of operations.
    """

    value: Value = 0.0
    formula: Callable[[Tensor, Tensor, Value], Tensor] = reset_to_value


@dataclass(frozen=True)
class Subtract:
    """A spike takes the threshold from the membrane potential.

    ``formula(charged, due, threshold)`` does so in the library's own order of operations.
    """

    formula: Callable[[Tensor, Tensor, Value], Tensor] = reset_by_subtraction


@dataclass(frozen=True)
class SubtractEarly(Subtract):
    """With delay: the threshold goes before the charge, which lets it decay with the potential.

    h = charge(v - r threshold), so that R is the threshold whatever the decay.
    """


@dataclass(frozen=True)
class SubtractAmount(Subtract):
    """A spike takes an ``amount`` that is not quite the threshold, as where a library rounds it."""

    amount: Value = 0.0


@dataclass(frozen=True)
class Never:
    """A spike leaves the membrane potential alone."""


@dataclass(frozen=True)
class ByFormula:
    """The potential after a spike test is any smooth ``formula(charged, due, *others)``.

    ``others`` may carry a graph, as states and parameters do. ``value`` is how their graph is
    reached: the engine puts the formula's result at fixed ``charged`` and ``due`` there.
    """

    formula: Callable[..., Tensor]
    others: tuple[Value, ...] = ()
    value: Value = 0.0

    def apply(self, charged: Tensor, due: Tensor) -> Tensor:
        """The formula without the graph of the others."""
        return self.formula(charged, due, *map(_held, self.others))

    def at(self, charged: Tensor, due: Tensor) -> ByFormula:
        """The same reset with its ``value`` at one step."""
        return replace(self, value=self.formula(charged.detach(), due.detach(), *self.others))


def _held(value: Value) -> Value:
    return value.detach() if isinstance(value, Tensor) else value


Reset: TypeAlias = "ToValue | Subtract | Never | ByFormula"


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
        numbers = (charge.decay, charge.gain, charge.offset, self.threshold, self.reset_value)
        return (*numbers, *charge.raw)

    @property
    def reset_value(self) -> Value:
        """Where a reset to a value, or by a formula, goes, or the amount that one by subtraction
        takes where that is not the threshold; 0 for other resets.
        """
        if isinstance(self.reset, SubtractAmount):
            return self.reset.amount
        return self.reset.value if isinstance(self.reset, ToValue | ByFormula) else 0.0

    @property
    def amount(self) -> Value:
        """What a spike takes from the potential by subtraction."""
        return self.reset.amount if isinstance(self.reset, SubtractAmount) else self.threshold

    def with_values(self, values: Sequence[Value]) -> Neuron:
        """The same neuron with other numbers, in the order of :meth:`values`."""
        decay, gain, offset, threshold, value, *raw = values
        parts = (decay, gain, offset, self.charge.formula, tuple(raw), self.charge.centred)
        charge = LinearCharge(*parts)
        reset = self.reset
        if isinstance(reset, ToValue | ByFormula):
            reset = replace(reset, value=value)
        elif isinstance(reset, SubtractAmount):
            reset = replace(reset, amount=value)
        return replace(self, charge=charge, reset=reset, threshold=threshold)
