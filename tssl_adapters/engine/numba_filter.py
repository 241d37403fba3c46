"""A leaky synaptic current in compiled loops: neurons in blocks, time inside, one thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy
from numba import carray

from tssl_adapters.engine.numba_compile import compiled
from tssl_adapters.engine.numba_parts import pointer

BLOCK = 1024
"""Neurons that are held at once: their currents stay in the fastest cache."""


@cache
def forward(dtype: str) -> Callable[..., None]:
    """Compile i'[t] = i[t-1] + x[t], i[t] = i'[t] + k i'[t] for ``drive [T, N]``, ``current [N]``.

    It computes neurons ``first`` to ``last``. Arguments that end in ``_at`` are addresses.
    """
    number = getattr(numpy, dtype)

    @compiled
    def loop(
        first: int, last: int, steps: int, neurons: int, minus_leak: float,
        drive_at: int, current_at: int, out_at: int,
    ) -> None:  # fmt: skip
        drive = carray(pointer(drive_at), steps * neurons, number)
        given = carray(pointer(current_at), neurons, number)
        out = carray(pointer(out_at), steps * neurons, number)
        k, current = number(minus_leak), numpy.empty(BLOCK, number)
        for start in range(first, last, BLOCK):
            n = min(BLOCK, last - start)
            for j in range(n):
                current[j] = given[start + j]
            for t in range(steps):
                row = t * neurons + start
                x_t, out_t = drive[row : row + n], out[row : row + n]
                for j in range(n):
                    charged = current[j] + x_t[j]
                    out_t[j] = charged
                    current[j] = charged + k * charged

    return loop


@cache
def backward(dtype: str) -> Callable[..., None]:
    """Compile the adjoint of :func:`forward`: ``grad_out [T, N]`` gives ``grad_drive [T, N]``."""
    number = getattr(numpy, dtype)

    @compiled
    def loop(
        first: int, last: int, steps: int, neurons: int, minus_leak: float,
        grad_out_at: int, grad_drive_at: int,
    ) -> None:  # fmt: skip
        grad_out = carray(pointer(grad_out_at), steps * neurons, number)
        grad_drive = carray(pointer(grad_drive_at), steps * neurons, number)
        k, later = number(minus_leak), numpy.empty(BLOCK, number)
        for start in range(first, last, BLOCK):
            n = min(BLOCK, last - start)
            later[:n] = number(0.0)
            for t in range(steps - 1, -1, -1):
                row = t * neurons + start
                own, found = grad_out[row : row + n], grad_drive[row : row + n]
                for j in range(n):
                    total = own[j] + later[j] + k * later[j]
                    found[j] = total
                    later[j] = total

    return loop
