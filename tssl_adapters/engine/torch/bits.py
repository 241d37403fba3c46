"""Packs flags of 0 and 1, eight to a byte."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor


def pack(flags: Tensor) -> Tensor:
    """Pack floats of 0 and 1, of any shape, into bytes ``[N / 8]``, rounded up."""
    flat = flags.reshape(-1)
    if flat.shape[0] % 8:
        flat = F.pad(flat, (0, -flat.shape[0] % 8))
    # A product of small integers is exact in any precision, and the fastest way in torch.
    return (_weights(flags.dtype, flags.device) @ flat.view(8, -1)).to(torch.uint8)


def unpack(packed: Tensor, shape: Size, dtype: torch.dtype) -> Tensor:
    """Undo :func:`pack`: the flags, 0 or 1. A hook may have saved the bytes in another dtype."""
    flat = ((packed.to(torch.uint8) >> _shifts(packed.device)) & 1).view(-1)
    return flat[: shape.numel()].view(shape).to(dtype)


def _remembered(made: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Remember a tensor, unless it is made within a transform of torch.func, which it must not
    outlive.
    """
    known = lru_cache(made)

    def look(*key: Any) -> Tensor:
        return made(*key) if torch._C._are_functorch_transforms_active() else known(*key)

    return look


@_remembered
def _weights(dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return 2.0 ** torch.arange(8, dtype=dtype, device=device)


@_remembered
def _shifts(device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(8, dtype=torch.uint8, device=device).unsqueeze(1)
