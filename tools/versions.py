"""Write down that the suite passed with an installed version, and the documentation's table.

python tools/versions.py snntorch
python tools/versions.py torch

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
PAGE = ROOT / "docs" / "supported.md"
START, END = "<!-- versions: written by nox -->\n", "<!-- end of versions -->\n"
LIBRARIES = {"snntorch": "snnTorch", "spikingjelly": "SpikingJelly", "norse": "Norse"}
NAMES = {**LIBRARIES, "torch": "torch"}

Record = dict[str, dict[str, str]]
"""By library, or torch, and version: what it was run with."""


def installed(product: str) -> str:
    """The installed version, without the label that tells torch's builds apart."""
    return version(product).split("+")[0]


def add(record: Record, product: str) -> Record:
    """The record with the installed version of a library or of torch, oldest version first."""
    beside = LIBRARIES if product == "torch" else ["torch"]
    python = ".".join(platform.python_version_tuple()[:2])
    ran = [*(f"{NAMES[name]} {installed(name)}" for name in beside), f"Python {python}"]
    versions = record.get(product, {}) | {installed(product): ", ".join(ran)}
    return record | {product: dict(sorted(versions.items(), key=lambda item: Version(item[0])))}


def table(record: Record) -> str:
    """Markdown: one line for each library and environment, and for torch."""
    lines = ["| library | versions | with |", "|---|---|---|"]
    for product, versions in record.items():
        for environment in dict.fromkeys(versions.values()):
            ran = [name for name, where in versions.items() if where == environment]
            lines.append(f"| {NAMES[product]} | {', '.join(ran)} | {environment} |")
    return "\n".join(lines) + "\n"


def with_table(page: str, record: Record) -> str:
    """The page with the table between its two marks."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{table(record)}\n{END}{after}"


def main() -> None:
    """Add what is named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("products", nargs="+", choices=NAMES)
    record: Record = json.loads(RECORD.read_text())
    for product in parser.parse_args().products:
        record = add(record, product)
    RECORD.write_text(json.dumps(record, indent=2) + "\n")
    PAGE.write_text(with_table(PAGE.read_text(), record))


if __name__ == "__main__":
    main()
