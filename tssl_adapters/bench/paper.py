"""Runs ``paper``: the paper's networks in its set-up, beside its authors' published results."""

from __future__ import annotations

import argparse
from itertools import product
from typing import NamedTuple

from tssl_adapters.bench import accuracy, rules
from tssl_adapters.bench.choices import Choice, trainable
from tssl_adapters.bench.experiment import ExperimentError
from tssl_adapters.bench.options import Parser
from tssl_adapters.bench.report import Published
from tssl_adapters.bench.settings import Settings

TAU_S, LOSS, TIME_STEPS, LR = 3.0, "kernel", 5, 5e-4
FIXED = ("limit", "validation", "schedule")


class Trial(NamedTuple):
    """A network of the paper, and the results that its authors' README reports after 100 epochs."""

    data: str
    network: str
    batch_size: int
    published: Published


TRIALS = {
    "fashion-400-400": Trial("fashion-mnist", "400-400", 100, Published(0.8975, 0.8992)),
    "fashion-cnn": Trial("fashion-mnist", "cnn-fashion", 50, Published(0.9269, 0.9283)),
    "mnist-cnn": Trial("mnist", "cnn", 50, Published(0.9950, 0.9953)),
}


def main(parser: Parser, args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    published = {(trial.data, trial.network): trial.published for trial in TRIALS.values()}
    try:
        grid, left_out = settings_of(args)
        return accuracy.train(args, grid, left_out, FIXED, published)
    except (ValueError, ExperimentError) as error:
        parser.refuse(str(error))


def settings_of(args: argparse.Namespace) -> tuple[list[Settings], list[str]]:
    """The runs, seed by seed, and the ones left out.

    Raises:
        ValueError: every run is left out.
    """
    offered = product(args.libraries, args.rules)
    choices, left_out = trainable(Choice(library, rule, TAU_S, LOSS) for library, rule in offered)
    grid = [
        Settings(
            library=choice.library,
            data=TRIALS[trial].data,
            network=TRIALS[trial].network,
            rule=choice.rule,
            tau_s=choice.tau_s,
            loss=choice.loss,
            time_steps=TIME_STEPS,
            batch_size=TRIALS[trial].batch_size,
            lr=LR,
            epochs=args.epochs,
            seed=seed,
            limit=args.limit,
            schedule=args.schedule,
            validation=args.validation,
            definition=rules.definition(choice.rule),
        )
        for seed, trial, choice in product(range(args.seeds), args.experiments, choices)
    ]
    return grid, left_out
