"""Norse: its examples' networks, an LSNN, the yin-yang figure and recurrent neurons."""

from __future__ import annotations

from functools import partial
from typing import Any

import norse.torch as norse
import torch
from torch import Tensor, nn

from tssl_adapters.bench.networks import samples
from tssl_adapters.bench.networks.recipes import (
    adam,
    clipped,
    in_time,
    mean_cross_entropy,
    mean_over_time,
    most_cross_entropy,
    most_over_time,
    repeated,
    rows,
)
from tssl_adapters.bench.networks.spec import Network

SLOW = torch.tensor(1 / 20e-3)
"""The inverse of a membrane time constant of 20 of Norse's steps of 1 ms."""


class Stepped(nn.Module):
    """Two ``LIFCell`` layers and a non-spiking readout, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = norse.SequentialState(
            nn.Flatten(), Gain(64, 100, 5.0), norse.LIFCell(),
            Gain(100, 100, 5.0), norse.LIFCell(), norse.LILinearCell(100, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """``[T, batch, ...]`` to ``[T, batch, classes]``, from rest."""
        outputs, state = [], None
        for step in x:
            output, state = self.layers(step, state)
            outputs.append(output)
        return torch.stack(outputs)


class Gain(nn.Linear):
    """A dense layer times a constant, as Norse scales its input by dt."""

    def __init__(self, inputs: int, outputs: int, gain: float) -> None:
        super().__init__(inputs, outputs)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """``[..., inputs]`` to ``[..., outputs]``."""
        return self.gain * super().forward(x)


class Sequence(nn.Module):
    """A dense layer, neurons, a dense layer and a non-spiking readout."""

    def __init__(
        self, entry: nn.Module, neurons: nn.Module, exit: nn.Module, p: Any = None
    ) -> None:
        super().__init__()
        self.entry, self.neurons, self.exit = entry, neurons, exit
        self.readout = norse.LI(p or norse.LIParameters())

    def forward(self, x: Tensor) -> Tensor:
        """``[T, batch, inputs]`` to ``[T, batch, classes]``, from rest."""
        spikes, _ = self.neurons(self.entry(x))
        output, _ = self.readout(self.exit(spikes))
        potentials: Tensor = output
        return potentials


def lsnn() -> Sequence:
    """Recurrent neurons with adaptive thresholds, for rows of 14 pixels."""
    return Sequence(Gain(14, 64, 8.0), norse.LSNNRecurrent(64, 64), nn.Linear(64, 10))


def recurrent() -> Sequence:
    """Recurrent neurons on a fine time grid."""
    units = samples.PATTERN_UNITS
    neurons = norse.LIFRecurrent(units, 64, p=norse.LIFParameters(tau_mem_inv=SLOW))
    return Sequence(Gain(units, units, 8.0), neurons, nn.Linear(64, samples.PATTERN_CLASSES))


def yin_yang() -> Sequence:
    """Five inputs, hidden neurons of which most fire, three outputs."""
    entry, exit = nn.Linear(5, 100, bias=False), nn.Linear(100, 3, bias=False)
    nn.init.normal_(entry.weight, 2.0, 1.0)
    nn.init.normal_(exit.weight, 0.2, 0.4)
    neurons = norse.LIF(norse.LIFParameters(tau_mem_inv=SLOW))
    return Sequence(entry, neurons, exit, norse.LIParameters(tau_mem_inv=SLOW))


def run(num_steps: int, model: nn.Module, x: Tensor) -> Tensor:
    """A constant drive for ``num_steps`` steps."""
    output: Tensor = model(repeated(x, num_steps))
    return output


def run_rows(model: nn.Module, x: Tensor) -> Tensor:
    """Images row by row, two steps per row."""
    output: Tensor = model(rows(x).repeat_interleave(2, 0))
    return output


def run_spikes(model: nn.Module, x: Tensor) -> Tensor:
    """Spikes ``[batch, T, inputs]``."""
    output: Tensor = model(in_time(x))
    return output


NETWORKS = (
    Network(  # the example on MNIST
        name="norse-dense",
        library="norse",
        kind="ordinary",
        data=lambda folder: samples.digits(),
        build=Stepped,
        forward=partial(run, 16),
        loss=most_cross_entropy,
        score=most_over_time,
        optimizer=adam(2e-3),
        epochs=4,
        batch_size=64,
    ),
    Network(
        name="norse-lsnn",
        library="norse",
        kind="ordinary",
        data=lambda folder: samples.mnist(),
        build=lsnn,
        forward=run_rows,
        loss=mean_cross_entropy,
        score=mean_over_time,
        optimizer=adam(2e-3),
        epochs=6,
        batch_size=64,
    ),
    Network(
        name="norse-yin-yang",
        library="norse",
        kind="timing",
        data=lambda folder: samples.yin_yang(),
        build=yin_yang,
        forward=run_spikes,
        loss=mean_cross_entropy,
        score=mean_over_time,
        optimizer=clipped(adam(5e-3)),
        epochs=15,
        batch_size=100,
    ),
    Network(
        name="norse-patterns",
        library="norse",
        kind="timing",
        data=lambda folder: samples.patterns(),
        build=recurrent,
        forward=run_spikes,
        loss=most_cross_entropy,
        score=most_over_time,
        optimizer=adam(3e-3),
        epochs=8,
        batch_size=64,
    ),
)
