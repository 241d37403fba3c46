"""Results on disk: one JSON file that grows model by model, and a Markdown table made from it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from zoo.entry import Row

MEANING = {
    "works": "forward equal to the native twin's bit for bit; after one training step every "
    "weight has a finite gradient that is not zero",
    "works, part silent": "the same, but some weights have no gradient natively either "
    "(unused, or no signal reaches them)",
    "overflows": "forward equal, but over some hundred layers the gradient (under `tsslbp` a slope "
    "of up to 8 at each) grows beyond float32; in float64 it is finite",
    "refused": "`wrap` refuses it before it changes anything; the reason is its own",
    "nothing to wrap": "it has no spiking layer",
    "no model": "the name is public, but not a network",
    "library error": "it does not run natively, without this package",
    "fails": "a fault of this package",
    "no recipe": "not tried",
}
_HEADINGS = "model | parameters | wrapped | native | refused | silent | weights | verdict | reason"


def read(path: Path) -> list[Row]:
    """The results recorded so far."""
    if not path.exists():
        return []
    return [Row(**row) for row in json.loads(path.read_text())["models"]]


def write(path: Path, rows: Iterable[Row], versions: dict[str, str]) -> None:
    """Replace the record atomically, so that an interrupted run leaves a readable file."""
    record = {"versions": versions, "models": [row.to_json() for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(path)


def markdown(rows: Sequence[Row], versions: dict[str, str], command: str) -> str:
    """The whole document."""
    tested = ", ".join(f"{name} {version}" for name, version in versions.items())
    rules = ", ".join(dict.fromkeys(f"`{row.rule}`" for row in rows))
    parts = [
        "# Model zoo",
        f"Every model of the libraries' zoos and in the manner of their tutorials, tried by "
        f"`{command}` with {tested}, on small inputs on a CPU, under the rule {rules}.",
        _summary(rows),
        _legend({row.verdict for row in rows}),
    ]
    for library in dict.fromkeys(row.library for row in rows):
        own = [row for row in rows if row.library == library]
        parts.append(f"## {library} {own[0].version}: {len(own)} models")
        parts.append(_table(own))
    return "\n\n".join(parts) + "\n"


def _summary(rows: Sequence[Row]) -> str:
    libraries = list(dict.fromkeys(row.library for row in rows))
    counts = Counter((row.library, row.verdict) for row in rows)
    lines = [_line(["verdict", *libraries]), _line(["---"] * (len(libraries) + 1))]
    for verdict in MEANING:
        if any(row.verdict == verdict for row in rows):
            cells = [str(counts[library, verdict]) for library in libraries]
            lines.append(_line([verdict, *cells]))
    lines.append(_line(["all", *(str(sum(r.library == x for r in rows)) for x in libraries)]))
    return "\n".join(lines)


def _legend(used: set[str]) -> str:
    columns = (
        "Columns: spiking layers wrapped, layers without spikes that stay native, spiking layers "
        "refused, spiking layers silent on this input; weights (tensors of two dimensions and "
        "more) with a gradient once wrapped, of those with one natively."
    )
    lines = [f"- **{verdict}**: {text}." for verdict, text in MEANING.items() if verdict in used]
    return "\n".join([*lines, "", columns])


def _table(rows: Sequence[Row]) -> str:
    headings = _HEADINGS.split(" | ")
    return "\n".join([_line(headings), _line(["---"] * len(headings)), *map(_row, rows)])


def _row(row: Row) -> str:
    built = row.parameters or row.wrapped or row.refused
    numbers = [row.parameters, row.wrapped, row.native, row.refused, row.silent]
    weights = f"{row.taught}/{row.weights}" if row.weights else ""
    cells = [f"{number:,}" if built else "" for number in numbers]
    return _line([f"`{row.model}`", *cells, weights, row.verdict, row.reason])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
