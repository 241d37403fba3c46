"""One time step of the recursion, forward and back, shared by the sequence and the step engine.

The backward pass carries two adjoints from step t+1 to step t: lambda, the spike-time chain, and
mu, that of a loss on the membrane potential. With G[t] the gradient with respect to the spike,
c[t] that of a loss on the carried potential, F_v the derivative of step t+1's charge with respect
to the potential, and D[t] = du/dh at a fixed spike::

    lambda[t] = phi[t] G[t] + D[t] F_v lambda[t+1] + (what the rule adds through the reset)
    mu[t]     = (c[t] + F_v mu[t+1]) (D[t] + what the rule adds through the reset)
    e[t]      = (G[t] f[t] where the rule says so, else lambda[t]) + mu[t]

e goes to the drive and to the charge's parameters. Where the layer hands on h rather than u
(``delayed``), c[t] enters mu[t] whole. The layout of a step is ``[batch, ...]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tssl_adapters.neuron import Neuron, Subtract, ToValue, Value
from tssl_adapters.rules import Rule, Step

DECAY, GAIN, OFFSET, THRESHOLD, RESET_VALUE = range(5)


class Moment(NamedTuple):
    """One computed time step: what came in, and what the neuron did with it."""

    state: Tensor
    drive: Tensor
    before: Tensor | None
    """r[t], the spike of the incoming state where its reset is still due (snnTorch), else None."""
    charged: Tensor
    spike: Tensor


class Carried(NamedTuple):
    """What step t+1 hands to step t. ``None`` is zero."""

    chain: Tensor | None = None
    """lambda[t+1]"""
    decayed_chain: Tensor | None = None
    """F_v lambda[t+1]"""
    decayed_membrane: Tensor | None = None
    """F_v mu[t+1]"""


def fires(neuron: Neuron, potential: Tensor) -> Tensor:
    """The spike, 0 or 1 in the potential's dtype."""
    compare = torch.gt if neuron.strict else torch.ge
    return compare(potential, neuron.threshold).to(potential.dtype)


def forward_step(neuron: Neuron, state: Tensor, drive: Tensor) -> Moment:
    """Charge and fire, in the library's own order of operations."""
    charge, reset = neuron.charge, neuron.reset
    before = None if neuron.timing == "immediate" else fires(neuron, state)
    held = state
    if before is not None and isinstance(reset, ToValue):
        held = (1 - before) * state
    charged = charge.formula(held, drive, *charge.raw)
    if before is not None and isinstance(reset, Subtract):
        charged = charged - before * neuron.threshold
    return Moment(state, drive, before, charged, fires(neuron, charged))


def state_after(neuron: Neuron, moment: Moment) -> Tensor:
    """The state handed to the next step: after the reset, unless that is delayed."""
    charged, spike, before = moment.charged, moment.spike, moment.before
    if neuron.timing == "delayed":
        return charged
    due = spike if before is None else spike - before
    if isinstance(neuron.reset, ToValue):
        return (1 - due) * charged + due * neuron.reset.value
    if isinstance(neuron.reset, Subtract):
        return charged - due * neuron.threshold
    return charged


def _held(neuron: Neuron, moment: Moment) -> Tensor:
    """What the decay multiplies."""
    if moment.before is not None and isinstance(neuron.reset, ToValue):
        return (1 - moment.before) * moment.state
    return moment.state


def _increment(neuron: Neuron, moment: Moment) -> Tensor:
    """d[t] = h[t] - u[t-1]; a delayed reset makes u[t-1] out of the incoming h[t-1]."""
    if neuron.timing != "delayed":
        return moment.charged - moment.state
    if isinstance(neuron.reset, Subtract):
        assert moment.before is not None
        return moment.charged - (moment.state - moment.before * _removed(neuron, moment.charged))
    return moment.charged - _held(neuron, moment)


def _removed(neuron: Neuron, charged: Tensor) -> Value:
    """R[t] = -du/ds."""
    if isinstance(neuron.reset, ToValue):
        value = neuron.reset.value
        return charged if isinstance(value, float) and value == 0.0 else charged - value
    if isinstance(neuron.reset, Subtract):
        delayed = neuron.timing == "delayed"
        return neuron.threshold / neuron.charge.decay if delayed else neuron.threshold
    return 0.0


def _kept(neuron: Neuron, moment: Moment) -> Tensor | None:
    """D[t] = du/dh at a fixed spike; ``None`` is one."""
    if not isinstance(neuron.reset, ToValue):
        return None
    if neuron.timing == "both":
        assert moment.before is not None
        return 1 - (moment.spike - moment.before)
    return 1 - moment.spike


def _add(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return left + right


def _kept_with(kept: Tensor | None, membrane_reset: Tensor | None) -> Tensor | None:
    if membrane_reset is None:
        return kept
    return membrane_reset + (1.0 if kept is None else kept)


def _plus_product(total: Tensor, left: Tensor | None, right: Tensor) -> Tensor:
    """``total + left * right``; a ``left`` of ``None`` is one."""
    return total + right if left is None else torch.addcmul(total, left, right)


class Backward:
    """The reverse pass over the steps of one call: feed it moments from the last to the first.

    Args:
        neuron: the record, its values detached.
        rule: the learning rule.
        tau_s: synaptic time constant.
        needs: which of decay, gain, offset, threshold and reset value want a gradient.
        carried: what the call after this one handed back through its link.
    """

    def __init__(
        self, neuron: Neuron, rule: Rule, tau_s: float, needs: Sequence[bool], carried: Carried
    ) -> None:
        self.neuron, self.rule, self.tau_s = neuron, rule, tau_s
        self.needs = needs
        self.carried = carried if rule.chain else Carried()
        self.sums: list[Tensor | None] = [None] * len(needs)

    def step(
        self, moment: Moment, trace: Tensor, grad_spike: Tensor, grad_state: Tensor | None
    ) -> Tensor:
        """Go one step back.

        Args:
            moment: the recomputed time step.
            trace: a[t].
            grad_spike: G[t].
            grad_state: c[t], the gradient with respect to the state that the step handed on.

        Returns:
            The gradient with respect to the drive.
        """
        neuron, rule, carried = self.neuron, self.rule, self.carried
        step = Step(
            spike=moment.spike,
            charged=moment.charged,
            increment=_increment(neuron, moment),
            trace=trace,
            removed=_removed(neuron, moment.charged),
            threshold=neuron.threshold,
            tau_s=self.tau_s,
            detached=neuron.detached,
        )
        slope = rule.slope(step)
        kept = _kept(neuron, moment)
        direct = slope * grad_spike
        chain, through_reset = self._chain(step, slope, kept, direct)
        membrane_reset = None
        reset_adjoint = carried.decayed_membrane
        if neuron.timing != "delayed":
            reset_adjoint = _add(grad_state, reset_adjoint)
        if reset_adjoint is not None:
            membrane_reset = rule.membrane_reset(step, slope)
        membrane = self._membrane(grad_state, reset_adjoint, _kept_with(kept, membrane_reset))

        fallback = rule.emit(step)
        emitted = chain
        if fallback is not None:
            smooth, where = fallback
            emitted = torch.where(where, grad_spike * smooth, chain)
        total = emitted if membrane is None else emitted + membrane

        if any(self.needs):
            self._charge_sums(moment, total)
        if self.needs[THRESHOLD] or self.needs[RESET_VALUE]:
            firing = direct if through_reset is None else direct + through_reset
            if fallback is not None:
                firing = torch.where(fallback[1], grad_spike * fallback[0], firing)
            if membrane_reset is not None and reset_adjoint is not None:
                firing = torch.addcmul(firing, membrane_reset, reset_adjoint)
            self._reset_sums(moment, firing, grad_state, _add(chain, membrane))
        self._carry(moment, chain, membrane)
        gain = neuron.charge.gain
        return total if isinstance(gain, float) and gain == 1.0 else total * gain

    def _chain(
        self, step: Step, slope: Tensor, kept: Tensor | None, direct: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """lambda[t], and the part of it that came through the reset's spike."""
        carried = self.carried
        if carried.chain is None or carried.decayed_chain is None:
            return direct, None
        chain = _plus_product(direct, kept, carried.decayed_chain)
        reset = self.rule.chain_reset(step, slope)
        if reset is None:
            return chain, None
        later = reset.decayed * carried.decayed_chain
        if reset.plain:
            later = later.add_(carried.chain, alpha=reset.plain)
        through_reset = later.mul_(reset.factor)
        return chain.add_(through_reset), through_reset

    def _membrane(
        self, grad_state: Tensor | None, reset_adjoint: Tensor | None, kept: Tensor | None
    ) -> Tensor | None:
        """mu[t]. ``kept`` has the rule's part in it already."""
        if reset_adjoint is None:
            return grad_state if self.neuron.timing == "delayed" else None
        through = reset_adjoint if kept is None else reset_adjoint * kept
        return _add(grad_state, through) if self.neuron.timing == "delayed" else through

    def _carry(self, moment: Moment, chain: Tensor, membrane: Tensor | None) -> None:
        if not self.rule.chain:
            return
        decay = self.neuron.charge.decay
        if self.neuron.timing == "both" and isinstance(self.neuron.reset, ToValue):
            assert moment.before is not None
            decay = decay * (1 - moment.before)
        self.carried = Carried(
            chain, chain * decay, None if membrane is None else membrane * decay
        )

    def _charge_sums(self, moment: Moment, emitted: Tensor) -> None:
        if self.needs[DECAY]:
            self._sum(DECAY, emitted * _held(self.neuron, moment))
        if self.needs[GAIN]:
            self._sum(GAIN, emitted * moment.drive)
        if self.needs[OFFSET]:
            self._sum(OFFSET, emitted)

    def _reset_sums(
        self, moment: Moment, firing: Tensor, grad_state: Tensor | None, adjoint: Tensor | None
    ) -> None:
        """Threshold and reset value: through the spike test, and through what a spike removes."""
        neuron, carried = self.neuron, self.carried
        after = _add(carried.decayed_chain, carried.decayed_membrane)
        if neuron.timing != "delayed":
            after = _add(grad_state, after)
        due = moment.spike if moment.before is None else moment.spike - moment.before
        if self.needs[THRESHOLD]:
            total = -firing
            if isinstance(neuron.reset, Subtract):
                if neuron.timing != "delayed" and after is not None:
                    total = torch.addcmul(total, due, after, value=-1)
                if moment.before is not None and adjoint is not None:
                    total = torch.addcmul(total, moment.before, adjoint, value=-1)
            self._sum(THRESHOLD, total)
        if self.needs[RESET_VALUE] and after is not None:
            self._sum(RESET_VALUE, due * after)

    def _sum(self, index: int, terms: Tensor) -> None:
        value = self.neuron.values()[index]
        assert isinstance(value, Tensor)
        self.sums[index] = _add(self.sums[index], terms.sum_to_size(value.shape))

    def entering(self, first: Moment, linked: bool) -> Tensor | None:
        """The gradient of the state that came in, where it is not handed on through the link."""
        chain, membrane = self.carried.decayed_chain, self.carried.decayed_membrane
        if not self.rule.chain:
            return None
        if self.neuron.timing != "delayed":
            return membrane if linked else _add(chain, membrane)
        if linked:
            return None
        total = _add(chain, membrane)
        if total is not None and isinstance(self.neuron.reset, ToValue):
            assert first.before is not None
            total = total * (1 - first.before)
        return total
