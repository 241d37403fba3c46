"""Break the package in ways that a person could, and see whether the tests notice each.

OMP_NUM_THREADS=1 python tools/mutate.py --jobs 2

The faults are those of tools/mutants.py. Each is put into a copy of the project, where the tests
that should catch it run first and, if they pass, all others; one that passes them all survived.
Before that the unbroken suite runs once, so that a failure means the fault. Leave tests out, or
choose among them, with pytest's own options: --pytest-args="--deselect=tests/test_examples.py".

Exits with 1 if a fault survived, could not be put in, or kept the tests from starting, and with 2
if the unbroken suite fails.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from mutants import MUTANTS, Mutant
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
ANYWHERE = (
    ".*",
    "__pycache__",
    "*.egg-info",
    "checkpoints",
    "runs",
    "test_mutants.py",  # asks whether every fault goes in: none does twice
)
AT_THE_TOP = ("build", "data", "dist", "logs", "site", "venv")
TIME_LIMIT = 1800.0
NO_TESTS = 5
"""pytest's exit status where all that it was given were left out."""

GUARD = '''"""Written by tools/mutate.py: tests the copy, without the search for small examples."""
from pathlib import Path
import pytest
from hypothesis import HealthCheck, Phase, settings

settings.register_profile(
    "mutate",
    phases=(Phase.explicit, Phase.generate),
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("mutate")


def pytest_collection_finish(session):
    import tssl_adapters
    if not Path(tssl_adapters.__file__).is_relative_to(Path(__file__).parent):
        pytest.exit(f"tested {tssl_adapters.__file__}, not the copy", returncode=97)
'''

Status = Literal["killed", "survived", "does not apply", "broken"]
COLORS = {"killed": "green", "survived": "red", "does not apply": "yellow", "broken": "yellow"}


class Outcome(NamedTuple):
    """What one run of pytest came to: ``failed`` is the first failing test, or ``None``."""

    code: int
    failed: str | None
    output: str


class Result(NamedTuple):
    """What became of a mutant; ``by`` is the test that killed it, or what went wrong."""

    mutant: Mutant
    status: Status
    by: str
    seconds: float


def left_out(folder: str, names: list[str]) -> set[str]:
    """What of a folder a copy of the project does not need: see :func:`shutil.copytree`."""
    patterns = (*ANYWHERE, *AT_THE_TOP) if Path(folder) == ROOT else ANYWHERE
    return shutil.ignore_patterns(*patterns)(folder, names)


def pytest_in(folder: Path, args: Iterable[str]) -> Outcome:
    """Run pytest on a copy of the project, importing the package from there."""
    guard = folder / "mutate_guard.py"
    guard.write_text(GUARD)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", guard.stem, *args]
    environment = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "400"}
    try:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", *options],
            cwd=folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
        )
    except subprocess.TimeoutExpired:
        return Outcome(1, f"no end after {TIME_LIMIT:g} s", "")
    return Outcome(run.returncode, first_failure(run.stdout), run.stdout + run.stderr)


def first_failure(output: str) -> str | None:
    """The first failing test that pytest's summary names; a file that did not load is none."""
    for line in output.splitlines():
        kind, _, rest = line.partition(" ")
        if kind in ("FAILED", "ERROR") and "::" in rest:
            return rest.split(" - ")[0]
    return None


def problem(mutant: Mutant, folder: Path) -> str | None:
    """Why a mutant cannot be put into a copy of the project."""
    for change in mutant.changes:
        found = (folder / change.file).read_text().count(change.old)
        if found != change.count:
            return f"{change.file} has {change.old!r} {found} times, not {change.count}"
    return None


def put_in(mutant: Mutant, folder: Path) -> None:
    """Change the copy's source."""
    for change in mutant.changes:
        path = folder / change.file
        path.write_text(path.read_text().replace(change.old, change.new))


def try_mutant(original: Path, extra: Sequence[str], quick: bool, mutant: Mutant) -> Result:
    """Run the tests on a copy with the fault in it; ``quick``: only those that it names."""
    start = time.perf_counter()

    def result(status: Status, by: str) -> Result:
        return Result(mutant, status, by, time.perf_counter() - start)

    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = Path(name) / "copy"
        shutil.copytree(original, folder)
        if why := problem(mutant, folder):
            return result("does not apply", why)
        put_in(mutant, folder)
        others = ["tests", *(f"--deselect={test}" for test in mutant.tests)]
        for args in [mutant.tests] if quick else [mutant.tests, others]:
            outcome = pytest_in(folder, [*args, *extra])
            if outcome.failed:
                return result("killed", outcome.failed)
            if outcome.code not in (0, NO_TESTS):
                return result("broken", outcome.output[-600:])
    return result("survived", "")


def check_unbroken(original: Path, extra: Sequence[str], jobs: int) -> bool:
    """Run the suite as it is, a file at a time, and say what fails."""
    files = sorted(path.relative_to(original) for path in original.glob("tests/test_*.py"))

    def run(file: Path) -> Outcome:
        return pytest_in(original, [str(file), *extra])

    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(jobs) as parallel:
        listed = {test: None for mutant in MUTANTS for test in mutant.tests}
        named = pool.submit(pytest_in, original, ["--collect-only", *listed, *extra])
        outcomes = [*zip(map(str, files), parallel.map(run, files), strict=True)]
        outcomes.append(("the tests that the mutants name", named.result()))
    green = True
    for what, outcome in outcomes:
        if outcome.code not in (0, NO_TESTS):
            green = False
            reason = outcome.failed or outcome.output[-2000:]
            print(f"Without any mutant, {what} fails: {reason}", file=sys.stderr)
    return green


def run_all(mutants: Sequence[Mutant], run: Callable[[Mutant], Result], jobs: int) -> list[Result]:
    """Try the mutants, ``jobs`` at a time, and report each on stderr as it ends."""
    done = 0

    def run_and_tell(mutant: Mutant) -> Result:
        nonlocal done
        result = run(mutant)
        done += 1
        line = f"{done}/{len(mutants)} {result.status} ({result.seconds:.0f} s): {mutant.name}"
        print(f"{line} | {result.by}", file=sys.stderr, flush=True)
        return result

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(run_and_tell, mutants))


def table(results: Sequence[Result]) -> Table:
    """One row a mutant."""
    grid = Table("mutant", "", "by", "seconds", title=f"{len(results)} mutants")
    for mutant, status, by, seconds in results:
        shown = f"[{COLORS[status]}]{status}[/]"
        # rich reads square brackets, which parametrized tests have in their names, as markup
        grid.add_row(mutant.name, shown, by.replace("[", "\\["), f"{seconds:.0f}")
    return grid


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    assert __doc__
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--only",
        action="append",
        metavar="PATTERN",
        help="of the mutants' names, as in a shell; may be given several times (default: all)",
    )
    parser.add_argument("--list", action="store_true", help="print the mutants' names, run nothing")
    parser.add_argument("--pytest-args", default="", metavar="ARGS", help="added to every run")
    parser.add_argument(
        "--trust", action="store_true", help="do not run the unbroken suite first: it is green"
    )
    parser.add_argument(
        "--quick", action="store_true", help="only the tests that should catch a mutant"
    )
    return parser.parse_args()


def main() -> int:
    """Run the mutants; returns the exit status."""
    args = parse_args()
    wanted = args.only or ["*"]
    mutants = [m for m in MUTANTS if any(fnmatch(m.name, pattern) for pattern in wanted)]
    if args.list or not mutants:
        print("\n".join(mutant.name for mutant in mutants) or f"No mutant matches {args.only}.")
        return 0 if mutants else 1
    extra = shlex.split(args.pytest_args)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutate-") as name:
        original = Path(name) / "project"  # the working tree may change meanwhile
        shutil.copytree(ROOT, original, ignore=left_out)
        if not args.trust and not check_unbroken(original, extra, args.jobs):
            return 2
        results = run_all(mutants, partial(try_mutant, original, extra, args.quick), args.jobs)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table(results))
    killed = sum(result.status == "killed" for result in results)
    minutes = (time.perf_counter() - start) / 60.0
    console.print(f"{killed} of {len(results)} killed, in {minutes:.1f} minutes")
    return 0 if killed == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
