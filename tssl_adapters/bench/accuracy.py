"""Runs ``accuracy``: a grid of trainings, and its report."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tssl_adapters.bench import checks, choices, gradients, options, places
from tssl_adapters.bench.display import Display
from tssl_adapters.bench.experiment import Experiment, ExperimentError
from tssl_adapters.bench.grid import run_here, run_with_dask
from tssl_adapters.bench.observer import Record
from tssl_adapters.bench.options import Parser
from tssl_adapters.bench.report import NOTHING_PUBLISHED, Published, names, tables, write_report
from tssl_adapters.bench.runs import Event, Job
from tssl_adapters.bench.settings import Settings
from tssl_adapters.bench.trainer import InterruptedRunError


def main(parser: Parser, args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    try:
        grid, left_out = choices.settings_of(args)
        return train(args, grid, left_out, gradients.FIXED)
    except (ValueError, ExperimentError) as error:
        parser.refuse(str(error))


def train(
    args: argparse.Namespace,
    grid: list[Settings],
    left_out: list[str],
    fixed: Sequence[str],
    published: Mapping[tuple[str, str], Published] = NOTHING_PUBLISHED,
) -> int:
    """Train what has not been trained yet; exit status 1 if a run failed, 130 after Ctrl-C.

    Args:
        args: the command's options.
        grid: the runs.
        left_out: the runs that were left out, and why.
        fixed: options that all runs in a folder share; with a cosine schedule also the epochs.
        published: accuracies for the report, by data and network.

    Raises:
        ValueError: the first run lacks something it needs; nothing was written.
        ExperimentError: the folder holds other runs.
    """
    experiment = Experiment(args.out)
    experiment.check(grid)
    done = {settings: len(experiment.records(settings)) for settings in grid}
    pending = [settings for settings in grid if done[settings] < settings.epochs]
    source = getattr(args, "source", None)
    checks.before_the_first_run(
        [] if source else pending, args.data_dir, args.device, args.scheduler
    )
    with_epochs = [] if args.schedule == "constant" else ["epochs"]
    experiment.open(options.recorded(args), [*fixed, *with_epochs], args.command_line)
    jobs = [
        Job(settings, experiment.folder, args.data_dir, args.device, source) for settings in pending
    ]
    status = 0
    with Display(pending, sum(done[settings] for settings in pending), args.quiet) as display:
        if pending:
            line = announcement(pending, len(grid), args.data_dir, source)
            display.console.print(line, markup=False, highlight=False, soft_wrap=True)
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
    shown = [*records, *experiment.others(grid)]
    if shown:
        found = [] if source else gradients.of_experiment(experiment, grid, args.data_dir)
        write_report(experiment, shown, experiment.failures(), left_out, found, published)
    if args.json:
        print(json.dumps(summary(experiment, records, failures), indent=1))
    elif shown and not args.quiet:
        show(shown)
        print(f"report: {experiment.folder / 'report.html'}")
    return status or int(bool(failures))


def announcement(
    pending: Sequence[Settings], runs: int, data_dir: Path | None, source: str | None
) -> str:
    """One line: the number of runs, and where their data was found.

    Args:
        pending: the runs that are not done.
        runs: the number of all runs, done or not.
        data_dir: folder of the data files, if given.
        source: the builder of a user's own model, which brings its own data.
    """
    line = f"{len(pending)} of {runs} runs are to be trained"
    told = []
    for name, steps in dict.fromkeys((run.data, run.time_steps) for run in pending):
        where = None if source else places.check(name, data_dir, steps)
        told.append(name if where is None else f"{name} in {where}")
    return f"{line}; data: {', '.join(dict.fromkeys(told))}"


def show(records: Sequence[Record]) -> None:
    """Print each rule's accuracy after the last epoch."""
    rows = tables.rows(tables.frame(sorted(names.of_records(records), key=tables.reference_first)))
    settings = tables.differing(rows)
    table = Table(title="test accuracy after the last epoch (%), means over seeds, 95 % intervals")
    for heading in (*settings, "rule"):
        table.add_column(heading)
    for heading in ("seeds", "epochs", "accuracy", "minus native's"):
        table.add_column(heading, justify="right")
    for row in rows:
        beside = row.last_difference
        table.add_row(
            *(row.setting[name] for name in settings),
            row.rule,
            str(row.seeds),
            str(row.epochs),
            row.last.percent(),
            "" if beside is None else beside.percent("+"),
        )
    Console().print(table)


def start(args: argparse.Namespace, jobs: list[Job], tell: Any) -> None:
    """Run the jobs in this process or with Dask."""
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
