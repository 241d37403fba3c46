"""Rules that were tried in search of one that trains better; see the results in the docs.

--rules tsslbp,benchmarks/experiments/candidates.py:slope_1 has the benchmark compare them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tssl_adapters.rules import TSSLBP, SurrogateGradient
from tssl_adapters.rules.base import Fallback, Step


def sigmoid(width: float) -> Callable[[Tensor], Tensor]:
    """The derivative of a sigmoid of this width."""

    def derivative(x: Tensor) -> Tensor:
        found = torch.sigmoid(x / width)
        return found * (1 - found) / width

    return derivative


def arctan(alpha: float) -> Callable[[Tensor], Tensor]:
    """The derivative of the arctan surrogate."""
    return lambda x: alpha / 2 / (1 + (torch.pi / 2 * alpha * x) ** 2)


def triangle(width: float) -> Callable[[Tensor], Tensor]:
    """A triangle of area 1."""
    return lambda x: torch.relu(1 - x.abs() / width) / width


@dataclass(frozen=True)
class GatedTSSLBP(TSSLBP):
    """TSSL-BP whose neurons count as silent below ``share`` / tau_s rather than 1 / (4 tau_s)."""

    share: float = 0.25

    def active_from(self, tau_s: float) -> float | None:
        return self.share / tau_s


@dataclass(frozen=True)
class SmoothTSSLBP(TSSLBP):
    """phi[t] = f(h[t]) + share s[t] clip(1/d[t]): spike times on top of the fallback, which the
    chain carries through silent steps too.
    """

    share: float = 1.0

    def slope(self, step: Step) -> Tensor:
        smooth = sigmoid(self.fallback_width)((step.charged - step.threshold).clamp(-1.6, 1.6))
        return smooth + self.share * super().slope(step)

    def emit(self, step: Step, grad_spike: Tensor) -> Fallback | None:
        return None

    def active_from(self, tau_s: float) -> float | None:
        return None


@dataclass(frozen=True)
class ChainedTSSLBP(TSSLBP):
    """The fallback is a slope like that of a spike, so that the chain goes through silent steps."""

    def slope(self, step: Step) -> Tensor:
        active = step.spike if step.active is None else step.active
        distance = (step.charged - step.threshold).clamp(-1.6, 1.6)
        return torch.lerp(sigmoid(self.fallback_width)(distance), super().slope(step), active)

    def emit(self, step: Step, grad_spike: Tensor) -> Fallback | None:
        return None


width_01, width_03 = TSSLBP(fallback_width=0.1), TSSLBP(fallback_width=0.3)
width_05, width_10 = TSSLBP(fallback_width=0.5), TSSLBP(fallback_width=1.0)
slope_1, slope_2, slope_4 = TSSLBP(max_slope=1.0), TSSLBP(max_slope=2.0), TSSLBP(max_slope=4.0)
slope_03, slope_05 = TSSLBP(max_slope=0.3), TSSLBP(max_slope=0.5)
slope_05_width_03 = TSSLBP(max_slope=0.5, fallback_width=0.3)
slope_05_width_05 = TSSLBP(max_slope=0.5, fallback_width=0.5)
slope_1_width_03 = TSSLBP(max_slope=1.0, fallback_width=0.3)
slope_1_width_05 = TSSLBP(max_slope=1.0, fallback_width=0.5)
chained_1, chained_2 = ChainedTSSLBP(max_slope=1.0), ChainedTSSLBP(max_slope=2.0)
chained_1_width_03 = ChainedTSSLBP(max_slope=1.0, fallback_width=0.3)
chained_1_width_05 = ChainedTSSLBP(max_slope=1.0, fallback_width=0.5)
chained_1_none = ChainedTSSLBP(max_slope=1.0, reset_path="none")
chained_8 = ChainedTSSLBP()
slope_2_width_03 = TSSLBP(max_slope=2.0, fallback_width=0.3)
slope_2_width_05 = TSSLBP(max_slope=2.0, fallback_width=0.5)
complete = TSSLBP(reset_path="complete")
gate_10 = GatedTSSLBP(share=1.0)
smooth_01, smooth_03 = SmoothTSSLBP(share=0.1), SmoothTSSLBP(share=0.3)
smooth_10 = SmoothTSSLBP(share=1.0)
sigmoid_01 = SurrogateGradient(sigmoid(0.1), reset_path="none")
sigmoid_03 = SurrogateGradient(sigmoid(0.3), reset_path="none")
sigmoid_02 = SurrogateGradient(sigmoid(0.2), reset_path="none")
sigmoid_05 = SurrogateGradient(sigmoid(0.5), reset_path="none")
arctan_4 = SurrogateGradient(arctan(4.0), reset_path="none")
triangle_10 = SurrogateGradient(triangle(1.0), reset_path="none")
