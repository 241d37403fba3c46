"""The nodes of ``clock_driven``, which preceded ``activation_based``: a class per step mode.

Here the threshold and the reset value are memories too, the sequence of potentials always is one,
and a node starts from a number, to which the library applies Python's arithmetic.
"""

from __future__ import annotations

from spikingjelly.clock_driven import neuron

from tssl_adapters.adapters import Kind, wrapped_classes
from tssl_adapters.adapters.spikingjelly.classic import ClockDriven, InSingle, classic_problem
from tssl_adapters.adapters.spikingjelly.linear import IF, LIF, ParametricLIF
from tssl_adapters.adapters.spikingjelly.node import start, stop
from tssl_adapters.adapters.spikingjelly.nonlinear import EIF, QIF

_NODES = wrapped_classes(
    __name__,
    neuron,
    {
        "IFNode": (ClockDriven, IF),
        "MultiStepIFNode": (ClockDriven, IF),
        "LIFNode": (ClockDriven, LIF),
        "MultiStepLIFNode": (ClockDriven, LIF),
        "ParametricLIFNode": (ClockDriven, ParametricLIF),
        "MultiStepParametricLIFNode": (ClockDriven, ParametricLIF),
        "QIFNode": (ClockDriven, QIF),
        "EIFNode": (InSingle, ClockDriven, EIF),
        "MultiStepEIFNode": (InSingle, ClockDriven, EIF),
    },
)

KINDS = {native: Kind(cls, classic_problem, start, stop) for native, cls in _NODES.items()}
