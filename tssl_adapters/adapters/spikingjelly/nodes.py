"""The library's nodes, whose ``functional_forward`` takes and returns their states."""

from __future__ import annotations

from spikingjelly.activation_based import neuron

from tssl_adapters.adapters import Kind, wrapped_classes
from tssl_adapters.adapters.spikingjelly.gated import GatedLIF
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
    SimpleLIF,
    SimpleNode,
)

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


_NODES = wrapped_classes(
    __name__,
    neuron,
    {
        "LIFNode": LIF,
        "ParametricLIFNode": ParametricLIF,
        "IFNode": IF,
        "HalfThresholdIFNode": IF,
        "KLIFNode": KLIF,
        "QIFNode": QIF,
        "EIFNode": EIF,
        "IzhikevichNode": Izhikevich,
        "ComplementaryLIFNode": ComplementaryLIF,
        "CUBALIFNode": CUBALIF,
        "RAFNode": RAF,
        "GatedLIFNode": GatedLIF,
    },
)
_SIMPLE = wrapped_classes(
    __name__, neuron, {"SimpleIFNode": SimpleNode, "SimpleLIFNode": SimpleLIF}
)

KINDS = {
    **{
        native: Kind(cls, problem, start, stop, _PASSED_BY, _INSTEAD)
        for native, cls in _NODES.items()
    },
    **{native: Kind(cls, problem, start, stop, STEP) for native, cls in _SIMPLE.items()},
}
