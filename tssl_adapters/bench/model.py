"""Train a model of your own under several rules, and compare them as ``accuracy`` does.

FILE:FUNCTION returns a model, batches to train on and batches to test on, or a
``tssl_adapters.bench.user.Task`` of these with a forward, a loss and an optimizer of your own. It
is called once a run, after ``torch.manual_seed``.

python -m tssl_adapters.bench model path/to/file.py:build --rules native,smooth-tsslbp --out DIR
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from tssl_adapters.bench import accuracy, options, rules, user
from tssl_adapters.bench.experiment import Experiment, ExperimentError
from tssl_adapters.bench.settings import Settings

FIXED = ("model", "schedule")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("model", metavar="FILE:FUNCTION", help="what builds the model")
    add = parser.add_argument_group("what is compared (lists are separated by commas)").add_argument
    add("--rules", type=options.listed(options.rule), metavar="LIST",
        default=list(rules.COMPARED),
        help=f"as for accuracy (default: {','.join(rules.COMPARED)})"
    )  # fmt: skip
    add("--tau-s", type=options.listed(options.time_constant), default=[1.0], metavar="LIST",
        help="synaptic time constants in steps (default: 1)"
    )  # fmt: skip
    add("--seeds", type=options.positive, default=3, metavar="N", help="default: %(default)s")
    add("--epochs", type=options.positive, default=10, metavar="N", help="default: %(default)s")
    add("--schedule", choices=["constant", "cosine"], default="constant",
        help="of the learning rate (default: %(default)s)"
    )  # fmt: skip
    options.add_run_options(parser)
    options.add_config_option(parser)


def main(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    args = parser.parse_args(options.with_config(parser, argv))
    experiment = Experiment(args.out)
    fixed = FIXED if args.schedule == "constant" else (*FIXED, "epochs")
    try:
        task = user.build(args.model, 0)
        grid = settings_of(args, task)
        experiment.check(grid)
        experiment.open(options.recorded(args), fixed)
    except (user.BuilderError, ExperimentError) as error:
        parser.error(str(error))
    args.data_dir, args.device, args.source = None, "cpu", args.model
    return accuracy.train(args, experiment, grid, [])


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
