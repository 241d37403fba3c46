"""How to start and to make layers in every version of snnTorch."""

from __future__ import annotations

import inspect
from typing import Any

import snntorch
import torch
from torch import Tensor

STATES = {
    "Leaky": ("mem",),
    "Lapicque": ("mem",),
    "Synaptic": ("syn", "mem"),
    "Alpha": ("syn_exc", "syn_inh", "mem"),
    "RLeaky": ("spk", "mem"),
    "RSynaptic": ("spk", "syn", "mem"),
}


FLOAT32 = 5e-6
"""Its spikes are float32 whatever the input, and so are the gradients that come to them."""


def start(layer: Any) -> tuple[Tensor, ...]:
    """The library's states at rest, as its users get them; a hidden layer then holds them."""
    name = layer._get_name()
    made = getattr(layer, f"init_{name.lower()}")()
    states = made if isinstance(made, tuple) else (made,)
    if layer.init_hidden:
        for key, state in zip(STATES[name], states, strict=True):
            setattr(layer, key, state)
    return states


def has(cls: type, setting: str) -> bool:
    """Whether a class takes a setting."""
    return setting in inspect.signature(cls).parameters


def delays(cls: type) -> tuple[bool, ...]:
    """The values of ``reset_delay``; a class that has no such setting delays."""
    return (True, False) if has(cls, "reset_delay") else (True,)


def delay(cls: type, value: bool) -> dict[str, Any]:
    """The setting where the class has it."""
    return {"reset_delay": value} if value in delays(cls) and has(cls, "reset_delay") else {}


def runs(layer: Any) -> bool:
    """Whether a layer that holds its states natively runs at all."""
    start(layer)
    try:
        layer(torch.ones(2, 5))
    except TypeError:  # it looks for a state among its arguments
        return False
    return True


def new_states_learn() -> bool:
    """Whether the library's states at rest take a gradient, which integers cannot."""
    return hasattr(start(snntorch.Leaky(beta=0.5))[0], "init_flag")
