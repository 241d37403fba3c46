"""The paper's networks, made of each library's own neurons."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from tssl_adapters.bench.architectures.connections import connections

Surrogate = Callable[[Tensor], Tensor]
"""A library's surrogate: from h - theta to spikes, with a derivative of its own."""


Forward = Callable[[nn.Module, Tensor], Tensor]


class Network(NamedTuple):
    """A network, how to run it, and the class of its spiking layers.

    ``forward(model, x)`` maps ``[T, batch, channels, height, width]`` to ``[T, batch, classes]``,
    from rest.
    """

    model: nn.Module
    forward: Forward
    neuron: type[nn.Module]


class UnknownNeuronError(ValueError):
    """A library does not have the neurons that a network is made of."""


class Library(Protocol):
    """What a file of this package, named for its library, has."""

    SURROGATES: dict[str, Surrogate]

    def network(self, connections: list[nn.Module], surrogate: str) -> Network:
        """Neurons with the surrogate of that name after each connection."""
        ...

    def network_once(self, connections: list[nn.Module], surrogate: str) -> Network:
        """Likewise neurons that integrate without leak, as their synapses do, and fire once.

        It goes through whole sequences, where STDBP needs no guess about the step after the last.

        Raises:
            UnknownNeuronError: the library has none.
        """
        ...


def library(name: str) -> Library:
    """The file of a library; imports the library."""
    return import_module(f"{__name__}.{name}")


def derivative(surrogate: Surrogate) -> Surrogate:
    """The derivative of a library's surrogate, from h - theta to d spike / d h."""

    def slope(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(surrogate(x).sum(), x)
        return gradient

    return slope


__all__ = [
    "Forward",
    "Library",
    "Network",
    "Surrogate",
    "UnknownNeuronError",
    "connections",
    "derivative",
    "library",
]
