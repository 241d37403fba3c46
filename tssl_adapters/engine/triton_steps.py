"""One time step backward, as a piece of Triton's kernels; see :mod:`triton_parts` for the names."""

from __future__ import annotations

import triton
import triton.language as tl

from tssl_adapters.engine.triton_parts import charge, fires, removed


@triton.jit
def slope(h, s, v, r, R, p, FORM: tl.constexpr, STEEPEST):
    """phi, from the last rise of the potential."""
    before = v
    if FORM.timing == "delayed":
        if FORM.kind == "value":
            before = (1.0 - r) * v
        elif FORM.kind == "early":
            before = v - r * p[3]
        elif FORM.kind == "subtract":
            before = v - r * R
    phi = 1.0 / (h - before)
    phi = tl.where(phi < 0.0, 0.0, phi)
    return tl.where(phi > STEEPEST, STEEPEST, phi) * s


@triton.jit
def smooth(h, G, p, SCALE: tl.constexpr):
    """The fallback of a silent step: the derivative of a sigmoid, times G."""
    y = tl.abs(h - p[3]) * SCALE
    e = tl.exp(-tl.where(y > 8.0, 8.0, y))
    return G * e / ((1.0 + e) * (1.0 + e)) * SCALE


@triton.jit
def kept_share(s, r, FORM: tl.constexpr):
    """du/dh at a fixed spike."""
    if FORM.kind != "value":
        return tl.full(s.shape, 1.0, s.dtype)
    elif FORM.timing == "delayed":
        return 1.0 - s
    else:
        return 1.0 - (s - r)


@triton.jit
def held(v, r, p, FORM: tl.constexpr):
    """What the decay multiplies."""
    if (FORM.kind == "value") and (FORM.timing != "immediate"):
        return (1.0 - r) * v
    elif FORM.kind == "early":
        return v - r * p[3]
    else:
        return v


@triton.jit
def threshold_term(firing, s, r, later, adjoint, p, FORM: tl.constexpr):
    """What a step adds to the gradient of the threshold."""
    found = -firing
    if (FORM.kind == "subtract") or (FORM.kind == "early"):
        if FORM.timing != "delayed":
            found = found - (s - r) * later
        if FORM.timing != "immediate":
            found = found - (r * p[0] if FORM.kind == "early" else r) * adjoint
    return found


@triton.jit
def product(factor, adjoint):
    """Zero where the factor is, whatever the adjoint."""
    return tl.where(factor == 0.0, 0.0, factor * adjoint)


@triton.jit
def step_back(
    v, x, a, g, c, p,
    chain, chain_v, mu_v, grad_a,
    FORM: tl.constexpr, BACK: tl.constexpr, CHARGE: tl.constexpr, RESET: tl.constexpr,
    TAU: tl.constexpr, STEEPEST: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """From the potential before a step, its drive and its PSC to the gradient of its drive.

    ``g`` and ``c`` are the gradients of its output and of the potential that it handed on;
    ``chain``, ``chain_v``, ``mu_v`` and ``grad_a`` are lambda, F_v lambda, F_v mu and the gradient
    of the trace, of the step after.

    Returns:
        The drive's gradient, the four adjoints for the step before, and what the step adds to the
        gradients of decay, gain, offset, threshold and reset value.
    """
    r, h = charge(v, x, p, FORM, CHARGE, RESET)
    s = fires(h, p, FORM)
    R = removed(h, p, FORM)
    G = g
    if FORM.psc:
        grad_a = g + grad_a * (1.0 - 1.0 / TAU)
        G = grad_a * (1.0 / TAU)
    phi = slope(h, s, v, r, R, p, FORM, STEEPEST)
    arriving = G
    if BACK.undone:
        arriving = G + product(R, chain - chain_v if BACK.plain else -chain_v)
    kept = kept_share(s, r, FORM)
    firing = product(phi, arriving)
    lam = product(kept, chain_v) + firing
    total = lam
    if BACK.fallback:
        fallback = smooth(h, G, p, SCALE)
        active = s > 0.0
        if FORM.psc:
            active = a >= 0.25 / TAU
        total = tl.where(active, lam, fallback)
        firing = tl.where(active, firing, fallback)
    through, later = mu_v, chain_v + mu_v
    if FORM.timing != "delayed":
        through, later = through + c, later + c
    mu = product(kept, through)
    if BACK.complete:
        by_spike = product(-(phi * R), through)
        mu = mu + by_spike
        firing = firing + by_spike
    if FORM.timing == "delayed":
        mu = mu + c
    total = total + mu
    decay = tl.zeros_like(v) + p[0]
    if (FORM.timing == "both") and (FORM.kind == "value"):
        decay = decay * (1.0 - r)
    terms = (
        total * held(v, r, p, FORM),
        total * x,
        total,
        threshold_term(firing, s, r, later, lam + mu, p, FORM),
        (s - r) * later,
    )
    return total * p[1], lam, product(decay, lam), product(decay, mu), grad_a, terms
