"""The recursion of a whole call in compiled loops: neurons in blocks, time inside, one thread.

A loop is compiled once for what a :class:`tssl_adapters.engine.numba_parts.Spec` fixes; what is
fixed costs nothing in the innermost loop, which LLVM vectorises over neighbouring neurons. A
membrane potential is computed by the neuron's own formulas in the library's order of operations,
without fused multiply-adds, so that it rounds as the library does.

Arguments that end in ``_at`` are addresses, 0 for none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import llvmlite.binding
import numpy
from numba import carray, njit

from tssl_adapters.engine.numba_parts import (
    DECAY,
    GAIN,
    ROWS,
    THRESHOLD,
    Spec,
    call,
    exponential,
    parts,
    pointer,
)

# A loop over ten arrays is vectorised behind a check that none overlaps another; LLVM's own limit
# of eight comparisons would leave it scalar, several times slower.
llvmlite.binding.set_option("", "--runtime-memory-check-threshold=256")

_compiled = njit(nogil=True, error_model="numpy", cache=True)


class BackSpec(NamedTuple):
    """What a variant of the backward loop is compiled for beside its ``Spec``.

    Attributes:
        output: whether the output has a gradient.
        states: gradients of the potential: after the ``"last"`` step or after ``"each"``.
        learns: whether sums for the neuron's own numbers are wanted.
        fallback: whether silent steps emit the smooth fallback.
        undone: whether the chain goes through the reset.
        plain: whether it does so in the paper's form, with lambda beside F_v lambda.
        complete: whether the membrane's adjoint goes through the reset's spike.
    """

    output: bool
    states: str
    learns: bool
    fallback: bool
    undone: bool
    plain: bool
    complete: bool


@cache
def forward(spec: Spec, keep: bool) -> Callable[..., None]:
    """Compile the forward pass of neurons ``first`` to ``last``, ``block`` of them at a time.

    ``drive [T, N]``, ``state [N]``, ``trace [N]``, ``values [8, N or 1]`` give ``out [T, N]`` and
    ``after``, the potential after every step ``[T, N]`` if kept, else after the last one ``[N]``.
    """
    number = getattr(numpy, spec.dtype)
    dense, psc = spec.dense, spec.psc
    charge, fires, reset, _, read = parts(spec)

    @_compiled
    def loop(
        first: int, last: int, steps: int, neurons: int, block: int, tau_s: float,
        drive_at: int, state_at: int, trace_at: int, values_at: int, out_at: int, after_at: int,
    ) -> None:  # fmt: skip
        drive = carray(pointer(drive_at), steps * neurons, number)
        state = carray(pointer(state_at), neurons, number)
        trace = carray(pointer(trace_at), neurons, number)
        values = carray(pointer(values_at), (ROWS, neurons if dense else 1), number)
        out = carray(pointer(out_at), steps * neurons, number)
        after = carray(pointer(after_at), steps * neurons, number)
        tau, common = number(tau_s), call(read, values, 0)
        potential, current = numpy.empty(block, number), numpy.zeros(block, number)
        for start in range(first, last, block):
            n = min(block, last - start)
            own = values[:, start : start + n] if dense else values
            state_0, after_0 = state[start : start + n], after[start : start + n]
            for j in range(n):
                potential[j] = state_0[j]
            if psc:
                for j in range(n):
                    current[j] = trace[start + j] if trace_at else number(0.0)
            for t in range(steps):
                row = t * neurons + start
                x_t, out_t = drive[row : row + n], out[row : row + n]
                after_t = after[row : row + n] if keep else potential
                for j in range(n):
                    p = call(read, own, j) if dense else common
                    r, h = call(charge, potential[j], x_t[j], p)
                    s = call(fires, h, p)
                    v = call(reset, h, s, r, p)
                    potential[j] = v
                    if psc:
                        a = (s - current[j]) / tau + current[j]
                        current[j] = a
                        out_t[j] = a
                    else:
                        out_t[j] = s
                    if keep:
                        after_t[j] = v
            if not keep:
                for j in range(n):
                    after_0[j] = potential[j]

    return loop


@cache
def backward(spec: Spec, back: BackSpec) -> Callable[..., None]:
    """Compile the backward pass, which computes the forward pass of a block anew.

    ``grad_out [T, N]``, whose time steps lie ``pace`` apart, ``grad_after`` like ``after``, and
    ``link_in [3, N]``, lambda, F_v lambda and F_v mu of the call after (0 where there is none),
    give ``grad_drive [T, N]``, ``link_out [3, N]``, ``grad_trace [N]`` and ``sums [5, N]``, the
    last added to what is there.
    """
    number = getattr(numpy, spec.dtype)
    one, zero, bound = number(1.0), number(0.0), number(8.0)
    dense, psc, delayed = spec.dense, spec.psc, spec.timing == "delayed"
    immediate, both = spec.timing == "immediate", spec.timing == "both"
    to_value, early = spec.kind == "value", spec.kind == "early"
    subtracts = spec.kind in ("subtract", "early")
    late = delayed and spec.kind == "subtract"
    output, each = back.output, back.states == "each"
    learns, fallback = back.learns, back.fallback
    undone, plain, complete = back.undone, back.plain, back.complete
    charge, fires, reset, removed, read = parts(spec)
    exp = exponential(spec.dtype)

    @_compiled
    def loop(
        first: int, last: int, steps: int, neurons: int, block: int, tau_s: float,
        max_slope: float, width: float,
        drive_at: int, state_at: int, trace_at: int, values_at: int,
        grad_out_at: int, pace: int, grad_after_at: int, link_in_at: int,
        grad_drive_at: int, link_out_at: int, grad_trace_at: int, sums_at: int,
    ) -> None:  # fmt: skip
        drive = carray(pointer(drive_at), steps * neurons, number)
        state = carray(pointer(state_at), neurons, number)
        trace = carray(pointer(trace_at), neurons, number)
        values = carray(pointer(values_at), (ROWS, neurons if dense else 1), number)
        grad_out = carray(pointer(grad_out_at), steps * neurons, number)
        grad_after = carray(pointer(grad_after_at), steps * neurons, number)
        link_in = carray(pointer(link_in_at), 3 * neurons, number)
        grad_drive = carray(pointer(grad_drive_at), steps * neurons, number)
        link_out = carray(pointer(link_out_at), 3 * neurons, number)
        grad_trace = carray(pointer(grad_trace_at), neurons, number)
        sums = carray(pointer(sums_at), 5 * neurons, number)
        tau, steepest, scale = number(tau_s), number(max_slope), number(1.0 / width)
        left, share, least = number(1.0 - 1.0 / tau_s), number(1.0 / tau_s), number(0.25 / tau_s)
        common = call(read, values, 0)
        potentials = numpy.empty((steps + 1, block), number)
        currents = numpy.zeros((steps + 1 if psc else 1, block), number)
        chain, chain_v, mu_v = (
            numpy.zeros(block, number), numpy.zeros(block, number), numpy.zeros(block, number),
        )  # fmt: skip
        grad_a = numpy.zeros(block, number)
        for start in range(first, last, block):
            n = min(block, last - start)
            own = values[:, start : start + n] if dense else values
            for j in range(n):
                potentials[0, j] = state[start + j]
                grad_a[j] = zero
            for j in range(n):
                chain[j] = link_in[start + j] if link_in_at else zero
                chain_v[j] = link_in[neurons + start + j] if link_in_at else zero
                mu_v[j] = link_in[2 * neurons + start + j] if link_in_at else zero
            if psc:
                for j in range(n):
                    currents[0, j] = trace[start + j] if trace_at else zero
            for t in range(steps if psc else steps - 1):
                row = t * neurons + start
                x_t, v_t, v_next = drive[row : row + n], potentials[t], potentials[t + 1]
                for j in range(n):
                    p = call(read, own, j) if dense else common
                    r, h = call(charge, v_t[j], x_t[j], p)
                    s = call(fires, h, p)
                    v_next[j] = call(reset, h, s, r, p)
                    if psc:
                        a = currents[t, j]
                        currents[t + 1, j] = (s - a) / tau + a
            for t in range(steps - 1, -1, -1):
                row, paced = t * neurons + start, t * pace + start
                x_t, v_t, grad_x = drive[row : row + n], potentials[t], grad_drive[row : row + n]
                G_t = grad_out[paced : paced + n]
                a_t = currents[t + 1] if psc else chain
                first_c = row if each else start
                c_t = grad_after[first_c : first_c + n]
                final = t == steps - 1
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
                    arriving = G
                    if undone and plain:
                        arriving = G + R * (chain[j] - chain_v[j])
                    elif undone:
                        arriving = G - R * chain_v[j]
                    kept = (
                        one - (s - r)
                        if to_value and not delayed
                        else (one - s if to_value else one)
                    )
                    lam = chain_v[j] * kept + phi * arriving
                    firing, total = phi * arriving, lam
                    if fallback:
                        y = abs(h - p[THRESHOLD]) * scale
                        y = bound if y > bound else y
                        e = call(exp, y)
                        smooth = G * e / ((one + e) * (one + e)) * scale
                        # By arithmetic: a choice would let LLVM branch around the exponential, and
                        # no longer vectorise.
                        active = s
                        if psc:
                            active = one if a_t[j] >= least else zero
                        total = active * lam + (one - active) * smooth
                        firing = active * firing + (one - active) * smooth
                    outside = zero
                    if each or final:
                        outside = c_t[j]
                    through = mu_v[j] if delayed else mu_v[j] + outside
                    by_spike = -(phi * R) if complete else zero
                    mu = through * kept + by_spike * through
                    if delayed:
                        mu = mu + outside
                    firing = firing + by_spike * through
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
                        at = start + j
                        sums[at] += total * held
                        sums[neurons + at] += total * x
                        sums[2 * neurons + at] += total
                        sums[3 * neurons + at] += at_threshold
                        sums[4 * neurons + at] += (s - r) * after
                    decay = p[DECAY] * (one - r) if both and to_value else p[DECAY]
                    chain[j] = lam
                    chain_v[j] = lam * decay
                    mu_v[j] = mu * decay
                    grad_x[j] = total * p[GAIN]
            for j in range(n):
                link_out[start + j] = chain[j]
                link_out[neurons + start + j] = chain_v[j]
                link_out[2 * neurons + start + j] = mu_v[j]
            if psc and trace_at:
                for j in range(n):
                    grad_trace[start + j] = grad_a[j] * left

    return loop
