"""Tensors as the plain memory that kernels take, and buffers for what they write."""

from __future__ import annotations

from typing import TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from tssl_adapters.elementwise import ordinary
from tssl_adapters.engine.call.plan import Plan, working_dtype
from tssl_adapters.engine.compiled.kernels import memory

MaybeTensor = TypeVar("MaybeTensor", Tensor, "Tensor | None")


def spreads(shape: torch.Size, step: torch.Size) -> bool:
    """Whether a tensor of this shape broadcasts to a step's; torch's own check takes 50 us."""
    if shape == step:
        return True
    if len(shape) > len(step):
        return False
    trailing = step[len(step) - len(shape) :]
    return all(own in (1, wanted) for own, wanted in zip(shape, trailing, strict=True))


def spread(tensor: MaybeTensor, step: torch.Size, like: Tensor, turn: int = 0) -> MaybeTensor:
    """A tensor as memory of a step's shape, :func:`turned`, with the dtype and device of
    ``like``.
    """
    if tensor is None:
        return tensor
    if tensor.shape != step or tensor.dtype != like.dtype:
        tensor = tensor.to(like).expand(step)
    return memory(turned(tensor, turn) if turn else tensor)


def turned(tensor: MaybeTensor, turn: int) -> MaybeTensor:
    """A view with the channels last, which are ``turn`` dimensions from the end; 0 is none."""
    return tensor if tensor is None or not turn else tensor.movedim(-turn, -1)


def turned_back(tensor: MaybeTensor, turn: int) -> MaybeTensor:
    """The inverse of :func:`turned`."""
    return tensor if tensor is None or not turn else tensor.movedim(-1, -turn)


class Zeros:
    """A tensor of zeros on the CPU. Never write to it."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype) -> None:
        with ordinary():
            self.tensor = torch.zeros(shape, dtype=dtype)


_zeros: WeakValueDictionary[tuple[torch.Size, torch.dtype], Zeros] = WeakValueDictionary()
"""Not of tensors: a weak reference to one may outlive what Python knows of it."""


def zeros(shape: torch.Size, dtype: torch.dtype) -> Zeros:
    """Zeros that all who ask for this shape share, as long as one of them keeps them."""
    known = _zeros.get((shape, dtype))
    if known is None:
        known = _zeros[shape, dtype] = Zeros(shape, dtype)
    return known


def room_of(
    plan: Plan, drive: Tensor, step: Tensor, link: Tensor | None, state: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Buffers for the gradients of the drive, of the incoming link (``chain`` and ``through``), and
    of the incoming ``state``, ``step``, if it takes one (``entering``), as in :class:`Adjoints`.
    """
    chain, through, entering = None, None, None
    dtype = working_dtype(drive)
    if plan.linked:
        # A link's gradient is ours alone, from the next call, so this call's may overwrite it.
        chain = drive.new_empty((plan.links, *step.shape), dtype=dtype) if link is None else link
        if link is None and plan.rule.looks_ahead:
            chain[2].zero_()  # without a delay nothing else writes it
        if plan.neuron.timing == "delayed":
            through = chain[2]
        elif state:
            through = torch.empty_like(step, dtype=dtype)
    elif state:
        entering = torch.empty_like(step, dtype=dtype)
    return torch.empty_like(drive), chain, through, entering
