"""EventProp: the exact continuous-time gradient of spike times, on a grid of time steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from tssl_adapters.arithmetic import arithmetic, minimum, where
from tssl_adapters.neuron import Traits
from tssl_adapters.rules.base import ChainReset, Rule, Step
from tssl_adapters.rules.checks import losing_times, positive


@dataclass(frozen=True)
class EventProp(Rule):
    """Event-based backpropagation, on a grid of time steps.

    T. C. Wunderlich and C. Pehle, "Event-based backpropagation can compute exact gradients for
    spiking neural networks", Scientific Reports 11:12829, 2021. A neuron with V' = (I - V)/tau_m
    fires where V crosses theta, and the loss depends on its weights through the times of its
    spikes and through its potential. Let G[t] be the gradient of the spike, c[t] that of a loss on
    the potential, F_v the potential's decay and R[t] what a spike takes from it. Then, in steps::

        D[t]      = G[t+1] - G[t]                      by the spike's time; 0 at the last step
        phi[t]    = s[t]/d[t], 0 where d[t] <= 0       the time moves by -phi dh
        lambda[t] = -phi (D[t] + R (c before + c after)/2) + (F_v + (1 - F_v) R phi) lambda[t+1]
        mu[t]     = (1 + (1/F_v - 1) R phi) (c[t] + F_v mu[t+1])
        e[t]      = lambda[t] + mu[t]

    whatever the reset: a spike's time also moves the potential after it. e goes to the drive;
    autograd handles a synaptic current. The threshold acts through the spike times. Silent steps
    emit only what later spikes and a loss on the potential send back, and a neuron that never fires
    learns nothing from spikes.

    As the steps get finer this converges to the exact gradient, at first order, if a current
    charges the potential: from the neuron's own synapse (Norse's ``LIF``, snnTorch's ``Synaptic``),
    or at ``tau_s > 1``. Its median cosine with the exact gradient over small random networks was
    0.99 for one neuron and 0.93 to 0.96 for two layers, a recurrent pair and a read-out's potential
    at five steps per synaptic time constant, and 0.99 or more at twenty.

    Args:
        max_slope: upper bound of phi, in 1/potential; ``None`` for none. It must grow with the
            neuron's time constant: 1/d is tau_m/(I - V).
        checkpoint: as for :class:`tssl_adapters.rules.TSSLBP`.

    Refused: neurons that are nonlinear, have no reset, or have a refractory period.

    Raises:
        TypeError: ``max_slope`` or ``checkpoint`` is not a number.
        ValueError: ``max_slope`` is not positive and finite, or ``checkpoint`` below 1.
    """

    max_slope: float | None = None
    checkpoint: int | None = None

    continuous = True
    looks_ahead = True
    looks_around = True
    timed = True

    def __post_init__(self) -> None:
        self._check_checkpoint()
        if self.max_slope is not None:
            positive("EventProp", "max_slope", self.max_slope)

    @arithmetic
    def slope(self, step: Step) -> Tensor:
        rate = 1.0 / step.increment
        bounded = rate if self.max_slope is None else minimum(rate, self.max_slope)
        # A potential that does not rise does not cross the threshold.
        found: Tensor = where(step.spike * step.increment > 0.0, bounded, 0.0)
        return found

    @arithmetic
    def signal(self, step: Step, grad_spike: Tensor) -> Tensor:
        assert step.later is not None
        time = step.later - grad_spike
        return -time if step.around is None else -(time + step.removed * step.around)

    @arithmetic
    def chain_reset(self, step: Step) -> ChainReset | None:
        return ChainReset(step.removed, 1.0, -1.0)

    @arithmetic
    def membrane_reset(self, step: Step, slope: Tensor) -> Tensor | None:
        # Without memory (decay 0) there is no later potential for the spike to move.
        decay = where(step.decay == 0.0, math.inf, step.decay)
        found: Tensor = slope * step.removed * ((1.0 - step.decay) / decay)
        return found

    def remarks(
        self, modules: Mapping[str, nn.Module], taken: Mapping[str, Traits], tau_s: float
    ) -> list[str]:
        bare = [f"'{path}'" for path, traits in taken.items() if traits.synapse is None]
        found = losing_times("EventProp", modules)
        if tau_s == 1.0 and bare:
            found.append(
                f"{', '.join(bare)}: no synaptic current between input and potential, and tau_s=1. "
                "Where bare spikes charge a potential at once, a neuron fires when an input does, "
                "and the exact gradient of its spike times is 0 almost everywhere: there "
                "EventProp is a heuristic. It is exact in the limit of fine steps where the input "
                "is a current: take tau_s > 1, or neurons with a synapse of their own (Norse's "
                "LIF, snnTorch's Synaptic), or a filter in front."
            )
        return found

    def problem(self, traits: Traits, tau_s: float) -> str | None:
        if traits.nonlinear is not None:
            return f"EventProp takes linear integrate-and-fire neurons, and {traits.nonlinear}"
        if not traits.reset.happens:
            return (
                "nothing resets this neuron, and EventProp follows the potential through its "
                "resets; give it one, or skip a read-out whose spikes nobody uses"
            )
        if traits.refractory:
            return (
                "its refractory period hides spikes from what comes after, and EventProp wants to "
                "know the gradient one step after a spike; use a neuron without"
            )
        return None

    def resets_membrane(self, detached: bool) -> bool:
        return True

    def splits_adjoint(self, detached: bool) -> bool:
        return True
