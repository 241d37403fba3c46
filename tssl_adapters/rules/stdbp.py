"""STDBP: one spike per neuron, whose time is differentiated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tssl_adapters.arithmetic import arithmetic, minimum, where
from tssl_adapters.neuron import Traits, Value
from tssl_adapters.rules.base import Rule, Step, Window
from tssl_adapters.rules.checks import above_zero, flag, losing_times, one_of, positive

Silent = Literal["virtual", "none"]
LEAK = 1e-4
"""A potential or current that loses at most this share per step counts as not leaking."""
SLOPES = 8.0
"""The default bound of the slope, in spikes per threshold."""


@dataclass(frozen=True)
class STDBP(Rule):
    """Spike-timing-dependent backpropagation, with rectified linear post-synaptic potentials.

    M. Zhang, J. Wang, B. Amornpaisannon, Z. Zhang, V. Miriyala, A. Belatreche, H. Qu, J. Wu,
    Y. Chua, T. E. Carlson and H. Li, "Rectified Linear Postsynaptic Potential Function for
    Backpropagation in Deep Spiking Neural Networks", 2020 (arXiv 2003.11837). A neuron whose
    potential is sum_i w_i max(t - t_i, 0) fires where it reaches theta, at t_j = (theta + sum_C w_i
    t_i)/W with C the inputs before t_j and W the sum of their weights, so that dt_j/dw_i = (t_i -
    t_j)/W and dt_j/dt_i = w_i/W. W is d[t], the potential's last rise. With G[t] the gradient of
    the spike, ``[T, batch, ...]``::

        D[t]      = G[t+1] - G[t]                          the gradient of a spike's time
        phi[t]    = s[t] min(1/d[t], max_slope)            max_slope where d[t] is not positive
        lambda[t] = -phi[t] D[t] + F_v lambda[t+1] du/dh

    Through the neuron's integrators that is a ramp over time, which a linear layer passes on so
    that D below it is sum_j w_ij/W_j D_j. At the end of a sequence G is extrapolated linearly. Step
    by step, where the second to last step is not yet known, it continues as a line through the
    origin for a neuron's first spike, which is exact for losses that read spike times
    (:func:`tssl_adapters.losses.first_spike_time`), and as a constant for a later one; that
    neglects the effect of a hidden layer's spike in the very last step, which one more silent step
    fixes. A sequence of one step has no time to move: its gradient is 0.

    Args:
        max_slope: upper bound of 1/d, in 1/potential; ``None`` is 8/theta.
        silent: ``"virtual"`` treats a neuron that never fired as if it fired at the last step;
            with ``"none"`` it learns nothing.
        strict: take only neurons whose potential and synaptic current do not leak, for which the
            equations hold. ``False`` takes every linear neuron: dt/dh = -1/d at a first spike.

    Refused: ``tau_s > 1``; neurons that are nonlinear, have no reset, or have a refractory period;
    with ``strict`` also those that leak.

    Raises:
        TypeError: ``max_slope`` is not a number, ``strict`` not a bool.
        ValueError: ``max_slope`` not positive and finite, or an unknown ``silent``.
    """

    max_slope: float | None = None
    silent: Silent = "virtual"
    strict: bool = True

    windowed = True
    looks_ahead = True

    def __post_init__(self) -> None:
        if self.max_slope is not None:
            positive("STDBP", "max_slope", self.max_slope)
        one_of("STDBP", "silent", self.silent, get_args(Silent))
        flag("STDBP", "strict", self.strict)

    def cotangent(
        self,
        grads: Sequence[Tensor],
        spikes: Sequence[Tensor],
        window: Window,
        later: Tensor | None,
    ) -> Sequence[Tensor]:
        if window.steps == 1:
            return [torch.zeros_like(grads[0])]
        if later is None and len(grads) > 1:
            later = 2.0 * grads[-1] - grads[-2]
        elif later is None:
            line = grads[-1] * (window.steps / (window.steps - 1))
            fired_before = window.counts > spikes[-1]
            later = torch.where(fired_before, grads[-1], line)
        return [grad - after for grad, after in zip(grads, [*grads[1:], later], strict=True)]

    @arithmetic
    def slope(self, step: Step) -> Tensor:
        bound = SLOPES / step.threshold if self.max_slope is None else self.max_slope
        rate = minimum(1.0 / step.increment, bound)
        fires = step.spike
        if self.silent == "virtual" and step.last is not None and step.fired is not None:
            fires = fires + step.last * (1.0 - step.fired)
        slope: Tensor = where(step.increment <= 0.0, bound, rate) * fires
        return slope

    def remarks(
        self, modules: Mapping[str, nn.Module], taken: Mapping[str, Traits], tau_s: float
    ) -> list[str]:
        return losing_times("STDBP", modules)

    def problem(self, traits: Traits, tau_s: float) -> str | None:
        if tau_s != 1.0:
            return "STDBP is made for layers that emit spikes; use tau_s=1"
        if traits.nonlinear is not None:
            return f"STDBP takes linear integrate-and-fire neurons, and {traits.nonlinear}"
        if not traits.reset.happens:
            return "nothing resets this neuron, so that it goes on firing; give it a reset"
        if traits.refractory:
            return (
                "its refractory period hides spikes from what comes after, and STDBP wants to "
                "know the gradient one step after a spike; use a neuron without, with v_reset=-1e9 "
                "to have it fire once"
            )
        if self.max_slope is None and not above_zero(traits.threshold):
            return (
                "STDBP bounds its slope by a multiple of 1 / threshold, and the threshold is not "
                "above 0; set STDBP(max_slope=...)"
            )
        if self.strict and not (_keeps(traits.decay) and _keeps(traits.synapse)):
            leaking = "potential" if not _keeps(traits.decay) else "synaptic current"
            return (
                f"its {leaking} leaks, and STDBP's equations are of a neuron that integrates "
                "without leak; set its decay to 1, or take STDBP(strict=False), the nearest "
                "generalisation"
            )
        return None


def _keeps(decay: Value | None) -> bool:
    """Whether nothing is lost per step at this decay; ``None`` means that there is no decay."""
    if isinstance(decay, Tensor):
        return bool((decay.detach() >= 1.0 - LEAK).all())
    return decay is None or decay >= 1.0 - LEAK
