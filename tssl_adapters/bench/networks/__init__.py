"""Train the suite: networks as the libraries' tutorials, examples and zoos build them.

Each has its own recipe. Every rule is compared with ``native``, the library as it is, not wrapped,
from the same first weights, on the same batches, with the same forward. The same command goes on
where it was left, and repeats nothing.

python -m tssl_adapters.bench networks --rules native,smooth-tsslbp --seeds 1 --out DIR
python -m tssl_adapters.bench networks --networks reporting --seeds 5-9 --out DIR
"""

from __future__ import annotations

import argparse
import json
import os
import traceback
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from distributed import as_completed
from rich.console import Console

from tssl_adapters import engines
from tssl_adapters.bench import options, rules
from tssl_adapters.bench.experiment import Experiment, ExperimentError, environment
from tssl_adapters.bench.grid import cluster_client
from tssl_adapters.bench.networks import suite
from tssl_adapters.bench.networks.page import write_page
from tssl_adapters.bench.networks.results import Results
from tssl_adapters.bench.networks.training import Job, failure, refusal, run
from tssl_adapters.bench.observer import Record

RECORDED = ("commit", "versions")
"""What each line has of the environment."""


def seeds(text: str) -> list[int]:
    """How many, counted from 0, or which: ``5``, ``0,1,2``, ``5-9``, ``7,``."""
    if text.isdecimal():
        return list(range(options.positive(text)))
    found: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names no seed")
    return list(dict.fromkeys(found))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add = parser.add_argument_group("what is compared (lists are separated by commas)").add_argument
    add("--networks", type=options.listed(str), default=[suite.ALL], metavar="LIST",
        help=f"names, {', '.join(suite.SETS)}, {', '.join(suite.KINDS)}, or {suite.ALL} that are "
        f"in a set (default: {suite.ALL})")  # fmt: skip
    add("--rules", type=options.listed(options.rule), default=list(rules.COMPARED), metavar="LIST",
        help=f"of {', '.join(rules.RULES)}, or path/to/file.py:name of rules of your own "
        f"(default: {','.join(rules.COMPARED)})")  # fmt: skip
    add("--seeds", type=seeds, default=[0], metavar="N",
        help="how many, or which: 5, or 0,1,2, or 5-9, or 7, with a comma (default: 1)"
    )  # fmt: skip
    add = parser.add_argument_group("how it is computed").add_argument
    add("--engine", choices=[row.name for row in engines()], default="torch",
        help="of the wrapped layers (default: %(default)s)")  # fmt: skip
    add("--data-dir", type=Path, metavar="DIR",
        help="folder of the data's files, of networks that need some")  # fmt: skip
    add("--report", action="store_true", help="train nothing, report what is there")
    options.add_run_options(parser)
    options.add_config_option(parser)


def main(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    """Run the command; the exit status is 1 where a run failed, 130 after ctrl-C."""
    args = parser.parse_args(options.with_config(parser, argv))
    results = Results(args.out)
    try:
        jobs, left_out = _jobs(args)
        done = results.of(jobs)
    except (ValueError, ExperimentError) as error:
        parser.error(str(error))
    experiment = Experiment(args.out)
    experiment.describe(options.recorded(args))
    pending = [] if args.report else [job for job in jobs if job not in done]
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
    if found:
        write_page(experiment, [found[job] for job in jobs if job in found], failures, left_out)
    if args.json:
        summary = {"folder": str(args.out), "runs": len(found), "failures": failures}
        print(json.dumps(summary, indent=1))
    return status or int(bool(failures))


def _jobs(args: argparse.Namespace) -> tuple[list[Job], list[str]]:
    """The runs, seed by seed and network by network, and what is left out of them.

    Raises:
        ValueError: a word names no network, or all is left out.
    """
    chosen = suite.chosen(args.networks)
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
    """What became of a run, in a line."""
    if "error" in outcome:
        return f"{outcome['run']} failed: {outcome['error']}"
    run = "{network}, {rule}, seed {seed}".format_map(outcome)
    return f"{run}: {outcome['final']:.1%} ({outcome['mean']:.1%}), {outcome['seconds']:.1f} s"


def _outcomes(args: argparse.Namespace, jobs: Sequence[Job]) -> Iterator[Record]:
    """Run the jobs, here or in workers; each one's line, or its failure, as it is done."""
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
            else:  # its workers died time after time
                yield failure(futures[future], f"{future.status}: {future.exception()}")


def _outcome(job: Job) -> Record:
    """A run's line of the results, or its failure."""
    try:
        return run(job)
    except Exception as error:
        return failure(job, f"{type(error).__name__}: {error}", traceback.format_exc())
