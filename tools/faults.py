"""Put the faults of tests/faults into copies of the project, and see whether the tests notice each.

python tools/faults.py --jobs 2
python tools/faults.py --only cells
TRITON_INTERPRET=1 python tools/faults.py --only triton: # where Triton is installed

A fault is a patch whose head says what was got wrong and which tests should catch it. One that they
do not catch survived. Exits with 1 if one did, or could not be put in.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "faults"
NEEDED = ("tssl_adapters", "tests", "tools", "examples", "pyproject.toml")
TIME_LIMIT = 1200.0
NOTICED = 1
"""pytest's exit status where a test failed."""

Status = Literal["caught", "survived", "does not apply", "broken"]


class Fault(NamedTuple):
    """A patch, what it breaks, and the tests that should catch it, as pytest test ids."""

    patch: Path
    name: str
    tests: tuple[str, ...]


def faults(only: str = "", skip: str | None = None) -> list[Fault]:
    """All faults whose name contains ``only`` and not ``skip``."""
    found = []
    for patch in sorted(FOLDER.glob("*.patch")):
        head = re.match(r"(.+)\n\nTests: (.+)\n\n", patch.read_text())
        if head is None:
            raise ValueError(
                f"{patch}: it has to begin with a line that says what is wrong, an "
                "empty one, 'Tests: ' with files or tests, and an empty one."
            )
        fault = Fault(patch, head[1], tuple(head[2].split()))
        wanted = only in fault.name and (skip is None or skip not in fault.name)
        found += [fault] if wanted else []
    return found


def applies(fault: Fault, root: Path, *, check: bool) -> bool:
    """Apply a fault to a project, or only check that it applies."""
    options = ["--check"] if check else []
    command = ["git", "apply", *options, str(fault.patch)]
    return subprocess.run(command, cwd=root, capture_output=True, check=False).returncode == 0


def tried(fault: Fault) -> tuple[Status, str]:
    """The outcome of a fault, and the end of pytest's output."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in NEEDED:
            source = ROOT / name
            ignore = shutil.ignore_patterns("__pycache__", "faults")
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=ignore)
            else:
                shutil.copy(source, copy / name)
        if not applies(fault, copy, check=False):
            return "does not apply", ""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        environment = {**_environment(), "PYTHONPATH": folder}
        try:
            run = subprocess.run(
                [*command, *fault.tests],
                cwd=copy, env=environment, capture_output=True, text=True, check=False,
                timeout=TIME_LIMIT,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "caught", "out of time"
    said = "\n".join(run.stdout.strip().splitlines()[-2:])
    if run.returncode == 0:
        return "survived", said
    return ("caught" if run.returncode == NOTICED else "broken"), said


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the faults; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1, help="copies at a time (1)")
    parser.add_argument("--only", default="", metavar="TEXT", help="faults with this in their name")
    parser.add_argument("--skip", metavar="TEXT", help="but none with this in it")
    given = parser.parse_args(arguments)
    chosen, table = faults(given.only, given.skip), Table("fault", "it", "what pytest said")
    console = Console()
    with ThreadPoolExecutor(given.jobs) as pool:
        results = pool.map(tried, chosen)
        for fault, (status, said) in track(
            zip(chosen, results, strict=True), "faults", total=len(chosen), console=console
        ):
            console.print(f"{status}: {fault.name}")
            if status != "caught":
                table.add_row(fault.name, status, said)
    failed = table.row_count > 0
    if failed:
        console.print(table)
    console.print(f"{len(chosen)} faults, {table.row_count} not caught")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
