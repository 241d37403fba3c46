"""Flags of neighbouring neurons, eight to a byte, as pieces for compiled loops."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy

from tssl_adapters.engine.numba_parts import known


@cache
def pack(dtype: str) -> str:
    """Name of ``(n, values, least, bits)``: whether each of ``n`` values is at least so much."""

    def packed(n: int, values: Any, least: Any, bits: Any) -> None:
        for byte in range(n // 8):
            found = numpy.uint8(0)
            for k in range(8):
                found |= numpy.uint8(numpy.uint8(values[8 * byte + k] >= least) << k)
            bits[byte] = found
        if n % 8:
            found = numpy.uint8(0)
            for k in range(n % 8):
                found |= numpy.uint8(numpy.uint8(values[n // 8 * 8 + k] >= least) << k)
            bits[n // 8] = found

    return known(packed)


@cache
def unpack(dtype: str) -> str:
    """Name of ``(n, bits, flags)``: the flags of :func:`pack`, 0 or 1."""
    number = getattr(numpy, dtype)

    def unpacked(n: int, bits: Any, flags: Any) -> None:
        for j in range(n):
            flags[j] = number((bits[j >> 3] >> (j & 7)) & 1)

    return known(unpacked)
