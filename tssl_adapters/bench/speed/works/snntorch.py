"""snnTorch: a loop with explicit states, and a network with hidden states."""

from __future__ import annotations

from typing import Any

import snntorch
import torch
from snntorch import utils
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters.bench.speed.works import NETWORK, Work, dense


def steps(layer: Any, x: Tensor) -> Tensor:
    """A loop over time for one layer."""
    mem, outs = layer.reset_mem(), []
    for step in x.unbind(0):
        out, mem = layer(step, mem)
        outs.append(out)
    return torch.stack(outs)


def network_steps(net: nn.Module, x: Tensor) -> Tensor:
    """A loop over time for a network, as in the tutorials."""
    utils.reset(net)
    return torch.stack([net(step) for step in x.unbind(0)])


def network_layers(net: nn.Module, x: Tensor) -> Tensor:
    """The same, layer by layer."""
    utils.reset(net)
    return tssl_adapters.multi_step_forward(net, x)  # type: ignore[no-any-return]


def network() -> nn.Module:
    """A fully connected network with hidden states."""
    return dense(lambda: snntorch.Leaky(beta=0.9, init_hidden=True))


WORKS = [
    Work("snntorch-leaky", "snnTorch Leaky, step", "step", lambda: snntorch.Leaky(0.9), steps),
    Work(
        "snntorch-network",
        f"snnTorch {NETWORK}, training step",
        "network",
        network,
        network_steps,
        layerwise=network_layers,
    ),
]
