"""Options that several commands share, on the command line or in a YAML file."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from tssl_adapters.bench import architectures, data, rules
from tssl_adapters.bench.method import FEWEST_STEPS, LATENCY
from tssl_adapters.bench.settings import Settings

LOCAL = ("config", "source", "out", "workers", "scheduler", "quiet", "json", "report")
"""Options that no result depends on."""

T = TypeVar("T")


def positive(text: str) -> int:
    """A number of 1 or more."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {number}")
    return number


def time_constant(text: str) -> float:
    """A synaptic time constant."""
    if not (math.isfinite(tau_s := float(text)) and tau_s >= 1):
        raise argparse.ArgumentTypeError(f"must be a finite number, 1 or more, not {text}")
    return tau_s


def listed(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Values separated by commas."""

    def parse(text: str) -> list[T]:
        return list(dict.fromkeys(kind(part.strip()) for part in text.split(",")))

    parse.__name__ = "list"
    return parse


def one_of(known: Sequence[str]) -> Callable[[str], str]:
    """A name among others."""

    def parse(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(known)}")
        return text

    return parse


def rule(text: str) -> str:
    """A rule of the benchmark, or ``path/to/file.py:name`` of one of the user's own."""
    try:
        rules.contestant(text)
    except rules.UnknownRuleError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def add_grid_options(parser: argparse.ArgumentParser) -> None:
    """What is compared; each list is gone through in full."""
    add = parser.add_argument_group("what is compared (lists are separated by commas)").add_argument
    add("--data", type=listed(one_of(list(data.LOADERS))), default=["mnist5k"], metavar="LIST",
        help=f"of {', '.join(data.LOADERS)} (default: mnist5k)")  # fmt: skip
    add("--libraries", type=listed(one_of(architectures.LIBRARIES)),
        default=list(architectures.LIBRARIES), metavar="LIST",
        help=f"of {', '.join(architectures.LIBRARIES)} (default: all)")  # fmt: skip
    add("--networks", "--network", type=listed(str), default=["400-400"], metavar="LIST",
        help="hidden layers, such as 400-400 or 15C5-P2-40C5-P2-300, or one of "
        f"{', '.join(architectures.PRESETS)} (default: 400-400)")  # fmt: skip
    add("--rules", type=listed(rule), default=list(rules.COMPARED), metavar="LIST",
        help=f"of {', '.join(rules.RULES)}, or path/to/file.py:name of rules of your own "
        f"(default: {','.join(rules.COMPARED)})")  # fmt: skip
    add("--tau-s", type=listed(time_constant), default=[1.0], metavar="LIST",
        help="synaptic time constants in steps; above 1 every layer emits its PSC, under each "
        "rule (default: 1)")  # fmt: skip
    add("--losses", "--loss", type=listed(one_of(list(FEWEST_STEPS))), metavar="LIST",
        help=f"of {', '.join(FEWEST_STEPS)} (default: kernel above tau_s = 1, else "
        f"cross-entropy); {LATENCY} takes inputs and neurons that fire once")  # fmt: skip
    add("--seeds", type=positive, default=3, metavar="N", help="how many (default: %(default)s)")
    add("--first-seed", type=int, default=0, metavar="N", help="default: %(default)s")


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """How each run is trained."""
    add = parser.add_argument_group("how it is trained").add_argument
    add("--epochs", type=positive, default=20, metavar="N", help="in all (default: %(default)s)")
    add("--time-steps", type=positive, default=5, metavar="T", help="default: %(default)s")
    add("--batch-size", type=positive, default=100, metavar="N", help="default: %(default)s")
    add("--lr", type=float, default=5e-4, help="AdamW's learning rate (default: %(default)s)")
    add("--schedule", choices=["constant", "cosine"], default="constant",
        help="of the learning rate: cosine ends at 0 (default: %(default)s)")  # fmt: skip
    add_place_options(parser)


def add_place_options(parser: argparse.ArgumentParser) -> None:
    """What is on which machine."""
    add = parser.add_argument_group("data and device").add_argument
    add("--limit", type=positive, metavar="N", help="train and test on the first N samples only")
    add(
        "--validation",
        type=positive,
        metavar="N",
        help="test on the last N training samples, left out of training; the test set is not used",
    )
    add("--data-dir", type=Path, metavar="DIR",
        help="folder of the data's files; without it, the usual ones are searched")  # fmt: skip
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Where it runs, and what it writes."""
    add = parser.add_argument_group("where it runs, and what it writes").add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="the experiment's folder")
    add("--workers", type=int, metavar="N",
        help="worker processes, of one thread each; 0: this process (default: one a core)"
    )  # fmt: skip
    add("--scheduler", metavar="ADDRESS", help="of a Dask cluster, instead of local workers")
    add("--quiet", action="store_true", help="no progress bars and no tables")
    add("--json", action="store_true", help="print the summary as JSON")


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """A file of options."""
    parser.add_argument("--config", type=Path, metavar="FILE",
        help="YAML: the options by name, lists as lists; those of the command line come first"
    )  # fmt: skip


def with_config(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """The command line, after the options of its ``--config`` file, if it names one."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    path = finder.parse_known_args(argv)[0].config
    if path is None:
        return list(argv)
    try:
        options = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        parser.error(f"--config {path}: {error}")
    if not isinstance(options, dict):
        parser.error(f"--config {path}: must hold options by name, not {options!r}")
    return [*(word for name, value in options.items() for word in _words(name, value)), *argv]


def _words(name: str, value: Any) -> list[str]:
    """An option of a file as words of a command line."""
    option = f"--{str(name).replace('_', '-')}"
    if value is None or value is False:
        return []
    if value is True:
        return [option]
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return [f"{option}={text}"]


class Choice(NamedTuple):
    """What decides whether a run can be trained at all."""

    library: str
    rule: str
    tau_s: float
    loss: str


def trainable(offered: Iterable[Choice]) -> tuple[list[Choice], list[str]]:
    """What can be trained, and why the rest is left out.

    Raises:
        ValueError: nothing can.
    """
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
    """The grid's runs, seed by seed, and what is left out of them.

    Raises:
        ValueError: a loss does not fit, or all is left out.
    """
    choices, left_out = trainable(
        Choice(library, rule, tau_s, loss)
        for tau_s, library, rule in product(args.tau_s, args.libraries, args.rules)
        for loss in _losses_of(args, tau_s)
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


def _losses_of(args: argparse.Namespace, tau_s: float) -> list[str]:
    """The losses at a ``tau_s``.

    Raises:
        ValueError: one of them does not fit the other options.
    """
    losses: list[str] = args.losses or ["kernel" if tau_s > 1 else "cross-entropy"]
    for loss in losses:
        if args.time_steps < FEWEST_STEPS[loss]:
            raise ValueError(f"--loss {loss} needs --time-steps {FEWEST_STEPS[loss]} or more")
    if LATENCY in losses and tau_s > 1:
        raise ValueError(f"--loss {LATENCY} needs layers that emit spikes, --tau-s 1")
    if LATENCY in losses and (events := sorted({*args.data} & {*data.EVENTS})):
        raise ValueError(f"--loss {LATENCY} needs images, not the events of {', '.join(events)}")
    return losses


def check_validation(args: argparse.Namespace, names: Iterable[str], num_steps: int) -> None:
    """See that ``--validation`` leaves something to train on, of data that is there.

    Raises:
        ValueError: it does not.
    """
    for name in names if args.validation is not None else ():
        with suppress(FileNotFoundError, ModuleNotFoundError):  # then each run says so
            try:
                data.load(name, args.data_dir, num_steps, validation=args.validation)
            except ValueError as error:
                raise ValueError(f"--validation, {name}: {error}") from error


def recorded(args: argparse.Namespace) -> dict[str, Any]:
    """The options that results depend on."""
    return {name: value for name, value in vars(args).items() if name not in LOCAL}
