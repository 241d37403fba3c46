"""Train data x library x network x rule x seed, and compare the rules.

Each rule has the same forward pass, first weights and order of samples. The same command goes on
where it was left, and repeats nothing.

python -m tssl_adapters.bench accuracy --data digits --rules native,smooth-tsslbp --out DIR
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from tssl_adapters.bench import gradients, options
from tssl_adapters.bench.data import EVENTS, load
from tssl_adapters.bench.display import Display
from tssl_adapters.bench.experiment import Experiment, ExperimentError
from tssl_adapters.bench.grid import run_here, run_with_dask
from tssl_adapters.bench.report import NOTHING_PUBLISHED, Published, write_report
from tssl_adapters.bench.runs import Event, Job
from tssl_adapters.bench.settings import Settings
from tssl_adapters.bench.trainer import InterruptedRunError

FIXED = ("time_steps", "batch_size", "lr", "schedule", "limit", "validation")
"""Options that the runs of one folder share."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    options.add_grid_options(parser)
    options.add_training_options(parser)
    options.add_run_options(parser)
    options.add_config_option(parser)


def main(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    args = parser.parse_args(options.with_config(parser, argv))
    try:
        grid, left_out = options.settings_of(args)
    except ValueError as error:
        parser.error(str(error))
    experiment = Experiment(args.out)
    fixed = FIXED if args.schedule == "constant" else (*FIXED, "epochs")
    try:
        options.check_validation(args, args.data, args.time_steps)
        experiment.check(grid)
        experiment.open(options.recorded(args), fixed)
    except (ValueError, ExperimentError) as error:
        parser.error(str(error))
    return train(args, experiment, grid, left_out)


def train(
    args: argparse.Namespace,
    experiment: Experiment,
    grid: list[Settings],
    left_out: list[str],
    published: Mapping[tuple[str, str], Published] = NOTHING_PUBLISHED,
) -> int:
    """Train what is not trained yet; the exit status is 1 where a run failed, 130 after ctrl-C.

    ``published`` accuracies, by data and network, go into the report.
    """
    done = {settings: len(experiment.records(settings)) for settings in grid}
    pending = [settings for settings in grid if done[settings] < settings.epochs]
    source = getattr(args, "source", None)
    jobs = [
        Job(settings, experiment.folder, args.data_dir, args.device, source) for settings in pending
    ]
    status = 0
    for name in {settings.data for settings in pending} & set(EVENTS):
        with suppress(FileNotFoundError, ModuleNotFoundError):  # then each run says so
            load(name, args.data_dir, pending[0].time_steps)  # shows a bar, and fills the cache
    with Display(pending, sum(done[settings] for settings in pending), args.quiet) as display:
        for line in left_out:
            display.console.print(f"left out: {line}", markup=False, highlight=False)

        def tell(event: Event) -> None:
            display.tell(event)
            if "batch" not in event:
                experiment.collect(grid)

        try:
            start(args, jobs, tell)
        except (KeyboardInterrupt, InterruptedRunError):
            display.console.print("interrupted; the same command goes on")
            status = 130
    records, failures = experiment.collect(grid)
    if records:
        found = [] if source else gradients.of_experiment(experiment, grid, args.data_dir)
        write_report(experiment, records, failures, left_out, found, published)
    if args.json:
        print(json.dumps(summary(experiment, records, failures), indent=1))
    return status or int(bool(failures))


def start(args: argparse.Namespace, jobs: list[Job], tell: Any) -> None:
    """Where it is to run."""
    if not jobs:
        return
    if args.scheduler is None and args.workers == 0:
        run_here(jobs, tell)
        return
    workers = min(len(jobs), args.workers or os.cpu_count() or 1)
    run_with_dask(jobs, tell, workers, args.scheduler)


def summary(
    experiment: Experiment, records: list[dict[str, Any]], failures: list[dict[str, Any]]
) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {"folder": str(experiment.folder), "epochs": len(records), "failures": failures}
