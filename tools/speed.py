"""Time and memory of a wrapped layer against the native one, measured in one run.

python tools/speed.py --out benchmarks/speed.json

The contestants take turns, round by round, so that a noisy machine hits them alike; a figure is the
median over the rounds, a ratio the median of the rounds' ratios. One thread.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import norse.torch as norse
import snntorch
import torch
from rich.console import Console
from rich.table import Table
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

import tssl_adapters

Run = Callable[[Any, Tensor], Tensor]


class Work(NamedTuple):
    """A layer, and how its users run it over ``[T, 1, neurons]``."""

    name: str
    make: Callable[[], nn.Module]
    run: Run
    gain: float = 1.0
    """What the drive is multiplied by, so that some of the neurons spike."""


def run_snntorch(layer: Any, x: Tensor) -> Tensor:
    """A loop with explicit state."""
    mem, outs = layer.init_leaky(), []
    for step in x.unbind(0):
        out, mem = layer(step, mem)
        outs.append(out)
    return torch.stack(outs)


def run_spikingjelly(layer: Any, x: Tensor) -> Tensor:
    """One call in step mode "m", a loop in "s"."""
    layer.reset()
    if layer.step_mode == "m":
        return layer(x)  # type: ignore[no-any-return]
    return torch.stack([layer(step) for step in x.unbind(0)])


def run_norse(layer: Any, x: Tensor) -> Tensor:
    """One call of a module, a loop over a cell."""
    if isinstance(layer, norse.LIF):
        return layer(x)[0]  # type: ignore[no-any-return]
    state, outs = None, []
    for step in x.unbind(0):
        out, state = layer(step, state)
        outs.append(out)
    return torch.stack(outs)


WORKS = [
    Work("Norse LIF, sequence", norse.LIF, run_norse, 2.0),
    Work(
        "SpikingJelly LIFNode, sequence",
        lambda: neuron.LIFNode(step_mode="m"),
        run_spikingjelly,
        2.0,
    ),
    Work("snnTorch Leaky, step", lambda: snntorch.Leaky(0.9), run_snntorch),
    Work("SpikingJelly LIFNode, step", neuron.LIFNode, run_spikingjelly, 2.0),
    Work("Norse LIFCell, step", norse.LIFCell, run_norse, 2.0),
    Work("Norse LIFBoxCell, step", norse.LIFBoxCell, run_norse, 20.0),
]
CONTESTANTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "native": lambda layer: layer,
    "tsslbp": tssl_adapters.wrap,
    "tsslbp tau_s=3": lambda layer: tssl_adapters.wrap(layer, tau_s=3.0),
}


def seconds(layer: nn.Module, run: Run, x: Tensor) -> float:
    """Forward and backward, once."""
    gc.collect()
    started = time.perf_counter()
    run(layer, x).sum().backward()
    return time.perf_counter() - started


def bytes_kept(layer: nn.Module, run: Run, x: Tensor) -> int:
    """Bytes of distinct tensors that autograd keeps for backward."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run(layer, x)
    del out
    return sum(kept.values())


def measure(work: Work, steps: int, neurons: int, rounds: int) -> dict[str, Any]:
    """Time every contestant on one kind of layer."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(steps, 1, neurons, generator=generator) * work.gain
    x.requires_grad_()
    layers = {name: change(work.make()) for name, change in CONTESTANTS.items()}
    times: dict[str, list[float]] = {name: [] for name in layers}
    for layer in layers.values():
        seconds(layer, work.run, x)
    for _ in range(rounds):
        for name, layer in layers.items():
            times[name].append(seconds(layer, work.run, x))
    figures = {
        name: {
            "milliseconds": 1e3 * statistics.median(taken),
            "ratio_to_native": statistics.median(
                ours / theirs for ours, theirs in zip(taken, times["native"], strict=True)
            ),
            "drives_kept": bytes_kept(layers[name], work.run, x) / x.nbytes,
        }
        for name, taken in times.items()
    }
    return {"work": work.name, "steps": steps, "neurons": neurons, "contestants": figures}


def growth(work: Work, neurons: int, rounds: int) -> dict[str, Any]:
    """Time per step at T = 1000 over that at T = 100."""
    layer = tssl_adapters.wrap(work.make())
    inputs = {steps: torch.randn(steps, 1, neurons).mul_(work.gain) for steps in (100, 1000)}
    for x in inputs.values():
        seconds(layer, work.run, x.requires_grad_())
    ratios = []
    for _ in range(rounds):
        short, long = (seconds(layer, work.run, x) / len(x) for x in inputs.values())
        ratios.append(long / short)
    return {"work": work.name, "neurons": neurons, "ratio": statistics.median(ratios)}


def show(results: Sequence[dict[str, Any]], grown: Sequence[dict[str, Any]]) -> None:
    """Print the tables."""
    table = Table(title="forward and backward, one thread")
    for heading in ("layer", "T", "neurons", "", "ms", "x native", "drives kept"):
        table.add_column(heading)
    for result in results:
        for name, figures in result["contestants"].items():
            table.add_row(
                result["work"],
                str(result["steps"]),
                str(result["neurons"]),
                name,
                f"{figures['milliseconds']:.1f}",
                f"{figures['ratio_to_native']:.2f}",
                f"{figures['drives_kept']:.2f}",
            )
        table.add_section()
    console = Console()
    console.print(table)
    for row in grown:
        console.print(f"{row['work']}: time per step, T = 1000 over T = 100: {row['ratio']:.2f}")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--neurons", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = [measure(work, args.steps, args.neurons, args.rounds) for work in WORKS]
    grown = [growth(work, 1024, max(3, args.rounds // 3)) for work in WORKS]
    show(results, grown)
    if args.out:
        libraries = ("torch", "snntorch", "spikingjelly", "norse", "tssl-adapters")
        record = {
            "machine": platform.processor() or platform.machine(),
            "versions": {name: version(name) for name in libraries},
            "results": results,
            "growth": grown,
        }
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
