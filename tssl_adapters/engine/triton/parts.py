"""Parts of the Triton kernels: arithmetic with explicit rounding, loads and stores."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def divided(left, right):
    """``left / right``, correctly rounded."""
    if left.dtype == tl.float64:
        return left / right
    else:
        return tl.div_rn(left, right)


@triton.jit
def divided_by_number(left, right):
    """``left / right`` as torch computes it on a GPU for a number ``right``: by its reciprocal."""
    return left * divided(tl.full((), 1.0, right.dtype), right)


@triton.jit
def to_float16(value):
    """A float32 rounded to float16."""
    return value.to(tl.float16).to(tl.float32)


@triton.jit
def to_bfloat16(value):
    """A float32 rounded to bfloat16."""
    return value.to(tl.bfloat16).to(tl.float32)


@triton.jit
def wide(value):
    """A loaded value in the working dtype: float64 or float32."""
    if value.dtype == tl.float64:
        return value
    else:
        return value.to(tl.float32)


@triton.jit
def inside(t, steps, j, neurons):
    """Where neuron ``j`` and step ``t`` are within bounds."""
    return (j < neurons) & (tl.zeros_like(j) + t < steps)


@triton.jit
def load(tensor, at, here):
    """Values in the working dtype, where ``here``; else 0."""
    return wide(tl.load(tensor + at, mask=here, other=0.0))


@triton.jit
def load_if(tensor, at, here, none):
    """:func:`load`, or ``none`` if there is no tensor."""
    if tensor is None:
        return none
    else:
        return load(tensor, at, here)


@triton.jit
def load_span(tensor, first, steps, j, neurons, pace, SPAN: tl.constexpr):
    """A span's values, a tuple of steps with stride ``pace`` over time; 0 after the last step."""
    found = tl.tuple(())
    for k in tl.static_range(SPAN):
        at = tl.cast(first + k, tl.int64) * pace + j
        found = found + (load(tensor, at, inside(first + k, steps, j, neurons)),)
    return found


@triton.jit
def store_bits(bits, flags, neurons, BLOCK: tl.constexpr):
    """Store the flags of a block of neurons, 0 or 1, eight to a byte."""
    placed = tl.reshape(flags.to(tl.int32), [BLOCK // 8, 8]) << tl.arange(0, 8)[None, :]
    byte = tl.program_id(0).to(tl.int64) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
    tl.store(bits + byte, tl.sum(placed, axis=1).to(tl.uint8), mask=byte * 8 < neurons)


@triton.jit
def load_bits(bits, j, neurons):
    """The flags of neurons ``j`` that :func:`store_bits` stored."""
    byte = tl.load(bits + j // 8, mask=j < neurons, other=0)
    return ((byte.to(tl.int32) >> (j % 8).to(tl.int32)) & 1).to(tl.float32)


@triton.jit
def load_rows(tensor, j, neurons, COUNT: tl.constexpr):
    """``COUNT`` rows of neurons ``j``, in a tuple."""
    found = tl.tuple(())
    for k in tl.static_range(COUNT):
        row = tl.cast(neurons, tl.int64) * k
        found = found + (tl.load(tensor + row + j, mask=j < neurons, other=0.0),)
    return found


@triton.jit
def load_numbers(values, COUNT: tl.constexpr):
    """``COUNT`` numbers shared by all neurons, in a tuple."""
    found = tl.tuple(())
    for k in tl.static_range(COUNT):
        found = found + (tl.load(values + k),)
    return found


@triton.jit
def chosen(condition, yes, no, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """``COUNT`` values of ``yes`` from ``FIRST`` on where the condition holds, else of ``no``."""
    found = tl.tuple(())
    for k in tl.static_range(COUNT):
        found = found + (tl.where(condition, yes[FIRST + k], no[k]),)
    return found
