"""The recursion as the paper and its extension have it, one readable line a formula.

No autograd, no in-place operation, everything kept: what the fast engines are held to. Tensors are
time first, ``[T, batch, ...]``, of any float dtype. Notation: x drive, h charged, s spike, u
membrane potential after reset, v the state that the library carries (u, or h where its reset is
delayed), r the spike of an incoming v whose reset is still due, a the PSC.

Source: W. Zhang and P. Li, "Temporal Spike Sequence Learning via Backpropagation for Deep Spiking
Neural Networks", NeurIPS 2020, in O(T); a second adjoint, mu, for losses on the membrane.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tssl_adapters.neuron import Neuron, Value
from tssl_adapters.resets import Subtract, SubtractAmount, SubtractEarly, ToValue
from tssl_adapters.rules import Rule, Step, Window


@dataclass(frozen=True)
class Forward:
    """Every quantity of the forward pass, each ``[T, batch, ...]``."""

    entering: Tensor
    due: Tensor
    charged: Tensor
    spike: Tensor
    state: Tensor
    psc: Tensor


@dataclass(frozen=True)
class Gradients:
    """Gradients of everything that a layer takes in; parameters unreduced, summed over time."""

    drive: Tensor
    state: Tensor
    trace: Tensor
    decay: Tensor
    gain: Tensor
    offset: Tensor
    threshold: Tensor
    reset_value: Tensor


def forward(neuron: Neuron, tau_s: float, drive: Tensor, state: Tensor, trace: Tensor) -> Forward:
    """Run the neuron from the state v[-1] and the trace a[-1]."""
    charge, theta, amount = neuron.charge, neuron.threshold, _amount(neuron)
    to_value, subtract = isinstance(neuron.reset, ToValue), isinstance(neuron.reset, Subtract)
    early = isinstance(neuron.reset, SubtractEarly)

    def fires(potential: Tensor) -> Tensor:
        over = potential > theta if neuron.strict else potential >= theta
        return over.to(potential.dtype)

    v, a = state.expand_as(drive[0]), trace
    rows = []
    for x in drive:
        entering = v
        r = torch.zeros_like(x) if neuron.timing == "immediate" else fires(v)
        if to_value:
            v = (1 - r) * v
        h = charge.decay * v + charge.gain * x + charge.offset
        if subtract:
            h = h - (charge.decay if early else 1.0) * amount * r
        h = h if neuron.quantiser is None else neuron.quantiser(h)
        s = fires(h)
        taken = torch.zeros_like(s) if neuron.timing == "delayed" else s - r
        if isinstance(neuron.reset, ToValue):
            v = (1 - taken) * h + taken * neuron.reset.value
        else:
            v = h - taken * amount if subtract else h
        a = a + (s - a) / tau_s
        rows.append((entering, r, h, s, v, a))
    return Forward(*(torch.stack(column) for column in zip(*rows, strict=True)))


def backward(
    neuron: Neuron,
    rule: Rule,
    tau_s: float,
    drive: Tensor,
    run: Forward,
    grad_psc: Tensor,
    grad_state: Tensor,
) -> Gradients:
    """Go back from ``grad_psc`` and ``grad_state``, the gradients of a[t] and v[t]."""
    decay, theta, size = neuron.charge.decay, neuron.threshold, _amount(neuron)
    to_value, subtract = isinstance(neuron.reset, ToValue), isinstance(neuron.reset, Subtract)
    early = isinstance(neuron.reset, SubtractEarly)
    delayed, both = neuron.timing == "delayed", neuron.timing == "both"
    zero = torch.zeros_like(drive[0])
    drop = theta - neuron.reset.value if isinstance(neuron.reset, ToValue) else size
    counts = run.spike.sum(0)
    window = Window(counts, (counts > 0).to(zero.dtype), len(drive), decay, drop)
    window = window._replace(factor=rule.factor(window))
    G = _through_psc(grad_psc, tau_s)
    told = rule.cotangent([*G], [*run.spike], window, None)
    whole = rule.continuous
    lam = mu = zero  # of step t+1
    f_v = zero  # F_v of step t+1
    of_size = "reset_value" if isinstance(neuron.reset, SubtractAmount) else "threshold"
    sums = dict.fromkeys(("decay", "gain", "offset", "threshold", "reset_value"), zero)
    grad_drive = []
    for t in reversed(range(len(drive))):
        v, r, h, s, a = run.entering[t], run.due[t], run.charged[t], run.spike[t], run.psc[t]
        held = (1 - r) * v if to_value else v - r * size if early else v
        removed = zero
        if isinstance(neuron.reset, ToValue):
            removed = h - neuron.reset.value
        elif subtract:
            removed = size / decay + zero if delayed and not early else size + zero
        u_before = (held - removed * r if subtract and not early else held) if delayed else v
        kept = 1 - (s - r if both else s) if to_value and not whole else torch.ones_like(s)

        c, g = grad_state[t], told[t]
        if not rule.chain:
            lam = mu = zero
        last = t == len(drive) - 1
        later = g if last else told[t + 1]
        beside = t + 1 if delayed else t - 1
        around = (grad_state[t] + (grad_state[beside] if 0 <= beside < len(drive) else zero)) / 2
        detached = neuron.detached
        gate = rule.active_from(tau_s) if tau_s > 1 else None
        active = None if gate is None else (a >= gate).to(a.dtype)
        step = Step(
            s, h, h - u_before, active, removed, theta, tau_s, detached, drop, window.active,
            1.0 if last else None,
            decay, len(drive), later, around,
        )  # fmt: skip
        g = rule.signal(step, g)
        phi = rule.slope(step)
        amount, plain, decayed = rule.chain_reset(step) or (zero, 0.0, 0.0)
        from_membrane = rule.membrane_reset(step, phi)
        from_membrane = zero if from_membrane is None else from_membrane

        lam_v, mu_v = product(f_v, lam), product(f_v, mu)
        arriving = g + product(amount, product(plain, lam) + decayed * lam_v)
        into_reset = mu_v if delayed else c + mu_v
        through = mu_v if rule.counts_reset else lam_v + mu_v
        grad_u = through if delayed else c + through
        p = product(phi, arriving)
        kept_chain = 1 - s if rule.ends_at_spikes else kept
        lam_now = product(kept_chain, lam_v) + p
        by_spike = product(from_membrane, into_reset)
        mu_now = product(kept, into_reset) + by_spike + (c if delayed else zero)
        e = lam_now
        fallback = rule.emit(step, g)
        if fallback is not None:
            e = torch.where(fallback.active > 0, e, fallback.gradient)
            p = torch.where(fallback.active > 0, p, fallback.gradient)
        e = e + mu_now
        p = rule.crossing(step, p) + by_spike
        if whole:
            p = product(s, lam_now + product(kept, into_reset) + by_spike)

        sums["decay"] = sums["decay"] + e * held
        sums["gain"] = sums["gain"] + e * drive[t]
        sums["offset"] = sums["offset"] + e
        sums["threshold"] = sums["threshold"] - p
        held_adjoint = mu_now if rule.counts_reset else lam_now + mu_now
        if subtract and not whole:
            taken = zero if delayed else s - r
            scale = decay if early else 1.0
            sums[of_size] = sums[of_size] - taken * grad_u - scale * r * held_adjoint
        if to_value and not delayed:
            sums["reset_value"] = sums["reset_value"] + (s - r) * grad_u
        grad_drive.append(neuron.charge.gain * e)
        lam, mu = lam_now if rule.spike_chain else zero, mu_now
        f_v = (decay * (1 - r) if to_value and both else decay) + zero
    entering = (1 - run.due[0] if to_value and delayed else 1.0) * f_v * (lam + mu)
    return Gradients(
        drive=torch.stack(grad_drive[::-1]),
        state=entering if rule.chain else zero,
        trace=(1 - 1 / tau_s) * tau_s * G[0] if tau_s > 1 else zero,
        **sums,
    )


def _amount(neuron: Neuron) -> Value:
    """What a spike takes by subtraction."""
    reset = neuron.reset
    return reset.amount if isinstance(reset, SubtractAmount) else neuron.threshold


def product(factor: Value, adjoint: Tensor) -> Tensor:
    """``factor * adjoint``, and zero where the factor is, though the adjoint has overflowed."""
    found = factor * adjoint
    return found.masked_fill(torch.as_tensor(factor == 0, device=found.device), 0.0)


def _through_psc(grad_psc: Tensor, tau_s: float) -> Tensor:
    """G[t] = g[t] / tau_s + (1 - 1/tau_s) G[t+1]."""
    G, rows = torch.zeros_like(grad_psc[0]), []
    for g in reversed(grad_psc):
        G = g / tau_s + (1 - 1 / tau_s) * G
        rows.append(G)
    return torch.stack(rows[::-1])
