"""The nodes of ``clock_driven``, which came before ``activation_based``: a class for each mode.

Here the threshold and the reset value are memories too, sequences of potentials always are, and a
node starts from a number, to which the library applies Python's arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
from spikingjelly.clock_driven import neuron
from torch import Tensor

from tssl_adapters.adapters.base import Kind
from tssl_adapters.adapters.spikingjelly.classic import Classic, classic_problem
from tssl_adapters.adapters.spikingjelly.linear import IF, LIF, ParametricLIF
from tssl_adapters.adapters.spikingjelly.node import sequences, start, stop
from tssl_adapters.adapters.spikingjelly.smooth import SmoothNode, States


class ClockDriven(Classic):
    """Mixed in before a node's record."""

    def __init_subclass__(cls) -> None:
        """The library's monitor takes classes called ``MultiStep...`` for such; pickle goes by
        the qualified name, which stays.
        """
        if "_tssl_native" in vars(cls):
            cls.__name__ = cls._tssl_native.__name__

    def _tssl_materialized(self: Any, x: Tensor, states: States) -> States:
        (v,) = states
        return (v if isinstance(v, Tensor) else self._tssl_start(v, x),)

    def _tssl_start(self, v: float, x: Tensor) -> Tensor:
        """Without dimensions, and so with a number's part in type promotion and rounding."""
        dtype = torch.float64 if x.is_floating_point() else None
        return torch.as_tensor(v, dtype=dtype, device=x.device)

    def _tssl_one(self: Any, x: Tensor) -> Tensor:
        if sequences(self):
            return self._tssl_native.forward(self, x.unsqueeze(0))[0]  # type: ignore[no-any-return]
        return self._tssl_native.forward(self, x)  # type: ignore[no-any-return]

    def _tssl_keeps(self) -> bool:
        return sequences(self)


class InSingle:
    """Mixed in before :class:`ClockDriven`: the library makes a tensor of the number."""

    def _tssl_start(self, v: float, x: Tensor) -> Tensor:
        return torch.as_tensor(v, device=x.device)


class WrappedIFNode(ClockDriven, IF, neuron.IFNode):  # type: ignore[misc]
    """``IFNode`` with the gradient of a rule."""

    _tssl_native = neuron.IFNode


class WrappedMultiStepIFNode(ClockDriven, IF, neuron.MultiStepIFNode):  # type: ignore[misc]
    """``MultiStepIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.MultiStepIFNode


class WrappedLIFNode(ClockDriven, LIF, neuron.LIFNode):  # type: ignore[misc]
    """``LIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.LIFNode


class WrappedMultiStepLIFNode(ClockDriven, LIF, neuron.MultiStepLIFNode):  # type: ignore[misc]
    """``MultiStepLIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.MultiStepLIFNode


class WrappedParametricLIFNode(ClockDriven, ParametricLIF, neuron.ParametricLIFNode):  # type: ignore[misc]
    """``ParametricLIFNode`` with the gradient of a rule, for ``w`` too."""

    _tssl_native = neuron.ParametricLIFNode


class WrappedMultiStepParametricLIFNode(
    ClockDriven,
    ParametricLIF,
    neuron.MultiStepParametricLIFNode,  # type: ignore[misc]
):
    """``MultiStepParametricLIFNode`` with the gradient of a rule, for ``w`` too."""

    _tssl_native = neuron.MultiStepParametricLIFNode


class WrappedQIFNode(ClockDriven, SmoothNode, neuron.QIFNode):  # type: ignore[misc]
    """``QIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.QIFNode
    _tssl_nonlinear = "its charge is quadratic in the potential"


class WrappedEIFNode(InSingle, ClockDriven, SmoothNode, neuron.EIFNode):  # type: ignore[misc]
    """``EIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.EIFNode
    _tssl_nonlinear = "its charge is exponential in the potential"


class WrappedMultiStepEIFNode(InSingle, ClockDriven, SmoothNode, neuron.MultiStepEIFNode):  # type: ignore[misc]
    """``MultiStepEIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.MultiStepEIFNode
    _tssl_nonlinear = "its charge is exponential in the potential"


_NODES = (
    WrappedIFNode,
    WrappedMultiStepIFNode,
    WrappedLIFNode,
    WrappedMultiStepLIFNode,
    WrappedParametricLIFNode,
    WrappedMultiStepParametricLIFNode,
    WrappedQIFNode,
    WrappedEIFNode,
    WrappedMultiStepEIFNode,
)

KINDS = {cls._tssl_native: Kind(cls, classic_problem, start, stop) for cls in _NODES}
