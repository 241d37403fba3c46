"""snnTorch's ``Leaky``, stepped through time with explicit states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import snntorch
import torch
from snntorch import surrogate
from torch import Tensor, nn

from tssl_adapters.bench.architectures import Network, Surrogate, UnknownNeuronError
from tssl_adapters.bench.method import TAU_M

BETA = 1.0 - 1.0 / TAU_M

SURROGATES: dict[str, Surrogate] = {
    "native": snntorch.Leaky(BETA).spike_grad,
    "arctan": surrogate.atan(alpha=2.0),
    "fast-sigmoid": surrogate.fast_sigmoid(slope=25),
}


class Net(nn.Module):
    """Connections, each followed by neurons with h = beta mem + x, reset to zero."""

    def __init__(self, connections: Sequence[nn.Module], spike_grad: Surrogate) -> None:
        super().__init__()
        self.connections = nn.ModuleList(connections)
        self.neurons = nn.ModuleList(
            snntorch.Leaky(beta=BETA, reset_mechanism="zero", spike_grad=spike_grad)
            for _ in connections
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[T, batch, ...]`` to ``[T, batch, classes]``, from rest."""
        neurons: list[Any] = list(self.neurons)
        mems = [neuron.reset_mem() for neuron in neurons]
        outputs = []
        for spk in x:
            for i, neuron in enumerate(neurons):
                spk, mems[i] = neuron(self.connections[i](spk), mems[i])
            outputs.append(spk)
        return torch.stack(outputs)


def network(connections: list[nn.Module], surrogate: str) -> Network:
    """Put neurons with the named surrogate after each connection."""
    return Network(Net(connections, SURROGATES[surrogate]), Net.__call__, snntorch.Leaky)


def network_once(connections: list[nn.Module], surrogate: str) -> Network:
    """snnTorch has no such neurons: none of its resets prevents a second spike.

    Raises:
        UnknownNeuronError: always.
    """
    raise UnknownNeuronError("snntorch has no neuron that fires once")
