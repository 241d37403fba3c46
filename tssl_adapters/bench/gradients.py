"""Compare the rules' gradients on one batch, layer by layer.

Norms, cosines to each other, growth through depth and time, and what the neurons do. Each rule has
the same weights and the same batch: those of the start, or of an experiment's run.

python -m tssl_adapters.bench gradients --data digits --rules native,smooth-tsslbp --out DIR
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tssl_adapters.bench import data, options, runs
from tssl_adapters.bench.experiment import Experiment, key, write
from tssl_adapters.bench.method import batch_loss, encode
from tssl_adapters.bench.report import write_report
from tssl_adapters.bench.settings import OF_THE_RULE, Settings
from tssl_adapters.bench.spread import Spread, cosines, spread
from tssl_adapters.errors import TSSLAdaptersError

GRADIENTS = "gradients.json"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    options.add_grid_options(parser)
    options.add_training_options(parser)
    options.add_run_options(parser)
    options.add_config_option(parser)
    parser.add_argument("--checkpoint", type=Path, metavar="FILE",
        help="take the weights of a run of the same network, from its checkpoint"
    )  # fmt: skip


def main(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    args = parser.parse_args(options.with_config(parser, argv))
    try:
        grid, left_out = options.settings_of(args)
        found = figures(grid, args.data_dir, args.checkpoint)
    except (ValueError, FileNotFoundError, TSSLAdaptersError) as error:
        parser.error(str(error))
    experiment = Experiment(args.out)
    experiment.describe(options.recorded(args))
    write(args.out / GRADIENTS, json.dumps(found, indent=1) + "\n")
    write_report(experiment, left_out=left_out, gradients=found)
    if args.json:
        print(json.dumps(found, indent=1))
    elif not args.quiet:
        for line in left_out:
            print(f"left out: {line}")
        show(found)
    return 0


def of_experiment(
    experiment: Experiment, grid: Sequence[Settings], data_dir: Path | None
) -> list[dict[str, Any]]:
    """Those of its runs' starts, of the first seed; kept in its folder."""
    path = experiment.folder / GRADIENTS
    seed = grid[0].seed
    chosen = [
        settings for settings in grid if settings.seed == seed and experiment.records(settings)
    ]
    found = json.loads(path.read_text()) if path.is_file() else []
    there = [key({**group, "rule": rule}) for group in found for rule in group["rules"]]
    wanted = [key(asdict(settings)) for settings in chosen]
    if sorted(there) != sorted(wanted):
        found = figures(chosen, data_dir)
        write(path, json.dumps(found, indent=1) + "\n")
    return found


def figures(
    grid: Sequence[Settings], data_dir: Path | None, checkpoint: Path | None = None
) -> list[dict[str, Any]]:
    """Those of each group of runs that differ in their rule alone."""
    groups: dict[tuple[Any, ...], list[Settings]] = {}
    for settings in grid:
        groups.setdefault(settings.shared(), []).append(settings)
    return [compare(group, data_dir, checkpoint) for group in groups.values()]


def compare(
    group: Sequence[Settings], data_dir: Path | None, checkpoint: Path | None = None
) -> dict[str, Any]:
    """The gradients of runs that differ in their rule alone, on the first batch of the data."""
    first = group[0]
    samples = data.load(first.data, data_dir, first.time_steps, first.batch_size, first.validation)
    spreads = {settings.rule: _spread(settings, samples, checkpoint) for settings in group}
    names = list(spreads)
    layers = len(next(iter(spreads.values())).weights)
    return {
        **{name: value for name, value in first.recorded().items() if name not in OF_THE_RULE},
        "loss": first.loss,
        "time_steps": first.time_steps,
        "rules": names,
        "norm": {name: [g.norm().item() for g in found.weights] for name, found in spreads.items()},
        "cosine": [
            cosines([spreads[name].weights[layer] for name in names]) for layer in range(layers)
        ],
        "drive_norm": {name: found.drive.tolist() for name, found in spreads.items()},
        "activity": [layer._asdict() for layer in spreads[names[0]].activity],
    }


def _spread(settings: Settings, samples: data.Data, checkpoint: Path | None) -> Spread:
    model, forward, neuron = runs.network(settings, samples)
    if checkpoint is not None:
        model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    x = encode(samples.train_images, settings.time_steps, settings.tau_s, settings.once)
    labels = samples.train_labels
    return spread(
        model,
        forward,
        neuron,
        x,
        lambda output: batch_loss(settings.loss, output, labels, settings.tau_s),
        settings.tau_s,
    )


def show(found: Sequence[dict[str, Any]]) -> None:
    """Print norms and cosines to the first rule, a table a group."""
    console = Console()
    for group in found:
        reference = group["rules"][0]
        title = f"{group['library']}, tau_s = {group['tau_s']:g}, {group['loss']}"
        table = Table(title=f"{title}, seed {group['seed']}")
        for heading in ("layer", "rule", "norm", f"cosine to {reference}"):
            table.add_column(heading, justify="left" if heading == "rule" else "right")
        for layer, rule in product(range(len(group["cosine"])), group["rules"]):
            cosine = group["cosine"][layer][0][group["rules"].index(rule)]
            norm = group["norm"][rule][layer]
            table.add_row(str(layer + 1), rule, f"{norm:.4g}", f"{cosine:.3f}")
        console.print(table)
