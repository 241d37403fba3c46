"""Checks whether what was decided about a layer's steps still holds."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tssl_adapters.elementwise import on_host

grad_enabled = torch.is_grad_enabled
transforms = torch._C._are_functorch_transforms_active
modes = torch._C._len_torch_dispatch_stack
_FORMATS = (torch.channels_last, torch.channels_last_3d)
_VIEWS: dict[torch.dtype, Any] = {
    torch.float32: ctypes.c_float,
    torch.float64: ctypes.c_double,
    torch.int64: ctypes.c_int64,
}


class Pin(NamedTuple):
    """A snapshot of a one-element tensor."""

    tensor: Tensor
    address: int
    learns: bool
    view: Any
    """A view of the number in memory, which also sees changes that torch does not count; ``None``
    if it is not :func:`on_host`."""
    value: float

    @classmethod
    def of(cls, tensor: Tensor) -> Pin:
        """The pin of a tensor that :func:`can_be_pinned` or is not :func:`on_host`."""
        learns, address = tensor.requires_grad, tensor.data_ptr()
        if not on_host(tensor):
            return cls(tensor, address, learns, None, math.nan)
        view = _VIEWS[tensor.dtype].from_address(address)
        return cls(tensor, address, learns, view, view.value)

    @property
    def fixed(self) -> bool:
        """Whether it is to stay as it is, and can be looked at."""
        return self.view is not None and not self.learns

    def stays(self, now: Tensor) -> bool:
        """Whether it is still this tensor and as learnable as before, whatever its value."""
        return (
            now is self.tensor
            and now.data_ptr() == self.address
            and now.requires_grad is self.learns
        )

    def holds(self, now: Tensor) -> bool:
        """Whether it is still this tensor, with the same value, and does not learn."""
        return (
            now is self.tensor
            and now.data_ptr() == self.address
            and self.view.value == self.value
            and not now.requires_grad
        )


class Pins(NamedTuple):
    """A snapshot of a tensor in CPU memory with a number for each neuron."""

    tensor: Tensor
    address: int
    learns: bool
    values: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> Pins:
        """The snapshot of a tensor."""
        return cls(tensor, tensor.data_ptr(), tensor.requires_grad, tensor.detach().clone())

    def stays(self, now: Tensor) -> bool:
        """As :meth:`Pin.stays`."""
        return (
            now is self.tensor
            and now.data_ptr() == self.address
            and now.shape == self.values.shape
            and now.requires_grad is self.learns
        )

    def holds(self, now: Tensor) -> bool:
        """As :meth:`Pin.holds`."""
        return self.stays(now) and not self.learns and torch.equal(self.values, now)


def pin(tensor: Tensor) -> Pin | Pins:
    """The snapshot of a tensor that :func:`can_be_pinned` or is a number that is not
    :func:`on_host`.
    """
    return Pin.of(tensor) if tensor.numel() == 1 else Pins.of(tensor)


def all_hold(pins: Sequence[Pin], tensors: Sequence[Tensor]) -> bool:
    """:meth:`Pin.holds` of each, written out, as it is asked at every step."""
    for (tensor, address, _, view, value), now in zip(pins, tensors, strict=True):
        if now is not tensor or now.data_ptr() != address or view.value != value:
            return False
        if now.requires_grad:
            return False
    return True


def can_be_pinned(tensors: Sequence[Tensor]) -> bool:
    """Whether these are numbers in CPU memory."""
    return all(t.numel() and t.is_cpu and t.dtype in _VIEWS for t in tensors)


def records_plainly() -> bool:
    """Whether autograd records a graph, and no transform or mode looks on."""
    return grad_enabled() and not transforms() and not modes()


def is_memory(
    tensor: Tensor,
    dtype: torch.dtype,
    device: torch.device | None = None,
    strides: tuple[int, ...] | None = None,
) -> bool:
    """Whether a tensor is memory of a device, by default the CPU, as loops need it: with these
    strides, by default contiguous.
    """
    return (
        type(tensor) is Tensor
        and tensor.dtype is dtype
        and tensor.layout is torch.strided
        and (tensor.is_cpu if device is None else tensor.device == device)
        and (tensor.is_contiguous() if strides is None else tensor.stride() == strides)
        and not tensor.is_neg()
    )


def channels_last(tensor: Tensor) -> tuple[int, ...] | None:
    """The strides of a tensor in a memory format that torch's results keep, ``channels_last`` or
    ``channels_last_3d``; ``None`` for a contiguous one or any other.
    """
    if tensor.layout is not torch.strided or tensor.is_contiguous():
        return None
    kept = any(tensor.is_contiguous(memory_format=form) for form in _FORMATS)
    return tensor.stride() if kept else None


def are_memory(
    tensors: Sequence[Tensor],
    dtype: torch.dtype,
    device: torch.device | None = None,
    formats: bool | None = True,
) -> bool:
    """Whether these are memory of one shape, all contiguous or, if these ``formats`` are taken, all
    :func:`channels_last` alike.
    """
    shape, strides = tensors[0].shape, channels_last(tensors[0]) if formats else None
    for tensor in tensors:
        if not is_memory(tensor, dtype, device, strides) or tensor.shape != shape:
            return False
    return True
