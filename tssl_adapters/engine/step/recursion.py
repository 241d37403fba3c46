"""One time step of the recursion, forward and backward, shared by sequence and step engine.

The backward pass carries two adjoints from step t+1 to step t: lambda, the spike-time chain, and
mu, the adjoint of a loss on the membrane potential. With G[t] the gradient with respect to the
spike, c[t] that of a loss on the carried potential, F_v the derivative of step t+1's charge with
respect to the potential, and D[t] = du/dh at a fixed spike::

    lambda[t] = phi[t] G[t] + D[t] F_v lambda[t+1] + (what the rule adds through the reset)
    mu[t]     = (c[t] + F_v mu[t+1]) (D[t] + what the rule adds through the reset)
    e[t]      = (G[t] f[t] where the rule says so, else lambda[t]) + mu[t]

e goes to the drive and to the charge's parameters. If the layer hands on h rather than u
(``delayed``), all of c[t] enters mu[t]. G[t] stands for the rule's ``signal``, and D[t] is 1 under
a continuous-time rule. A step has the layout ``[batch, ...]``.

lambda may overflow, and so may a surrogate's phi. A factor of zero must still give zero, and a
silent step emit its fallback: :func:`product`, :func:`passed`. On a CPU, selecting takes torch many
times as long as multiplying, so a step is first computed by multiplication, and again with
selection if its result is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tssl_adapters.arithmetic import Number, Symbol, plus, where
from tssl_adapters.elementwise import greater, operand, plain, reaches
from tssl_adapters.engine.step.spec import DECAY, GAIN, OFFSET, RESET_VALUE, THRESHOLD
from tssl_adapters.neuron import AtReset, Neuron, Value
from tssl_adapters.rules import Rule, Step
from tssl_adapters.rules.base import Fallback


class Moment(NamedTuple):
    """One computed time step: what came in, and what the neuron did with it."""

    state: Tensor
    drive: Tensor
    before: Tensor | None
    """r[t], the spike of the incoming state if its reset is still due (snnTorch), else None."""
    charged: Tensor
    spike: Tensor


class Carried(NamedTuple):
    """What step t+1 passes back to step t. ``None`` is zero."""

    chain: Tensor | None = None
    """lambda[t+1]"""
    decayed_chain: Tensor | None = None
    """F_v lambda[t+1]"""
    decayed_membrane: Tensor | None = None
    """F_v mu[t+1]"""
    grad_spike: Tensor | None = None
    """G[t+1], for rules that look ahead; with a window, from one call to the one before"""


class _Adjoints(NamedTuple):
    """The results of one backward step, ``[batch, ...]`` each: phi[t], what it multiplies,
    lambda[t], mu[t], the rule's factor for the reset and the adjoint it multiplies, the fallback,
    and e[t].
    """

    slope: Tensor
    arriving: Tensor
    chain: Tensor
    membrane: Tensor | None
    membrane_reset: Tensor | None
    reset_adjoint: Tensor | None
    fallback: Fallback | None
    total: Tensor


def fires(neuron: Neuron, potential: Tensor) -> Tensor:
    """The spike, 0 or 1 in the potential's dtype."""
    if neuron.strict:
        return greater(potential, neuron.threshold)
    # As SpikingJelly has it: an infinite potential does not reach an infinite threshold.
    return reaches(potential, neuron.threshold)


def charge(neuron: Neuron, state: Tensor, drive: Tensor) -> tuple[Tensor | None, Tensor]:
    """r[t] (if the neuron has one) and h[t], in the library's own order of operations."""
    before, charged = _unrounded(neuron, state, drive)
    return before, charged if neuron.quantiser is None else neuron.quantiser(charged)


def _unrounded(neuron: Neuron, state: Tensor, drive: Tensor) -> tuple[Tensor | None, Tensor]:
    formula, raw = neuron.charge.formula, neuron.charge.raw
    if neuron.timing == "immediate":
        return None, formula(state, drive, *raw)
    before = fires(neuron, state)
    entering = neuron.reset.before_charge(state, before, neuron.threshold)
    charged = formula(entering, drive, *raw)
    return before, neuron.reset.after_charge(charged, before, neuron.threshold)


def state_after(neuron: Neuron, charged: Tensor, spike: Tensor, before: Tensor | None) -> Tensor:
    """The state passed to the next step: after the reset, unless that is delayed."""
    if neuron.timing == "delayed":
        return charged
    due = spike if before is None else spike - before
    return neuron.reset.apply(charged, due, neuron.threshold)


def state_from(neuron: Neuron, charged: Tensor) -> Tensor:
    """The state that a step handed on, from its h; with both resets it takes more than that."""
    assert neuron.timing != "both"
    if neuron.timing == "delayed":
        return charged
    return state_after(neuron, charged, fires(neuron, charged), None)


def current_after(charged: Tensor, k: Value) -> Tensor:
    """i[t] = i'[t] + k i'[t], where i'[t] = i[t-1] + x[t] is a synaptic current that charges the
    membrane, and k = -dt/tau_syn.
    """
    return charged + k * charged


def through_current(own: Tensor, later: Tensor, k: Value) -> Tensor:
    """The gradient of i'[t], from its own and that of i[t]. It is x[t]'s and i[t-1]'s, too."""
    return own + later + k * later


def trace_after(trace: Tensor | None, spike: Tensor, tau_s: float) -> Tensor:
    """a[t] = a[t-1] + (s[t] - a[t-1]) / tau_s; a[t-1] is 0 if ``trace`` is ``None``."""
    if tau_s == 1.0:
        return spike
    if trace is None:
        return spike / tau_s
    rise = spike - trace
    if isinstance(rise, Tensor):
        return rise.div_(operand(tau_s, spike)).add_(trace)
    return rise / tau_s + trace


def through_psc(
    own: Tensor | None, later: Tensor | None, tau_s: float
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients with respect to a[t-1] and s[t], from that of the output, and of a[t] by what
    comes later.
    """
    if tau_s == 1.0:
        return None, own
    total = added(own, later)
    return (None, None) if total is None else (total * (1.0 - 1.0 / tau_s), total / tau_s)


def _held(neuron: Neuron, moment: Moment) -> Tensor:
    """What the decay multiplies."""
    if moment.before is None:
        return moment.state
    return neuron.reset.before_charge(moment.state, moment.before, neuron.threshold)


def _increment(neuron: Neuron, moment: Moment, removed: Value) -> Tensor:
    """d[t] = h[t] - u[t-1]; with a delayed reset, u[t-1] comes from the incoming h[t-1]."""
    if neuron.timing != "delayed":
        return moment.charged - moment.state
    assert moment.before is not None
    left = neuron.reset.left(moment.state, moment.before, neuron.threshold, removed)
    return moment.charged - left


def _removed(neuron: Neuron, moment: Moment) -> Value:
    """R[t] = -du/ds."""
    decay = neuron.charge.decay if neuron.timing == "delayed" else None
    return neuron.reset.removed(moment.charged, moment.spike, neuron.threshold, decay)


def _taken(neuron: Neuron, moment: Moment) -> Tensor | None:
    """1 - D[t], where D[t] = du/dh at a fixed spike; ``None`` is zero."""
    due = moment.spike
    if neuron.timing == "both":
        assert moment.before is not None
        due = due - moment.before
    return neuron.reset.taken(moment.charged, moment.spike, due)


def _looks_cheap(tensor: Tensor) -> bool:
    """Whether a tensor's values can be read without synchronisation."""
    return tensor.is_cpu and plain(tensor)


def product(factor: Value, adjoint: Tensor) -> Tensor:
    """``factor * adjoint``, but zero where the factor is zero, even if the adjoint is infinite."""
    found = factor * adjoint
    if isinstance(found, Symbol):
        return where(factor != 0.0, found, 0.0)
    return torch.where(torch.as_tensor(factor != 0.0, device=found.device), found, 0.0)


def passed(slope: Tensor, arriving: Tensor) -> Tensor:
    """``slope * arriving``, but zero where either is zero: where nothing arrives at a spike nothing
    passes it, even if a surrogate overflows there.
    """
    found: Tensor = where(arriving != 0.0, product(slope, arriving), 0.0)
    return found


def added(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    """The sum of two terms, either of which may be zero."""
    if left is None or right is None:
        return right if left is None else left
    return left + right


class Backward:
    """The backward pass over one call's steps: feed it moments from the last to the first.

    Args:
        neuron: the layer's record.
        rule: the learning rule.
        tau_s: synaptic time constant.
        needs: which of decay, gain, offset, threshold and reset value want a gradient.
        carried: what the next call passed back through its link.
        fired: 1 where a neuron fires in the steps' window, for rules that ask for it.
        steps: the window's number of time steps, for rules that ask for it.
    """

    def __init__(
        self,
        neuron: Neuron,
        rule: Rule,
        tau_s: float,
        needs: Sequence[bool],
        carried: Carried,
        fired: Tensor | None = None,
        steps: float = math.inf,
    ) -> None:
        self.neuron, self.rule, self.tau_s = neuron, rule, tau_s
        self.fired, self.steps = fired, steps
        self.needs = needs
        self.carried = carried if rule.chain else Carried()
        self.sums: list[Tensor | None] = [None] * len(needs)
        self.needs_any = any(needs)
        self.needs_reset = needs[THRESHOLD] or needs[RESET_VALUE]
        self.careful = False
        """Whether to select where a factor is zero rather than multiply by it."""

    def step(
        self,
        moment: Moment,
        active: Tensor | None,
        grad_spike: Tensor,
        grad_state: Tensor | None,
        grad_charged: Tensor | None = None,
        last: Number | None = None,
        around: Tensor | None = None,
    ) -> Tensor:
        """Go one step back.

        Args:
            moment: the time step.
            active: where the rule counts the neuron as active by a[t], at ``tau_s > 1``.
            grad_spike: G[t], or the rule's replacement for it.
            grad_state: c[t], the gradient with respect to the outgoing state.
            grad_charged: the gradient with respect to h[t] itself; all of it is added to mu[t].
            last: 1 if this is the window's last step; ``None`` is 0.
            around: the mean of c just before and just after the reset, if known.

        Returns:
            The gradient with respect to the drive.
        """
        neuron, rule = self.neuron, self.rule
        removed = _removed(neuron, moment)
        ahead = rule.takes_later
        later = self.carried.grad_spike if ahead else None
        if ahead and later is None:
            later = grad_spike
        step = Step(
            moment.spike,
            moment.charged,
            _increment(neuron, moment, removed),
            active,
            removed,
            neuron.threshold,
            self.tau_s,
            neuron.detached,
            neuron.reset.drop(neuron.threshold),
            self.fired,
            last,
            neuron.charge.decay,
            self.steps,
            later,
            around,
        )
        self.careful = self.careful or not _looks_cheap(moment.charged)
        found = self._adjoints(step, moment, grad_spike, grad_state, grad_charged)
        if not (self.careful or math.isfinite(found.total.sum().item())):
            self.careful = True
            found = self._adjoints(step, moment, grad_spike, grad_state, grad_charged)
        total, chain, membrane = found.total, found.chain, found.membrane

        if self.needs_any:
            self._charge_sums(moment, total)
        if self.needs_reset:
            held = membrane if rule.counts_reset else added(chain, membrane)
            self._reset_sums(moment, self._firing(step, found), grad_state, held)
        if rule.chain:
            self._carry(moment, chain if rule.spike_chain else None, membrane)
        if ahead:
            self.carried = self.carried._replace(grad_spike=grad_spike)
        gain = neuron.charge.gain
        if not isinstance(gain, float):
            return total * gain
        if gain == 1.0:
            return total
        shared = total is chain or self.needs_any  # the sums may hold it
        return total * gain if shared else total.mul_(operand(gain, total))

    def _adjoints(
        self,
        step: Step,
        moment: Moment,
        grad_spike: Tensor,
        grad_state: Tensor | None,
        grad_charged: Tensor | None,
    ) -> _Adjoints:
        """lambda[t], mu[t] and e[t]."""
        neuron, rule, carried = self.neuron, self.rule, self.carried
        slope = rule.slope(step)
        taken = None if rule.continuous else _taken(neuron, moment)
        grad_spike = rule.signal(step, grad_spike)
        arriving = self._arriving(step, grad_spike)
        ends = moment.spike if rule.ends_at_spikes else taken
        chain = self._chain(slope, arriving, ends)

        reset_adjoint = carried.decayed_membrane
        if neuron.timing != "delayed":
            reset_adjoint = added(grad_state, reset_adjoint)
        membrane_reset = None
        # Without a reset no slope is asked for, which may have overflown.
        if reset_adjoint is not None and neuron.reset.happens:
            membrane_reset = rule.membrane_reset(step, slope)
        membrane = self._membrane(grad_state, reset_adjoint, taken, membrane_reset)
        membrane = added(membrane, grad_charged)

        fallback = rule.emit(step, grad_spike)
        emitted = chain if fallback is None else self._chosen(fallback, chain)
        total = emitted if membrane is None else emitted + membrane
        return _Adjoints(
            slope, arriving, chain, membrane, membrane_reset, reset_adjoint, fallback, total
        )

    def _times(self, factor: Tensor, adjoint: Tensor) -> Tensor:
        return product(factor, adjoint) if self.careful else factor * adjoint

    def _through(self, slope: Tensor, arriving: Tensor) -> Tensor:
        """What passes the spike."""
        return passed(slope, arriving) if self.careful else slope * arriving

    def _plus(self, base: Tensor, factor: Tensor, adjoint: Tensor) -> Tensor:
        if self.careful:
            return base + product(factor, adjoint)
        return torch.addcmul(base, factor, adjoint)

    def _kept(self, taken: Tensor | None, adjoint: Tensor) -> Tensor:
        """D[t] times an adjoint."""
        if taken is None:
            return adjoint
        if self.careful:
            kept: Tensor = where(taken == 1.0, 0.0, (1.0 - taken) * adjoint)
            return kept
        return torch.addcmul(adjoint, taken, adjoint, value=-1)

    def _chosen(self, fallback: Fallback, active: Tensor) -> Tensor:
        """The fallback where a neuron is silent, else what an active one emits."""
        # A threshold of a wider dtype than the drive widens the fallback; lerp takes one dtype.
        if self.careful or not fallback.gradient.dtype == active.dtype == fallback.active.dtype:
            chosen: Tensor = where(fallback.active != 0.0, active, fallback.gradient)
            return chosen
        return torch.lerp(fallback.gradient, active, fallback.active)

    def _firing(self, step: Step, found: _Adjoints) -> Tensor:
        """What reaches the potential through the spike."""
        if self.rule.continuous:
            return self._times(step.spike, self._passing(found))
        firing = self._through(found.slope, found.arriving)
        if found.fallback is not None:
            firing = self._chosen(found.fallback, firing)
        firing = self.rule.crossing(step, firing)
        if found.membrane_reset is None or found.reset_adjoint is None:
            return firing
        return self._plus(firing, found.membrane_reset, found.reset_adjoint)

    def _passing(self, found: _Adjoints) -> Tensor:
        """lambda[t] + mu[t], without a loss on h[t] itself."""
        passing = found.reset_adjoint
        if passing is not None and found.membrane_reset is not None:
            passing = self._plus(passing, found.membrane_reset, passing)
        return found.chain if passing is None else found.chain + passing

    def _arriving(self, step: Step, grad_spike: Tensor) -> Tensor:
        """What arrives at the spike, before its slope: G[t], and what comes through the reset."""
        later, decayed = self.carried.chain, self.carried.decayed_chain
        reset = self.rule.chain_reset(step) if later is not None else None
        if reset is None or later is None or decayed is None:
            return grad_spike
        if reset.plain:
            plain = later if reset.plain == 1.0 else later * reset.plain
            back = plus(plain, reset.decayed, decayed)
        else:
            back = decayed * reset.decayed
        if not isinstance(reset.amount, float):
            return self._plus(grad_spike, reset.amount, back)
        return grad_spike if reset.amount == 0.0 else plus(grad_spike, reset.amount, back)

    def _chain(self, slope: Tensor, arriving: Tensor, taken: Tensor | None) -> Tensor:
        """lambda[t]."""
        decayed = self.carried.decayed_chain
        if decayed is None:
            return self._through(slope, arriving)
        if self.careful:
            return self._kept(taken, decayed) + passed(slope, arriving)
        if taken is None:
            return torch.addcmul(decayed, slope, arriving)
        return torch.addcmul(decayed, taken, decayed, value=-1).addcmul_(slope, arriving)

    def _membrane(
        self,
        grad_state: Tensor | None,
        reset_adjoint: Tensor | None,
        taken: Tensor | None,
        membrane_reset: Tensor | None,
    ) -> Tensor | None:
        """mu[t]."""
        delayed = self.neuron.timing == "delayed"
        if reset_adjoint is None:
            return grad_state if delayed else None
        through = self._kept(taken, reset_adjoint)
        if membrane_reset is not None:
            through = self._plus(through, membrane_reset, reset_adjoint)
        return added(grad_state, through) if delayed else through

    def _carry(self, moment: Moment, chain: Tensor | None, membrane: Tensor | None) -> None:
        decay = operand(self.neuron.charge.decay, moment.charged)
        if self.neuron.timing == "both":
            assert moment.before is not None
            let_in = self.neuron.reset.lets_in(moment.before)
            decay = decay if let_in is None else decay * let_in
        times = product if self.careful else torch.mul
        self.carried = Carried(
            chain,
            None if chain is None else times(decay, chain),
            None if membrane is None else times(decay, membrane),
        )

    def hand_back(self, grad_spike: Tensor | None) -> None:
        """Pass G of this call's first step to the previous call, if :meth:`step` was given the
        rule's replacement for it.
        """
        if self.rule.looks_ahead and self.rule.windowed:
            self.carried = self.carried._replace(grad_spike=grad_spike)

    def _charge_sums(self, moment: Moment, emitted: Tensor) -> None:
        if self.needs[DECAY]:
            charge, held = self.neuron.charge, _held(self.neuron, moment)
            if charge.centred is not None:
                held = held - charge.raw[charge.centred]
            self._sum(DECAY, emitted * held)
        if self.needs[GAIN]:
            self._sum(GAIN, emitted * moment.drive)
        if self.needs[OFFSET]:
            self._sum(OFFSET, emitted)

    def _reset_sums(
        self, moment: Moment, firing: Tensor, grad_state: Tensor | None, adjoint: Tensor | None
    ) -> None:
        """Gradients of threshold and reset value: through the spike test, and through the reset."""
        neuron, carried = self.neuron, self.carried
        chain = None if self.rule.counts_reset else carried.decayed_chain
        after = added(chain, carried.decayed_membrane)
        if neuron.timing != "delayed":
            after = added(grad_state, after)
        due = moment.spike if moment.before is None else moment.spike - moment.before
        delayed, along = neuron.timing == "delayed", self.rule.continuous
        decay = neuron.charge.decay
        at_reset = AtReset(firing, due, after, moment.before, adjoint, decay, delayed, along)
        for index, terms in zip(
            (THRESHOLD, RESET_VALUE), neuron.reset.learned(at_reset), strict=True
        ):
            if self.needs[index] and terms is not None:
                self._sum(index, terms)

    def _sum(self, index: int, terms: Tensor) -> None:
        value = self.neuron.values()[index]
        assert isinstance(value, Tensor)
        self.sums[index] = added(self.sums[index], terms.sum_to_size(value.shape))

    def entering(self, first: Moment, linked: bool) -> Tensor | None:
        """The gradient of the incoming state, unless it is passed on through the link."""
        chain, membrane = self.carried.decayed_chain, self.carried.decayed_membrane
        if not self.rule.chain:
            return None
        if self.neuron.timing != "delayed":
            return membrane if linked else added(chain, membrane)
        if linked:
            return None
        total = added(chain, membrane)
        assert first.before is not None
        let_in = self.neuron.reset.lets_in(first.before)
        return total if total is None or let_in is None else total * let_in
