"""The recursion of a whole call in Triton: a program for each block of neurons, time inside.

Each thread keeps the states of its neurons in registers and walks through time in spans of a few
steps, all of whose drives it asks for before it needs the first. A potential is computed by the
neuron's own formulas in the library's order of operations, without fused multiply-adds, so that it
rounds as the library does.

The forward pass leaves the states at the start of each span but the first; from there the backward
pass computes the span anew, in registers. So the memory moved is two tensors of T x N forward
(drive, output) and three backward (drive, the output's gradient, the drive's), and an eighth more.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tssl_adapters.engine.triton_parts import (
    after,
    charge,
    fires,
    inside,
    load_bits,
    load_span,
    numbers,
    store_bits,
    traced,
    wide,
)
from tssl_adapters.engine.triton_steps import step_back


@triton.jit
def forward(
    drive, state, trace, values, out, potential, before_reset, spans, bits,
    steps, neurons,
    FORM: tl.constexpr, CHARGE: tl.constexpr, RESET: tl.constexpr, TAU: tl.constexpr,
    KEEP: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``drive [T, N]``, ``state [N]``, ``trace [N]``, ``values [8, N or 1]`` give ``out [T, N]``.

    It also gives ``potential``, after every step ``[T, N]`` if kept, else after the last one
    ``[N]``, the potential ``before_reset [T, N]``, and the states at the start of ``spans
    [T/SPAN - 1, 1 or 2, N]``: the potential and, where there is one, the trace; and of a single
    step ``bits [N / 8]``: whether a[t] is 1 / (4 tau_s) or more. ``trace``, ``before_reset``,
    ``spans`` and ``bits`` may be ``None``.
    """
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = j < neurons
    p = numbers(values, j, neurons, FORM)
    v = wide(tl.load(state + j, mask=here, other=0.0))
    a = tl.zeros_like(v)
    if trace is not None:
        a = wide(tl.load(trace + j, mask=here, other=0.0))
    for first in range(0, steps, SPAN):
        if spans is not None:
            later = here & (tl.zeros_like(j) + first > 0)
            if FORM.psc:
                row = tl.cast(first // SPAN - 1, tl.int64) * 2 * neurons
                tl.store(spans + row + neurons + j, a, mask=later)
            else:
                row = tl.cast(first // SPAN - 1, tl.int64) * neurons
            tl.store(spans + row + j, v, mask=later)
        xs = load_span(drive, first, steps, j, neurons, neurons, SPAN)
        for k in tl.static_range(SPAN):
            now = inside(first + k, steps, j, neurons)
            row = tl.cast(first + k, tl.int64) * neurons
            r, h = charge(v, xs[k], p, FORM, CHARGE, RESET)
            s = fires(h, p, FORM)
            if before_reset is not None:
                tl.store(before_reset + row + j, h, mask=now)
            v = tl.where(now, after(h, s, r, p, FORM, RESET), v)
            if FORM.psc:
                a = traced(s, a, FORM, TAU)
                tl.store(out + row + j, a, mask=now)
            else:
                tl.store(out + row + j, s, mask=now)
            if KEEP:
                tl.store(potential + row + j, v, mask=now)
    if not KEEP:
        tl.store(potential + j, v, mask=here)
    if bits is not None:
        store_bits(bits, a >= 0.25 / TAU, neurons, BLOCK)


@triton.jit
def recomputed(
    v, a, xs, p,
    FORM: tl.constexpr, CHARGE: tl.constexpr, RESET: tl.constexpr, TAU: tl.constexpr,
    SPAN: tl.constexpr,
):  # fmt: skip
    """The potential before, and the trace after, each step of a span."""
    potentials, traces = tl.tuple(()), tl.tuple(())
    for k in tl.static_range(SPAN):
        potentials = potentials + (v,)
        r, h = charge(v, xs[k], p, FORM, CHARGE, RESET)
        s = fires(h, p, FORM)
        v = after(h, s, r, p, FORM, RESET)
        if FORM.psc:
            a = traced(s, a, FORM, TAU)
        traces = traces + (a,)
    return potentials, traces


@triton.jit
def backward(
    drive, state, trace, values, spans, bits,
    grad_out, pace, grad_after, link_in,
    grad_drive, chain_out, mu_out, grad_trace, sums,
    steps, neurons,
    FORM: tl.constexpr, BACK: tl.constexpr, CHARGE: tl.constexpr, RESET: tl.constexpr,
    TAU: tl.constexpr, STEEPEST: tl.constexpr, SCALE: tl.constexpr, EACH: tl.constexpr,
    EARLIER: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The adjoint of :func:`forward`, whose ``spans`` or ``bits`` it takes.

    ``state`` is the potential before its reset where it comes from ``EARLIER``.
    ``grad_out [T, N]``, whose time steps lie ``pace`` apart, ``grad_after``, for every step
    ``[T, N]`` if ``EACH``, else for the last one ``[N]``, and ``link_in [2 or 3, N]``, lambda, F_v
    lambda and, with a delayed reset, F_v mu of the call after, may be ``None``. They give
    ``grad_drive [T, N]``, ``chain_out [2, N]`` and, where not ``None``, ``mu_out [N]``,
    ``grad_trace [N]`` and ``sums [5, N]``.
    """
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = j < neurons
    p = numbers(values, j, neurons, FORM)
    zero = tl.zeros_like(wide(tl.load(state + j, mask=here, other=0.0)))
    chain, chain_v, mu_v, grad_a, last_c = zero, zero, zero, zero, zero
    by_decay, by_gain, by_offset, by_threshold, by_value = zero, zero, zero, zero, zero
    whole = tl.cast(neurons, tl.int64)
    if link_in is not None:
        chain = tl.load(link_in + j, mask=here, other=0.0)
        chain_v = tl.load(link_in + whole + j, mask=here, other=0.0)
        if FORM.timing == "delayed":
            mu_v = tl.load(link_in + 2 * whole + j, mask=here, other=0.0)
    if grad_after is not None:
        if not EACH:
            last_c = wide(tl.load(grad_after + j, mask=here, other=0.0))
    count = tl.cdiv(steps, SPAN)
    for back in range(0, count):
        first = (count - 1 - back) * SPAN
        begins = tl.zeros_like(j) + first == 0
        v = wide(tl.load(state + j, mask=here & begins, other=0.0))
        if EARLIER:
            v = after(v, fires(v, p, FORM), zero, p, FORM, RESET)
        a = zero
        if trace is not None:
            a = wide(tl.load(trace + j, mask=here & begins, other=0.0))
        if spans is not None:
            goes_on = here & (tl.zeros_like(j) + first > 0)
            if FORM.psc:
                row = tl.cast(first // SPAN - 1, tl.int64) * 2 * neurons
                found = wide(tl.load(spans + row + neurons + j, mask=goes_on, other=0.0))
                a = tl.where(begins, a, found)
            else:
                row = tl.cast(first // SPAN - 1, tl.int64) * neurons
            found = wide(tl.load(spans + row + j, mask=goes_on, other=0.0))
            v = tl.where(begins, v, found)
        xs = load_span(drive, first, steps, j, neurons, neurons, SPAN)
        if grad_out is not None:
            gs = load_span(grad_out, first, steps, j, neurons, pace, SPAN)
        if bits is not None:
            potentials, traces = tl.tuple((v,)), tl.tuple((load_bits(bits, j, neurons),))
        else:
            potentials, traces = recomputed(v, a, xs, p, FORM, CHARGE, RESET, TAU, SPAN)
        for k in tl.static_range(SPAN - 1, -1, -1):
            now = inside(first + k, steps, j, neurons)
            row = tl.cast(first + k, tl.int64) * neurons
            g = zero
            if grad_out is not None:
                g = gs[k]
            c = tl.where(tl.zeros_like(j) + first + k == steps - 1, last_c, zero)
            if EACH:
                c = wide(tl.load(grad_after + row + j, mask=now, other=0.0))
            e, lam, lam_v, mu, G, terms = step_back(
                potentials[k], xs[k], traces[k], g, c, p, chain, chain_v, mu_v, grad_a,
                FORM, BACK, CHARGE, RESET, TAU, STEEPEST, SCALE,
            )  # fmt: skip
            tl.store(grad_drive + row + j, e, mask=now)
            chain, chain_v = tl.where(now, lam, chain), tl.where(now, lam_v, chain_v)
            mu_v, grad_a = tl.where(now, mu, mu_v), tl.where(now, G, grad_a)
            if BACK.learns:
                by_decay += tl.where(now, terms[0], zero)
                by_gain += tl.where(now, terms[1], zero)
                by_offset += tl.where(now, terms[2], zero)
                by_threshold += tl.where(now, terms[3], zero)
                by_value += tl.where(now, terms[4], zero)
    tl.store(chain_out + j, chain, mask=here)
    tl.store(chain_out + whole + j, chain_v, mask=here)
    if mu_out is not None:
        tl.store(mu_out + j, mu_v, mask=here)
    if grad_trace is not None:
        tl.store(grad_trace + j, grad_a * (1.0 - 1.0 / TAU), mask=here)
    if BACK.learns:
        tl.store(sums + j, by_decay, mask=here)
        tl.store(sums + whole + j, by_gain, mask=here)
        tl.store(sums + 2 * whole + j, by_offset, mask=here)
        tl.store(sums + 3 * whole + j, by_threshold, mask=here)
        tl.store(sums + 4 * whole + j, by_value, mask=here)
