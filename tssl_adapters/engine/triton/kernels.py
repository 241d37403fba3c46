"""The recursion of a whole call in Triton: one program per block of neurons, with time inside.

Each thread keeps the states of its neurons in registers and moves through time in spans of a few
steps, loading all drives of a span before it needs the first. A step is a function from
:mod:`tssl_adapters.engine.triton.emit`, in the library's order of operations and compiled without
fused multiply-adds, so that it rounds as the library does.

The forward pass stores the states at the start of each span but the first; from there the backward
pass recomputes the span in registers. So the memory traffic is two T x N tensors forward (drive,
output) and three backward (drive, the output's gradient, the drive's), plus an eighth.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tssl_adapters.engine.step import spec, traced
from tssl_adapters.engine.triton.parts import (
    chosen,
    inside,
    load,
    load_bits,
    load_if,
    load_numbers,
    load_rows,
    load_span,
    store_bits,
)

ROWS = tl.constexpr(spec.ROWS)
CARRIED = tl.constexpr(len(traced.CARRIED))
GRAD_SPIKE = tl.constexpr(traced.CARRIED.index("grad_spike"))
GRAD_TRACE = tl.constexpr(traced.CARRIED.index("grad_trace"))
ENTERING = tl.constexpr(traced.CARRIED.index("entering"))
FIRST_SUM = tl.constexpr(traced.CARRIED.index(traced.SUMS[0]))


@triton.jit
def span_row(first, neurons, PSC: tl.constexpr, SPAN: tl.constexpr):
    """Where the states at the start of the span from step ``first`` on are kept."""
    return tl.cast(first // SPAN - 1, tl.int64) * (2 if PSC else 1) * neurons


@triton.jit
def forward(
    drive, state, trace, values, out, potential, before_reset, due, spans, bits,
    steps, neurons,
    STEP: tl.constexpr, FORM: tl.constexpr, GATE: tl.constexpr,
    KEEP: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``drive [T, N]``, ``state [N]``, ``trace [N]``, ``values [8, N or 1]`` give ``out [T, N]``.

    It also writes ``potential``, after every step ``[T, N]`` if kept, else after the last one
    ``[N]``; the potential ``before_reset [T, N]``; the states at the start of ``spans
    [T/SPAN - 1, 1 or 2, N]``: the potential and the trace, if there is one; and for a single step
    ``due [N]``, r, and ``bits [N / 8]``: whether a[t] is at least ``GATE``. ``trace``,
    ``before_reset``, ``due``, ``spans`` and ``bits`` may be ``None``.
    """
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = j < neurons
    p = load_rows(values, j, neurons, ROWS) if FORM.dense else load_numbers(values, ROWS)
    v = load(state, j, here)
    a = load_if(trace, j, here, tl.zeros_like(v))
    for first in range(0, steps, SPAN):
        if spans is not None:
            later = here & (tl.zeros_like(j) + first > 0)
            at = span_row(first, neurons, FORM.psc, SPAN) + j
            tl.store(spans + at, v, mask=later)
            if FORM.psc:
                tl.store(spans + at + neurons, a, mask=later)
        xs = load_span(drive, first, steps, j, neurons, neurons, SPAN)
        for k in tl.static_range(SPAN):
            now = inside(first + k, steps, j, neurons)
            row = tl.cast(first + k, tl.int64) * neurons
            found = STEP(v, xs[k], a, p)
            v, a = tl.where(now, found[1], v), found[2]
            tl.store(out + row + j, found[0], mask=now)
            if before_reset is not None:
                tl.store(before_reset + row + j, found[3], mask=now)
            if due is not None:
                tl.store(due + j, found[4], mask=now)
            if KEEP:
                tl.store(potential + row + j, v, mask=now)
    if not KEEP:
        tl.store(potential + j, v, mask=here)
    if bits is not None:
        store_bits(bits, a >= GATE, neurons, BLOCK)


@triton.jit
def recomputed(v, a, xs, p, STEP: tl.constexpr, SPAN: tl.constexpr):
    """The potential before, and the trace after, each step of a span."""
    potentials, traces = tl.tuple(()), tl.tuple(())
    for k in tl.static_range(SPAN):
        potentials = potentials + (v,)
        found = STEP(v, xs[k], a, p)
        v, a = found[1], found[2]
        traces = traces + (a,)
    return potentials, traces


@triton.jit
def backward(
    drive, state, trace, values, spans, bits, fired,
    grad_out, pace, grad_after, link_in,
    grad_drive, chain_out, mu_out, entering, grad_trace, sums,
    window, steps, neurons,
    STEP: tl.constexpr, STEP_BACK: tl.constexpr, FORM: tl.constexpr,
    EACH: tl.constexpr, LINKS: tl.constexpr, BESIDE: tl.constexpr,
    SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The adjoint of :func:`forward`, whose ``spans`` or ``bits`` it takes.

    The inputs ``grad_out [T, N]``, with stride ``pace`` over time, ``grad_after``, for every step
    ``[T, N]`` if ``EACH``, else for the last one ``[N]``, and ``link_in [LINKS, N]`` (lambda, F_v
    lambda, with a delayed reset F_v mu, and G of the next call) may be ``None``. The outputs are
    ``grad_drive [T, N]`` and, unless ``None``, ``chain_out [LINKS, N]``, ``mu_out [N]``,
    ``entering [N]``, ``grad_trace [N]`` and ``sums [5, N]``. A rule may ask for the ``window``'s
    number of steps, for the ``grad_after`` of the step ``BESIDE``, before (-1) or after (1), and
    for which neurons ``fired [N]`` in the window.
    """
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = j < neurons
    p = load_rows(values, j, neurons, ROWS) if FORM.dense else load_numbers(values, ROWS)
    zero = tl.zeros_like(load(state, j, here))
    f = load_if(fired, j, here, zero)
    last_c = zero
    whole = tl.cast(neurons, tl.int64)
    carried = tl.tuple(())
    if link_in is not None:
        carried = load_rows(link_in, j, neurons, LINKS)
    for _ in tl.static_range(CARRIED - len(carried)):
        carried = carried + (zero,)
    if not EACH:
        last_c = load_if(grad_after, j, here, zero)
    count = tl.cdiv(steps, SPAN)
    for back in range(0, count):
        first = (count - 1 - back) * SPAN
        begins = tl.zeros_like(j) + first == 0
        v = load(state, j, here & begins)
        a = load_if(trace, j, here & begins, zero)
        if spans is not None:
            goes_on = here & (tl.zeros_like(j) + first > 0)
            at = span_row(first, neurons, FORM.psc, SPAN) + j
            v = tl.where(begins, v, load(spans, at, goes_on))
            if FORM.psc:
                a = tl.where(begins, a, load(spans, at + neurons, goes_on))
        xs = load_span(drive, first, steps, j, neurons, neurons, SPAN)
        if grad_out is not None:
            gs = load_span(grad_out, first, steps, j, neurons, pace, SPAN)
        if bits is not None:
            a = load_bits(bits, j, neurons)
        if SPAN == 1:
            potentials, traces = tl.tuple((v,)), tl.tuple((a,))
        else:
            potentials, traces = recomputed(v, a, xs, p, STEP, SPAN)
        for k in tl.static_range(SPAN - 1, -1, -1):
            now = inside(first + k, steps, j, neurons)
            row = tl.cast(first + k, tl.int64) * neurons
            g = zero
            if grad_out is not None:
                g = gs[k]
            c = tl.where(tl.zeros_like(j) + first + k == steps - 1, last_c, zero)
            if EACH:
                c = load(grad_after, row + j, now)
            beside = zero
            if BESIDE != 0:
                other = (tl.zeros_like(j) + first + k + BESIDE >= 0) & inside(
                    first + k + BESIDE, steps, j, neurons
                )
                beside = load(grad_after, row + BESIDE * whole + j, other)
            found = STEP_BACK(potentials[k], xs[k], traces[k], g, c, beside, carried, f, p, window)
            tl.store(grad_drive + row + j, found[0], mask=now)
            carried = chosen(now, found, carried, 1, CARRIED)
    if chain_out is not None:
        tl.store(chain_out + j, carried[0], mask=here)
        tl.store(chain_out + whole + j, carried[1], mask=here)
        if LINKS > GRAD_SPIKE:
            tl.store(chain_out + GRAD_SPIKE * whole + j, carried[GRAD_SPIKE], mask=here)
    if mu_out is not None:
        tl.store(mu_out + j, carried[2], mask=here)
    if grad_trace is not None:
        tl.store(grad_trace + j, carried[GRAD_TRACE], mask=here)
    if entering is not None:
        tl.store(entering + j, carried[ENTERING], mask=here)
    if sums is not None:
        for k in tl.static_range(CARRIED - FIRST_SUM):
            tl.store(sums + k * whole + j, carried[FIRST_SUM + k], mask=here)


@triton.jit
def scan(
    source, start, result, values, steps, neurons,
    STEP: tl.constexpr, DOWN: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A recurrence of one state over time, from the last step to the first if ``DOWN``: ``source
    [T, N]`` and ``start [N]``, which may be ``None``, give ``result [T, N]``.
    """
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    p = load_numbers(values, 1)
    state = load_if(start, j, j < neurons, tl.zeros_like(load(source, j, j < neurons)))
    count = tl.cdiv(steps, SPAN)
    for span in range(0, count):
        first = span * SPAN
        if DOWN:
            first = (count - 1 - span) * SPAN
        xs = load_span(source, first, steps, j, neurons, neurons, SPAN)
        for k in tl.static_range(SPAN - 1 if DOWN else 0, -1 if DOWN else SPAN, -1 if DOWN else 1):
            # After the last step zeros are loaded, which leave a zero state unchanged.
            state, found = STEP(state, xs[k], p)
            at = tl.cast(first + k, tl.int64) * neurons + j
            tl.store(result + at, found, mask=inside(first + k, steps, j, neurons))
