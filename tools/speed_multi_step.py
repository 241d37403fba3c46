"""A training step of a snnTorch network by ``multi_step_forward``, against the loop over time.

OMP_NUM_THREADS=1 python tools/speed_multi_step.py --out benchmarks/multi_step.json

64-512-512-10 with Leaky, T = 50, batch 32, cross-entropy on spike counts, SGD. The contestants take
turns, round by round; a ratio is the median of the rounds' ratios. One thread; processor time is
that of this process alone, whatever else the machine does.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import snntorch as snn
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import tssl_adapters

STEPS, BATCH, SIZES = 50, 32, (64, 512, 512, 10)


class Contestant(NamedTuple):
    """A network, how it is run over a sequence, and what updates it."""

    net: nn.Sequential
    run: Callable[[nn.Module, Tensor], Tensor]
    optimizer: torch.optim.Optimizer


def network() -> nn.Sequential:
    """The same weights every time."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise(SIZES), 1):
        last = number == len(SIZES) - 1
        layers += [
            nn.Linear(inputs, outputs),
            snn.Leaky(beta=0.9, init_hidden=True, output=last),
        ]
    return nn.Sequential(*layers)


def by_loop(net: nn.Module, x: Tensor) -> Tensor:
    """The output layer's spikes ``[T, batch, 10]``."""
    return torch.stack([net(step)[0] for step in x])


def by_layer(net: nn.Module, x: Tensor) -> Tensor:
    """The same, layer by layer."""
    spikes: Tensor = tssl_adapters.multi_step_forward(net, x)[0]
    return spikes


def contestant(run: Callable[[nn.Module, Tensor], Tensor], engine: str | None) -> Contestant:
    """A network of its own, wrapped where an engine is named."""
    net = network()
    if engine is not None:
        tssl_adapters.wrap(net, engine=engine)
    return Contestant(net, run, torch.optim.SGD(net.parameters(), lr=0.01))


def seconds(one: Contestant, x: Tensor, labels: Tensor) -> tuple[float, float]:
    """Time of a training step: on the clock, and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    for layer in one.net:
        if isinstance(layer, snn.Leaky):
            layer.reset_mem()
    loss = nn.functional.cross_entropy(one.run(one.net, x).sum(0), labels)
    one.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    one.optimizer.step()
    return time.perf_counter() - wall, time.process_time() - processor


def measure(rounds: int) -> list[dict[str, Any]]:
    """Time every contestant, in turn."""
    contestants = {
        "native, loop over time": contestant(by_loop, None),
        'engine="numba", multi_step_forward': contestant(by_layer, "numba"),
    }
    generator = torch.Generator().manual_seed(1)
    x = 2.0 * torch.randn(STEPS, BATCH, SIZES[0], generator=generator)
    labels = torch.randint(SIZES[-1], (BATCH,), generator=generator)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for number in range(rounds + 2):
        for name, one in contestants.items():
            taken = seconds(one, x, labels)
            if number >= 2:  # what is compiled and allocated first is left out
                times[name].append(taken)
    native = times["native, loop over time"]
    return [{"how": name, **_figures(taken, native)} for name, taken in times.items()]


def _figures(taken: list[tuple[float, float]], native: list[tuple[float, float]]) -> dict[str, Any]:
    pairs = list(zip(native, taken, strict=True))
    return {
        "milliseconds": 1e3 * statistics.median(wall for wall, _ in taken),
        "processor_milliseconds": 1e3 * statistics.median(used for _, used in taken),
        "times_faster": statistics.median(loop[0] / ours[0] for loop, ours in pairs),
        "times_less_processor": statistics.median(loop[1] / ours[1] for loop, ours in pairs),
    }


def show(results: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("", "ms", "ms of the processor", "times faster", "in processor time")
    for row in results:
        how, *figures = row.values()
        table.add_row(how, *(f"{figure:.2f}" for figure in figures))
    Console().print(table)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = measure(args.rounds)
    show(results)
    if args.out:
        libraries = ("torch", "snntorch", "numba", "tssl-adapters")
        record = {
            "machine": platform.processor() or platform.machine(),
            "versions": {name: version(name) for name in libraries},
            "results": results,
        }
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
