"""Runs ``networks``: the suite of networks, and its report."""

from __future__ import annotations

import argparse
import json
import os
import traceback
from collections.abc import Iterator, Sequence
from itertools import product

from distributed import as_completed
from rich.console import Console
from rich.table import Table

from tssl_adapters import _engines
from tssl_adapters.bench import checks, known, options, rules
from tssl_adapters.bench.experiment import Experiment, ExperimentError, environment
from tssl_adapters.bench.grid import cluster_client
from tssl_adapters.bench.networks import suite, tables
from tssl_adapters.bench.networks.page import write_page
from tssl_adapters.bench.networks.results import Results
from tssl_adapters.bench.networks.training import Job, failure, refusal, run
from tssl_adapters.bench.observer import Record
from tssl_adapters.bench.options import Parser
from tssl_adapters.bench.report import names
from tssl_adapters.errors import EngineNotAvailableError

RECORDED = ("commit", "versions")
"""The parts of the environment that each line records."""


def main(parser: Parser, args: argparse.Namespace) -> int:
    """Run the command; exit status 1 if a run failed, 130 after Ctrl-C."""
    results = Results(args.out)
    try:
        jobs, left_out = _jobs(args)
        done = results.of(jobs)
        pending = [] if args.report else [job for job in jobs if job not in done]
        _check(pending, args)
    except (ValueError, ExperimentError, EngineNotAvailableError) as error:
        parser.refuse(str(error))
    experiment = Experiment(args.out)
    experiment.describe(options.recorded(args), args.command_line)
    console = Console(stderr=True, quiet=args.quiet)
    for line in left_out:
        console.print(f"left out: {line}", markup=False, highlight=False, soft_wrap=True)
    failures: list[Record] = []
    status = 0
    where = {name: value for name, value in environment().items() if name in RECORDED}
    try:
        for number, outcome in enumerate(_outcomes(args, pending), start=1):
            if "error" in outcome:
                failures.append(outcome)
            else:
                results.add(outcome | where)
            line = f"{number}/{len(pending)}  {_said(outcome)}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on")
        status = 130
    results.fail(failures)
    found = results.of(jobs)
    shown = [*(found[job] for job in jobs if job in found), *results.others(jobs)]
    if shown:
        write_page(experiment, shown, failures, left_out)
    if args.json:
        summary = {"folder": str(args.out), "runs": len(found), "failures": failures}
        print(json.dumps(summary, indent=1))
    elif shown and not args.quiet:
        show(shown)
        print(f"report: {args.out / 'report.html'}")
    return status or int(bool(failures))


def show(records: Sequence[Record]) -> None:
    """Print each rule's difference to native, over all networks and over each kind."""
    table = Table(title="final test accuracy minus native's (points), 95 % intervals over networks")
    for heading in ("networks", "rule"):
        table.add_column(heading)
    for heading in ("number", "difference", "worst"):
        table.add_column(heading, justify="right")
    table.add_column("which is")
    for row in tables.pooled(tables.frame(names.of_records(records))):
        if row.group in (known.ALL, *known.KINDS):
            figures = (str(row.networks), row.final.percent("+"), f"{100 * row.worst:+.2f}")
            table.add_row(row.group, row.rule, *figures, row.worst_network)
    if table.rows:
        Console().print(table)


def _check(pending: Sequence[Job], args: argparse.Namespace) -> None:
    """Check that everything the runs need is there.

    Raises:
        ValueError: something is missing; says what, where and what to do.
        EngineNotAvailableError: the engine lacks something it needs.
    """
    _engines.checked(args.engine)
    for network in dict.fromkeys(suite.networks()[job.network] for job in pending):
        try:
            network.data(args.data_dir)
        except FileNotFoundError as error:
            raise ValueError(f"{network.name}: {error}") from error
    checks.scheduler_answers(args.scheduler if pending else None)


def _jobs(args: argparse.Namespace) -> tuple[list[Job], list[str]]:
    """The runs, seed by seed and network by network, and the ones left out.

    Raises:
        ValueError: a word names no network, or every run is left out.
    """
    chosen = suite.chosen(args.networks)
    for rule in args.rules:
        rules.contestant(rule)
    pairs = list(product(chosen, args.rules))
    why = {(network.name, rule): refusal(network, rule) for network, rule in pairs}
    left_out = [f"{rule} in {name}: {reason}" for (name, rule), reason in why.items() if reason]
    jobs = [
        Job(network.name, rule, seed, args.engine, args.data_dir)
        for seed, network, rule in product(args.seeds, chosen, args.rules)
        if why[network.name, rule] is None
    ]
    if not jobs:
        raise ValueError("\n  ".join(["nothing is left to train:", *left_out]))
    return jobs, left_out


def _said(outcome: Record) -> str:
    """The outcome of a run, in one line."""
    if "error" in outcome:
        return f"{outcome['run']} failed: {outcome['error']}"
    run = "{network}, {rule}, seed {seed}".format_map(outcome)
    return (
        f"{run}: final {outcome['final']:.1%}, mean over training {outcome['mean']:.1%}, "
        f"{outcome['cpu_seconds']:.1f} s of processor time"
    )


def _outcomes(args: argparse.Namespace, jobs: Sequence[Job]) -> Iterator[Record]:
    """Run the jobs, here or in workers; yields each one's result or failure as it finishes."""
    if not jobs:
        return
    if args.scheduler is None and args.workers == 0:
        yield from map(_outcome, jobs)
        return
    workers = min(len(jobs), args.workers or os.cpu_count() or 1)
    with cluster_client(workers, args.scheduler) as client:
        futures = {client.submit(_outcome, job, pure=False): job for job in jobs}
        for future in as_completed(futures):
            if future.status == "finished":
                yield future.result()
            else:  # its workers died repeatedly
                yield failure(futures[future], f"{future.status}: {future.exception()}")


def _outcome(job: Job) -> Record:
    """A run's line of the results, or its failure."""
    try:
        return run(job)
    except Exception as error:
        return failure(job, f"{type(error).__name__}: {error}", traceback.format_exc())
