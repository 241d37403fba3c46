"""The library's nodes, whose ``functional_forward`` takes and returns their states."""

from __future__ import annotations

from spikingjelly.activation_based import neuron

from tssl_adapters.adapters import Kind
from tssl_adapters.adapters.spikingjelly.gated import WrappedGatedLIFNode
from tssl_adapters.adapters.spikingjelly.klif import KLIF
from tssl_adapters.adapters.spikingjelly.linear import IF, LIF, ParametricLIF
from tssl_adapters.adapters.spikingjelly.node import problem, start, stop
from tssl_adapters.adapters.spikingjelly.nonlinear import (
    CUBALIF,
    EIF,
    QIF,
    RAF,
    ComplementaryLIF,
    Izhikevich,
)
from tssl_adapters.adapters.spikingjelly.simple import (
    STEP,
    WrappedSimpleIFNode,
    WrappedSimpleLIFNode,
)


class WrappedLIFNode(LIF, neuron.LIFNode):  # type: ignore[misc]
    """``LIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.LIFNode


class WrappedParametricLIFNode(ParametricLIF, neuron.ParametricLIFNode):  # type: ignore[misc]
    """``ParametricLIFNode`` with the gradient of a rule, for ``w`` too."""

    _tssl_native = neuron.ParametricLIFNode


class WrappedIFNode(IF, neuron.IFNode):  # type: ignore[misc]
    """``IFNode`` with the gradient of a rule."""

    _tssl_native = neuron.IFNode


class WrappedHalfThresholdIFNode(IF, neuron.HalfThresholdIFNode):  # type: ignore[misc]
    """``HalfThresholdIFNode``: an ``IFNode`` that starts at half its threshold."""

    _tssl_native = neuron.HalfThresholdIFNode


class WrappedQIFNode(QIF, neuron.QIFNode):  # type: ignore[misc]
    """``QIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.QIFNode


class WrappedEIFNode(EIF, neuron.EIFNode):  # type: ignore[misc]
    """``EIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.EIFNode


class WrappedIzhikevichNode(Izhikevich, neuron.IzhikevichNode):  # type: ignore[misc]
    """``IzhikevichNode`` with the gradient of a rule."""

    _tssl_native = neuron.IzhikevichNode


class WrappedCUBALIFNode(CUBALIF, neuron.CUBALIFNode):  # type: ignore[misc]
    """``CUBALIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.CUBALIFNode


class WrappedRAFNode(RAF, neuron.RAFNode):  # type: ignore[misc]
    """``RAFNode`` with the gradient of a rule."""

    _tssl_native = neuron.RAFNode


class WrappedKLIFNode(KLIF, neuron.KLIFNode):  # type: ignore[misc]
    """``KLIFNode`` with the gradient of a rule, for ``k`` too."""

    _tssl_native = neuron.KLIFNode


class WrappedComplementaryLIFNode(ComplementaryLIF, neuron.ComplementaryLIFNode):  # type: ignore[misc]
    """``ComplementaryLIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.ComplementaryLIFNode


_PASSED_BY = (
    *("forward", "single_step_forward", "multi_step_forward", "functional_forward"),
    *("neuronal_charge", "neuronal_fire", "neuronal_reset"),
)
"""Methods that a wrapped node does not call: it uses the library's step from states to states. Of
these versions' nodes only ``SimpleBaseNode`` calls the last three.
"""
_INSTEAD = (
    ", another step into single_step_functional_forward, or another charge into a class derived "
    "from SimpleBaseNode and registered like SimpleIFNode"
)


_NODES = (
    WrappedLIFNode,
    WrappedParametricLIFNode,
    WrappedIFNode,
    WrappedHalfThresholdIFNode,
    WrappedKLIFNode,
    WrappedQIFNode,
    WrappedEIFNode,
    WrappedIzhikevichNode,
    WrappedComplementaryLIFNode,
    WrappedCUBALIFNode,
    WrappedRAFNode,
    WrappedGatedLIFNode,
)
_SIMPLE = (WrappedSimpleIFNode, WrappedSimpleLIFNode)

KINDS = {
    **{cls._tssl_native: Kind(cls, problem, start, stop, _PASSED_BY, _INSTEAD) for cls in _NODES},
    **{cls._tssl_native: Kind(cls, problem, start, stop, STEP) for cls in _SIMPLE},
}
