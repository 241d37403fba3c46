"""A float64 numpy oracle of the gradient recursion in the method's specification.

Written from the specification alone, with plain loops over time, so that it shares no code and no
mistake with the package. `run` does one neuron population's forward and backward pass.

Names are the specification's: h charged, s spike, u potential after reset, a PSC,
d = h[t] - u[t-1], G the gradient with respect to the spike, phi the spike's slope, R = -du/ds,
lambda the spike-time chain, mu the membrane's own adjoint, c = grad_membrane. Arrays [T, B, ...].

Readings chosen where the specification leaves room (see also the comments at each place):

 1. timing="delayed", reset_path="complete": the reset at the first step comes from v0, whose spike
    lies before the window and has no phi here, so it is a constant: no gradient of v0 or the
    threshold through it. (In a sequence cut into calls, that part is the link's business.)
 2. timing="both": the increment and R of the reference reset term use the carried state as it came
    in (d = h - v) and F_v = decay*(1-r) of step t+1 for "value", also inside (1-F_v) R phi.
 3. chain=False cuts lambda and mu between steps, but not the PSC filter: G is "the gradient through
    the PSC" in every row of the table of rules. So a0 keeps its gradient, and v0 gets zero.
    What a step does within itself stays: c[t] through the reset of step t, the threshold within the
    charge of step t (delayed and both), the reset value.
 4. The exponent's clip at +-8 in the fallback f is a guard against overflow and has nothing to do
    with max_slope, whose default also is 8.
 5. Where a step is silent *and* spikes (only possible with a negative a0) the formulas are taken
    literally: e = G f + mu, p = G f + ..., while lambda keeps its phi G.
 6. At tau_s = 1 the PSC is the spike itself, not a0 + (s - a0), which could differ in rounding.
 7. The gate a < 1/(4 tau_s) is compared in floating point, after a + (s - a)/tau_s in this order;
    at some tau_s (4/3) the trace meets the gate exactly, and rounding decides.
 8. The gain and offset of the linear charge are allowed for every timing, though snnTorch has none,
    and `strict` sets both comparisons, that of the spike and that of the delayed reset.
 9. The threshold within snnTorch's charge is counted at the step that charges, -r[t] (lambda[t] +
    mu[t]), not as -s[t] (lambda[t+1] + mu[t+1]): the same but for the first step, where v0 may be
    above the threshold, and for chain=False. That is native, and lets calls add up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def _sum_to_shape(full: Array, shape: tuple[int, ...]) -> Array:
    """Undo broadcasting: sum `full` over the axes along which `shape` was stretched."""
    full = full.sum(axis=tuple(range(full.ndim - len(shape))))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and full.shape[i] != 1)
    return np.asarray(full.sum(axis=stretched, keepdims=True) if stretched else full)


def _inverse_increment(d: Array, max_slope: float) -> Array:
    """clip(1/d, 0, max_slope), where 1/0 (of either sign) is the upper bound."""
    inverse = np.full_like(d, np.inf)
    np.divide(1.0, d, out=inverse, where=d != 0)
    return np.clip(inverse, 0.0, max_slope)


def _fallback_slope(h: Array, threshold: Array, width: float) -> Array:
    z = np.exp(np.clip((threshold - h) / width, -8.0, 8.0))
    return z / (width * (1.0 + z) ** 2)


def _check(
    reset: str, timing: str, rule: str, reset_path: str, tau_s: float, has_derivative: bool
) -> None:
    if reset not in ("value", "subtract", "never"):
        raise ValueError(f"unknown reset {reset!r}")
    if timing not in ("immediate", "delayed", "both"):
        raise ValueError(f"unknown timing {timing!r}")
    paths = {"tsslbp": ("reference", "complete", "none"), "surrogate": ("complete", "none")}
    if rule not in paths:
        raise ValueError(f"unknown rule {rule!r}")
    if reset_path not in paths[rule]:
        raise ValueError(f"rule {rule!r} has no reset_path {reset_path!r}")
    if has_derivative != (rule == "surrogate"):
        raise ValueError("derivative belongs to rule='surrogate', which needs one")
    if not 1.0 <= tau_s < np.inf:
        raise ValueError(f"tau_s must be at least 1 and finite, got {tau_s}")


def run(
    *,
    drive: npt.ArrayLike,
    decay: npt.ArrayLike,
    gain: npt.ArrayLike = 1.0,
    offset: npt.ArrayLike = 0.0,
    threshold: npt.ArrayLike,
    reset: str,
    timing: str = "immediate",
    reset_value: npt.ArrayLike = 0.0,
    strict: bool = True,
    tau_s: float = 1.0,
    v0: npt.ArrayLike | None = None,
    a0: npt.ArrayLike | None = None,
    rule: str = "tsslbp",
    max_slope: float = 8.0,
    fallback_width: float = 0.2,
    fallback: bool = True,
    reset_path: str = "reference",
    derivative: Callable[[Array], Array] | None = None,
    chain: bool = True,
    grad_out: npt.ArrayLike,
    grad_membrane: npt.ArrayLike | None = None,
) -> dict[str, Any]:
    """Run the neuron over `drive` [T, B, ...] and the recursion back over `grad_out`.

    Returns the forward (`spikes, charged, membrane, psc`), the gradients under the names of the
    arguments (each of its argument's shape), and the recursion's own sequences
    (`G, phi, lambda, mu, emitted`) to find a difference by.
    """
    _check(reset, timing, rule, reset_path, tau_s, derivative is not None)
    x = np.asarray(drive, dtype=np.float64)
    g = np.asarray(grad_out, dtype=np.float64)
    c = np.zeros_like(x) if grad_membrane is None else np.asarray(grad_membrane, dtype=np.float64)
    if g.shape != x.shape or c.shape != x.shape:
        raise ValueError("grad_out and grad_membrane must have the shape of drive")
    steps, shape = x.shape[0], x.shape[1:]

    given: dict[str, Array] = {
        "decay": np.asarray(decay, dtype=np.float64),
        "gain": np.asarray(gain, dtype=np.float64),
        "offset": np.asarray(offset, dtype=np.float64),
        "threshold": np.asarray(threshold, dtype=np.float64),
        "reset_value": np.asarray(reset_value, dtype=np.float64),
        "v0": np.zeros(shape) if v0 is None else np.asarray(v0, dtype=np.float64),
        "a0": np.zeros(shape) if a0 is None else np.asarray(a0, dtype=np.float64),
    }
    beta, kappa, b, theta, u_reset, v, a = (
        np.broadcast_to(value, shape) for value in given.values()
    )
    if timing != "immediate" and np.any(u_reset != 0.0):
        raise ValueError("only the immediate timing resets to a value other than zero")
    if timing == "delayed" and reset == "subtract" and np.any(beta == 0.0):
        raise ValueError("delayed subtraction with decay 0: R = threshold/decay is infinite")

    def above_threshold(potential: Array) -> Array:
        hit = potential > theta if strict else potential >= theta
        return hit.astype(np.float64)

    # ------------------------------------------------------------------ forward
    h = np.zeros_like(x)
    s = np.zeros_like(x)
    psc = np.zeros_like(x)
    carried = np.zeros_like(x)  # what the library returns: h if delayed, else u
    d = np.zeros_like(x)  # the increment
    r = np.zeros_like(x)  # the reset that arrives with the incoming state (snnTorch)
    decay_multiplies = np.zeros_like(x)  # dh[t]/d decay, at fixed carried state and fixed r
    F_v = np.zeros_like(x)  # see below

    for t in range(steps):
        before = v  # u[t-1], for the increment
        if timing != "immediate":
            r[t] = above_threshold(v)
        # The charge.
        if timing == "immediate" or reset == "never":
            decay_multiplies[t] = v
            h[t] = beta * v + kappa * x[t] + b
        elif reset == "value":
            decay_multiplies[t] = (1.0 - r[t]) * v
            h[t] = beta * decay_multiplies[t] + kappa * x[t] + b
        else:
            decay_multiplies[t] = v
            h[t] = beta * v + kappa * x[t] + b - theta * r[t]
        # Delayed: u[t-1] is the carried potential after the reset that this charge applied to it.
        if timing == "delayed" and reset == "value":
            before = v * (1.0 - r[t])
        elif timing == "delayed" and reset == "subtract":
            before = v - (theta / beta) * r[t]
        d[t] = h[t] - before
        s[t] = above_threshold(h[t])
        # The state that goes on.
        if timing == "delayed" or reset == "never":
            v = h[t]
        elif timing == "immediate":
            v = (1.0 - s[t]) * h[t] + s[t] * u_reset if reset == "value" else h[t] - s[t] * theta
        else:
            v = h[t] - (s[t] - r[t]) * (h[t] if reset == "value" else theta)
        carried[t] = v
        # F_v[t] = dh[t]/du[t-1]. Delayed: u[t-1] is the potential after the reset, so the decay
        # itself, and the reset is in du/dh. Both: the carried state is u[t-1], and r is a constant.
        F_v[t] = beta * (1.0 - r[t]) if timing == "both" and reset == "value" else beta
        a = s[t] if tau_s == 1.0 else a + (s[t] - a) / tau_s
        psc[t] = a

    # ------------------------------------------------------------------ the reset, seen as u(h, s)
    if reset == "never":
        R, du_dh = np.zeros_like(x), np.ones_like(x)
    elif reset == "value":
        R, du_dh = h - u_reset, 1.0 - (s - r if timing == "both" else s)
    else:
        R = np.broadcast_to(theta / beta if timing == "delayed" else theta, x.shape)
        du_dh = np.ones_like(x)

    # ------------------------------------------------------------------ the rule
    if derivative is None:
        phi = s * _inverse_increment(d, max_slope)
        silent = fallback & (psc < 1.0 / (4.0 * tau_s))
    else:
        phi = np.asarray(derivative(h - theta), dtype=np.float64)
        silent = np.zeros(x.shape, dtype=bool)
    f = _fallback_slope(h, theta, fallback_width)
    membrane_reset = -R * phi if reset_path == "complete" else np.zeros_like(x)

    # ------------------------------------------------------------------ backward
    G, lam, mu, e = (np.zeros_like(x) for _ in range(4))
    total = {name: np.zeros(shape) for name in given}
    G_next = lam_next = mu_next = F_next = np.zeros(shape)  # those of step t+1; none after the last

    for t in reversed(range(steps)):
        G[t] = g[t] / tau_s + (1.0 - 1.0 / tau_s) * G_next

        if not chain:
            lam_next = mu_next = np.zeros(shape)
        # What multiplies lambda[t+1] because s[t] moves the reset.
        if reset_path == "reference":
            chain_reset = (1.0 - F_next) * R[t] * phi[t]
        elif reset_path == "complete":
            chain_reset = -F_next * R[t] * phi[t]
        else:
            chain_reset = np.zeros(shape)
        lam[t] = phi[t] * G[t] + lam_next * (F_next * du_dh[t] + chain_reset)

        # A loss on u[t] passes the reset of step t; one on h[t] does not.
        c_before_reset = c[t] if timing == "delayed" else np.zeros(shape)
        c_after_reset = np.zeros(shape) if timing == "delayed" else c[t]
        into_u = c_after_reset + F_next * mu_next
        mu[t] = c_before_reset + into_u * (du_dh[t] + membrane_reset[t])

        e[t] = np.where(silent[t], G[t] * f[t], lam[t]) + mu[t]

        total["decay"] += e[t] * decay_multiplies[t]
        total["gain"] += e[t] * x[t]
        total["offset"] += e[t]

        # The threshold within the spike, then within the reset (at fixed spikes).
        through_spike = np.where(silent[t], G[t] * f[t], phi[t] * G[t] + chain_reset * lam_next)
        total["threshold"] -= through_spike + membrane_reset[t] * into_u
        dE_du = c_after_reset + F_next * (lam_next + mu_next)
        if reset == "subtract":
            if timing == "immediate":
                total["threshold"] -= s[t] * dE_du
            else:
                # theta stands in the charge, -theta r[t]: the full adjoint of h[t], not e.
                total["threshold"] -= r[t] * (lam[t] + mu[t])
            if timing == "both":
                total["threshold"] -= (s[t] - r[t]) * dE_du
        elif reset == "value" and timing == "immediate":
            total["reset_value"] += s[t] * dE_du

        G_next, lam_next, mu_next, F_next = G[t], lam[t], mu[t], F_v[t]

    if chain and steps:
        # At fixed r: the delayed reset to zero stands between v0 and the u[-1] that F_v is about.
        kept = 1.0 - r[0] if timing == "delayed" and reset == "value" else 1.0
        total["v0"] = F_v[0] * kept * (lam[0] + mu[0])
    # dE/da[0] is tau_s G[0], and da[0]/da[-1] = 1 - 1/tau_s.
    total["a0"] = (tau_s - 1.0) * G_next

    return {
        "spikes": s,
        "charged": h,
        "membrane": carried,
        "psc": psc,
        "drive": kappa * e,
        **{name: _sum_to_shape(total[name], value.shape) for name, value in given.items()},
        "G": G,
        "phi": phi,
        "lambda": lam,
        "mu": mu,
        "emitted": e,
    }
