"""Elementwise operations in the form that torch does fastest.

A comparison written to a float tensor is vectorised; one that makes booleans is not, and has to be
converted. An operation on a tensor of no dimensions is quicker than one on a Python number, and
rounds alike.
"""

from __future__ import annotations

from functools import lru_cache

import numpy
import torch
from torch import Tensor


def operand(value: Tensor | float, like: Tensor) -> Tensor | float:
    """A value as the other side of an operation on a floating tensor, which it does not promote."""
    if isinstance(value, Tensor) or not like.ndim or torch._C._len_torch_dispatch_stack():
        return value
    return _scalar(value)


@lru_cache(maxsize=1024)
def _scalar(value: float) -> Tensor:
    """A number as a float64 tensor on the CPU. Never write to it."""
    with torch.inference_mode(False):
        return torch.from_numpy(numpy.array(value, dtype=numpy.float64))


def greater(left: Tensor, right: Tensor | float) -> Tensor:
    """``left > right``, 0 or 1 in ``left``'s dtype."""
    if isinstance(right, Tensor) and right.ndim:
        return (left > right).to(left.dtype)
    return left.clone().gt_(operand(right, left))


def at_least(left: Tensor, right: Tensor | float) -> Tensor:
    """``left >= right``, 0 or 1 in ``left``'s dtype."""
    if isinstance(right, Tensor) and right.ndim:
        return (left >= right).to(left.dtype)
    return left.clone().ge_(operand(right, left))
