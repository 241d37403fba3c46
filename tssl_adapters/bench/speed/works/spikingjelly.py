"""SpikingJelly: step mode "m", which is one fused function on the CPU, and step mode "s"."""

from __future__ import annotations

from typing import Any

import torch
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn

from tssl_adapters.bench.speed.works import NETWORK, Work, dense


def sequence(layer: Any, x: Tensor) -> Tensor:
    """One call from rest."""
    functional.reset_net(layer)
    return layer(x)  # type: ignore[no-any-return]


def steps(layer: Any, x: Tensor) -> Tensor:
    """A loop over time, from rest."""
    functional.reset_net(layer)
    return torch.stack([layer(step) for step in x.unbind(0)])


def multi_step() -> nn.Module:
    """A layer in step mode "m": tau = 2, threshold 1, reset to 0."""
    return neuron.LIFNode(step_mode="m")  # type: ignore[no-any-return]


WORKS = [
    Work(
        "spikingjelly-lif",
        "SpikingJelly LIFNode, sequence",
        "sequence",
        multi_step,
        sequence,
        gain=2.0,
        recursion=(0.5, 0.5, 1.0),
    ),
    Work(
        "spikingjelly-lif-step", "SpikingJelly LIFNode, step", "step", neuron.LIFNode, steps,
        gain=2.0,
    ),
    Work(
        "spikingjelly-network",
        f"SpikingJelly {NETWORK}, training step",
        "network, sequence",
        lambda: dense(multi_step),
        sequence,
    ),
]  # fmt: skip
