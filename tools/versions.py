"""Write down that the suite passed with a library's installed version, and the README's table.

python tools/versions.py snntorch

nox calls it at the end of each session that passed. `wrap` reads the same record: a version that
is not in it gets a warning.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parent.parent
RECORD = ROOT / "tssl_adapters" / "tested_versions.json"
README = ROOT / "README.md"
START, END = "<!-- versions: written by nox -->\n", "<!-- end of versions -->\n"
NAMES = {"snntorch": "snnTorch", "spikingjelly": "SpikingJelly", "norse": "Norse"}

Record = dict[str, dict[str, str]]
"""By library and version: what it was run with."""


def add(record: Record, library: str) -> Record:
    """The record with the installed version of a library, oldest version first."""
    python = ".".join(platform.python_version_tuple()[:2])
    ran = {version(library): f"torch {version('torch').split('+')[0]}, Python {python}"}
    versions = sorted((record[library] | ran).items(), key=lambda item: Version(item[0]))
    return record | {library: dict(versions)}


def table(record: Record) -> str:
    """Markdown: one line for each library and environment."""
    lines = ["| library | versions | with |", "|---|---|---|"]
    for library, versions in record.items():
        for environment in dict.fromkeys(versions.values()):
            ran = [name for name, where in versions.items() if where == environment]
            lines.append(f"| {NAMES[library]} | {', '.join(ran)} | {environment} |")
    return "\n".join(lines) + "\n"


def with_table(readme: str, record: Record) -> str:
    """The README with the table between its two marks."""
    before, rest = readme.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{table(record)}\n{END}{after}"


def main() -> None:
    """Add the libraries named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("libraries", nargs="+", choices=NAMES)
    record: Record = json.loads(RECORD.read_text())
    for library in parser.parse_args().libraries:
        record = add(record, library)
    RECORD.write_text(json.dumps(record, indent=2) + "\n")
    README.write_text(with_table(README.read_text(), record))


if __name__ == "__main__":
    main()
