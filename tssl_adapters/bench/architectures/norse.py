"""Norse's ``LIFBoxCell``, stepped through time, or ``IAF`` on whole sequences."""

from __future__ import annotations

from collections.abc import Sequence

import norse.torch as norse
import torch
from norse.torch.functional.iaf import IAFFeedForwardState
from norse.torch.functional.threshold import threshold
from torch import Tensor, nn

from tssl_adapters.bench.architectures import Network, Surrogate
from tssl_adapters.bench.method import FIRED, TAU_M

DT = 0.001
TAU_MEM_INV = torch.tensor(1 / (DT * TAU_M))
METHODS = {
    "native": norse.LIFBoxParameters().method,
    "fast-sigmoid": "super",
}
"""Norse has no arctan, and its other methods do not train this network at their default alpha."""


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


def network(connections: list[nn.Module], surrogate: str) -> Network:
    """Neurons h = (1 - 1/tau_m) v + x, reset to zero; ``Gain`` undoes Norse's factor 1/tau_m."""
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


class NetOnce(nn.Module):
    """Connections, each followed by neurons with h = v + i, where i sums their input so far.

    ``IAF`` is used because a ``LIF`` without leak scales its potential down to about 1e-8, where
    every surrogate is at its peak and every bound on a slope holds.
    """

    def __init__(self, connections: Sequence[nn.Module], p: norse.IAFParameters) -> None:
        super().__init__()
        self.connections = nn.ModuleList(connections)
        self.neurons = nn.ModuleList(norse.IAF(p) for _ in connections)

    def forward(self, x: Tensor) -> Tensor:
        """``[T, batch, ...]`` to ``[T, batch, classes]``, from rest."""
        for connection, neuron in zip(self.connections, self.neurons, strict=True):
            drive = connection(x.flatten(0, 1)).unflatten(0, x.shape[:2]).cumsum(0)
            x, _ = neuron(drive, IAFFeedForwardState(torch.zeros_like(drive[0])))
        return x


def network_once(connections: list[nn.Module], surrogate: str) -> Network:
    """Non-leaky neurons, reset far below the threshold."""
    p = norse.IAFParameters(
        v_reset=torch.tensor(FIRED),
        method=METHODS[surrogate],
        alpha=_parameters(surrogate).alpha,
    )
    return Network(NetOnce(connections, p), NetOnce.__call__, norse.IAF)
