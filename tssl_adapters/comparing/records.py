"""What one pass records of a layer: its spikes, its potentials, and the slope of a spike."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from tssl_adapters.neuron import Traits, Value
from tssl_adapters.rules import Rule, Step
from tssl_adapters.rules.smooth import scale_of

_OFFSETS = torch.logspace(-3.0, 2.0, 41).tolist()
GRID = (*(-z for z in reversed(_OFFSETS)), 0.0, *_OFFSETS)
"""Distances from the threshold at which a slope is sampled, in units of what a spike takes."""


class Spikes:
    """How often a layer's neurons fire, and which of them ever do."""

    def __init__(self) -> None:
        self._fired = self._seen = 0
        self._ever: dict[torch.Size, Tensor] = {}

    def see(self, out: Tensor, lead: int) -> None:
        """Add a layer's output; the first ``lead`` dimensions are time and batch."""
        out = out.detach()
        fires = (out.to_dense() if out.is_sparse else out) != 0
        self._fired += int(fires.sum())
        self._seen += fires.numel()
        lead = min(lead, fires.ndim - 1)  # without a batch the last dimension is the neurons
        ever = fires.flatten(0, lead - 1).any(0) if lead > 0 else fires
        before = self._ever.get(ever.shape)
        self._ever[ever.shape] = ever if before is None else ever | before

    @property
    def rate(self) -> float | None:
        """Spikes per neuron and time step."""
        return self._fired / self._seen if self._seen else None

    @property
    def silent(self) -> float | None:
        """Share of the neurons that never fire."""
        if not self._seen:
            return None
        neurons = sum(ever.numel() for ever in self._ever.values())
        return 1.0 - sum(int(ever.sum()) for ever in self._ever.values()) / neurons


class Potentials:
    """What a rule sees of a layer, step by step, in the backward pass.

    All potentials are in units of what a spike takes from one at the threshold, |theta - v_reset|,
    or |theta| where the reset is by subtraction or there is none; in plain units where that is 0.
    """

    def __init__(self, rule: Rule, traits: Traits) -> None:
        self._rule, self._traits = rule, traits
        self.spikes = Spikes()
        self.steps = 0
        self._squares = self._scales = 0.0
        self._chains: dict[torch.Size, tuple[Tensor, Tensor]] = {}
        self._last: Step | None = None

    def see(self, step: Step, slope: Tensor) -> None:
        """Add one time step, which precedes the one added last (in the backward pass)."""
        self.steps += 1
        self.spikes.see(step.spike, 1)
        scale = _scale(step)
        self._scales += _mean(scale)
        self._squares += _mean((step.increment / scale).square())
        self._follow(step, slope)
        self._last = step

    def _follow(self, step: Step, slope: Tensor) -> None:
        """Multiply the chain's factor in a step into its product over steps.

        Two logarithms are kept for each neuron: of the largest product over steps that end here,
        and of the largest product so far.
        """
        carry = self._carry(step, slope)
        if carry is None:
            return
        carry = carry.detach().abs().log()
        nothing = torch.full_like(carry, -math.inf)
        here, most = self._chains.get(carry.shape, (nothing, nothing))
        here = here.clamp(min=0.0) + carry
        self._chains[carry.shape] = here, torch.maximum(most, here)

    def _carry(self, step: Step, slope: Tensor) -> Tensor | None:
        """The factor on lambda[t+1] in lambda[t], ``[batch, ...]``, or ``None``."""
        rule, traits = self._rule, self._traits
        if not (rule.chain and rule.spike_chain) or traits.reset.stepwise:
            return None
        decay = _held(step.decay)
        sets = traits.reset.target is not None and not rule.continuous
        taken = sets or rule.ends_at_spikes
        carry = decay * (1.0 - step.spike) if taken else decay * torch.ones_like(step.spike)
        reset = rule.chain_reset(step)
        if reset is None:
            return carry
        return carry + slope * reset.amount * (reset.plain + reset.decayed * decay)

    @property
    def scale(self) -> float | None:
        """What a spike takes from a potential at the threshold, on average."""
        return self._scales / self.steps if self.steps else None

    @property
    def rise(self) -> float | None:
        """The root mean square of d[t], a step's rise."""
        return math.sqrt(self._squares / self.steps) if self.steps else None

    @property
    def carry(self) -> float | None:
        """The largest factor of the chain over time on a gradient, over any stretch of steps: the
        root mean square over neurons.
        """
        if not self._chains:
            return None
        most = torch.cat([most.flatten() for _, most in self._chains.values()])
        squares = (2.0 * most).logsumexp(0) - math.log(most.numel())
        return float((squares / 2.0).exp())

    @torch.no_grad()
    def width(self) -> float | None:
        """The width of the rule's slope around the threshold."""
        if self._last is None or self.rise is None or not math.isfinite(self.rise):
            return None
        rule, step = self._rule, self._last
        scale = _scale(step).expand_as(step.charged)
        curve = []
        for z in GRID:
            fires = torch.full_like(step.spike, float(z >= 0.0))
            probe = step._replace(
                spike=fires,
                charged=step.threshold + z * scale,
                increment=(z + self.rise) * scale,  # as if all steps began at the same potential
                active=None if step.active is None else fires,
            )
            slope = rule.slope(probe)
            fallback = rule.emit(probe, torch.ones_like(slope))
            if fallback is not None:
                slope = torch.lerp(fallback.gradient, slope, fallback.active)
            curve.append(_mean(slope))
        return full_width(curve)

    def native_width(self, spikes: Callable[[Tensor], Tensor]) -> float | None:
        """The width of a library's surrogate.

        Args:
            spikes: maps h - theta to the spike, with the surrogate's gradient.
        """
        if self._last is None or self.scale is None:
            return None
        like = self._last.charged
        neurons = like[:1] if like.ndim > 1 else like
        curve = []
        for z in GRID:
            around = torch.full_like(neurons, z * self.scale).requires_grad_()
            with torch.enable_grad():
                fired = spikes(around)
                if not fired.requires_grad:
                    return None
                (slope,) = torch.autograd.grad(fired.sum(), around)
            curve.append(_mean(slope))
        return full_width(curve)


def recording(rule: Rule, potentials: Potentials) -> Rule:
    """A copy of the rule that records its layer's potentials."""
    cls = type(rule)

    def slope(self: Rule, step: Step) -> Tensor:
        found = cls.slope(self, step)
        potentials.see(step, found)
        return found

    # A subclass rather than a wrapper around it: it has everything that the rule has.
    body = {"slope": slope, "__slots__": (), "__module__": cls.__module__}
    recorded = copy.copy(rule)
    object.__setattr__(recorded, "__class__", type(cls.__name__, (cls,), body))
    return recorded


def full_width(curve: list[float]) -> float | None:
    """Full width at half maximum of a curve over :data:`GRID`; ``None`` if it has none.

    It is infinite if the curve has not fallen to half by the grid's ends.
    """
    peak = max(curve)
    if not (0.0 < peak < math.inf):
        return None
    half = [value - peak / 2.0 for value in curve]
    if half[0] >= 0.0 or half[-1] >= 0.0:
        return math.inf
    width = 0.0
    for left, right, low, high in zip(GRID, GRID[1:], half, half[1:], strict=False):
        if low >= 0.0 and high >= 0.0:
            width += right - left
        elif (low >= 0.0) != (high >= 0.0):
            width += (right - left) * max(low, high) / abs(high - low)
    return width


def _scale(step: Step) -> Tensor:
    return torch.as_tensor(scale_of(step.drop)).to(step.charged)


def _held(value: Value) -> Value:
    return value.detach() if isinstance(value, Tensor) else value


def _mean(tensor: Tensor) -> float:
    return float(tensor.detach().mean())
