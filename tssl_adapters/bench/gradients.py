"""Runs ``gradients``: the rules' gradients on one batch, layer by layer."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from tssl_adapters.bench import checks, choices, data, options, rules, runs
from tssl_adapters.bench.experiment import Experiment, ExperimentError, key, write
from tssl_adapters.bench.method import batch_loss, encode
from tssl_adapters.bench.options import Parser
from tssl_adapters.bench.report import write_report
from tssl_adapters.bench.report.tables import REFERENCE
from tssl_adapters.bench.settings import OF_THE_RULE, Settings
from tssl_adapters.bench.spread import Spread, cosines, spread
from tssl_adapters.errors import TSSLAdaptersError

GRADIENTS = "gradients.json"
FIXED = ("time_steps", "batch_size", "lr", "schedule", "limit", "validation")
"""Options that everything in one folder shares."""


def main(parser: Parser, args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    experiment = Experiment(args.out)
    try:
        grid, left_out = choices.settings_of(args)
        records = experiment.results()
        if records:
            experiment.check_fixed(options.recorded(args), FIXED)
        checks.before_the_first_run(grid, args.data_dir, "cpu", scheduler=None)
        found = figures(grid, args.data_dir, args.checkpoint)
    except (ValueError, ExperimentError, TSSLAdaptersError) as error:
        parser.refuse(str(error))
    experiment.describe(options.recorded(args), args.command_line)
    write(args.out / GRADIENTS, json.dumps(found, indent=1) + "\n")
    write_report(experiment, records, experiment.failures(), left_out, found)
    if args.json:
        print(json.dumps(found, indent=1))
    elif not args.quiet:
        for line in left_out:
            print(f"left out: {line}")
        show(found)
        print(f"report: {args.out / 'report.html'}")
    return 0


def of_experiment(
    experiment: Experiment, grid: Sequence[Settings], data_dir: Path | None
) -> list[dict[str, Any]]:
    """Gradients at the start of the experiment's runs with the first seed; kept in its folder.

    Rules trained before, except the user's own, are included beside those of the grid.
    """
    path = experiment.folder / GRADIENTS
    seed = grid[0].seed
    trained = [
        settings for settings in grid if settings.seed == seed and experiment.records(settings)
    ]
    before = [
        replace(settings, rule=record["rule"], definition="")
        for record in experiment.others(grid)
        for settings in trained
        if record["rule"] in rules.RULES
        and key(record) == key({**asdict(settings), "rule": record["rule"]})
    ]
    chosen = sorted(dict.fromkeys([*trained, *before]), key=lambda run: run.rule != REFERENCE)
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
    """The gradients of each group of runs that differ only in their rule."""
    groups: dict[tuple[Any, ...], list[Settings]] = {}
    for settings in grid:
        groups.setdefault(settings.shared(), []).append(settings)
    return [compare(group, data_dir, checkpoint) for group in groups.values()]


def compare(
    group: Sequence[Settings], data_dir: Path | None, checkpoint: Path | None = None
) -> dict[str, Any]:
    """The gradients of runs that differ only in their rule, on the first batch of the data."""
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
        _load(model, checkpoint)
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


def _load(model: nn.Module, checkpoint: Path) -> None:
    """Load a run's weights into a model.

    Raises:
        ValueError: the file is not a checkpoint of such a run.
    """
    try:
        model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    except (RuntimeError, KeyError, TypeError, UnpicklingError) as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"--checkpoint {checkpoint}: not of a run of this network ({said}); name one of the "
            "same --data, --networks and --libraries"
        ) from error


def show(found: Sequence[dict[str, Any]]) -> None:
    """Print norms, and cosines to the first rule, one table per group."""
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
