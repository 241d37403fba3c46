"""The nodes of ``activation_based`` before they had a ``functional_forward``."""

from __future__ import annotations

import functools
from typing import Any

import torch
from spikingjelly.activation_based import neuron

from tssl_adapters.adapters.base import Kind
from tssl_adapters.adapters.spikingjelly.classic import Classic, classic_problem
from tssl_adapters.adapters.spikingjelly.klif import KLIF
from tssl_adapters.adapters.spikingjelly.linear import IF, LIF, ParametricLIF
from tssl_adapters.adapters.spikingjelly.node import start, stop
from tssl_adapters.adapters.spikingjelly.smooth import SmoothNode
from tssl_adapters.neuron import ByFormula, Reset


@functools.cache
def _half_detached() -> bool:
    """Whether a detached reset to a value still has the gradient of ``spike * v_reset``."""
    node = neuron.IzhikevichNode(v_reset=-1.0, detach_reset=True)
    node.v = node.w = torch.zeros(1)
    with torch.enable_grad():
        node.neuronal_reset(torch.ones(1, requires_grad=True))
    return bool(node.v.requires_grad)


class WrappedIFNode(Classic, IF, neuron.IFNode):  # type: ignore[misc]
    """``IFNode`` with the gradient of a rule."""

    _tssl_native = neuron.IFNode


class WrappedLIFNode(Classic, LIF, neuron.LIFNode):  # type: ignore[misc]
    """``LIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.LIFNode


class WrappedParametricLIFNode(Classic, ParametricLIF, neuron.ParametricLIFNode):  # type: ignore[misc]
    """``ParametricLIFNode`` with the gradient of a rule, for ``w`` too."""

    _tssl_native = neuron.ParametricLIFNode


class WrappedQIFNode(Classic, SmoothNode, neuron.QIFNode):  # type: ignore[misc]
    """``QIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.QIFNode
    _tssl_nonlinear = "its charge is quadratic in the potential"


class WrappedEIFNode(Classic, SmoothNode, neuron.EIFNode):  # type: ignore[misc]
    """``EIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.EIFNode
    _tssl_nonlinear = "its charge is exponential in the potential"


class WrappedIzhikevichNode(Classic, SmoothNode, neuron.IzhikevichNode):  # type: ignore[misc]
    """``IzhikevichNode`` with the gradient of a rule, through its recovery ``w`` too."""

    _tssl_native = neuron.IzhikevichNode
    _tssl_nonlinear = "its charge is quadratic in the potential, and it adapts"

    def _tssl_detached(self: Any) -> bool:
        return bool(self.detach_reset) and not self._tssl_half_detached()

    def _tssl_reset_of(self: Any, others: list[Any]) -> Reset:
        if self._tssl_half_detached():
            v_reset: float = self.v_reset
            return ByFormula(lambda h, due: h - due.detach() * h + due * v_reset)
        reset: Reset = self._tssl_reset()
        return reset

    def _tssl_half_detached(self: Any) -> bool:
        return bool(self.detach_reset and self.v_reset and _half_detached())


class WrappedKLIFNode(Classic, KLIF, neuron.KLIFNode):  # type: ignore[misc]
    """``KLIFNode`` with the gradient of a rule, for ``k`` too."""

    _tssl_native = neuron.KLIFNode


_NODES = (
    WrappedIFNode,
    WrappedLIFNode,
    WrappedParametricLIFNode,
    WrappedQIFNode,
    WrappedEIFNode,
    WrappedIzhikevichNode,
    WrappedKLIFNode,
)

KINDS = {cls._tssl_native: Kind(cls, classic_problem, start, stop) for cls in _NODES}
