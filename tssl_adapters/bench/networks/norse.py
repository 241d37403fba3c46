"""Norse's ``LIFBoxCell``, stepped through time."""

from __future__ import annotations

from typing import Any

import norse.torch as norse
import torch
from norse.torch.functional.threshold import threshold
from torch import Tensor, nn

from tssl_adapters.bench.method import TAU_M
from tssl_adapters.bench.networks import Network, Surrogate

DT = 0.001
TAU_MEM_INV = torch.tensor(1 / (DT * TAU_M))
METHODS = {
    "native": norse.LIFBoxParameters().method,
    "fast-sigmoid": "super",
}
"""Norse has no arctan, and at its default alpha its other methods do not train this network."""


def _parameters(surrogate: str) -> norse.LIFBoxParameters:
    return norse.LIFBoxParameters(tau_mem_inv=TAU_MEM_INV, method=METHODS[surrogate])


def _spikes(surrogate: str) -> Surrogate:
    parameters = _parameters(surrogate)
    return lambda x: threshold(x, parameters.method, parameters.alpha)


SURROGATES: dict[str, Surrogate] = {name: _spikes(name) for name in METHODS}


class Gain(nn.Module):
    """Multiply by a constant."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


def surrogate_of(layer: nn.Module) -> Surrogate:
    """The surrogate that a layer was made with."""
    parameters: Any = layer.p
    return lambda x: threshold(x, parameters.method, parameters.alpha)


def network(connections: list[nn.Module], surrogate: str) -> Network:
    """Neurons h = (1 - 1/tau_m) v + x, reset to zero: Norse scales x by 1/tau_m."""
    layers: list[nn.Module] = []
    for connection in connections:
        layers += [connection, Gain(TAU_M), norse.LIFBoxCell(_parameters(surrogate), dt=DT)]
    return Network(norse.SequentialState(*layers), run, norse.LIFBoxCell)


def run(model: nn.Module, x: Tensor) -> Tensor:
    """Step through time, from rest."""
    outputs, state = [], None
    for step in x:
        output, state = model(step, state)
        outputs.append(output)
    return torch.stack(outputs)
