"""One time step of neighbouring neurons, backward, as a piece for compiled loops.

LLVM vectorises a function of rows reliably, and the same lines within a loop over time only now and
then.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy

from tssl_adapters.engine.kernels import DECAY, GAIN, THRESHOLD, BackForm, Spec
from tssl_adapters.engine.numba_parts import call, exponential, known, parts


@cache
def backward_row(spec: Spec, back: BackForm) -> str:
    """Name of the step that takes a row of each tensor to the gradient of its drive.

    ``chain``, ``chain_v``, ``mu_v`` and ``grad_a`` are lambda, F_v lambda, F_v mu and the gradient
    of the trace, of the step after; the row leaves there what the step before needs. It adds to
    ``by_...``, the sums for the neuron's own numbers.
    """
    form = spec.form
    number = getattr(numpy, form.dtype)
    one, zero, bound, quarter = number(1.0), number(0.0), number(8.0), number(0.25)
    dense, psc, delayed = form.dense, form.psc, form.timing == "delayed"
    immediate, both = form.timing == "immediate", form.timing == "both"
    to_value, early = form.kind == "value", form.kind == "early"
    subtracts = form.kind in ("subtract", "early")
    late = delayed and form.kind == "subtract"
    output, learns, fallback = back.output, back.learns, back.fallback
    undone, plain, complete, membrane = back.undone, back.plain, back.complete, back.membrane
    charge, fires, _, removed, read, _ = parts(spec)
    exp = exponential(form.dtype)

    def row(
        n: int, own: Any, common: Any, steepest: Any, scale: Any, tau: Any,
        x_t: Any, v_t: Any, a_t: Any, G_t: Any, c_t: Any,
        chain: Any, chain_v: Any, mu_v: Any, grad_a: Any,
        by_decay: Any, by_gain: Any, by_offset: Any, by_threshold: Any, by_value: Any, grad_x: Any,
    ) -> None:  # fmt: skip
        share, least = one / tau, quarter / tau
        left = one - share
        for j in range(n):
            p = call(read, own, j) if dense else common
            v, x = v_t[j], x_t[j]
            r, h = call(charge, v, x, p)
            s = call(fires, h, p)
            R = call(removed, h, p)
            G = G_t[j] if output else zero
            if psc:
                G = G + grad_a[j] * left
                grad_a[j] = G
                G = G * share
            if late:
                d = h - (v - r * R)
            elif delayed and to_value:
                d = h - (one - r) * v
            elif delayed and early:
                d = h - (v - r * p[THRESHOLD])
            else:
                d = h - v
            phi = one / d
            phi = zero if phi < zero else phi
            phi = steepest if phi > steepest else phi
            phi = phi * s
            # Choices, as in `recursion.product`: zero times what overflowed is zero.
            back = chain[j] - chain_v[j] if plain else -chain_v[j]
            arriving = G
            if undone:
                arriving = G if zero == R else G + R * back
            kept = one - (s - r) if to_value and not delayed else (one - s if to_value else one)
            firing = zero if phi == zero else phi * arriving
            lam = firing if kept == zero else chain_v[j] * kept + firing
            total = lam
            if fallback:
                y = abs(h - p[THRESHOLD]) * scale
                y = bound if y > bound else y
                e = call(exp, y)
                # Chosen before and after the exponential: a choice of its result would let LLVM
                # branch around it, and no longer vectorise.
                active = s > zero
                if psc:
                    active = a_t[j] >= least
                told = zero if active else G
                smooth = told * e / ((one + e) * (one + e)) * scale
                total = (lam if active else zero) + smooth
                firing = (firing if active else zero) + smooth
            outside, mu = zero, zero
            if membrane:
                outside = c_t[j]
                through = mu_v[j] if delayed else mu_v[j] + outside
                reset = -(phi * R) if complete else zero
                by_spike = zero if reset == zero else reset * through
                mu = by_spike if kept == zero else through * kept + by_spike
                if delayed:
                    mu = mu + outside
                firing = firing + by_spike
                total = total + mu
            if learns:
                held = v
                if to_value and not immediate:
                    held = (one - r) * v
                elif early:
                    held = v - r * p[THRESHOLD]
                after = chain_v[j] + mu_v[j]
                if not delayed:
                    after = after + outside
                at_threshold = -firing
                if subtracts and not delayed:
                    at_threshold = at_threshold - (s - r) * after
                if subtracts and not immediate:
                    before = r * p[DECAY] if early else r
                    at_threshold = at_threshold - before * (lam + mu)
                by_decay[j] += total * held
                by_gain[j] += total * x
                by_offset[j] += total
                by_threshold[j] += at_threshold
                by_value[j] += (s - r) * after
            decay = p[DECAY] * (one - r) if both and to_value else p[DECAY]
            chain[j] = lam
            chain_v[j] = zero if decay == zero else lam * decay
            if membrane:
                mu_v[j] = zero if decay == zero else mu * decay
            grad_x[j] = total * p[GAIN]

    return known(row)
