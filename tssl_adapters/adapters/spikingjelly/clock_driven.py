"""The nodes of ``clock_driven``, which preceded ``activation_based``: a class per step mode.

Here the threshold and the reset value are memories too, the sequence of potentials always is one,
and a node starts from a number, to which the library applies Python's arithmetic.
"""

from __future__ import annotations

from spikingjelly.clock_driven import neuron

from tssl_adapters.adapters import Kind
from tssl_adapters.adapters.spikingjelly.classic import ClockDriven, InSingle, classic_problem
from tssl_adapters.adapters.spikingjelly.linear import IF, LIF, ParametricLIF
from tssl_adapters.adapters.spikingjelly.node import start, stop
from tssl_adapters.adapters.spikingjelly.nonlinear import EIF, QIF


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


class WrappedQIFNode(ClockDriven, QIF, neuron.QIFNode):  # type: ignore[misc]
    """``QIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.QIFNode


class WrappedEIFNode(InSingle, ClockDriven, EIF, neuron.EIFNode):  # type: ignore[misc]
    """``EIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.EIFNode


class WrappedMultiStepEIFNode(InSingle, ClockDriven, EIF, neuron.MultiStepEIFNode):  # type: ignore[misc]
    """``MultiStepEIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.MultiStepEIFNode


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
