"""The backward pass of each rule against TSSL-BP's, on one leaky layer, measured in one run.

python tools/rule_costs.py --out benchmarks/rule_costs.json

The rules take turns, round by round; a figure is the median over the rounds. Times are the
process's own, one thread, the torch engine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from spikingjelly.activation_based import neuron
from torch import Tensor

import tssl_adapters
from tssl_adapters import rules

SHAPE = (100, 50, 400)
"""Time steps, batch and neurons."""
SEQUENCE: dict[str, rules.Rule] = {
    "TSSLBP()": rules.TSSLBP(),
    "SmoothTSSLBP()": rules.SmoothTSSLBP(),
    "Lee()": rules.Lee(),
    "Lee(gate='active')": rules.Lee(gate="active"),
    "STRSBP()": rules.STRSBP(),
    "STDBP(strict=False)": rules.STDBP(strict=False),
}
STEPS = {**SEQUENCE, "STRSBP()": rules.STRSBP(credit="spike")}


def seconds(rule: rules.Rule, mode: str, x: Tensor, grad: Tensor) -> float:
    """The time of one backward pass."""
    layer = neuron.LIFNode(tau=10.0, decay_input=False, step_mode=mode)
    tssl_adapters.wrap(layer, rule=rule, engine="torch")
    x = x.clone().requires_grad_()
    out = layer(x) if mode == "m" else torch.stack([layer(step) for step in x])
    started = time.process_time()
    out.backward(grad)
    return time.process_time() - started


def measure(mode: str, rounds: int) -> dict[str, dict[str, float]]:
    """Measure every rule in one step mode."""
    x, grad = 0.5 * torch.rand(SHAPE), torch.rand(SHAPE)
    contestants = SEQUENCE if mode == "m" else STEPS
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):  # the first one is a warm-up
        for name, rule in contestants.items():
            taken[name].append(seconds(rule, mode, x, grad))
    base = taken["TSSLBP()"][1:]
    return {
        name: {
            "milliseconds": 1e3 * statistics.median(times[1:]),
            "ratio": statistics.median(a / b for a, b in zip(times[1:], base, strict=True)),
        }
        for name, times in taken.items()
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {"sequence": measure("m", args.rounds), "steps": measure("s", args.rounds)}
    table = Table("", "rule", "ms", "x TSSL-BP", title=f"backward, {list(SHAPE)}, one thread")
    for mode, figures in found.items():
        for name, row in figures.items():
            table.add_row(mode, name, f"{row['milliseconds']:.1f}", f"{row['ratio']:.2f}")
        table.add_section()
    Console().print(table)
    if args.out:
        args.out.write_text(json.dumps({"shape": SHAPE, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
