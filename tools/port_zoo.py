"""Try every model of the libraries' zoos, and write a table of what can be wrapped.

python tools/port_zoo.py                            # goes on where it was interrupted
python tools/port_zoo.py --fresh --select "norse*"  # these again
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from tqdm import tqdm
from zoo import table
from zoo.check import check
from zoo.entry import Entry, Row

LIBRARIES = ("spikingjelly", "snntorch", "norse")
ROOT = Path(__file__).parent.parent
FAULTS = ("fails", "no recipe")


def entries() -> Iterator[Entry]:
    """All models, library by library."""
    for library in LIBRARIES:
        yield from importlib.import_module(f"zoo.for_{library}").entries()


def versions() -> dict[str, str]:
    """The versions with which the record was made."""
    return {name: version(name) for name in ("torch", *LIBRARIES, "tssl-adapters")}


def walk(selected: list[Entry], known: dict[str, Row], out: Path, console: Console) -> None:
    """Check the models that are not known yet, and write the record after each."""
    everything = [entry.name for entry in entries()]
    todo = [entry for entry in selected if entry.name not in known]
    for entry in (bar := tqdm(todo, unit="model")):
        bar.set_description(entry.name[-40:])
        row = known[entry.name] = check(entry)
        rows = [known[name] for name in everything if name in known]
        table.write(out, rows, versions())
        if row.verdict in FAULTS:
            console.print(f"[red]{row.verdict}[/red] {row.name}: {row.reason}", highlight=False)


def main() -> None:
    """Check the models and write the results; fail if a model fails or is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--select", default="*", help="pattern on 'library: constructor [variant]'")
    parser.add_argument("--fresh", action="store_true", help="check the selected models again")
    parser.add_argument("--again", nargs="*", default=[], help="verdicts to check again")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "zoo.json")
    parser.add_argument("--table", type=Path, default=ROOT / "docs" / "zoo.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(stderr=True)
    everything = list(entries())
    selected = [entry for entry in everything if fnmatchcase(entry.name, _pattern(args.select))]
    again = {entry.name for entry in selected} if args.fresh else set()
    recorded = [row for row in table.read(args.out) if row.verdict not in args.again]
    known = {row.name: row for row in recorded if row.name not in again}
    walk(selected, known, args.out, console)
    rows = [known[entry.name] for entry in everything if entry.name in known]
    args.table.parent.mkdir(parents=True, exist_ok=True)
    args.table.write_text(table.markdown(rows, versions(), "python tools/port_zoo.py"))
    faults = [row for row in rows if row.verdict in FAULTS]
    console.print(f"{len(rows)} of {len(everything)} models recorded, {len(faults)} at fault")
    raise SystemExit(bool(faults))


def _pattern(select: str) -> str:
    """Escape brackets, which occur in the names of variants."""
    return select.replace("[", "[[]")


if __name__ == "__main__":
    main()
