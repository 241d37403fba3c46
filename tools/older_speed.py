"""A training step of small networks with any version of SpikingJelly, wrapped over native.

python tools/older_speed.py --out older.json

For versions that the benchmark's networks are not written for: 0.0.0.0.12 has no package
``activation_based``, 0.0.0.0.14 no containers of its own. The contestants take turns; a figure is
the ratio of the medians of processor time, one thread. Run it with the Python of a session of
``nox -s versions``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import tssl_adapters
from tssl_adapters.bench.speed import measure
from tssl_adapters.bench.speed.memory import keep_freed_memory

STEPS, BATCH = 8, 32
FEATURES, CLASSES = 64, 10
CONTESTANTS = {"native": None, "default": "smooth-tsslbp", "native-compiled": "native"}
"""The rule that each is wrapped with."""
NEURONS = {"LIFNode": {"tau": 2.0}, "IFNode": {}, "ParametricLIFNode": {"init_tau": 2.0}}

OLD = find_spec("spikingjelly.activation_based") is None
_PACKAGE = f"spikingjelly.{'clock_driven' if OLD else 'activation_based'}"
neuron, layer, functional, surrogate = (
    import_module(f"{_PACKAGE}.{name}") for name in ("neuron", "layer", "functional", "surrogate")
)


class Network(nn.Module):
    """Connections with neurons after each, for ``[T, batch, features]``.

    Args:
        kind: the neurons' class, in sequences the one that takes them.
        sequences: whether a layer takes all time steps in one call.
        blocks: connections, each a tuple of modules; a list of them has a residual connection.
        readout: what follows the last neurons.
    """

    def __init__(self, kind: str, sequences: bool, blocks: list[Any], readout: nn.Module) -> None:
        super().__init__()
        self.kind, self.sequences = kind, sequences
        self.blocks = nn.ModuleList(self._block(block) for block in blocks)
        self.residual = [isinstance(block, list) for block in blocks]
        self.readout = layer.SeqToANNContainer(readout) if sequences else readout

    def _block(self, block: Any) -> nn.Module:
        if isinstance(block, list):
            return nn.Sequential(*map(self._block, block))
        connection = nn.Sequential(*block)
        if self.sequences:
            connection = layer.SeqToANNContainer(connection)
        return nn.Sequential(connection, self._neurons())

    def _neurons(self) -> nn.Module:
        settings = NEURONS[self.kind] | {"detach_reset": True}
        settings |= {"surrogate_function": surrogate.ATan()}
        if OLD:
            name = f"MultiStep{self.kind}" if self.sequences else self.kind
            return getattr(neuron, name)(**settings)  # type: ignore[no-any-return]
        mode = "m" if self.sequences else "s"
        return getattr(neuron, self.kind)(step_mode=mode, **settings)  # type: ignore[no-any-return]

    def _once(self, x: Tensor) -> Tensor:
        for block, residual in zip(self.blocks, self.residual, strict=True):
            x = x + block(x) if residual else block(x)
        output: Tensor = self.readout(x)
        return output

    def forward(self, x: Tensor) -> Tensor:
        """The mean over time ``[batch, classes]``."""
        functional.reset_net(self)
        outs = self._once(x) if self.sequences else torch.stack([self._once(t) for t in x])
        return outs.mean(0)


def conv(inputs: int, outputs: int, *before: nn.Module) -> tuple[nn.Module, ...]:
    """A convolution and batch normalisation."""
    return (*before, nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))


def flat(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """Halved height and width, and a dense layer."""
    return nn.MaxPool2d(2), nn.Flatten(), nn.Linear(inputs, outputs)


def image() -> nn.Module:
    """Features as an image of one channel."""
    return nn.Unflatten(1, (1, 8, 8))


def dense(sequences: bool) -> Network:
    """Two hidden layers."""
    blocks = [(nn.Linear(FEATURES, 256),), (nn.Linear(256, 256),)]
    return Network("LIFNode", sequences, blocks, nn.Linear(256, CLASSES))


def csnn(sequences: bool) -> Network:
    """Two convolutions and a dense layer of non-leaky neurons."""
    blocks = [conv(1, 8, image()), conv(8, 16, nn.MaxPool2d(2)), flat(64, 64)]
    return Network("IFNode", sequences, blocks, nn.Linear(64, CLASSES))


def sew(sequences: bool) -> Network:
    """A stem and two residual blocks that add spikes, of neurons that learn their time constant."""
    residual = [[conv(12, 12), conv(12, 12)] for _ in range(2)]
    blocks = [conv(1, 12, image()), (nn.MaxPool2d(2),), *residual]
    return Network("ParametricLIFNode", sequences, blocks, nn.Sequential(*flat(48, CLASSES)))


def vgg(sequences: bool) -> Network:
    """Four convolutions and a dense layer."""
    blocks = [conv(1, 16, image()), conv(16, 16), conv(16, 32, nn.MaxPool2d(2)), conv(32, 32)]
    return Network("LIFNode", sequences, [*blocks, flat(128, 64)], nn.Linear(64, CLASSES))


def deep(sequences: bool) -> Network:
    """Nine hidden layers."""
    blocks = [(nn.Linear(FEATURES, 96),), *[(nn.Linear(96, 96),) for _ in range(8)]]
    return Network("LIFNode", sequences, blocks, nn.Linear(96, CLASSES))


NETWORKS: tuple[Callable[[bool], Network], ...] = (dense, csnn, sew, vgg, deep)


class Step:
    """A network's training step: a :class:`tssl_adapters.bench.speed.tasks.Task`."""

    def __init__(self, make: Callable[[bool], Network], sequences: bool, rule: str | None) -> None:
        torch.manual_seed(0)
        self.model = make(sequences)
        if rule is not None:
            tssl_adapters.wrap(self.model, rule=rule)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.x, self.y = torch.rand(STEPS, BATCH, FEATURES), torch.rand(BATCH, CLASSES)

    def forward(self) -> Tensor:
        return mse_loss(self.model(self.x), self.y)

    def backward(self, out: Tensor) -> None:
        self.optimizer.zero_grad()
        torch.autograd.backward(out)
        self.optimizer.step()


def ratios(make: Callable[[bool], Network], sequences: bool, rounds: int) -> dict[str, float]:
    """How many times faster than native each of the others is."""
    device = torch.device("cpu")
    tasks = {name: Step(make, sequences, rule) for name, rule in CONTESTANTS.items()}
    for task in tasks.values():
        for _ in range(3):  # to compile, and to warm all caches
            measure.once(task, device)
    taken = measure.in_turns(tasks, device, rounds, 60.0)
    native = taken.pop("native")
    return {name: measure.ratio(native, own, "processor") for name, own in taken.items()}


def main() -> None:
    """Measure all networks, and write and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30, help="turns of each (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    installed = version("spikingjelly")
    table = Table("network", *[name for name in CONTESTANTS if name != "native"], title=installed)
    rows = []
    for sequences in (True, False):
        for make in NETWORKS:
            found = ratios(make, sequences, options.rounds)
            way = "sequence" if sequences else "step"
            rows.append({"network": make.__name__, "way": way, **found})
            table.add_row(f"{make.__name__}, {way}", *[f"{value:.2f}" for value in found.values()])
    options.out.write_text(json.dumps({"spikingjelly": installed, "rows": rows}, indent=1) + "\n")
    Console().print(table)


if __name__ == "__main__":
    main()
