"""Elementwise operations in the form that is fastest in torch.

A comparison written to a float tensor is vectorised; one that gives booleans is not, and must be
converted. An operation with a zero-dimensional tensor is faster than one with a Python number, and
rounds the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy
import torch
from torch import Tensor

from tssl_adapters.arithmetic import Symbol, where


def operand(value: Tensor | float, like: Tensor) -> Tensor | float:
    """A value as the other side of an operation on a floating tensor, which it does not promote."""
    if isinstance(value, Tensor | Symbol) or not isinstance(like, Tensor):
        return value
    if not like.ndim or torch._C._len_torch_dispatch_stack():
        return value
    if torch._C._are_functorch_transforms_active():  # what is made within one must not outlive it
        return value
    return _scalar(value)


@lru_cache(maxsize=1024)
def _scalar(value: float) -> Tensor:
    """A number as a float64 tensor on the CPU. Never write to it."""
    with torch.inference_mode(False):
        return torch.from_numpy(numpy.array(value, dtype=numpy.float64))


@contextmanager
def ordinary() -> Iterator[None]:
    """Ordinary tensors on the CPU, whatever mode and default device the program is in."""
    with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
        yield


@contextmanager
def derived() -> Iterator[None]:
    """Autograd for a derivative taken on the way. The user's hooks, e.g. a checkpoint's, are for
    what a call saves; nothing of this is saved.
    """
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_itself, _itself):
        yield


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor.to(dtype)``, which takes as long as a small sum even if there is nothing to do."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def on_graph_of(value: Tensor, other: Tensor) -> Tensor:
    """A value that autograd takes for one that depends on another tensor, whose gradient is 0."""
    always = torch.ones((), dtype=torch.bool, device=value.device)
    return torch.where(always, value, other)


def on_host(tensor: Tensor) -> bool:
    """Whether a number can be read at once. What is on a GPU, its kernels read where it lies."""
    return tensor.is_cpu


def identical(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and values; NaN equals NaN."""
    same = ours.dtype == theirs.dtype and ours.shape == theirs.shape
    return same and torch.allclose(ours, theirs, rtol=0.0, atol=0.0, equal_nan=True)


def greater(left: Tensor, right: Tensor | float) -> Tensor:
    """``left > right``, 0 or 1 in ``left``'s dtype."""
    if isinstance(left, Symbol):
        return where(left > right, 1.0, 0.0)
    if isinstance(right, Tensor) and right.ndim:
        return (left > right).to(left.dtype)
    return left.clone().gt_(operand(right, left))


def at_least(left: Tensor, right: Tensor | float) -> Tensor:
    """``left >= right``, 0 or 1 in ``left``'s dtype."""
    if isinstance(left, Symbol):
        return where(left >= right, 1.0, 0.0)
    if isinstance(right, Tensor) and right.ndim:
        return (left >= right).to(left.dtype)
    return left.clone().ge_(operand(right, left))


def reaches(left: Tensor, right: Tensor | float) -> Tensor:
    """``left - right >= 0``, 0 or 1 in their dtype."""
    distance = left - operand(right, left)
    if isinstance(distance, Symbol):
        return where(distance >= 0.0, 1.0, 0.0)
    return distance.ge_(operand(0.0, distance))


def plain(drive: Tensor) -> bool:
    """Whether a tensor is plain memory: not empty, no subclass, no active mode or transform."""
    return (
        type(drive) is Tensor
        and drive.numel() > 0
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
    )
