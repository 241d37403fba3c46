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
PACKAGE = ROOT / "tssl_adapters"
PAGE = ROOT / "docs" / "supported.md"
START, END = "<!-- versions: written by nox -->\n", "<!-- end of versions -->\n"
LIBRARIES = {"snntorch": "snnTorch", "spikingjelly": "SpikingJelly", "norse": "Norse"}
NAMES = {**LIBRARIES, "torch": "torch"}
FILES = {library: PACKAGE / "adapters" / library / "library.json" for library in LIBRARIES}
TORCH = PACKAGE / "tested_versions.json"

Record = dict[str, dict[str, str]]
"""What each version of a library or torch was tested with."""


def installed(product: str) -> str:
    """The installed version, without torch's build label."""
    return version(product).split("+")[0]


def add(record: Record, product: str) -> Record:
    """The record plus the installed version of a library or of torch, sorted by version."""
    beside = LIBRARIES if product == "torch" else ["torch"]
    python = ".".join(platform.python_version_tuple()[:2])
    ran = [*(f"{NAMES[name]} {installed(name)}" for name in beside), f"Python {python}"]
    versions = record.get(product, {}) | {installed(product): ", ".join(ran)}
    return record | {product: dict(sorted(versions.items(), key=lambda item: Version(item[0])))}


def table(record: Record) -> str:
    """A Markdown table: one line for each library and environment, and for torch."""
    lines = ["| library | versions | with |", "|---|---|---|"]
    for product, versions in record.items():
        for environment in dict.fromkeys(versions.values()):
            ran = [name for name, where in versions.items() if where == environment]
            lines.append(f"| {NAMES[product]} | {', '.join(ran)} | {environment} |")
    return "\n".join(lines) + "\n"


def with_table(page: str, record: Record) -> str:
    """The page with the table between its two markers."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{table(record)}\n{END}{after}"


def read() -> Record:
    """Read the libraries' records, each beside its adapter, and torch's."""
    told = {library: json.loads(file.read_text())["tested"] for library, file in FILES.items()}
    return told | json.loads(TORCH.read_text())


def write(record: Record) -> None:
    """Write the record back to where it was read from."""
    for library, file in FILES.items():
        _dump(file, json.loads(file.read_text()) | {"tested": record[library]})
    _dump(TORCH, {"torch": record["torch"]})


def _dump(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    """Add the products named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("products", nargs="+", choices=NAMES)
    record = read()
    for product in parser.parse_args().products:
        record = add(record, product)
    write(record)
    PAGE.write_text(with_table(PAGE.read_text(), record))


if __name__ == "__main__":
    main()
