"""TSSL-BP: backpropagation through spike times and through a neuron's own history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tssl_adapters.arithmetic import arithmetic, bell, inverse
from tssl_adapters.elementwise import operand
from tssl_adapters.neuron import Traits
from tssl_adapters.rules.base import ChainReset, Fallback, Rule, Step
from tssl_adapters.rules.checks import flag, has_numbers, one_of, positive

ResetPath = Literal["reference", "complete", "none"]


@dataclass(frozen=True)
class TSSLBP(Rule):
    """Temporal Spike Sequence Learning via Backpropagation.

    W. Zhang and P. Li, "Temporal Spike Sequence Learning via Backpropagation for Deep Spiking
    Neural Networks", NeurIPS 2020. A spike moves in time with the potential that caused it,
    phi[t] = s[t] clip(1/d[t], 0, max_slope), where d[t] is the potential's rise in that step; a
    neuron that is silent around t (a[t] < 1/(4 tau_s)) emits a smooth fallback instead.

    Args:
        max_slope: upper bound of 1/d[t], in 1/potential.
        fallback_width: width of the fallback's sigmoid, in units of potential.
        fallback: emit the fallback at silent steps; without it silent neurons do not learn.
        reset_path: how the chain over time goes through the reset. ``"reference"`` is the authors'
            ``+(1 - F_v) R phi``, ``"complete"`` the derivative ``-F_v R phi``, ``"none"`` leaves
            it out.
        checkpoint: how many time steps of a sequence the backward pass recomputes at a time, from
            states stored that far apart: saves memory for thousands of steps, at the cost of one
            more forward pass. ``None`` recomputes all of them at once. Compiled loops hold few
            neurons at a time and do not need it.

    Raises:
        TypeError: ``max_slope``, ``fallback_width`` or ``checkpoint`` is not a number,
            ``fallback`` not a bool.
        ValueError: ``max_slope`` or ``fallback_width`` not positive and finite,
            ``checkpoint`` below 1, or an unknown ``reset_path``.
    """

    max_slope: float = 8.0
    fallback_width: float = 0.2
    fallback: bool = True
    reset_path: ResetPath = "reference"
    checkpoint: int | None = None

    def __post_init__(self) -> None:
        self._check_checkpoint()
        for name in ("max_slope", "fallback_width"):
            positive("TSSLBP", name, getattr(self, name))
        flag("TSSLBP", "fallback", self.fallback)
        one_of("TSSLBP", "reset_path", self.reset_path, get_args(ResetPath))

    @arithmetic
    def slope(self, step: Step) -> Tensor:
        slope: Tensor = inverse(step.increment, self.max_slope, step.spike)
        return slope

    @arithmetic
    def chain_reset(self, step: Step) -> ChainReset | None:
        if self.reset_path == "none":
            return None
        plain = 1.0 if self.reset_path == "reference" else 0.0
        return ChainReset(step.removed, plain, -1.0)

    @arithmetic
    def membrane_reset(self, step: Step, slope: Tensor) -> Tensor | None:
        return -(slope * step.removed) if self.reset_path == "complete" else None

    def active_from(self, tau_s: float) -> float | None:
        return 1.0 / (4.0 * tau_s) if self.fallback else None

    @arithmetic
    def emit(self, step: Step, grad_spike: Tensor) -> Fallback | None:
        if not self.fallback:
            return None
        # The paper's z / (w (1 + z)^2) is the derivative of a sigmoid of width w.
        scale = operand(1.0 / self.fallback_width, step.charged)
        smooth = bell(step.charged, step.threshold, scale, 8.0, grad_spike)
        return Fallback(smooth, step.spike if step.active is None else step.active)

    def remarks(
        self, modules: Mapping[str, nn.Module], taken: Mapping[str, Traits], tau_s: float
    ) -> list[str]:
        exploding = [
            f"'{path}' ({carry:.2g})"
            for path, traits in taken.items()
            if (carry := self._carry(traits)) > 1.0
        ]
        if not exploding:
            return []
        return [
            f"TSSLBP lets the gradient grow over time in {', '.join(exploding)}: with a reset by "
            "subtraction a spike may multiply what comes back from the next step by decay + "
            "(1 - decay) R max_slope, the number in brackets. Ordinary networks hardly train so: "
            "take the default rule, rules.SmoothTSSLBP(), or neurons that reset to zero, as the "
            "paper's do."
        ]

    def _carry(self, traits: Traits) -> float:
        """The largest factor of lambda at a spike, from one step to the one before."""
        if self.reset_path != "reference" or not has_numbers(traits):
            return 0.0
        decay, threshold = map(torch.as_tensor, (traits.decay, traits.threshold))
        removed = traits.reset.step_down(threshold, decay if traits.delayed else None)
        if removed is None:
            return 0.0
        carry = (decay + (1.0 - decay) * removed * self.max_slope).detach()
        return float(carry.max())

    def resets_membrane(self, detached: bool) -> bool:
        return self.reset_path == "complete"

    def splits_adjoint(self, detached: bool) -> bool:
        return self.fallback or self.reset_path == "reference"
