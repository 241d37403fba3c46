"""SpikingJelly: its examples' networks, stress cases, latencies and learned delays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn
from torch.optim import Adam

from tssl_adapters.bench.networks import samples
from tssl_adapters.bench.networks.recipes import (
    adam,
    in_time,
    itself,
    mean_cross_entropy,
    mean_over_time,
    rate_error,
    repeated,
    scaled,
    sgd,
)
from tssl_adapters.bench.networks.spec import Network

SEQUENCE: Any = {"step_mode": "m"}
"""Multi-step mode: layers take whole sequences, ``[T, batch, ...]``."""

Make = Callable[[], nn.Module]


def lif(**options: Any) -> nn.Module:
    """A layer of leaky neurons."""
    made: nn.Module = neuron.LIFNode(
        **{"tau": 2.0, "surrogate_function": surrogate.ATan(), **SEQUENCE, **options}
    )
    return made


def plif() -> nn.Module:
    """A layer with a learned time constant."""
    made: nn.Module = neuron.ParametricLIFNode(
        init_tau=2.0, detach_reset=True, surrogate_function=surrogate.ATan(), **SEQUENCE
    )
    return made


def conv(inputs: int, outputs: int, make: Make) -> list[nn.Module]:
    """A convolution, batch normalisation and neurons."""
    return [
        layer.Conv2d(inputs, outputs, 3, padding=1, bias=False, **SEQUENCE),
        layer.BatchNorm2d(outputs, **SEQUENCE),
        make(),
    ]


def pool() -> nn.Module:
    """Halve height and width."""
    made: nn.Module = layer.MaxPool2d(2, **SEQUENCE)
    return made


def dense(sizes: Sequence[int], make: Make, scale: float = 1.0) -> nn.Sequential:
    """Fully connected, with neurons after each connection."""
    layers: list[nn.Module] = [layer.Flatten(**SEQUENCE)]
    for before, after in pairwise(sizes):
        layers += [scaled(layer.Linear(before, after, **SEQUENCE), scale, scale), make()]
    return nn.Sequential(*layers)


def csnn() -> nn.Sequential:
    """Two convolutions and two dense layers of non-leaky neurons, for images of 8 x 8."""

    def make() -> nn.Module:
        made: nn.Module = neuron.IFNode(surrogate_function=surrogate.ATan(), **SEQUENCE)
        return made

    return nn.Sequential(
        *conv(1, 8, make), pool(), *conv(8, 16, make), pool(), layer.Flatten(**SEQUENCE),
        layer.Linear(64, 64, bias=False, **SEQUENCE), make(),
        layer.Linear(64, 10, bias=False, **SEQUENCE), make(),
    )  # fmt: skip


class SpikeElementWise(nn.Module):
    """A stem and two residual blocks that add spikes (SEW ResNet), for images of 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv(1, 12, plif), pool())
        self.blocks = nn.ModuleList(
            nn.Sequential(*conv(12, 12, plif), *conv(12, 12, plif)) for _ in range(2)
        )
        self.head = nn.Sequential(
            pool(), layer.Flatten(**SEQUENCE), layer.Linear(48, 10, **SEQUENCE)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[T, batch, 1, 8, 8]`` to ``[T, batch, classes]``."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        output: Tensor = self.head(x)
        return output


class Tokens(nn.Module):
    """A dense layer on tokens ``[T, batch, tokens, channels]``, normalisation, and neurons."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = layer.Linear(inputs, outputs, bias=False, **SEQUENCE)
        self.norm = layer.BatchNorm1d(outputs, **SEQUENCE)
        self.neurons = lif(detach_reset=True)

    def forward(self, x: Tensor) -> Tensor:
        """Changes only the number of channels."""
        y = self.norm(self.linear(x).transpose(2, 3))
        output: Tensor = self.neurons(y).transpose(2, 3)
        return output


class Block(nn.Module):
    """Spiking attention without softmax, and two dense layers, each with a residual connection."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (Tokens(channels, channels) for _ in range(3))
        self.attended = lif(v_threshold=0.5, detach_reset=True)
        self.out = Tokens(channels, channels)
        self.dense = nn.Sequential(Tokens(channels, 2 * channels), Tokens(2 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """``[T, batch, tokens, channels]`` to the same."""
        query, key, value = (
            make(x).unflatten(3, (self.heads, -1)).transpose(2, 3)
            for make in (self.query, self.key, self.value)
        )
        mixed = self.attended(0.25 * (query @ key.transpose(-1, -2) @ value))
        x = x + self.out(mixed.transpose(2, 3).flatten(3))
        output: Tensor = x + self.dense(x)
        return output


class Transformer(nn.Module):
    """A convolutional stem and two blocks of spiking attention (Spikformer), for 8 x 8."""

    def __init__(self, channels: int = 24, heads: int = 3) -> None:
        super().__init__()
        make = partial(lif, detach_reset=True)
        self.stem = nn.Sequential(
            *conv(1, channels, make), pool(), *conv(channels, channels, make), pool()
        )
        self.blocks = nn.Sequential(*(Block(channels, heads) for _ in range(2)))
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``[T, batch, 1, 8, 8]`` to ``[T, batch, classes]``."""
        tokens = self.stem(x).flatten(3).transpose(2, 3)
        output: Tensor = self.head(self.blocks(tokens).mean(2))
        return output


class DelayedLinear(nn.Module):
    """Synapses with learned delays: a dense layer over time (Hammouamri et al. 2023).

    Each weight acts after its own delay, spread over time steps as a Gaussian, which gives the
    delay a gradient.

    Args:
        inputs: number of inputs.
        outputs: number of outputs.
        longest: the largest delay, in steps.
        width: standard deviation of the Gaussian, in steps.
        gain: the largest initial weight, times the square root of the number of inputs.
    """

    def __init__(
        self, inputs: int, outputs: int, longest: int, width: float = 2.0, gain: float = 7.0
    ) -> None:
        super().__init__()
        self.longest, self.width = longest, width
        self.weight = nn.Parameter((2 * torch.rand(outputs, inputs) - 1) * gain / inputs**0.5)
        self.delay = nn.Parameter(torch.rand(outputs, inputs) * longest)

    def forward(self, x: Tensor) -> Tensor:
        """``[T, batch, inputs]`` to ``[T, batch, outputs]``."""
        steps = torch.arange(self.longest, -1.0, -1.0)  # conv1d does not flip its kernel
        distance = (steps - self.delay.clamp(0, self.longest).unsqueeze(2)) / self.width
        share = torch.softmax(-0.5 * distance.square(), 2)
        kernel = self.weight.unsqueeze(2) * share
        past = F.pad(x.permute(1, 2, 0), (self.longest, 0))
        return F.conv1d(past, kernel).permute(2, 0, 1)


def delays() -> nn.Sequential:
    """Two layers behind learned delays, and a non-spiking integrator readout."""
    detectors = partial(lif, tau=5.0, decay_input=False, detach_reset=True)
    return nn.Sequential(
        DelayedLinear(samples.PATTERN_UNITS, 48, samples.LATEST),
        detectors(),
        DelayedLinear(48, 48, samples.LATEST // 2),
        detectors(),
        scaled(layer.Linear(48, samples.PATTERN_CLASSES, **SEQUENCE), 5.0),
        neuron.NonSpikingLIFNode(tau=20.0, decode="max-mem"),
    )


def delays_optimizer(model: nn.Module) -> Adam:
    """A higher learning rate for delays, which are in steps, than for weights."""
    named = dict(model.named_parameters())
    learned = [named.pop(name) for name in list(named) if name.endswith("delay")]
    return Adam([{"params": named.values(), "lr": 2e-3}, {"params": learned, "lr": 0.05}])


def latency() -> nn.Sequential:
    """Neurons with synapses on a fine time grid, and a non-spiking integrator readout."""
    return nn.Sequential(
        scaled(layer.Linear(64, 100, **SEQUENCE), 20.0),
        layer.SynapseFilter(tau=5.0, **SEQUENCE),
        lif(tau=20.0, detach_reset=True),
        layer.Linear(100, 10, **SEQUENCE),
        layer.SynapseFilter(tau=5.0, **SEQUENCE),
        neuron.NonSpikingLIFNode(tau=20.0, decode="max-mem"),
    )


def from_rest(model: nn.Module, x: Tensor) -> Tensor:
    """Run a sequence ``[T, batch, ...]`` after resetting all states."""
    functional.reset_net(model)
    output: Tensor = model(x)
    return output


def run(num_steps: int, gain: float, model: nn.Module, x: Tensor) -> Tensor:
    """A constant drive for ``num_steps`` steps."""
    return from_rest(model, repeated(x, num_steps, gain))


def run_poisson(num_steps: int, model: nn.Module, x: Tensor) -> Tensor:
    """Poisson spikes, with probabilities given by the pixels."""
    return from_rest(model, (torch.rand(num_steps, *x.shape) < x).float())


def run_spikes(model: nn.Module, x: Tensor) -> Tensor:
    """Spikes ``[batch, T, inputs]``."""
    return from_rest(model, in_time(x))


NETWORKS = (
    Network(  # the example of a single layer
        name="spikingjelly-poisson",
        library="spikingjelly",
        kind="ordinary",
        data=lambda folder: samples.digits(),
        build=lambda: dense([64, 10], lif),
        forward=partial(run_poisson, 12),
        loss=rate_error,
        score=mean_over_time,
        optimizer=adam(1e-2),
        epochs=6,
        batch_size=64,
    ),
    Network(  # the example of a convolutional network
        name="spikingjelly-csnn",
        library="spikingjelly",
        kind="ordinary",
        data=lambda folder: samples.digits(),
        build=csnn,
        forward=partial(run, 4, 1.0),
        loss=rate_error,
        score=mean_over_time,
        optimizer=sgd(0.1),
        epochs=12,
        batch_size=64,
    ),
    Network(
        name="spikingjelly-sew",
        library="spikingjelly",
        kind="ordinary",
        data=lambda folder: samples.digits(),
        build=SpikeElementWise,
        forward=partial(run, 4, 1.0),
        loss=mean_cross_entropy,
        score=mean_over_time,
        optimizer=adam(2e-3),
        epochs=4,
        batch_size=64,
    ),
    Network(
        name="spikingjelly-transformer",
        library="spikingjelly",
        kind="ordinary",
        data=lambda folder: samples.digits(),
        build=Transformer,
        forward=partial(run, 4, 1.0),
        loss=mean_cross_entropy,
        score=mean_over_time,
        optimizer=adam(2e-3),
        epochs=4,
        batch_size=64,
    ),
    Network(
        name="spikingjelly-high-rate",
        library="spikingjelly",
        kind="stress",
        data=lambda folder: samples.digits(),
        build=lambda: dense([64, 96, 96, 10], partial(lif, v_reset=None), scale=8.0),
        forward=partial(run, 8, 2.0),
        loss=mean_cross_entropy,
        score=mean_over_time,
        optimizer=adam(1e-3),
        epochs=6,
        batch_size=64,
    ),
    Network(  # with the neurons' default surrogate
        name="spikingjelly-deep",
        library="spikingjelly",
        kind="stress",
        data=lambda folder: samples.digits(),
        build=lambda: nn.Sequential(
            *dense([64] * 8, partial(lif, surrogate_function=surrogate.Sigmoid()), scale=4.5),
            layer.Linear(64, 10, **SEQUENCE),
        ),
        forward=partial(run, 6, 1.5),
        loss=mean_cross_entropy,
        score=mean_over_time,
        optimizer=adam(1e-3),
        epochs=8,
        batch_size=64,
    ),
    Network(
        name="spikingjelly-latency-digits",
        library="spikingjelly",
        kind="timing",
        data=lambda folder: samples.latency_digits(),
        build=latency,
        forward=run_spikes,
        loss=F.cross_entropy,
        score=itself,
        optimizer=adam(5e-3),
        epochs=10,
        batch_size=64,
    ),
    Network(
        name="spikingjelly-delays",
        library="spikingjelly",
        kind="timing",
        data=lambda folder: samples.patterns(),
        build=delays,
        forward=run_spikes,
        loss=F.cross_entropy,
        score=itself,
        optimizer=delays_optimizer,
        epochs=6,
        batch_size=64,
    ),
)
