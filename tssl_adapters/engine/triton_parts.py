"""Pieces of a time step for Triton's kernels, in float32 or float64.

``p`` are a neuron's numbers in the order of :mod:`tssl_adapters.engine.kernels`, ``FORM`` and
``BACK`` its ``Form`` and ``BackForm``, ``CHARGE`` and ``RESET`` its formulas: what a kernel is
compiled for, so that what does not hold costs nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tssl_adapters.engine.triton_formulas import divided, to_bfloat16, to_float16


@triton.jit
def rounded(value, DTYPE: tl.constexpr):
    """A value as a dtype holds it."""
    if DTYPE == "float16":
        return to_float16(value)
    elif DTYPE == "bfloat16":
        return to_bfloat16(value)
    else:
        return value


@triton.jit
def wide(value):
    """A value that was read, in the dtype that is computed with."""
    if value.dtype == tl.float64:
        return value
    else:
        return value.to(tl.float32)


@triton.jit
def inside(t, steps, j, neurons):
    """Which neurons ``j`` there are at step ``t``."""
    return (j < neurons) & (tl.zeros_like(j) + t < steps)


@triton.jit
def load_span(tensor, first, steps, j, neurons, pace, SPAN: tl.constexpr):
    """The values of a span, a tuple of steps, which lie ``pace`` apart; 0 after the last step."""
    found = tl.tuple(())
    for k in tl.static_range(SPAN):
        at = tl.cast(first + k, tl.int64) * pace + j
        value = tl.load(tensor + at, mask=inside(first + k, steps, j, neurons), other=0.0)
        found = found + (wide(value),)
    return found


@triton.jit
def store_bits(bits, flags, neurons, BLOCK: tl.constexpr):
    """The flags of a block of neurons, 0 or 1, eight to a byte."""
    placed = tl.reshape(flags.to(tl.int32), [BLOCK // 8, 8]) << tl.arange(0, 8)[None, :]
    byte = tl.program_id(0).to(tl.int64) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
    tl.store(bits + byte, tl.sum(placed, axis=1).to(tl.uint8), mask=byte * 8 < neurons)


@triton.jit
def load_bits(bits, j, neurons):
    """The flags of neurons ``j`` that :func:`store_bits` left."""
    byte = tl.load(bits + j // 8, mask=j < neurons, other=0)
    return ((byte.to(tl.int32) >> (j % 8).to(tl.int32)) & 1).to(tl.float32)


@triton.jit
def numbers(values, j, neurons, FORM: tl.constexpr):
    """The numbers of neurons ``j``, or those of all."""
    p = tl.tuple(())
    for k in tl.static_range(8):
        if FORM.dense:
            row = tl.cast(neurons, tl.int64) * k
            p = p + (tl.load(values + row + j, mask=j < neurons, other=1.0),)
        else:
            p = p + (tl.load(values + k),)
    return p


@triton.jit
def fires(h, p, FORM: tl.constexpr):
    """The spike, 0 or 1."""
    threshold = rounded(p[3], FORM.dtype)
    if FORM.strict:
        return tl.where(h > threshold, 1.0, 0.0).to(h.dtype)
    else:
        return tl.where(h >= threshold, 1.0, 0.0).to(h.dtype)


@triton.jit
def charged(v, x, p, FORM: tl.constexpr, CHARGE: tl.constexpr):
    """The charge's formula with the numbers that it takes."""
    if FORM.raw == 0:
        return CHARGE(v, x)
    elif FORM.raw == 1:
        return CHARGE(v, x, p[5])
    elif FORM.raw == 2:
        return CHARGE(v, x, p[5], p[6])
    else:
        return CHARGE(v, x, p[5], p[6], p[7])


@triton.jit
def charge(v, x, p, FORM: tl.constexpr, CHARGE: tl.constexpr, RESET: tl.constexpr):
    """r, the spike of an incoming v whose reset is still due, and h."""
    if FORM.told:
        r = tl.zeros_like(v) if FORM.timing == "immediate" else fires(v, p, FORM)
        h = x
    elif FORM.timing == "immediate":
        r = tl.zeros_like(v)
        h = charged(v, x, p, FORM, CHARGE)
    else:
        r = fires(v, p, FORM)
        if FORM.kind == "value":
            h = charged((1.0 - r) * v, x, p, FORM, CHARGE)
        elif FORM.kind == "early":
            h = charged(RESET(v, r, p[3]), x, p, FORM, CHARGE)
        elif FORM.kind == "subtract":
            h = rounded(charged(v, x, p, FORM, CHARGE) - r * rounded(p[3], FORM.dtype), FORM.dtype)
        else:
            h = charged(v, x, p, FORM, CHARGE)
    return r, h


@triton.jit
def after(h, s, r, p, FORM: tl.constexpr, RESET: tl.constexpr):
    """The state handed to the next step."""
    if FORM.timing == "delayed":
        return h
    elif FORM.kind == "value":
        return RESET(h, s - r, p[4])
    elif FORM.kind == "never":
        return h
    else:
        return RESET(h, s - r, p[3])


@triton.jit
def removed(h, p, FORM: tl.constexpr):
    """R, what a spike takes away."""
    if FORM.kind == "value":
        return h - p[4]
    elif FORM.kind == "never":
        return tl.zeros_like(h)
    elif (FORM.kind == "subtract") and (FORM.timing == "delayed"):
        return tl.zeros_like(h) + p[3] / p[0]
    else:
        return tl.zeros_like(h) + p[3]


@triton.jit
def traced(s, a, FORM: tl.constexpr, TAU: tl.constexpr):
    """The PSC after a step."""
    change = rounded(divided(rounded(s - a, FORM.dtype), tl.full((), TAU, s.dtype)), FORM.dtype)
    return rounded(change + a, FORM.dtype)
