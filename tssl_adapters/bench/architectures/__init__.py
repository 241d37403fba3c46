"""The paper's networks, built from each library's own neurons."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from tssl_adapters.bench.architectures.connections import connections

Surrogate = Callable[[Tensor], Tensor]
"""A library's surrogate: maps h - theta to spikes, and has its own derivative."""


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
    """A library lacks the neurons that a network needs."""


class Library(Protocol):
    """The interface of this package's modules, each named after its library."""

    SURROGATES: dict[str, Surrogate]

    def network(self, connections: list[nn.Module], surrogate: str) -> Network:
        """Put neurons with the named surrogate after each connection."""
        ...

    def network_once(self, connections: list[nn.Module], surrogate: str) -> Network:
        """The same with non-leaky neurons and non-leaky synapses that fire once.

        The network takes whole sequences, so STDBP need not guess the step after the last.

        Raises:
            UnknownNeuronError: the library has none.
        """
        ...


def library(name: str) -> Library:
    """Import a library's module, and the library with it."""
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
