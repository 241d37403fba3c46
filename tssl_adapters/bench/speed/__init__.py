"""Runs ``speed``: time and memory of layers and networks, wrapped and native."""

from __future__ import annotations

import argparse
import json
from itertools import product

import psutil
import torch
from rich.console import Console
from rich.progress import track

from tssl_adapters.bench import checks
from tssl_adapters.bench.commands.speed import NETWORK_BATCH, RESULTS, fill
from tssl_adapters.bench.experiment import environment
from tssl_adapters.bench.experiment import write as write_text
from tssl_adapters.bench.networks import suite
from tssl_adapters.bench.options import Parser
from tssl_adapters.bench.speed import plots, tables, works
from tssl_adapters.bench.speed.cases import Case, Plan, Row, run_case
from tssl_adapters.bench.speed.floors import Floor, against_floors, status
from tssl_adapters.bench.speed.growth import LONG, SHORT, time_growth
from tssl_adapters.bench.speed.memory import keep_freed_memory
from tssl_adapters.bench.speed.training_steps import network_steps
from tssl_adapters.bench.speed.works import Work


def main(parser: Parser, args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    fill(args)
    try:
        checks.device_is_there(args.device)
        chosen, left_out = works.load(args.works)
    except ValueError as error:
        parser.refuse(str(error))
    plan = Plan(
        torch.device(args.device),
        getattr(torch, args.dtype),
        args.rounds,
        args.budget,
        tuple(args.tau_s),
        args.rule,
        compiled=args.compile,
    )
    threads = torch.get_num_threads()
    try:
        return run(args, chosen, plan, left_out)
    finally:
        torch.set_num_threads(threads)


def run(args: argparse.Namespace, chosen: list[Work], plan: Plan, left_out: list[str]) -> int:
    """Measure, print and write; returns the exit status."""
    keep_freed_memory()
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
    elif args.networks:
        torch.set_num_threads(1)
        steps = network_steps(suite.chosen(args.networks), plan, left_out.append)
        record["networks"] = list(steps)
        shown = [tables.network_steps(record["networks"])]
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
    """Every work at every size, and the growth with T if both of its lengths are requested."""
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
    """The cases of each work, one per size."""
    found = []
    for work, threads in product(chosen, args.threads):
        if work.is_network:
            found += [Case(work, T, NETWORK_BATCH, 0, threads) for T in args.network_steps]
        else:
            layers = product(args.steps, args.neurons)
            found += [Case(work, T, args.batch, neurons, threads) for T, neurons in layers]
    return found
