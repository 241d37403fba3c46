"""Train the networks of the TSSL-BP paper in its set-up, through each library.

T = 5, tau_m = 5, tau_s = 3, kernel loss; the report puts the accuracies that the authors published
beside these. The same command goes on where it was left, and repeats nothing.

python -m tssl_adapters.bench paper --experiments fashion-400-400 --libraries spikingjelly --out DIR
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from tssl_adapters.bench import accuracy, architectures, options, rules
from tssl_adapters.bench.experiment import Experiment, ExperimentError
from tssl_adapters.bench.report import Published
from tssl_adapters.bench.settings import Settings

TAU_S, LOSS, TIME_STEPS, LR = 3.0, "kernel", 5, 5e-4
FIXED = ("limit", "validation", "schedule")


class Trial(NamedTuple):
    """A network of the paper, and what its authors' README reports after 100 epochs."""

    data: str
    network: str
    batch_size: int
    published: Published


TRIALS = {
    "fashion-400-400": Trial("fashion-mnist", "400-400", 100, Published(0.8975, 0.8992)),
    "fashion-cnn": Trial("fashion-mnist", "cnn-fashion", 50, Published(0.9269, 0.9283)),
    "mnist-cnn": Trial("mnist", "cnn", 50, Published(0.9950, 0.9953)),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add = parser.add_argument_group("what is trained (lists are separated by commas)").add_argument
    one_of, listed = options.one_of, options.listed
    add("--experiments", type=listed(one_of(list(TRIALS))), default=list(TRIALS), metavar="LIST",
        help=f"of {', '.join(TRIALS)} (default: all)")  # fmt: skip
    add("--libraries", type=listed(one_of(architectures.LIBRARIES)),
        default=list(architectures.LIBRARIES), metavar="LIST",
        help=f"of {', '.join(architectures.LIBRARIES)} (default: all)")  # fmt: skip
    add("--rules", type=listed(options.rule), default=["tsslbp"], metavar="LIST",
        help="as for accuracy (default: tsslbp)")  # fmt: skip
    add("--seeds", type=options.positive, default=3, metavar="N", help="default: %(default)s")
    add("--epochs", type=options.positive, default=100, metavar="N", help="default: %(default)s")
    add("--schedule", choices=["constant", "cosine"], default="constant",
        help="of the learning rate; the paper's is %(default)s, the default")  # fmt: skip
    options.add_place_options(parser)
    options.add_run_options(parser)
    options.add_config_option(parser)


def main(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    args = parser.parse_args(options.with_config(parser, argv))
    try:
        grid, left_out = settings_of(args)
        names = {TRIALS[trial].data for trial in args.experiments}
        options.check_validation(args, names, TIME_STEPS)
    except ValueError as error:
        parser.error(str(error))
    experiment = Experiment(args.out)
    fixed = FIXED if args.schedule == "constant" else (*FIXED, "epochs")
    try:
        experiment.check(grid)
        experiment.open(options.recorded(args), fixed)
    except ExperimentError as error:
        parser.error(str(error))
    published = {(trial.data, trial.network): trial.published for trial in TRIALS.values()}
    return accuracy.train(args, experiment, grid, left_out, published)


def settings_of(args: argparse.Namespace) -> tuple[list[Settings], list[str]]:
    """The runs, seed by seed, and what is left out of them.

    Raises:
        ValueError: all of it is.
    """
    offered = product(args.libraries, args.rules)
    choices, left_out = options.trainable(
        options.Choice(library, rule, TAU_S, LOSS) for library, rule in offered
    )
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
