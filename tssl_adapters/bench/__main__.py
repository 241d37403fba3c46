"""The command line: ``python -m tssl_adapters.bench COMMAND``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol

PROGRAM = "python -m tssl_adapters.bench"
COMMANDS = {
    "accuracy": "train networks under several rules, and compare how well they do",
    "paper": "train the paper's networks in its set-up, beside what was published",
    "networks": "train the suite: networks of tutorials, examples and zoos, each by its recipe",
    "model": "train a model of your own under several rules",
    "gradients": "compare the rules' gradients on one batch, layer by layer",
    "speed": "time layers and networks, wrapped and native, and what they keep",
}
"""By name, which is that of a module here; it is imported when its command is used."""


class Command(Protocol):
    """What a command's module has."""

    __doc__: str | None

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's options."""
        ...

    def main(self, parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
        """Run the command; returns the exit status."""
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Hand over to the command that is asked for."""
    argv = sys.argv[1:] if argv is None else argv
    about = "\n".join(f"  {name:<10} {does}" for name, does in COMMANDS.items())
    chooser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=f"What a gradient is worth.\n\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    chooser.add_argument("command", choices=COMMANDS)
    name = chooser.parse_args(argv[:1]).command
    command, parser = command_of(name)
    return command.main(parser, argv[1:])


def command_of(name: str) -> tuple[Command, argparse.ArgumentParser]:
    """A command, and what reads its options."""
    command: Command = import_module(f"tssl_adapters.bench.{name}")
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_options(parser)
    return command, parser


if __name__ == "__main__":
    sys.exit(main())
