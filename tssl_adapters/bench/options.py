"""Options that several commands share. Nothing here needs torch, so errors are reported at once."""

from __future__ import annotations

import argparse
import math
import re
import shlex
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from textwrap import indent
from typing import Any, NoReturn, Protocol, TypeVar

import yaml

from tssl_adapters.bench import known, places
from tssl_adapters.bench.source import SourceError, parts

LOCAL = (
    *("config", "source", "out", "workers", "scheduler", "quiet", "json", "report"),
    "command_line",
)
"""Options that do not affect results."""
ALIKE = 0.72
"""Difflib ratio above which a word is suggested: --batch and --batch-size have 0.74, --epoch and
--report, which mean different things, 0.67."""
DEVICE = re.compile(r"(?:cpu|cuda|mps|xpu)(?::\d+)?")
EXAMPLE = re.compile(r"^python -m ", re.MULTILINE)

T = TypeVar("T")


class Command(Protocol):
    """The interface of each module of ``bench.commands``.

    The docstring is the description; the examples start at its first line ``python -m ...``.
    """

    __doc__: str | None
    USAGE: str

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's options."""
        ...


class Parser(argparse.ArgumentParser):
    """Answers an invalid argument with one line: what is wrong, and where to look."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments"):
            there = re.findall(r"--[\w-]+", self.format_help())
            message = _meant(message.split()[2].partition("=")[0], there) + message
        self.refuse(f"{message} (--help lists the options)")

    def refuse(self, message: str) -> NoReturn:
        """Exit with status 2 and a complete message."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def parser_of(program: str, command: Command) -> Parser:
    """The parser of a command: options in groups, examples at the end of the help."""
    about = (command.__doc__ or "").replace("``", "")
    start = match.start() if (match := EXAMPLE.search(about)) else len(about)
    parser = Parser(
        prog=program,
        usage=f"%(prog)s {command.USAGE}",
        description=about[:start].strip(),
        epilog=f"examples:\n{indent(about[start:].strip(), '  ')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    command.add_options(parser)
    if parser.get_default("rules"):
        parser.add_argument_group("rules", _rules())
    add = parser.add_argument_group("more").add_argument
    add("--config", type=Path, metavar="FILE",
        help="YAML: the options by name, lists as lists; those of the command line come first"
    )  # fmt: skip
    add("-h", "--help", action="help", help="show this, and do nothing else")
    return parser


def parse(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse the options; ``command_line`` holds the command line."""
    args = parser.parse_args(with_config(parser, argv))
    args.command_line = f"{parser.prog} {shlex.join(argv)}"
    return args


def _rules() -> str:
    """The help text about the rules."""
    return "\n".join(f"{name:<22}{about}" for name, about in known.RULES.items())


def _meant(word: str, words: Sequence[str]) -> str:
    """A suggestion for an invalid word; empty if there is none."""
    close = get_close_matches(word, words, n=1, cutoff=ALIKE)
    return f"did you mean {close[0]}? " if close else ""


def positive(text: str) -> int:
    """A number of 1 or more."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {number}")
    return number


def rate(text: str) -> float:
    """A learning rate."""
    if not (math.isfinite(number := float(text)) and number > 0):
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, not {text}")
    return number


def time_constant(text: str) -> float:
    """A synaptic time constant."""
    if not (math.isfinite(tau_s := float(text)) and tau_s >= 1):
        raise argparse.ArgumentTypeError(f"must be a finite number, 1 or more, not {text}")
    return tau_s


def device(text: str) -> str:
    """A device name; only torch can tell whether the device exists."""
    if DEVICE.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no device, such as cpu, cuda or cuda:1")
    return text


def workers(text: str) -> int:
    """The number of worker processes; 0 means this process."""
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {number}")
    return number


def listed(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Comma-separated values."""

    def parse(text: str) -> list[T]:
        return list(dict.fromkeys(kind(part.strip()) for part in text.split(",")))

    parse.__name__ = "list"
    return parse


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """One of the given names."""

    def parse(text: str) -> str:
        if text not in names:
            guess = _meant(text, names)
            raise argparse.ArgumentTypeError(f"{guess}{text!r} is none of {', '.join(names)}")
        return text

    return parse


def of_installed(names: Sequence[str]) -> Callable[[str], str]:
    """An installed library, or a name that begins with one."""
    known_name = one_of(names)

    def parse(text: str) -> str:
        library = known.library_of(known_name(text))
        if library in known.LIBRARIES and not known.installed(library):
            raise argparse.ArgumentTypeError(
                f"{text!r} needs {library}, which is not installed; python -m pip install {library}"
            )
        return text

    return parse


def rule(text: str) -> str:
    """A rule of the benchmark, or ``path/to/file.py:name`` for a user's own."""
    if text in known.RULES:
        return text
    if ":" not in text:
        raise argparse.ArgumentTypeError(
            f"{_meant(text, list(known.RULES))}{text!r} is none of {', '.join(known.RULES)}, nor "
            "path/to/file.py:name of a rule of yours"
        )
    try:
        parts(text, "rule")
    except SourceError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def network(text: str) -> str:
    """Layers in the paper's notation, or the name of a preset."""
    for part in known.PRESETS.get(text, text).split(known.BETWEEN):
        if not (part == known.POOL or part.isdecimal() or known.CONVOLUTION.fullmatch(part)):
            raise argparse.ArgumentTypeError(
                f"{text!r} is none of {', '.join(known.PRESETS)}, nor layers such as 400-400 or "
                "15C5-P2-40C5-P2-300"
            )
    return text


def libraries() -> list[str]:
    """The installed libraries, which are compared by default."""
    return [name for name in known.LIBRARIES if known.installed(name)]


def add_libraries_option(add: Callable[..., Any]) -> None:
    """Add the option for the libraries."""
    add("--libraries", type=listed(of_installed(known.LIBRARIES)), default=libraries(),
        metavar="LIST", help=f"of {', '.join(known.LIBRARIES)} (default: those installed)"
    )  # fmt: skip


def add_rules_option(add: Callable[..., Any], default: Sequence[str] = known.COMPARED) -> None:
    """Add the option for the rules."""
    add("--rules", type=listed(rule), default=list(default), metavar="LIST",
        help="names out of the list of rules below, or path/to/file.py:name of rules of your own "
        f"(default: {','.join(default)})")  # fmt: skip


def add_grid_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that span the grid; every combination is run."""
    add = parser.add_argument_group("what is compared (lists are separated by commas)").add_argument
    add("--data", type=listed(one_of(known.DATA)), default=["mnist5k"], metavar="LIST",
        help=f"of {', '.join(known.DATA)} (default: mnist5k)")  # fmt: skip
    add_libraries_option(add)
    add("--networks", "--network", type=listed(network), default=["400-400"], metavar="LIST",
        help="hidden layers, such as 400-400 or 15C5-P2-40C5-P2-300, or one of "
        f"{', '.join(known.PRESETS)} (default: 400-400)")  # fmt: skip
    add_rules_option(add)
    add("--tau-s", type=listed(time_constant), default=[1.0], metavar="LIST",
        help="synaptic time constants in steps; above 1 every layer emits its PSC, under each "
        "rule (default: 1)")  # fmt: skip
    add("--losses", "--loss", type=listed(one_of(list(known.FEWEST_STEPS))), metavar="LIST",
        help=f"of {', '.join(known.FEWEST_STEPS)} (default: kernel above tau_s = 1, else "
        f"cross-entropy); {known.LATENCY} takes inputs and neurons that fire once")  # fmt: skip
    add("--seeds", type=positive, default=3, metavar="N", help="how many (default: %(default)s)")
    add("--first-seed", type=int, default=0, metavar="N", help="default: %(default)s")


def add_schedule_option(add: Callable[..., Any]) -> None:
    """Add the option for the learning rate schedule."""
    add("--schedule", choices=known.SCHEDULES, default="constant",
        help="of the learning rate: cosine ends at 0 (default: %(default)s)")  # fmt: skip


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for training."""
    add = parser.add_argument_group("how it is trained").add_argument
    add("--epochs", type=positive, default=10, metavar="N", help="in all (default: %(default)s)")
    add("--time-steps", type=positive, default=5, metavar="T", help="default: %(default)s")
    add("--batch-size", type=positive, default=100, metavar="N", help="default: %(default)s")
    add("--lr", type=rate, default=5e-4, help="AdamW's learning rate (default: %(default)s)")
    add_schedule_option(add)
    add_place_options(parser)


def losses_of(args: argparse.Namespace, tau_s: float) -> list[str]:
    """The losses to train with at a ``tau_s``.

    Raises:
        ValueError: one of them does not fit the other options.
    """
    losses: list[str] = args.losses or ["kernel" if tau_s > 1 else "cross-entropy"]
    for loss in losses:
        if args.time_steps < known.FEWEST_STEPS[loss]:
            raise ValueError(f"--loss {loss} needs --time-steps {known.FEWEST_STEPS[loss]} or more")
    if known.LATENCY in losses and tau_s > 1:
        raise ValueError(f"--loss {known.LATENCY} needs layers that emit spikes, --tau-s 1")
    if known.LATENCY in losses and (events := sorted({*args.data} & {*known.EVENTS})):
        raise ValueError(
            f"--loss {known.LATENCY} needs images, not the events of {', '.join(events)}"
        )
    return losses


def add_place_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for machine and device."""
    add = parser.add_argument_group("data and device").add_argument
    add("--limit", type=positive, metavar="N", help="train and test on the first N samples only")
    add(
        "--validation",
        type=positive,
        metavar="N",
        help="test on the last N training samples, left out of training; the test set is not used",
    )
    add_data_dir_option(add)
    add(
        "--device", type=device, default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)"
    )


def add_data_dir_option(add: Callable[..., Any]) -> None:
    """Add the option for the folder of the data files."""
    add("--data-dir", type=Path, metavar="DIR",
        help="folder of the data's files, where it needs some; without it they are looked for in "
        f"{', '.join(map(str, (places.DATASETS_FOLDER, *places.DATA_ROOTS)))}")  # fmt: skip


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for output and execution."""
    add = parser.add_argument_group("where it runs, and what it writes").add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="the experiment's folder")
    add("--workers", type=workers, metavar="N",
        help="worker processes, of one thread each; 0: this process (default: one a core)"
    )  # fmt: skip
    add("--scheduler", metavar="ADDRESS", help="of a Dask cluster, instead of local workers")
    add("--quiet", action="store_true", help="no progress bars and no tables")
    add("--json", action="store_true", help="print the summary as JSON")


def with_config(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """The command line, preceded by the options of its ``--config`` file, if it names one."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    path = finder.parse_known_args(argv)[0].config
    if path is None:
        return list(argv)
    try:
        options = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        parser.error(f"--config {path}: {' '.join(str(error).split())}")
    if not isinstance(options, dict):
        parser.error(f"--config {path}: must hold options by name, not {options!r}")
    return [*(word for name, value in options.items() for word in _words(name, value)), *argv]


def _words(name: str, value: Any) -> list[str]:
    """An option from a file as command-line words."""
    option = f"--{str(name).replace('_', '-')}"
    if value is None or value is False:
        return []
    if value is True:
        return [option]
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return [f"{option}={text}"]


def recorded(args: argparse.Namespace) -> dict[str, Any]:
    """The options that affect results."""
    return {name: value for name, value in vars(args).items() if name not in LOCAL}
