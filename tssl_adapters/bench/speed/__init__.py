"""Time and memory of wrapped layers and networks against the libraries' own, in one run.

The contestants take turns, round by round, so that a noisy machine hits them alike; a figure is the
median over the rounds, a ratio the median of the rounds' ratios.

python -m tssl_adapters.bench speed --quick
python -m tssl_adapters.bench speed --steps 100 --neurons 16384 --out DIR
python -m tssl_adapters.bench speed --floors
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import track

from tssl_adapters.bench import options
from tssl_adapters.bench.experiment import environment
from tssl_adapters.bench.experiment import write as write_text
from tssl_adapters.bench.speed import plots, tables, works
from tssl_adapters.bench.speed.cases import Case, Plan, Row, run_case
from tssl_adapters.bench.speed.floors import Floor, against_floors, status
from tssl_adapters.bench.speed.growth import LONG, SHORT, time_growth
from tssl_adapters.bench.speed.works import Work

STEPS, NEURONS, THREADS = [1, 4, 8, 32, 100, 1000], [512, 4096, 16384, 65536], [1, 2]
NETWORK_STEPS, NETWORK_BATCH = [50], 32
QUICK: dict[str, Any] = {
    "steps": [8], "neurons": [512], "threads": [1], "network_steps": [5], "rounds": 3,
    "no_compile": True,
}  # fmt: skip
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
RESULTS = "speed.json"
RULES = ("smooth-tsslbp", "tsslbp")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    numbers = options.listed(options.positive)
    add = parser.add_argument_group("what is timed (lists are separated by commas)").add_argument
    add("--works", type=options.listed(str), metavar="LIST", help="layers and networks, by name "
        "(default: all of the installed libraries)")  # fmt: skip
    add("--steps", type=numbers, default=STEPS, metavar="LIST", help="T (default: 1 to 1000)")
    add("--neurons", type=numbers, default=NEURONS, metavar="LIST", help="default: 512 to 65536")
    add("--batch", type=options.positive, default=1, metavar="N", help="default: %(default)s")
    add("--network-steps", type=numbers, default=NETWORK_STEPS, metavar="LIST",
        help=f"T of the networks, whose batch is {NETWORK_BATCH} (default: 50)")  # fmt: skip
    add("--tau-s", type=options.listed(options.time_constant), default=[1.0, 3.0], metavar="LIST",
        help="synaptic time constants in steps (default: 1,3)")  # fmt: skip
    add("--rule", choices=RULES, default="smooth-tsslbp", help="of wrapped layers "
        "(default: %(default)s)")  # fmt: skip
    add("--no-compile", action="store_true", help="leave torch.compile out: it takes a minute each")
    add("--quick", action="store_true", help="one small size, few rounds, nothing compiled")
    add("--floors", action="store_true", help="only what the package is held to; the exit status "
        "is 1 if a floor is missed")  # fmt: skip
    add = parser.add_argument_group("how").add_argument
    add("--threads", type=numbers, default=THREADS, metavar="LIST", help="default: 1,2")
    add("--device", type=torch.device, default=torch.device("cpu"), help="cpu, cuda, ...")
    add("--dtype", choices=DTYPES, default="float32", help="default: %(default)s")
    add("--rounds", type=options.positive, default=15, metavar="N", help="default: %(default)s")
    add("--budget", type=float, default=20.0, metavar="SECONDS",
        help="for the rounds of one size; three are made in any case (default: %(default)s)"
    )  # fmt: skip
    add("--out", type=Path, metavar="DIR", help=f"folder for {RESULTS} and the plots")
    add("--json", action="store_true", help=f"print {RESULTS} instead of tables")
    options.add_config_option(parser)


def main(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    words = options.with_config(parser, argv)
    parser.set_defaults(**QUICK if "--quick" in words else {})
    args = parser.parse_args(words)
    try:
        chosen, left_out = works.load(args.works)
    except ValueError as error:
        parser.error(f"--works: {error}")
    plan = Plan(
        args.device,
        DTYPES[args.dtype],
        args.rounds,
        args.budget,
        tuple(args.tau_s),
        args.rule,
        compiled=not args.no_compile,
    )
    threads = torch.get_num_threads()
    try:
        return run(args, chosen, plan, left_out)
    finally:
        torch.set_num_threads(threads)


def run(args: argparse.Namespace, chosen: list[Work], plan: Plan, left_out: list[str]) -> int:
    """Measure, print, write; the exit status."""
    record: Row = {
        **environment(),
        "device": str(plan.device),
        "dtype": args.dtype,
        "rule": args.rule,
        "load_average": psutil.getloadavg(),
    }
    found: list[Floor] = []
    if args.floors:
        torch.set_num_threads(1)
        found = list(against_floors(chosen, plan, left_out.append))
        shown = [tables.verdicts(found)]
        record["floors"] = [floor.record() for floor in found]
    else:
        record |= all_cases(args, chosen, plan, left_out)
        shown = [*tables.timings(record["results"]), tables.growths(record["growth"])]
    record["left_out"] = left_out
    if args.json:
        print(json.dumps(record, indent=1))
    else:
        tables.show(shown, left_out)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_text(args.out / RESULTS, json.dumps(record, indent=1) + "\n")
        plots.write(record.get("results", []), args.out)
    return status(found)


def all_cases(args: argparse.Namespace, chosen: list[Work], plan: Plan, left_out: list[str]) -> Row:
    """Every work at every size, and the growth with T where both its lengths are asked for."""
    rows: list[Row] = []
    for case in track(sizes(args, chosen), "timing", console=Console(stderr=True)):
        rows += run_case(case, plan, left_out.append)
    grown: list[Row] = []
    if {SHORT, LONG} <= set(args.steps):
        torch.set_num_threads(1)
        layers = [work for work in chosen if not work.is_network]
        grown = [row for work in layers for row in time_growth(work, plan, min(args.neurons))]
    return {"results": rows, "growth": grown}


def sizes(args: argparse.Namespace, chosen: list[Work]) -> list[Case]:
    """The sizes of each work."""
    found = []
    for work, threads in product(chosen, args.threads):
        if work.is_network:
            found += [Case(work, T, NETWORK_BATCH, 0, threads) for T in args.network_steps]
        else:
            layers = product(args.steps, args.neurons)
            found += [Case(work, T, args.batch, neurons, threads) for T, neurons in layers]
    return found
