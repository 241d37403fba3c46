"""Tensors as the plain memory that kernels take, and buffers for what they write."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from tssl_adapters.engine.call.plan import Plan, working_dtype
from tssl_adapters.engine.compiled.kernels import memory


def spreads(shape: torch.Size, step: torch.Size) -> bool:
    """Whether a tensor of this shape broadcasts to a step's; torch's own check takes 50 us."""
    if shape == step:
        return True
    if len(shape) > len(step):
        return False
    trailing = step[len(step) - len(shape) :]
    return all(own in (1, wanted) for own, wanted in zip(shape, trailing, strict=True))


@overload
def spread(tensor: Tensor, step: torch.Size, like: Tensor) -> Tensor: ...
@overload
def spread(tensor: None, step: torch.Size, like: Tensor) -> None: ...
def spread(tensor: Tensor | None, step: torch.Size, like: Tensor) -> Tensor | None:
    """A tensor as memory of a step's shape, with the dtype and device of ``like``."""
    if tensor is None or (tensor.shape == step and tensor.dtype == like.dtype):
        return None if tensor is None else memory(tensor)
    return memory(tensor.to(like).expand(step))


def room_of(
    plan: Plan, drive: Tensor, step: torch.Size, linked: bool, link: Tensor | None, state: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Buffers for the gradients of the drive, of the incoming link (``chain`` and ``through``), and
    of the incoming ``state`` if it takes one (``entering``), as in :class:`Adjoints`.
    """
    chain, through, entering = None, None, None
    dtype = working_dtype(drive)
    if linked:
        # A link's gradient is ours alone, from the next call, so this call's may overwrite it.
        chain = drive.new_empty((plan.links, *step), dtype=dtype) if link is None else link
        if link is None and plan.rule.looks_ahead:
            chain[2].zero_()  # without a delay nothing else writes it
        if plan.neuron.timing == "delayed":
            through = chain[2]
        elif state:
            through = drive.new_empty(step, dtype=dtype)
    elif state and drive.shape == step and drive.dtype == dtype:
        entering = torch.empty_like(drive)  # several times faster
    elif state:
        entering = drive.new_empty(step, dtype=dtype)
    return torch.empty_like(drive), chain, through, entering
