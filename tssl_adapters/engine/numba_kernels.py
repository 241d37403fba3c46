"""The recursion of a whole call in compiled loops: neurons in blocks, time inside, one thread.

A loop is compiled once for what a :class:`tssl_adapters.engine.kernels.Spec` fixes; what is
fixed costs nothing in the innermost loop, which LLVM vectorises over neighbouring neurons. A
membrane potential is computed by the neuron's own formulas in the library's order of operations,
without fused multiply-adds, so that it rounds as the library does.

Arguments that end in ``_at`` are addresses, 0 for none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import llvmlite.binding
import numpy
from numba import carray

from tssl_adapters.engine.kernels import ROWS, BackForm, Spec
from tssl_adapters.engine.numba_bits import pack, unpack
from tssl_adapters.engine.numba_compile import compiled
from tssl_adapters.engine.numba_parts import call, parts, pointer
from tssl_adapters.engine.numba_rows import backward_row

# A loop over ten arrays is vectorised behind a check that none overlaps another; LLVM's own limit
# of eight comparisons would leave it scalar, several times slower.
llvmlite.binding.set_option("", "--runtime-memory-check-threshold=256")


@cache
def forward(spec: Spec, keep: bool, tells: bool) -> Callable[..., None]:
    """Compile the forward pass of neurons ``first`` to ``last``, ``block`` of them at a time.

    ``drive [T, N]``, ``state [N]``, ``trace [N]``, ``values [8, N or 1]`` give ``out [T, N]``,
    ``after``, the potential after every step ``[T, N]`` if kept, else after the last one ``[N]``,
    and, if it ``tells``, ``charged [T, N]``, the potential before each reset. Of a step at
    ``tau_s > 1`` that tells there are ``bits [N / 8]`` too: whether a[t] is 1 / (4 tau_s) or more.
    """
    number = getattr(numpy, spec.form.dtype)
    dense, psc = spec.form.dense, spec.form.psc
    charge, fires, reset, _, read, rows = parts(spec)
    to_bits = pack(spec.form.dtype)

    @compiled
    def loop(
        first: int, last: int, steps: int, neurons: int, block: int, tau_s: float,
        drive_at: int, state_at: int, trace_at: int, values_at: int, out_at: int, after_at: int,
        charged_at: int, bits_at: int,
    ) -> None:  # fmt: skip
        drive = carray(pointer(drive_at), steps * neurons, number)
        state = carray(pointer(state_at), neurons, number)
        trace = carray(pointer(trace_at), neurons, number)
        values = carray(pointer(values_at), (ROWS, neurons if dense else 1), number)
        out = carray(pointer(out_at), steps * neurons, number)
        after = carray(pointer(after_at), steps * neurons, number)
        charged = carray(pointer(charged_at), steps * neurons, number)
        bits = carray(pointer(bits_at), (neurons + 7) // 8, numpy.uint8)
        tau, common = number(tau_s), call(read, call(rows, values, 0, 1), 0)
        potential, current = numpy.empty(block, number), numpy.zeros(block, number)
        for start in range(first, last, block):
            n = min(block, last - start)
            own = call(rows, values, start, n)
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
                charged_t = charged[row : row + n] if tells else potential
                for j in range(n):
                    p = call(read, own, j) if dense else common
                    r, h = call(charge, potential[j], x_t[j], p)
                    s = call(fires, h, p)
                    v = call(reset, h, s, r, p)
                    potential[j] = v
                    if tells:
                        charged_t[j] = h
                    if psc:
                        a = (s - current[j]) / tau + current[j]
                        current[j] = a
                        out_t[j] = a
                    else:
                        out_t[j] = s
                    if keep:
                        after_t[j] = v
                if psc and tells:
                    call(to_bits, n, out_t, number(0.25) / tau, bits[start // 8 :])
            if not keep:
                for j in range(n):
                    after_0[j] = potential[j]

    return loop


@cache
def backward(spec: Spec, back: BackForm) -> Callable[..., None]:
    """Compile the backward pass, which computes the forward pass of a block anew.

    ``grad_out [T, N]``, whose time steps lie ``pace`` apart, ``grad_after [N]``, or ``[T, N]`` with
    time steps ``stride`` apart, and ``link [2 or 3, N]``, lambda, F_v lambda and, with a delayed
    reset, F_v mu of the call after (each of them none at 0), give ``grad_drive [T, N]``,
    ``grad_trace [N]``, ``sums [5, N]``, and the link's two first rows and F_v mu of this call,
    ``chain_out [2, N]`` and ``mu_out [N]``, which may lie where the link lay. ``state`` is the
    potential before its reset where it comes from ``earlier``. Of a step that is told h[t], the
    trace's place is taken by the forward pass's ``bits [N / 8]``.
    """
    number = getattr(numpy, spec.form.dtype)
    zero, learns, delayed = number(0.0), back.learns, spec.form.timing == "delayed"
    dense, psc, told = spec.form.dense, spec.form.psc, spec.form.told
    charge, fires, reset, _, read, rows = parts(spec)
    from_bits = unpack(spec.form.dtype)
    step_back = backward_row(spec, back)

    @compiled
    def loop(
        first: int, last: int, steps: int, neurons: int, block: int, tau_s: float,
        max_slope: float, width: float, earlier: int,
        drive_at: int, state_at: int, trace_at: int, bits_at: int, values_at: int,
        grad_out_at: int, pace: int, grad_after_at: int, stride: int, link_at: int,
        grad_drive_at: int, chain_out_at: int, mu_out_at: int, grad_trace_at: int, sums_at: int,
    ) -> None:  # fmt: skip
        drive = carray(pointer(drive_at), steps * neurons, number)
        state = carray(pointer(state_at), neurons, number)
        trace = carray(pointer(trace_at), neurons, number)
        bits = carray(pointer(bits_at), (neurons + 7) // 8, numpy.uint8)
        values = carray(pointer(values_at), (ROWS, neurons if dense else 1), number)
        grad_out = carray(pointer(grad_out_at), steps * neurons, number)
        grad_after = carray(pointer(grad_after_at), steps * neurons, number)
        link = carray(pointer(link_at), 3 * neurons, number)
        grad_drive = carray(pointer(grad_drive_at), steps * neurons, number)
        chain_out = carray(pointer(chain_out_at), 2 * neurons, number)
        mu_out = carray(pointer(mu_out_at), neurons, number)
        grad_trace = carray(pointer(grad_trace_at), neurons, number)
        sums = carray(pointer(sums_at), 5 * neurons, number)
        tau, steepest, scale = number(tau_s), number(max_slope), number(1.0 / width)
        left = number(1.0 - 1.0 / tau_s)
        common = call(read, call(rows, values, 0, 1), 0)
        potentials = numpy.empty((steps + 1, block), number)
        currents = numpy.zeros((steps + 1 if psc else 1, block), number)
        chain, chain_v, mu_v = (
            numpy.zeros(block, number), numpy.zeros(block, number), numpy.zeros(block, number),
        )  # fmt: skip
        grad_a, none = numpy.zeros(block, number), numpy.zeros(block, number)
        by_decay, by_gain, by_offset, by_threshold, by_value = (
            numpy.zeros(block, number), numpy.zeros(block, number), numpy.zeros(block, number),
            numpy.zeros(block, number), numpy.zeros(block, number),
        )  # fmt: skip
        for start in range(first, last, block):
            n = min(block, last - start)
            own = call(rows, values, start, n)
            for j in range(n):
                potentials[0, j] = state[start + j]
                grad_a[j] = zero
            if earlier:
                for j in range(n):
                    p, h = call(read, own, j) if dense else common, potentials[0, j]
                    potentials[0, j] = call(reset, h, call(fires, h, p), zero, p)
            for j in range(n):
                chain[j] = link[start + j] if link_at else zero
                chain_v[j] = link[neurons + start + j] if link_at else zero
                mu_v[j] = link[2 * neurons + start + j] if link_at and delayed else zero
            if psc:
                for j in range(n):
                    currents[0, j] = trace[start + j] if trace_at else zero
            if psc and told:
                call(from_bits, n, bits[start // 8 :], currents[1])
            for t in range(steps if psc and not told else steps - 1):
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
                at, paced = t * neurons + start, t * pace + start
                c_t, after_t = none, t * stride + start
                if grad_after_at and (stride or t == steps - 1):
                    c_t = grad_after[after_t : after_t + n]
                call(
                    step_back, n, own, common, steepest, scale, tau, drive[at : at + n],
                    potentials[t], currents[t + 1] if psc else none,
                    grad_out[paced : paced + n], c_t, chain, chain_v, mu_v, grad_a,
                    by_decay, by_gain, by_offset, by_threshold,
                    by_value, grad_drive[at : at + n],
                )  # fmt: skip
            if learns:
                for j in range(n):
                    sums[start + j] = by_decay[j]
                    sums[neurons + start + j] = by_gain[j]
                    sums[2 * neurons + start + j] = by_offset[j]
                    sums[3 * neurons + start + j] = by_threshold[j]
                    sums[4 * neurons + start + j] = by_value[j]
                by_decay[:n], by_gain[:n], by_offset[:n] = zero, zero, zero
                by_threshold[:n], by_value[:n] = zero, zero
            for j in range(n):
                chain_out[start + j] = chain[j]
                chain_out[neurons + start + j] = chain_v[j]
            if mu_out_at:
                for j in range(n):
                    mu_out[start + j] = mu_v[j]
            if psc and grad_trace_at:
                for j in range(n):
                    grad_trace[start + j] = grad_a[j] * left

    return loop
