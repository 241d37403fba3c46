"""The nodes of ``activation_based`` before they had a ``functional_forward``."""

from __future__ import annotations

from spikingjelly.activation_based import neuron

from tssl_adapters.adapters import Kind
from tssl_adapters.adapters.spikingjelly.classic import Classic, classic_problem
from tssl_adapters.adapters.spikingjelly.klif import KLIF
from tssl_adapters.adapters.spikingjelly.linear import IF, LIF, ParametricLIF
from tssl_adapters.adapters.spikingjelly.node import start, stop
from tssl_adapters.adapters.spikingjelly.nonlinear import EIF, QIF, SteppedIzhikevich


class WrappedIFNode(Classic, IF, neuron.IFNode):  # type: ignore[misc]
    """``IFNode`` with the gradient of a rule."""

    _tssl_native = neuron.IFNode


class WrappedLIFNode(Classic, LIF, neuron.LIFNode):  # type: ignore[misc]
    """``LIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.LIFNode


class WrappedParametricLIFNode(Classic, ParametricLIF, neuron.ParametricLIFNode):  # type: ignore[misc]
    """``ParametricLIFNode`` with the gradient of a rule, for ``w`` too."""

    _tssl_native = neuron.ParametricLIFNode


class WrappedQIFNode(Classic, QIF, neuron.QIFNode):  # type: ignore[misc]
    """``QIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.QIFNode


class WrappedEIFNode(Classic, EIF, neuron.EIFNode):  # type: ignore[misc]
    """``EIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.EIFNode


class WrappedIzhikevichNode(Classic, SteppedIzhikevich, neuron.IzhikevichNode):  # type: ignore[misc]
    """``IzhikevichNode`` with the gradient of a rule, through its recovery ``w`` too."""

    _tssl_native = neuron.IzhikevichNode


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
