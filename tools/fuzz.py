"""Look for the next fault: random layers and all that may be done with them, a seed each.

python tools/fuzz.py --cases 10000 --jobs 2 --out fuzz.jsonl
python tools/fuzz.py --seed 1234 --script
TRITON_INTERPRET=1 python tools/fuzz.py --cases 1000 --engine triton

Each case runs a layer three ways. The library's own has the values, which the wrapped layer has to
have bit for bit, states and errors too; a float64 recursion that shares no code with the engine
(tests/support/oracle_neurons.py) has the gradients, along the layer's own spikes. A failure is
printed as a script of its own. Run again with the same file, it goes on after the cases that are
there.

Two thirds go through the compiled loops. The wrapped layer runs its loop twice: what is decided at
the first step or call has to hold at the next.

Exits with 1 if a case failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests/support"))  # the oracle is there

from fuzzing.case import BLOCK, drawn
from fuzzing.script import body
from fuzzing.workers import Line, answer, blocks, work
from interpreted import as_compiled

ENGINES = ("cpu", "torch", "triton")


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--cases", type=int, default=1000, help="how many (1000)")
    made.add_argument("--first", type=int, default=0, help="the first one's seed (0)")
    made.add_argument("--jobs", type=int, default=1, help="processes at a time (1)")
    made.add_argument("--out", type=Path, default=Path("fuzz.jsonl"), help="a line for each block")
    made.add_argument("--show", type=int, default=3, help="scripts to print of each kind (3)")
    made.add_argument("--seed", type=int, help="run this case alone, in this process")
    made.add_argument("--script", action="store_true", help="with --seed: show it if it passes too")
    made.add_argument("--engine", choices=ENGINES, help="for every case (its own, drawn)")
    made.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases, or one of them."""
    given = parser().parse_args(arguments)
    torch.set_num_threads(1)
    if given.engine == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        as_compiled(pytest.MonkeyPatch())
    if given.worker:
        work(sys.stdin, given.engine)
        return 0
    if given.seed is not None:
        return _alone(given.seed, given.script, given.engine)
    begins = range(given.first - given.first % BLOCK, given.first + given.cases, BLOCK)
    lines = _all(begins, given.jobs, given.out, given.engine)
    _report(lines, given.show)
    return int(any(line["failures"] for line in lines))


def _all(begins: Sequence[int], jobs: int, out: Path, engine: str | None) -> list[Line]:
    """One line per block: those in the file, and the others, which are run and added to it."""
    known = {line["first"]: line for line in _read(out)}
    missing = [first for first in begins if first not in known]
    failures: Counter[str] = Counter()
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    with Progress(*columns, TimeRemainingColumn()) as progress, out.open("a") as file:
        done = (len(begins) - len(missing)) * BLOCK
        task = progress.add_task("cases", total=len(begins) * BLOCK, completed=done)
        for line in blocks(missing, jobs, engine):
            known[line["first"]] = line
            file.write(json.dumps(line) + "\n")
            file.flush()
            failures.update(failure["kind"] for failure in line["failures"])
            failed = ", ".join(f"{number} {kind}" for kind, number in failures.items())
            progress.update(task, advance=BLOCK, description=f"cases; failed: {failed or 'none'}")
    return [known[first] for first in begins]


def _read(path: Path) -> Iterator[Line]:
    """The blocks in the file; an incomplete last line is terminated first."""
    if not path.exists():
        return
    text = path.read_text()
    if text and not text.endswith("\n"):
        path.write_text(text + "\n")
    for line in text.splitlines():
        with suppress(json.JSONDecodeError):
            yield json.loads(line)


def _report(lines: Sequence[Line], show: int) -> None:
    console, outcomes = Console(), Counter[str]()
    kinds: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        outcomes.update(line["outcomes"])
        for failure in line["failures"]:
            kinds.setdefault(failure["kind"], []).append(failure)
    table = Table("what they came to", "cases")
    for outcome, number in outcomes.most_common():
        table.add_row(outcome, str(number))
    console.print(table)
    for kind, failures in kinds.items():
        for failure in failures[:show]:
            console.rule(f"{kind}, seed {failure['seed']}")
            print(failure["text"], failure["script"], sep="\n\n")
    seconds = sum(line["seconds"] for line in lines)
    console.print(f"{sum(outcomes.values())} cases in {seconds:.0f} s of processes")


def _alone(seed: int, wanted: bool, engine: str | None) -> int:
    found = answer(seed, engine)
    print(f"# {found['outcome']}")
    failure = found["failure"]
    if failure is not None:
        print("".join(f"# {line}\n" for line in failure["text"].splitlines()) + failure["script"])
    elif wanted:
        print(body(drawn(seed)))
    return int(failure is not None)


if __name__ == "__main__":
    sys.exit(main())
