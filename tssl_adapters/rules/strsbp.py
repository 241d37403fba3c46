"""ST-RSBP: backpropagation at the level of whole spike trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tssl_adapters.arithmetic import arithmetic
from tssl_adapters.neuron import Traits, Value
from tssl_adapters.rules.base import Fallback, Feedback, Rule, Step, Window
from tssl_adapters.rules.checks import indivisible, one_of

SelfEffect = Literal["poisson", "regular", "none"]
Silent = Literal["half", "zero"]
Recurrent = Literal["diagonal", "full"]
Credit = Literal["train", "spike"]
FLOOR = 1e-4
"""The lower bound of 1 - S, as in the authors' code."""


@dataclass(frozen=True)
class STRSBP(Rule):
    """Spike-train level recurrent backpropagation.

    W. Zhang and P. Li, "Spike-Train Level Backpropagation for Training Deep Recurrent Spiking
    Neural Networks", NeurIPS 2019 (arXiv 1908.06378), and the authors' code. A neuron's spike
    count is o = a/theta, with a the charge collected by its spikes. For one neuron, with G[t] the
    gradient of its spike, ``[T, batch, ...]``, and beta and kappa the decay and the gain::

        delta   = sum_t s[t] G[t] / o                     the gradient of its count
        eps     = delta / (theta (1 - S))                 S: effect of its count on its charge
        k[t]    = s[t] + (1 - s[t]) beta k[t+1]           share of a charge its next spike collects
        dE/dx[t] = kappa eps k[t],    dE/dtheta = -eps o

    At ``tau_s > 1`` G[t] comes through the post-synaptic current. If a spike sets the potential to
    v_reset, theta stands for theta - v_reset. 1 - S is at least 1e-4; for given T it depends on o
    alone.

    Args:
        self_effect: ``"poisson"``, 1 - S = 1/(1 + r) with r = (1-beta) T/o, for irregular trains;
            ``"regular"``, r/(e^r - 1) with r = -ln(beta) T/o, the exact derivative of a
            neuron's rate under constant drive, which gets large when spikes are few; ``"none"``,
            S = 0.
        silent: a neuron that never fired has delta = mean_t G[t]. ``"half"`` lets it send
            dE/dx[t] = kappa delta / (2 theta) at every step; with ``"zero"`` it sends nothing, and
            an output layer that falls silent stays silent.
        recurrent: ``"diagonal"`` neglects what feeds back to a neuron through recurrent weights.
            ``"full"`` solves eps = L^-T delta/theta with L = diag(1 - S) - R_ip e_{i|p}/(o_p
            theta_i) for each sample, [N, N]; it needs the whole sequence and the weights R, which
            Norse's ``LIFRecurrent`` has. e_{i|p} is what i collects through one recurrent weight.
        credit: ``"train"`` uses delta; it needs the whole sequence in one call. ``"spike"`` uses
            each spike's own G[t] instead: the same if G is constant, and works in time loops.

    Refused: neurons that are nonlinear, have no reset or one that puts the threshold out of reach,
    have a refractory period, or emit graded spikes; ``credit="train"`` and ``recurrent="full"`` if
    a layer runs step by step.

    Raises:
        ValueError: an unknown option.
    """

    self_effect: SelfEffect = "poisson"
    silent: Silent = "half"
    recurrent: Recurrent = "diagonal"
    credit: Credit = "train"

    windowed = True
    counts_reset = True
    ends_at_spikes = True
    cuts_feedback = True

    def __post_init__(self) -> None:
        one_of("STRSBP", "self_effect", self.self_effect, get_args(SelfEffect))
        one_of("STRSBP", "silent", self.silent, get_args(Silent))
        one_of("STRSBP", "recurrent", self.recurrent, get_args(Recurrent))
        one_of("STRSBP", "credit", self.credit, get_args(Credit))

    @property
    def whole(self) -> bool:  # type: ignore[override]
        return self.credit == "train"

    @property
    def solves_feedback(self) -> bool:  # type: ignore[override]
        return self.recurrent == "full"

    def factor(self, window: Window) -> Tensor:
        return torch.where(window.counts > 0, self._left(window).reciprocal(), 1.0)

    def cotangent(
        self,
        grads: Sequence[Tensor],
        spikes: Sequence[Tensor],
        window: Window,
        later: Tensor | None,
    ) -> Sequence[Tensor]:
        assert window.factor is not None
        if self.credit == "spike":
            return [grad * window.factor for grad in grads]
        delta = _of_count(grads, spikes, window)
        if window.feedback is None:
            return [delta * window.factor] * len(grads)
        return [_solved(delta, spikes, window, window.factor, window.feedback)] * len(grads)

    def _left(self, window: Window) -> Tensor:
        """1 - S."""
        counts, steps = window.counts.clamp(min=1.0), window.steps
        if self.self_effect == "none":
            return torch.ones_like(counts)
        decay = torch.as_tensor(window.decay, dtype=counts.dtype, device=counts.device)
        if self.self_effect == "poisson":
            left = 1.0 / (1.0 + (1.0 - decay) * steps / counts)
        else:
            r = -torch.log(decay) * steps / counts
            left = torch.where(r > 0, r / torch.expm1(r), 1.0)
        return left.nan_to_num(nan=FLOOR).clamp(min=FLOOR)

    @arithmetic
    def slope(self, step: Step) -> Tensor:
        return step.spike if _is_one(step.drop) else step.spike / step.drop

    @arithmetic
    def emit(self, step: Step, grad_spike: Tensor) -> Fallback | None:
        if self.silent == "zero" or step.fired is None:
            return None
        return Fallback(grad_spike * (0.5 / step.drop), step.fired)

    @arithmetic
    def crossing(self, step: Step, firing: Tensor) -> Tensor:
        return firing * step.spike

    def doubt(self, grad_spike: Tensor) -> str | None:
        if grad_spike.ndim != 2 or grad_spike.shape[1] < 3:
            return None
        size = grad_spike.abs().sum(1)
        balanced = grad_spike.sum(1).abs() <= 1e-3 * size
        one_wanted = (grad_spike < 0).sum(1) == 1
        if not bool((balanced & one_wanted & (size > 0)).all()):
            return None
        return (
            "looks like that of a cross-entropy. On spike counts it can collapse late under "
            "STRSBP, all outputs falling silent at once; prefer a squared error against target "
            "counts, such as 1/2 sum (count - target)^2"
        )

    def problem(self, traits: Traits, tau_s: float) -> str | None:
        if traits.nonlinear is not None:
            return f"STRSBP takes linear integrate-and-fire neurons, and {traits.nonlinear}"
        if not traits.reset.happens:
            return "STRSBP counts what spikes take from the potential, and nothing resets this one"
        if traits.refractory:
            return (
                "its refractory period hides spikes from what comes after, and STRSBP counts those "
                "that take from the potential; use a neuron without"
            )
        if traits.graded:
            return "its spikes are graded, and STRSBP counts spikes; use graded_spikes_factor=1"
        if self.recurrent == "full" and traits.recurrent and not traits.sequence:
            return (
                "STRSBP's recurrent='full' needs the whole sequence and the recurrent weights in "
                "one call, as Norse's LIFRecurrent has them; use recurrent='diagonal'"
            )
        if self.credit == "train" and not traits.sequence:
            return (
                "it goes step by step, and STRSBP's credit='train' needs whole sequences in one "
                "call; use STRSBP(credit='spike')"
            )
        return indivisible("STRSBP", traits)


def _is_one(drop: Value) -> bool:
    return isinstance(drop, float) and drop == 1.0


def _of_count(grads: Sequence[Tensor], spikes: Sequence[Tensor], window: Window) -> Tensor:
    """delta: the mean of G over each neuron's spikes, or over all steps if it never fired."""
    silent = 1.0 - window.active
    total = torch.zeros_like(grads[0])
    if silent.any():
        for grad in grads:
            total += grad
        total *= silent / len(grads)
    shares = window.active / window.counts.clamp(min=1.0)
    at_spikes = torch.zeros_like(total)
    for grad, spike in zip(grads, spikes, strict=True):
        at_spikes.addcmul_(spike, grad)
    return total.addcmul_(at_spikes, shares)


def _solved(
    delta: Tensor,
    spikes: Sequence[Tensor],
    window: Window,
    factor: Tensor,
    feedback: Feedback,
) -> Tensor:
    """L^-T delta for each sample; ``factor`` is 1 over L's diagonal without recurrence."""
    collected, charges = torch.zeros_like(spikes[0]), []
    for s in reversed(spikes):
        collected = s + (1.0 - s) * window.decay * collected
        charges.append(collected)
    kept = torch.stack(charges[::-1])
    shared = feedback.gain * torch.einsum(
        "t...i,t...p->...ip", kept, feedback.arriving.to(kept.dtype)
    )
    per_spike = shared / window.counts.clamp(min=1.0).unsqueeze(-2)
    drop = torch.as_tensor(window.drop, dtype=factor.dtype, device=factor.device)
    effect = feedback.weight * per_spike / drop.expand(factor.shape[-1:]).unsqueeze(-1)
    system = torch.diag_embed(factor.reciprocal()) - effect
    solved: Tensor = torch.linalg.solve(system.mT, delta.unsqueeze(-1)).squeeze(-1)
    return solved
