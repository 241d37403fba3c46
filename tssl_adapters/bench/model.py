"""Runs ``model``: trains a user's own model on a grid of settings."""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from tssl_adapters.bench import accuracy, rules, user
from tssl_adapters.bench.experiment import ExperimentError
from tssl_adapters.bench.options import Parser
from tssl_adapters.bench.settings import Settings

FIXED = ("model", "schedule")


def main(parser: Parser, args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    args.data_dir, args.device, args.source = None, "cpu", args.model
    try:
        for name in args.rules:
            rules.contestant(name)
        grid = settings_of(args, user.build(args.model, 0))
        return accuracy.train(args, grid, [], FIXED)
    except (ValueError, ExperimentError) as error:
        parser.refuse(str(error))


def settings_of(args: argparse.Namespace, task: user.Task) -> list[Settings]:
    """The runs, seed by seed."""
    return [
        Settings(
            library=user.library_of(task.model),
            data=Path(args.model.rpartition(":")[0]).stem,
            network=type(task.model).__name__,
            rule=rule,
            tau_s=tau_s,
            loss="own",
            time_steps=0,
            batch_size=0,
            lr=0.0,
            epochs=args.epochs,
            seed=seed,
            schedule=args.schedule,
            definition=rules.definition(rule),
        )
        for seed, tau_s, rule in product(range(args.seeds), args.tau_s, args.rules)
    ]
