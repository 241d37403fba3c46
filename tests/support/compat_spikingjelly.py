"""The names under which the installed version of SpikingJelly has what the tests use.

Older versions have ``clock_driven``, with a class for each step mode instead of a setting.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

from torch import nn

PACKAGE = (
    "spikingjelly.activation_based"
    if find_spec("spikingjelly.activation_based")
    else "spikingjelly.clock_driven"
)
base: Any = importlib.import_module(f"{PACKAGE}.base")
functional: Any = importlib.import_module(f"{PACKAGE}.functional")
layer: Any = importlib.import_module(f"{PACKAGE}.layer")
neuron: Any = importlib.import_module(f"{PACKAGE}.neuron")
surrogate: Any = importlib.import_module(f"{PACKAGE}.surrogate")

STEP_MODES = hasattr(base.MemoryModule, "step_mode")
NOT_STATES = ("v_seq", "v_threshold", "v_reset", "tssl_psc")
"""Memories of some version or ours that a neuron's step does not carry on."""

linear: Any = layer.Linear if hasattr(layer, "Linear") else nn.Linear
dropout: Any = getattr(layer, "MultiStepDropout", layer.Dropout)


def has(name: str, step_mode: str = "s") -> bool:
    """Whether this version has a node that can be called in this way."""
    return hasattr(neuron, _class(name, step_mode))


def node(name: str, *, step_mode: str = "s", store_v_seq: bool = False, **settings: Any) -> Any:
    """A node by the name of its single-step class."""
    if STEP_MODES:
        settings |= {"step_mode": step_mode}
        settings |= {"store_v_seq": True} if store_v_seq else {}
    return getattr(neuron, _class(name, step_mode))(**settings)


def _class(name: str, step_mode: str) -> str:
    return name if STEP_MODES or step_mode == "s" else f"MultiStep{name}"


def sequences(layer: Any) -> bool:
    """Whether a call brings a sequence."""
    if STEP_MODES:
        return bool(layer.step_mode == "m")
    return any(cls.__name__.startswith("MultiStep") for cls in type(layer).__mro__)


def set_sequences(net: nn.Module) -> None:
    """``functional.set_step_mode(net, "m")`` where there is such a thing."""
    if STEP_MODES:
        functional.set_step_mode(net, "m")


def stores(step_mode: str, asked: bool) -> bool:
    """Whether a node keeps its potentials in ``v_seq``."""
    if step_mode == "s":
        return asked and hasattr(neuron.BaseNode, "_append_v_seq")
    return asked or not STEP_MODES


def detach(net: nn.Module) -> None:
    """``functional.detach_net`` where there is such a thing."""
    if hasattr(functional, "detach_net"):
        functional.detach_net(net)
        return
    for module in net.modules():
        if isinstance(module, base.MemoryModule):
            module.detach()


def cuts_in_evaluation(module: nn.Module) -> bool:
    """Whether spikes have no gradient in evaluation, which is compiled apart then."""
    return any(name.startswith("jit_eval") for name in dir(type(module)))
