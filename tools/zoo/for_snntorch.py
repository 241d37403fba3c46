"""Networks in the manner of snnTorch's tutorials, which bring no model zoo of their own.

Explicit states in a class, hidden states in ``nn.Sequential``, nested containers, population
coding, regression on the membrane, recurrent and second-order neurons. Each function in
``BUILDERS`` is one model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import snntorch as snn
import torch
from snntorch import surrogate
from torch import nn

from zoo.entry import Entry
from zoo.snntorch_loops import Delta, HiddenLoop, Loop, Plain

STEPS, BATCH = 5, 4
FLAT = (STEPS, BATCH, 64)
SURROGATE = surrogate.fast_sigmoid(slope=25)


def _hidden(beta: float = 0.9, output: bool = False, **settings: Any) -> snn.Leaky:
    options = {"threshold": 0.5, "spike_grad": SURROGATE, **settings}
    return snn.Leaky(beta=beta, init_hidden=True, output=output, **options)


def fully_connected() -> nn.Module:
    """Two layers with explicit membrane potentials."""
    return Loop(
        nn.Linear(64, 32),
        snn.Leaky(beta=0.95, threshold=0.5),
        nn.Linear(32, 10),
        snn.Leaky(beta=0.95, threshold=0.5),
    )


def fully_connected_learned() -> nn.Module:
    """Learned decays and thresholds for every neuron."""
    return Loop(
        nn.Linear(64, 32),
        snn.Leaky(beta=torch.rand(32), threshold=torch.rand(32), learn_beta=True),
        nn.Linear(32, 10),
        snn.Leaky(beta=torch.rand(10), threshold=0.5, learn_beta=True, learn_threshold=True),
    )


def fully_connected_hidden() -> nn.Module:
    """A flat ``nn.Sequential``."""
    return HiddenLoop(
        nn.Sequential(nn.Linear(64, 32), _hidden(), nn.Linear(32, 10), _hidden(output=True))
    )


def convolutional_hidden() -> nn.Module:
    """A still image; convolutions and pooling before the neurons."""
    net = nn.Sequential(
        nn.Conv2d(1, 8, 5),
        nn.MaxPool2d(2),
        _hidden(0.5),
        nn.Conv2d(8, 16, 5),
        nn.MaxPool2d(2),
        _hidden(0.5),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 10),
        _hidden(0.5, output=True),
    )
    return HiddenLoop(net, repeat=STEPS)


def convolutional_nested() -> nn.Module:
    """Nested blocks; frames of two polarities, as from an event camera."""

    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 5), _hidden(0.5), nn.MaxPool2d(2))

    head = nn.Sequential(nn.Flatten(), nn.Linear(16 * 5 * 5, 10), _hidden(0.5, output=True))
    return HiddenLoop(nn.Sequential(nn.Sequential(block(2, 8), block(8, 16)), head))


def convolutional_explicit() -> nn.Module:
    """The same layers with explicit membrane potentials."""
    return Loop(
        nn.Sequential(nn.Conv2d(1, 8, 5), nn.MaxPool2d(2)),
        snn.Leaky(beta=0.5, threshold=0.5, spike_grad=SURROGATE),
        nn.Sequential(nn.Conv2d(8, 16, 5), nn.MaxPool2d(2)),
        snn.Leaky(beta=0.5, threshold=0.5, spike_grad=SURROGATE),
        nn.Sequential(nn.Flatten(), nn.Linear(16 * 4 * 4, 10)),
        snn.Leaky(beta=0.5, threshold=0.5, spike_grad=SURROGATE),
    )


def population_coding() -> nn.Module:
    """Many output neurons per class; only spike counts matter."""
    net = nn.Sequential(nn.Linear(64, 32), _hidden(), nn.Linear(32, 100), _hidden(output=True))
    return HiddenLoop(net)


def autoencoder() -> nn.Module:
    """Strided convolutions down to a spiking code, and transposed ones back."""
    net = nn.Sequential(
        nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), _hidden(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), _hidden(),
            nn.Flatten(), nn.Linear(16 * 7 * 7, 20), _hidden(),
        ),
        nn.Sequential(
            nn.Linear(20, 16 * 7 * 7), _hidden(), nn.Unflatten(1, (16, 7, 7)),
            nn.ConvTranspose2d(16, 8, 3, 2, 1, 1), nn.BatchNorm2d(8), _hidden(),
            nn.ConvTranspose2d(8, 1, 3, 2, 1, 1), _hidden(output=True),
        ),
    )  # fmt: skip
    return HiddenLoop(net, repeat=STEPS)


def regression() -> nn.Module:
    """The last layer never resets: its membrane potential is the output."""
    return Loop(
        nn.Linear(64, 32),
        snn.Leaky(beta=0.9, threshold=0.5, learn_threshold=True),
        nn.Linear(32, 32),
        snn.Leaky(beta=0.9, threshold=0.5, learn_threshold=True),
        nn.Linear(32, 1),
        snn.Leaky(beta=0.9, learn_beta=True, reset_mechanism="none"),
    )


def regression_recurrent() -> nn.Module:
    """The same with a recurrent hidden layer."""
    return Loop(
        nn.Linear(64, 32),
        snn.RLeaky(beta=0.9, linear_features=32, threshold=0.5),
        nn.Linear(32, 1),
        snn.Leaky(beta=0.9, learn_beta=True, reset_mechanism="none"),
    )


def _second(neuron: Callable[[], nn.Module]) -> nn.Module:
    return Loop(nn.Linear(64, 32), neuron(), nn.Linear(32, 10), neuron())


def lapicque() -> nn.Module:
    """A neuron given by its resistance and capacitance."""
    return _second(lambda: snn.Lapicque(beta=0.9, threshold=0.1))


def synaptic() -> nn.Module:
    """A synaptic current before the membrane potential."""
    return _second(lambda: snn.Synaptic(alpha=0.9, beta=0.8, threshold=0.5))


def alpha() -> nn.Module:
    """An alpha function as the post-synaptic potential."""
    return _second(lambda: snn.Alpha(alpha=0.9, beta=0.8, threshold=0.1))


def recurrent_one_to_one() -> nn.Module:
    """Each neuron feeds itself."""
    return _second(lambda: snn.RLeaky(beta=0.9, all_to_all=False, V=0.5, threshold=0.5))


def recurrent_convolutional() -> nn.Module:
    """Feature maps with recurrent connections through a convolution."""
    return Loop(
        nn.Conv2d(1, 4, 3, padding=1),
        snn.RLeaky(beta=0.9, conv2d_channels=4, kernel_size=3, threshold=0.3),
        nn.Sequential(nn.Flatten(), nn.Linear(4 * 28 * 28, 10)),
        snn.Leaky(beta=0.9, threshold=0.5),
    )


def recurrent_synaptic() -> nn.Module:
    """Recurrent, with a synaptic current."""
    return Loop(
        nn.Linear(64, 32),
        snn.RSynaptic(alpha=0.9, beta=0.8, linear_features=32, threshold=0.5),
        nn.Linear(32, 10),
        snn.Synaptic(alpha=0.9, beta=0.8, threshold=0.5),
    )


def spiking_lstm() -> nn.Module:
    """Two spiking LSTM cells."""
    return Loop(
        snn.SLSTM(64, 32, threshold=0.05),
        snn.SLSTM(32, 16, threshold=0.05),
        nn.Linear(16, 10),
        snn.Leaky(beta=0.9, threshold=0.1),
    )


def spiking_conv_lstm() -> nn.Module:
    """Spiking convolutional LSTM cells."""
    return Loop(
        snn.SConv2dLSTM(1, 4, 3, max_pool=2, threshold=0.05),
        nn.Sequential(nn.Flatten(), nn.Linear(4 * 14 * 14, 10)),
        snn.Leaky(beta=0.9, threshold=0.1),
    )


def parallel() -> nn.Module:
    """All time steps at once, without reset."""
    return Plain(
        snn.LeakyParallel(64, 32, beta=0.9, threshold=0.3),
        snn.LeakyParallel(32, 10, beta=0.9, threshold=0.3),
    )


def delta() -> nn.Module:
    """Spikes when the membrane potential changes."""
    return _second(lambda: Delta(snn.DeltaLeaky(delta_threshold=0.1, beta=0.9)))


class Model(NamedTuple):
    """A builder, and its input shape."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = FLAT


IMAGE = (BATCH, 1, 28, 28)
MOVIE = (STEPS, *IMAGE)

BUILDERS = [
    Model(fully_connected),
    Model(fully_connected_learned),
    Model(fully_connected_hidden),
    Model(convolutional_hidden, IMAGE),
    Model(convolutional_nested, (STEPS, BATCH, 2, 32, 32)),
    Model(convolutional_explicit, MOVIE),
    Model(population_coding),
    Model(autoencoder, IMAGE),
    Model(regression),
    Model(regression_recurrent),
    *map(Model, (lapicque, synaptic, alpha, recurrent_one_to_one)),
    Model(recurrent_convolutional, MOVIE),
    *map(Model, (recurrent_synaptic, spiking_lstm)),
    Model(spiking_conv_lstm, MOVIE),
    *map(Model, (parallel, delta)),
]


def entries() -> Iterator[Entry]:
    """One entry per builder."""
    for model in BUILDERS:
        yield Entry("snntorch", model.build.__name__, model.build, shape=model.shape)
