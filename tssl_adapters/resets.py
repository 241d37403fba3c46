"""The kinds of reset and their arithmetic: to a value, by subtraction, early, never, by a formula.

A delayed reset is done in the next step: before its charge if the order does not matter, and after
it if the library does so (:class:`Subtract`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tssl_adapters.arithmetic import Symbol, arithmetic, minus
from tssl_adapters.elementwise import derived, operand
from tssl_adapters.neuron import AtReset, Reset, Value, computes, plainly

Formula = Callable[[Tensor, Tensor, Value], Tensor]


def _to_value(charged: Any, due: Any, value: Any) -> Any:
    return (1.0 - due) * charged + due * value


@computes(_to_value)
def reset_to_value(charged: Tensor, due: Tensor, value: Value) -> Tensor:
    """``(1 - due) * charged + due * value``."""
    kept = (operand(1.0, due) - due).mul_(charged)
    return kept if _zero(value) else kept.add_(due * value)


@arithmetic
def reset_by_subtraction(charged: Tensor, due: Tensor, threshold: Value) -> Tensor:
    """``charged - due * threshold``."""
    return charged - due * threshold


def _zero(value: Value) -> bool:
    """Whether a value is 0, without reading a tensor."""
    return isinstance(value, float) and value == 0.0


@dataclass(frozen=True)
class ToValue(Reset):
    """A spike sets the membrane potential to ``value``.

    ``formula(charged, due, value)`` does so in the library's own order of operations. With delay
    the value is 0.
    """

    value: Value = 0.0
    formula: Formula = reset_to_value

    numbered = True

    @property
    def number(self) -> Value:
        return self.value

    def with_number(self, number: Value) -> Reset:
        return replace(self, value=number)

    @property
    def target(self) -> Value | None:
        return self.value

    def plain(self) -> Reset | None:
        return _plain(self)

    def apply(self, charged: Tensor, due: Tensor, threshold: Value) -> Tensor:
        return self.formula(charged, due, self.value)

    def before_charge(self, state: Tensor, due: Tensor, threshold: Value) -> Tensor:
        return (1 - due) * state

    def lets_in(self, due: Tensor) -> Tensor | None:
        return 1 - due

    def removed(
        self, charged: Tensor, spike: Tensor, threshold: Value, decay: Value | None
    ) -> Value:
        return charged if _zero(self.value) else charged - self.value

    def drop(self, threshold: Value) -> Value:
        return threshold if _zero(self.value) else threshold - self.value

    def taken(self, charged: Tensor, spike: Tensor, due: Tensor) -> Tensor | None:
        return due

    def learned(self, at: AtReset) -> tuple[Tensor | None, Tensor | None]:
        return -at.firing, None if at.after is None else at.due * at.after


@dataclass(frozen=True)
class Subtract(Reset):
    """A spike takes the threshold from the membrane potential.

    ``formula(charged, due, threshold)`` does so in the library's own order of operations. With
    delay it is taken after the next charge, so that R is the threshold over the decay.
    """

    formula: Formula = reset_by_subtraction

    follows_charge = True

    def taking(self, amount: Value) -> Reset:
        return SubtractAmount(self.formula, amount)

    def plain(self) -> Reset | None:
        return _plain(self)

    def amount_of(self, threshold: Value) -> Value:
        """What a spike takes."""
        return threshold

    def apply(self, charged: Tensor, due: Tensor, threshold: Value) -> Tensor:
        return self.formula(charged, due, self.amount_of(threshold))

    def after_charge(self, charged: Tensor, due: Tensor, threshold: Value) -> Tensor:
        # The product is exact, so there is only one rounding.
        found: Tensor = minus(charged, due, self.amount_of(threshold))
        return found

    def left(self, state: Tensor, due: Tensor, threshold: Value, removed: Value) -> Tensor:
        found: Tensor = minus(state, due, removed)
        return found

    def removed(
        self, charged: Tensor, spike: Tensor, threshold: Value, decay: Value | None
    ) -> Value:
        return self.step_down(threshold, decay)

    def step_down(self, threshold: Value, decay: Value | None) -> Value:
        amount = self.amount_of(threshold)
        return amount if decay is None else amount / decay

    def drop(self, threshold: Value) -> Value:
        return self.amount_of(threshold)

    def learned(self, at: AtReset) -> tuple[Tensor | None, Tensor | None]:
        return self._through(at, -at.firing), None

    def _through(self, at: AtReset, total: Tensor | None) -> Tensor | None:
        """``total`` plus the gradient through the amount taken from the potentials."""
        if at.along:
            return total
        if not at.delayed and at.after is not None:
            total = _less(total, at.due, at.after)
        if at.before is not None and at.charged is not None:
            total = _less(total, self._passed(at.before, at.decay), at.charged)
        return total

    def _passed(self, before: Tensor, decay: Value) -> Tensor:
        """The derivative of h by an amount that was due before it, without its sign."""
        return before


@dataclass(frozen=True)
class SubtractEarly(Subtract):
    """Delayed: the threshold is taken before the charge, so that it decays with the potential.

    h = charge(v - r threshold), so that R is the threshold whatever the decay.
    """

    follows_charge = False

    def before_charge(self, state: Tensor, due: Tensor, threshold: Value) -> Tensor:
        return self.formula(state, due, self.amount_of(threshold))

    def after_charge(self, charged: Tensor, due: Tensor, threshold: Value) -> Tensor:
        return charged

    def step_down(self, threshold: Value, decay: Value | None) -> Value:
        return self.amount_of(threshold)

    def _passed(self, before: Tensor, decay: Value) -> Tensor:
        return before * decay


@dataclass(frozen=True)
class SubtractAmount(Subtract):
    """A spike takes an ``amount`` close to the threshold, e.g. if a library rounds it."""

    amount: Value = 0.0

    numbered = True

    @property
    def number(self) -> Value:
        return self.amount

    def with_number(self, number: Value) -> Reset:
        return replace(self, amount=number)

    def amount_of(self, threshold: Value) -> Value:
        return self.amount

    def learned(self, at: AtReset) -> tuple[Tensor | None, Tensor | None]:
        return -at.firing, self._through(at, None)


@dataclass(frozen=True)
class Never(Reset):
    """A spike leaves the membrane potential unchanged."""

    happens = False

    def apply(self, charged: Tensor, due: Tensor, threshold: Value) -> Tensor:
        return charged if isinstance(charged, Symbol) else charged.clone()


@dataclass(frozen=True)
class ByFormula(Reset):
    """The potential after a spike test is any smooth ``formula(charged, due, *others)``.

    ``others``, such as states and parameters, may carry a graph. It is reached through ``value``,
    which ``at`` sets to the formula's result at fixed ``charged`` and ``due``.
    """

    formula: Callable[..., Tensor]
    others: tuple[Value, ...] = ()
    value: Value = 0.0

    numbered = True
    stepwise = True

    @property
    def number(self) -> Value:
        return self.value

    def with_number(self, number: Value) -> Reset:
        return replace(self, value=number)

    def plain(self) -> Reset | None:
        return None

    def at(self, charged: Tensor, due: Tensor) -> Reset:
        return self.with_number(self.formula(charged.detach(), due.detach(), *self.others))

    def apply(self, charged: Tensor, due: Tensor, threshold: Value = 0.0) -> Tensor:
        """The formula, with the others detached."""
        return self.formula(charged, due, *map(_held, self.others))

    def removed(
        self, charged: Tensor, spike: Tensor, threshold: Value, decay: Value | None
    ) -> Value:
        return -self._partial(charged, spike, 1)

    def taken(self, charged: Tensor, spike: Tensor, due: Tensor) -> Tensor | None:
        return 1.0 - self._partial(charged, spike, 0)

    def learned(self, at: AtReset) -> tuple[Tensor | None, Tensor | None]:
        return -at.firing, at.after

    def _partial(self, charged: Tensor, spike: Tensor, index: int) -> Tensor:
        """The derivative of the potential after the reset by h (0) or by the spike (1)."""
        with derived():
            leaves = [charged.detach(), spike.detach()]
            leaves[index].requires_grad_()
            (partial,) = torch.autograd.grad(self.apply(*leaves).sum(), leaves[index])
        return partial


def _plain(reset: ToValue | Subtract) -> Reset | None:
    formula = plainly(reset.formula)
    return None if formula is None else replace(reset, formula=formula).with_number(0.0)


def _held(value: Value) -> Value:
    return value.detach() if isinstance(value, Tensor) else value


def _less(total: Tensor | None, factor: Tensor, adjoint: Tensor) -> Tensor:
    found: Tensor = -(factor * adjoint) if total is None else minus(total, factor, adjoint)
    return found
