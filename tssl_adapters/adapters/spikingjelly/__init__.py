"""SpikingJelly: all nodes that charge, compare with a threshold, and reset; both step modes.

The nodes compare ``v >= v_threshold`` and reset at once: to ``v_reset``, or by subtraction where
it is ``None``. At ``tau_s > 1`` the trace is a registered memory, ``tssl_psc``.

Which of these exist is looked up in the installed version: ``activation_based``, whose nodes take
their states as arguments (nodes.py) or hold them (stepped.py), and its predecessor
``clock_driven``.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from tssl_adapters.adapters import (
    Adapter,
    Kinds,
    defined_by,
    derives_from_copy,
    from_library,
)
from tssl_adapters.adapters.spikingjelly.copies import kind_of_copy
from tssl_adapters.adapters.spikingjelly.node import TRACE, sequences
from tssl_adapters.adapters.spikingjelly.reasons import REASONS
from tssl_adapters.adapters.spikingjelly.sequential import mode, part

_SPIKING_MODULES = (
    *(f"spikingjelly.activation_based.{name}" for name in ("neuron", "rnn", "lynxi_exchange")),
    *(f"spikingjelly.clock_driven.{name}" for name in ("neuron", "rnn")),
    "spikingjelly.cext.neuron",
)


def _find() -> tuple[Kinds, Kinds]:
    found: Kinds = {}
    if find_spec("spikingjelly.activation_based"):
        base = importlib.import_module("spikingjelly.activation_based.base")
        form = "nodes" if hasattr(base.MemoryModule, "functional_forward") else "stepped"
        found |= importlib.import_module(f"{__name__}.{form}").KINDS
    if find_spec("spikingjelly.clock_driven"):
        found |= importlib.import_module(f"{__name__}.clock_driven").KINDS
    return found, _loops()


def _spiking(module: nn.Module) -> bool:
    known = any(_home(cls).startswith(_SPIKING_MODULES) for cls in type(module).__mro__)
    return not _non_spiking(module) and (known or derives_from_copy("spikingjelly", type(module)))


def _home(cls: type) -> str:
    """The module of a class under the library's own name, also in a copy of the package."""
    _, found, rest = f".{cls.__module__}".partition(".spikingjelly.")
    return f"spikingjelly.{rest}" if found else cls.__module__


def _non_spiking(module: nn.Module) -> bool:
    return any("NonSpiking" in cls.__name__ for cls in type(module).__mro__)


def _native(module: nn.Module) -> bool:
    if derives_from_copy("spikingjelly", type(module)):
        return True
    own = [cls.__name__ for cls in type(module).__mro__ if from_library("spikingjelly", cls)]
    if any(name.endswith("SurrogateFunctionBase") for name in own):  # part of a node
        return False
    return defined_by("spikingjelly", module) or "MemoryModule" in own


_ARGUMENTS: dict[str, dict[str, Any]] = {
    "GatedLIFNode": {"T": 4, "step_mode": "m"},
    "SimpleLIFNode": {"tau": 2.0, "decay_input": True},
}


def _example(cls: type[nn.Module], neurons: int) -> nn.Module:
    return cls(**_ARGUMENTS.get(cls.__name__, {}))


def _record(node: Any, x: Tensor) -> list[Tensor]:
    node.reset()
    out: Tensor = node(x) if sequences(node) else torch.stack([*map(node, x)])
    states = (node._memories[name] for name in node._memories if name != TRACE)
    return [out, *filter(torch.is_tensor, states)]


def _loops() -> Kinds:
    if not find_spec("spikingjelly.activation_based"):
        return {}
    found: Kinds = importlib.import_module(f"{__name__}.containers").LOOPS
    return found


def _reset(model: nn.Module) -> None:
    for module in model.modules():
        if "_memories" in vars(module):
            module.reset()  # type: ignore[operator]


ADAPTER = Adapter(
    library="spikingjelly",
    find=_find,
    copy=kind_of_copy,
    spiking=_spiking,
    native=_native,
    mode=mode,
    part=part,
    example=_example,
    record=_record,
    reasons=REASONS,
    reset=_reset,
    steps=lambda node: getattr(node, "T", None),
    registries={"_memories": "memory"},
    modes="SpikingJelly: functional.set_step_mode",
)
