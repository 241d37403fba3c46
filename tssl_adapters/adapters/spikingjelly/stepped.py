"""The nodes of ``activation_based`` before they had a ``functional_forward``."""

from __future__ import annotations

from spikingjelly.activation_based import neuron

from tssl_adapters.adapters import Kind, wrapped_classes
from tssl_adapters.adapters.spikingjelly.classic import Classic, classic_problem
from tssl_adapters.adapters.spikingjelly.klif import KLIF
from tssl_adapters.adapters.spikingjelly.linear import IF, LIF, ParametricLIF
from tssl_adapters.adapters.spikingjelly.node import start, stop
from tssl_adapters.adapters.spikingjelly.nonlinear import EIF, QIF, SteppedIzhikevich

_NODES = wrapped_classes(
    __name__,
    neuron,
    {
        "IFNode": (Classic, IF),
        "LIFNode": (Classic, LIF),
        "ParametricLIFNode": (Classic, ParametricLIF),
        "QIFNode": (Classic, QIF),
        "EIFNode": (Classic, EIF),
        "IzhikevichNode": (Classic, SteppedIzhikevich),
        "KLIFNode": (Classic, KLIF),
    },
)

KINDS = {native: Kind(cls, classic_problem, start, stop) for native, cls in _NODES.items()}
