"""A leaky synaptic current in Triton: a program for each block of neurons, time inside."""

from __future__ import annotations

import triton
import triton.language as tl

from tssl_adapters.engine.triton_parts import inside, load_span, rounded, wide


@triton.jit
def forward(
    drive, start, out, steps, neurons,
    DTYPE: tl.constexpr, K: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """i'[t] = i[t-1] + x[t], i[t] = i'[t] + k i'[t] for ``drive [T, N]`` and ``start [N]``."""
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    current = wide(tl.load(start + j, mask=j < neurons, other=0.0))
    for first in range(0, steps, SPAN):
        xs = load_span(drive, first, steps, j, neurons, neurons, SPAN)
        for k in tl.static_range(SPAN):
            charged = rounded(current + xs[k], DTYPE)
            at = tl.cast(first + k, tl.int64) * neurons + j
            tl.store(out + at, charged, mask=inside(first + k, steps, j, neurons))
            current = rounded(charged + rounded(K * charged, DTYPE), DTYPE)


@triton.jit
def backward(
    grad_out, grad_drive, steps, neurons,
    K: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The adjoint of :func:`forward`: ``grad_out [T, N]`` gives ``grad_drive [T, N]``."""
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    later = tl.zeros_like(wide(tl.load(grad_out + j, mask=j < neurons, other=0.0)))
    count = tl.cdiv(steps, SPAN)
    for back in range(0, count):
        first = (count - 1 - back) * SPAN
        gs = load_span(grad_out, first, steps, j, neurons, neurons, SPAN)
        for k in tl.static_range(SPAN - 1, -1, -1):
            # After the last step there are zeros, which stay zeros.
            later = gs[k] + later + K * later
            at = tl.cast(first + k, tl.int64) * neurons + j
            tl.store(grad_drive + at, later, mask=inside(first + k, steps, j, neurons))
