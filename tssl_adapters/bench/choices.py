"""The runs that a grid's options describe, and why some are left out."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

from tssl_adapters.bench import rules
from tssl_adapters.bench.known import LATENCY
from tssl_adapters.bench.options import losses_of
from tssl_adapters.bench.settings import Settings


class Choice(NamedTuple):
    """What determines whether a run can be trained."""

    library: str
    rule: str
    tau_s: float
    loss: str


def trainable(offered: Iterable[Choice]) -> tuple[list[Choice], list[str]]:
    """The choices that can be trained, and why the others cannot.

    Raises:
        ValueError: none can be trained, or a rule does not exist.
    """
    offered = list(offered)
    for name in {choice.rule for choice in offered}:
        rules.contestant(name)
    why = {
        choice: rules.why_not(choice.library, choice.rule, choice.tau_s, choice.loss == LATENCY)
        for choice in offered
    }
    left_out = [
        f"{choice.rule} in {choice.library}, {choice.loss}, tau_s = {choice.tau_s:g}: {reason}"
        for choice, reason in why.items()
        if reason is not None
    ]
    chosen = [choice for choice, reason in why.items() if reason is None]
    if not chosen:
        raise ValueError("\n  ".join(["nothing is left to train:", *left_out]))
    return chosen, left_out


def settings_of(args: argparse.Namespace) -> tuple[list[Settings], list[str]]:
    """The grid's runs, seed by seed, and the ones left out.

    Raises:
        ValueError: a loss does not fit, or every run is left out.
    """
    choices, left_out = trainable(
        Choice(library, rule, tau_s, loss)
        for tau_s, library, rule in product(args.tau_s, args.libraries, args.rules)
        for loss in losses_of(args, tau_s)
    )
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    grid = [
        Settings(
            choice.library,
            dataset,
            network,
            choice.rule,
            choice.tau_s,
            choice.loss,
            args.time_steps,
            args.batch_size,
            args.lr,
            args.epochs,
            seed,
            args.limit,
            args.schedule,
            args.validation,
            rules.definition(choice.rule),
        )
        for seed, dataset, network, choice in product(seeds, args.data, args.networks, choices)
    ]
    return grid, left_out
