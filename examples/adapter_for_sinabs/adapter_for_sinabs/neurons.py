"""What the neurons compute: their charge and their reset."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from sinabs import activation
from torch import Tensor

from tssl_adapters.adapters import (
    ByFormula,
    LinearCharge,
    Reset,
    Subtract,
    SubtractAmount,
    ToValue,
    Value,
    computes,
)
from tssl_adapters.arithmetic import arithmetic

SPIKES = (activation.SingleSpike, activation.MultiSpike)
RESETS = (activation.MembraneReset, activation.MembraneSubtract)


@arithmetic
def _normed(v: Tensor, x: Tensor, alpha: Tensor) -> Tensor:
    return alpha * v + (1.0 - alpha) * x


@arithmetic
def _leaky(v: Tensor, x: Tensor, alpha: Tensor) -> Tensor:
    return alpha * v + x


def charge(alpha: Tensor, normed: bool) -> LinearCharge:
    """v = alpha v + x; with (1 - alpha) x if the input is normed."""
    gain = 1 - alpha if normed else 1.0
    return LinearCharge(alpha, gain, 0.0, _normed if normed else _leaky, (alpha,))


def _plain_to_zero(charged: Any, due: Any, value: Any) -> Any:
    return charged * (1.0 - due) + 0.0


@computes(_plain_to_zero)
def _to_zero(charged: Tensor, due: Tensor, value: Value) -> Tensor:
    return charged * (due == 0).to(charged.dtype) + 0.0


@cache
def _to_value(value: float) -> Any:
    """The library's reset to a value, which it adds whether or not a neuron spiked."""

    def formula(charged: Tensor, due: Tensor, _: Value) -> Tensor:
        return charged * (due == 0).to(charged.dtype) + value

    return formula


def reset(reset_fn: Any, threshold: Tensor) -> Reset:
    """What a spike does to the potential."""
    if isinstance(reset_fn, activation.MembraneReset):
        value = reset_fn.reset_value
        return ToValue(0.0, _to_zero if value == 0.0 else _to_value(value))
    if reset_fn.subtract_value is not None:
        return SubtractAmount(amount=reset_fn.subtract_value)
    # The library gives a threshold no gradient through the comparison, but one through the reset.
    return SubtractAmount(amount=threshold) if threshold.requires_grad else Subtract()


def _subtracted(charged: Tensor, due: Tensor, amount: Value, least: Tensor | None) -> Tensor:
    left = charged - due * amount
    return left if least is None else torch.relu(left - least) + least


def _cleared(charged: Tensor, due: Tensor, value: float, least: Tensor | None) -> Tensor:
    left = charged * (1.0 - due.clamp(max=1.0)) + value
    return left if least is None else torch.relu(left - least) + least


def several(reset_fn: Any, threshold: Tensor, least: Any) -> Reset:
    """What any number of spikes do to the potential, which is then clipped at ``least`` from below
    if that is given.
    """
    least = None if least is None else torch.as_tensor(least)
    if isinstance(reset_fn, activation.MembraneReset):
        return ByFormula(partial(_cleared, value=reset_fn.reset_value, least=least))
    amount = threshold if reset_fn.subtract_value is None else reset_fn.subtract_value
    return ByFormula(partial(_subtracted, least=least), (amount,))


def one_spike(reset_fn: Any, threshold: Value, spikes: Tensor, v: Tensor) -> Tensor:
    """The potential that a step would have left with one spike in place of several."""
    if isinstance(reset_fn, activation.MembraneReset):
        return v
    amount = threshold if reset_fn.subtract_value is None else reset_fn.subtract_value
    return v + (spikes - 1.0).clamp(min=0.0) * amount
