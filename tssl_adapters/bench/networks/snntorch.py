"""snnTorch: its tutorials' networks, stress cases, and recurrent neurons with synapses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import snntorch
import torch
import torch.nn.functional as F
from snntorch import functional, surrogate
from torch import Tensor, nn

from tssl_adapters.bench.networks import samples
from tssl_adapters.bench.networks.recipes import adam, clipped, in_time, repeated, scaled
from tssl_adapters.bench.networks.spec import Network

POPULATION = 20
"""Output neurons per class in population coding."""


class Output(NamedTuple):
    """Spikes and potentials of the last layer, ``[T, batch, classes]``."""

    spikes: Tensor
    potentials: Tensor


class Net(nn.Module):
    """Connections, each followed by neurons, in a loop over time."""

    def __init__(self, connections: Sequence[nn.Module], neurons: Sequence[nn.Module]) -> None:
        super().__init__()
        self.connections, self.neurons = nn.ModuleList(connections), nn.ModuleList(neurons)

    def forward(self, x: Tensor) -> Output:
        """``[T, batch, ...]``, from rest."""
        neurons: list[Any] = list(self.neurons)
        states = [_state(neuron.reset_mem()) for neuron in neurons]
        spikes, potentials = [], []
        for step in x:
            for i, neuron in enumerate(neurons):
                found = neuron(self.connections[i](step), *states[i])
                step, states[i] = found[0], found[-len(states[i]) :]
            spikes.append(step)
            potentials.append(states[-1][-1])
        return Output(torch.stack(spikes), torch.stack(potentials))


def _state(initial: Any) -> Any:
    return initial if isinstance(initial, tuple) else (initial,)


def dense(sizes: Sequence[int], neurons: Sequence[nn.Module], weights: float = 1.0) -> Net:
    """Fully connected, with one layer of neurons after each connection."""
    linear = [scaled(nn.Linear(before, after), weights) for before, after in pairwise(sizes)]
    return Net([nn.Sequential(nn.Flatten(), linear[0]), *linear[1:]], neurons)


def conv(**options: Any) -> Net:
    """Two convolutions with max pooling and a dense layer, for images of 8 x 8."""
    connections = [
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.MaxPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    ]
    return Net(connections, [snntorch.Leaky(0.9, **options) for _ in connections])


def recurrent() -> Net:
    """Recurrent neurons with synapses, and a non-spiking integrator readout."""
    hidden = snntorch.RSynaptic(alpha=0.8, beta=0.95, linear_features=64)
    return Net(
        [scaled(nn.Linear(samples.PATTERN_UNITS, 64), 2.0), nn.Linear(64, samples.PATTERN_CLASSES)],
        [hidden, snntorch.Leaky(0.95, reset_mechanism="none")],
    )


def spread_thresholds(number: int) -> Tensor:
    """Thresholds of a layer's neurons, from 0.2 to 5, the same at every call."""
    draw = torch.Generator().manual_seed(number)
    return torch.exp(torch.empty(number).uniform_(-1.6, 1.6, generator=draw))


def counts(output: Output) -> Tensor:
    """Scores: the number of spikes."""
    return output.spikes.sum(0)


def potentials(output: Output) -> Tensor:
    """Scores: the mean potential."""
    return output.potentials.mean(0)


def population(output: Output) -> Tensor:
    """Scores: the number of spikes of each class's population."""
    number = output.spikes.sum(0)
    return number.reshape(len(number), 10, POPULATION).sum(2)


def count_loss(output: Output, labels: Tensor) -> Tensor:
    """Cross-entropy of the spike counts."""
    return F.cross_entropy(counts(output), labels)


def potential_loss(output: Output, labels: Tensor) -> Tensor:
    """Cross-entropy of the mean potential."""
    return F.cross_entropy(potentials(output), labels)


def each_potential_loss(output: Output, labels: Tensor) -> Tensor:
    """Cross-entropy of each step's potentials, averaged over time."""
    return torch.stack([F.cross_entropy(step, labels) for step in output.potentials]).mean()


def population_loss(output: Output, labels: Tensor) -> Tensor:
    """snnTorch's mean squared error of spike counts, for population codes."""
    loss: Tensor = functional.mse_count_loss(
        correct_rate=1.0, incorrect_rate=0.0, population_code=True, num_classes=10
    )(output.spikes, labels)
    return loss


def run(num_steps: int, gain: float, model: nn.Module, x: Tensor) -> Output:
    """A constant drive for ``num_steps`` steps."""
    output: Output = model(repeated(x, num_steps, gain))
    return output


def run_spikes(model: nn.Module, x: Tensor) -> Output:
    """Spikes ``[batch, T, inputs]``."""
    output: Output = model(in_time(x))
    return output


def leaky(number: int, **options: Any) -> list[nn.Module]:
    """``number`` layers of leaky neurons."""
    return [snntorch.Leaky(**options) for _ in range(number)]


NETWORKS = (
    Network(  # tutorial 5
        name="snntorch-dense",
        library="snntorch",
        kind="ordinary",
        data=lambda folder: samples.mnist(),
        build=lambda: dense([196, 128, 10], leaky(2, beta=0.95)),
        forward=partial(run, 10, 1.0),
        loss=each_potential_loss,
        score=counts,
        optimizer=adam(1e-3),
        epochs=6,
        batch_size=64,
    ),
    Network(
        name="snntorch-conv",
        library="snntorch",
        kind="ordinary",
        data=lambda folder: samples.digits(),
        build=conv,
        forward=partial(run, 8, 1.5),
        loss=count_loss,
        score=counts,
        optimizer=adam(2e-3),
        epochs=6,
        batch_size=64,
    ),
    Network(  # tutorial 6
        name="snntorch-conv-fast",
        library="snntorch",
        kind="ordinary",
        data=lambda folder: samples.digits(),
        build=lambda: conv(reset_mechanism="zero", spike_grad=surrogate.fast_sigmoid(slope=25)),
        forward=partial(run, 8, 1.5),
        loss=count_loss,
        score=counts,
        optimizer=adam(5e-3),
        epochs=6,
        batch_size=64,
    ),
    Network(  # the tutorial on population coding
        name="snntorch-population",
        library="snntorch",
        kind="ordinary",
        data=lambda folder: samples.mnist(),
        build=lambda: dense(
            [196, 96, 10 * POPULATION], leaky(2, beta=0.9, spike_grad=surrogate.fast_sigmoid())
        ),
        forward=partial(run, 5, 1.0),
        loss=population_loss,
        score=population,
        optimizer=adam(2e-3),
        epochs=6,
        batch_size=64,
    ),
    Network(
        name="snntorch-deep",
        library="snntorch",
        kind="stress",
        data=lambda folder: samples.digits(),
        build=lambda: dense([64] * 7 + [10], leaky(7, beta=0.9), weights=2.5),
        forward=partial(run, 8, 1.5),
        loss=potential_loss,
        score=potentials,
        optimizer=adam(1e-3),
        epochs=6,
        batch_size=64,
    ),
    Network(
        name="snntorch-thresholds",
        library="snntorch",
        kind="stress",
        data=lambda folder: samples.digits(),
        build=lambda: dense(
            [64, 96, 96, 10],
            [
                snntorch.Leaky(0.9, threshold=spread_thresholds(96)),
                snntorch.Leaky(0.9, threshold=spread_thresholds(96)),
                snntorch.Leaky(0.9),
            ],
            weights=2.0,
        ),
        forward=partial(run, 8, 1.5),
        loss=count_loss,
        score=counts,
        optimizer=adam(1e-3),
        epochs=6,
        batch_size=64,
    ),
    Network(
        name="snntorch-slow",
        library="snntorch",
        kind="stress",
        data=lambda folder: samples.digits(),
        build=lambda: dense([64, 64, 10], [snntorch.Synaptic(0.5, 0.99), snntorch.Leaky(0.99)]),
        forward=partial(run, 40, 0.15),
        loss=count_loss,
        score=counts,
        optimizer=adam(1e-3),
        epochs=5,
        batch_size=64,
    ),
    Network(
        name="snntorch-patterns",
        library="snntorch",
        kind="timing",
        data=lambda folder: samples.patterns(),
        build=recurrent,
        forward=run_spikes,
        loss=potential_loss,
        score=potentials,
        optimizer=clipped(adam(2e-3)),
        epochs=10,
        batch_size=64,
    ),
)
