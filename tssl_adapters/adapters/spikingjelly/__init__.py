"""SpikingJelly: all nodes that charge, compare with a threshold, and reset; both step modes.

The nodes compare ``v >= v_threshold`` and reset at once: to ``v_reset``, or by subtraction where
it is ``None``. At ``tau_s > 1`` the trace is a registered memory, ``tssl_psc``.
"""

from __future__ import annotations

from typing import Any

import torch
from spikingjelly.activation_based import base, neuron, surrogate
from torch import Tensor, nn

from tssl_adapters.adapters.base import Adapter, Kind, defined_by
from tssl_adapters.adapters.spikingjelly.gated import WrappedGatedLIFNode
from tssl_adapters.adapters.spikingjelly.linear import (
    WrappedHalfThresholdIFNode,
    WrappedIFNode,
    WrappedLIFNode,
    WrappedParametricLIFNode,
)
from tssl_adapters.adapters.spikingjelly.node import problem, start, stop
from tssl_adapters.adapters.spikingjelly.nonlinear import (
    WrappedComplementaryLIFNode,
    WrappedCUBALIFNode,
    WrappedEIFNode,
    WrappedIzhikevichNode,
    WrappedKLIFNode,
    WrappedQIFNode,
    WrappedRAFNode,
)
from tssl_adapters.adapters.spikingjelly.reasons import REASONS
from tssl_adapters.adapters.spikingjelly.simple import (
    WrappedSimpleIFNode,
    WrappedSimpleLIFNode,
    simple_problem,
)

_SPIKING_MODULES = tuple(
    f"spikingjelly.activation_based.{name}" for name in ("neuron", "rnn", "lynxi_exchange")
)


def _spiking(module: nn.Module) -> bool:
    return not _non_spiking(module) and any(
        cls.__module__.startswith(_SPIKING_MODULES) for cls in type(module).__mro__
    )


def _non_spiking(module: nn.Module) -> bool:
    return any("NonSpiking" in cls.__name__ for cls in type(module).__mro__)


def _native(module: nn.Module) -> bool:
    if isinstance(module, surrogate.SurrogateFunctionBase):  # part of a node
        return False
    return defined_by("spikingjelly", module) or isinstance(module, base.MemoryModule)


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


_ARGUMENTS: dict[type[nn.Module], dict[str, Any]] = {
    neuron.GatedLIFNode: {"T": 4, "step_mode": "m"},
    neuron.SimpleLIFNode: {"tau": 2.0, "decay_input": True},
}


def _example(cls: type[nn.Module], neurons: int) -> nn.Module:
    return cls(**_ARGUMENTS.get(cls, {}))


def _run(node: Any, x: Tensor) -> Tensor:
    out: Tensor = node(x) if node.step_mode == "m" else torch.stack([*map(node, x)])
    return out


ADAPTER = Adapter(
    library="spikingjelly",
    kinds={
        **{cls._tssl_native: Kind(cls, problem, start, stop) for cls in _NODES},
        **{cls._tssl_native: Kind(cls, simple_problem, start, stop) for cls in _SIMPLE},
    },
    spiking=_spiking,
    native=_native,
    mode=lambda node: "sequence" if node.step_mode == "m" else "step",
    example=_example,
    run=_run,
    reasons=REASONS,
)
