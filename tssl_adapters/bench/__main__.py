"""The command line: ``python -m tssl_adapters.bench COMMAND``."""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol

from tssl_adapters.bench import checks, options
from tssl_adapters.bench.options import Parser

PROGRAM = "python -m tssl_adapters.bench"
COMMANDS = {
    "accuracy": "train networks under several rules, and compare how well they do",
    "paper": "train the paper's networks in its set-up, beside what was published",
    "networks": "train the suite: networks of tutorials, examples and zoos, each by its recipe",
    "model": "train a model of your own under several rules",
    "gradients": "compare the rules' gradients on one batch, layer by layer",
    "speed": "time layers and networks, wrapped and native, and what they keep",
}
"""Each command has a module in ``commands``, which declares its options without torch, and one
here, which runs it."""


class Runner(Protocol):
    """The interface of the module that runs a command."""

    def main(self, parser: Parser, args: Namespace) -> int:
        """Run the command; returns the exit status."""
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line first, and only then import the module that runs the command."""
    argv = sys.argv[1:] if argv is None else argv
    name = _chooser().parse_args(argv[:1]).command
    parser = command_of(name)[1]
    args = options.parse(parser, argv[1:])
    try:
        checks.at_once(args)
        runner = runner_of(name)
    except ValueError as error:
        parser.refuse(str(error))
    except ModuleNotFoundError as error:
        parser.refuse(
            f"{error.name} is not installed; python -m pip install 'tssl-adapters[bench]'"
        )
    return runner.main(parser, args)


def runner_of(name: str) -> Runner:
    """Import the module that runs a command, and torch with it."""
    runner: Runner = import_module(f"tssl_adapters.bench.{name}")
    return runner


def _chooser() -> Parser:
    about = "\n".join(f"  {name:<10} {does}" for name, does in COMMANDS.items())
    chooser = Parser(
        prog=PROGRAM,
        usage="%(prog)s COMMAND --help",
        description=f"What a gradient is worth.\n\ncommands:\n{about}",
        epilog="The first minutes:\n"
        f"  {PROGRAM} accuracy --data digits --out digits\n"
        "train two rules in each installed library, and write digits/report.html.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    known = options.one_of(list(COMMANDS))
    chooser.add_argument("command", type=known, help=argparse.SUPPRESS)
    chooser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    return chooser


def command_of(name: str) -> tuple[options.Command, Parser]:
    """A command's module in ``commands``, and the parser of its options."""
    command: options.Command = import_module(f"tssl_adapters.bench.commands.{name}")
    return command, options.parser_of(f"{PROGRAM} {name}", command)


if __name__ == "__main__":
    sys.exit(main())
