"""Lee, Delbruck and Pfeiffer: the membrane potential as the differentiable signal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tssl_adapters.arithmetic import arithmetic, constant
from tssl_adapters.neuron import Traits
from tssl_adapters.rules.base import Rule, Step, Window
from tssl_adapters.rules.checks import flag, indivisible, one_of

Gate = Literal["none", "active"]


@dataclass(frozen=True)
class Lee(Rule):
    """Backpropagation through low-pass filtered spike trains.

    J. H. Lee, T. Delbruck and M. Pfeiffer, "Training Deep Spiking Neural Networks Using
    Backpropagation", Frontiers in Neuroscience 10:508, 2016 (arXiv 1608.08782). The neuron is
    V_i = sum_k w_ik x_k - theta_i a_i, with x_k and a_i its input's and its own spikes, filtered by
    the membrane; fluctuations of V_i at the threshold are treated as noise, so that da_i/dx_k =
    w_ik/theta_i. For one neuron and time step, ``[batch, ...]``::

        dE/dx[t] = kappa G[t] / theta                       at every t, spike or not
        dE/dtheta = -(1/theta) sum_t G[t] s[t]

    with G[t] the gradient of the spike. Nothing flows back over time except through synaptic
    currents and from losses on the membrane potential. If a spike sets the potential to v_reset,
    theta stands for theta - v_reset.

    Args:
        gate: ``"active"`` multiplies both by 1 where the neuron fired in the window and 0 where it
            did not: the paper's rule for hidden layers. The output layer must not be gated, or it
            hardly learns; wrap it first with ``"none"``, then the model with ``"active"`` and
            ``skip=[output]``.
        normalise: the paper's error normalisation: kappa (g/g_mean) sqrt(N/n) G[t], with g =
            1/theta, g_mean its root mean square over the layer, N the number of neurons in the
            layer and n the number of those that fired in a sample.

    Refused: ``tau_s > 1``; neurons that are nonlinear, adapt, have no reset, or have one that puts
    the threshold out of reach.

    Raises:
        TypeError: ``normalise`` is not a bool.
        ValueError: an unknown ``gate``.
    """

    gate: Gate = "none"
    normalise: bool = False

    spike_chain = False
    counts_reset = True

    def __post_init__(self) -> None:
        one_of("Lee", "gate", self.gate, get_args(Gate))
        flag("Lee", "normalise", self.normalise)

    @property
    def windowed(self) -> bool:  # type: ignore[override]
        return self.gate == "active" or self.normalise

    def factor(self, window: Window) -> Tensor:
        factor = window.active if self.gate == "active" else torch.ones_like(window.active)
        if self.normalise:
            layer = tuple(range(1, factor.ndim)) or tuple(range(factor.ndim))  # without a batch
            share = window.active.mean(layer, keepdim=True)
            neurons = math.prod(factor.shape[at] for at in layer)
            factor = factor * share.clamp(min=1.0 / neurons).rsqrt()
            g = torch.as_tensor(window.drop, dtype=factor.dtype, device=factor.device).reciprocal()
            factor = factor / g.square().mean().sqrt()
        return factor

    def cotangent(
        self,
        grads: Sequence[Tensor],
        spikes: Sequence[Tensor],
        window: Window,
        later: Tensor | None,
    ) -> Sequence[Tensor]:
        assert window.factor is not None
        return [grad * window.factor for grad in grads]

    @arithmetic
    def slope(self, step: Step) -> Tensor:
        slope: Tensor = constant(1.0, step.charged) / step.drop
        return slope

    @arithmetic
    def crossing(self, step: Step, firing: Tensor) -> Tensor:
        return firing * step.spike

    def splits_adjoint(self, detached: bool) -> bool:
        return False

    def remarks(
        self, modules: Mapping[str, nn.Module], taken: Mapping[str, Traits], tau_s: float
    ) -> list[str]:
        inside = tuple(f"{path}." for path in taken)
        last = [path for path in modules if not path.startswith(inside)][-1]
        if self.gate == "none" or last not in taken:
            return []
        return [
            f"Lee(gate='active') gates '{last}', the model's last layer. If it is the output it "
            "will hardly learn: wrap that layer with Lee() first, then the model with "
            f"skip=['{last}']."
        ]

    def problem(self, traits: Traits, tau_s: float) -> str | None:
        if tau_s != 1.0:
            return "Lee is made for layers that emit spikes; use tau_s=1, or STRSBP or TSSLBP"
        if traits.nonlinear is not None:
            return f"Lee takes linear integrate-and-fire neurons, and {traits.nonlinear}"
        if not traits.reset.happens:
            return (
                "Lee relies on what a spike takes from the potential, and nothing resets this "
                "neuron; give it a reset, or skip it where its potential is what is read"
            )
        return indivisible("Lee", traits)
