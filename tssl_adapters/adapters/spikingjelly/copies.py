"""Copies of the library's nodes in other packages, from any version.

The library itself need not be installed: the mixins used here do not import it.
"""

from __future__ import annotations

from torch import nn

from tssl_adapters.adapters import Kind
from tssl_adapters.adapters.spikingjelly.classic import (
    Classic,
    ClockDriven,
    InSingle,
    classic_problem,
)
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
    SteppedIzhikevich,
)

_Mixins = dict[str, tuple[type, ...]]

_NODES: _Mixins = {
    "LIFNode": (LIF,),
    "IFNode": (IF,),
    "ParametricLIFNode": (ParametricLIF,),
    "HalfThresholdIFNode": (IF,),
    "KLIFNode": (KLIF,),
    "QIFNode": (QIF,),
    "EIFNode": (EIF,),
    "IzhikevichNode": (Izhikevich,),
    "CUBALIFNode": (CUBALIF,),
    "RAFNode": (RAF,),
    "ComplementaryLIFNode": (ComplementaryLIF,),
}
_STEPPED: _Mixins = {
    "LIFNode": (Classic, LIF),
    "IFNode": (Classic, IF),
    "ParametricLIFNode": (Classic, ParametricLIF),
    "KLIFNode": (Classic, KLIF),
    "QIFNode": (Classic, QIF),
    "EIFNode": (Classic, EIF),
    "IzhikevichNode": (Classic, SteppedIzhikevich),
}
_CLOCK_DRIVEN: _Mixins = {
    "LIFNode": (ClockDriven, LIF),
    "IFNode": (ClockDriven, IF),
    "ParametricLIFNode": (ClockDriven, ParametricLIF),
    "QIFNode": (ClockDriven, QIF),
    "EIFNode": (InSingle, ClockDriven, EIF),
}
_CLOCK_DRIVEN |= {
    f"MultiStep{name}": _CLOCK_DRIVEN[name]
    for name in ("LIFNode", "IFNode", "ParametricLIFNode", "EIFNode")
}


def kind_of_copy(cls: type[nn.Module]) -> Kind | None:
    """How a copy is wrapped, by its name and its version's form; ``None`` if it is not."""
    # Its own methods decide: a file may copy one version and import parts of another.
    own = {name for base in cls.__mro__ if base.__name__ != "MemoryModule" for name in vars(base)}
    if "single_step_functional_forward" in own:
        known, why_not = _NODES, problem
    else:
        known = _STEPPED if "single_step_forward" in own else _CLOCK_DRIVEN
        why_not = classic_problem
    mixins = known.get(cls.__name__)
    if mixins is None:
        return None
    return Kind(type(f"Wrapped{cls.__name__}", mixins, {}), why_not, start, stop)
