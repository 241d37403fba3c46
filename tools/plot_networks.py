"""Draw README's picture: what the default rule changes on each network of the suite.

python tools/plot_networks.py --out docs/assets/networks.svg

It reads benchmarks/networks and benchmarks/networks_fashion and trains nothing. The same records
give the same file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from tssl_adapters.bench import known
from tssl_adapters.bench.networks import tables

RECORDS = Path(__file__).parent.parent / "benchmarks"
RULE = "smooth-tsslbp"
STYLE = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "tssl_adapters"}
"""Text stays text, which is small and searchable."""


def recorded() -> pd.DataFrame:
    """Every recorded run of the suite; the first of duplicates."""
    found: dict[tuple[Any, ...], Any] = {}
    for folder in ("networks", "networks_fashion"):
        for line in (RECORDS / folder / "results.jsonl").read_text().splitlines():
            run = json.loads(line)
            found.setdefault((run["network"], run["rule"], run["seed"]), run)
    return tables.frame([*found.values()])


def figure(table: pd.DataFrame) -> Figure:
    """Differences to the library's own gradient, in points: a dot per seed, a bar at their mean."""
    differences = tables.paired(table)
    differences = differences[differences["rule"] == RULE]
    by_kind = differences.groupby(pd.Categorical(differences["kind"], known.KINDS), observed=True)
    drawn, place, ticks = Figure(figsize=(8, 5.4), layout="constrained"), 0, {}
    axes = drawn.subplots()
    axes.axvline(0, color="0.6", linewidth=1)
    for colour, (kind, runs) in enumerate(by_kind):
        means = runs.groupby("network")["final"].mean().sort_values(ascending=False)
        for number, (network, mean) in enumerate(means.items()):
            ticks[place] = network
            seeds = 100 * runs.loc[runs["network"] == network, "final"]
            label = kind if number == 0 else None
            style = {"color": f"C{colour}", "clip_on": False}
            axes.plot(seeds, [place] * len(seeds), "o", alpha=0.35, markersize=4, **style)
            axes.plot(100 * mean, place, "|", markersize=13, mew=3, label=label, **style)
            place += 1
        place += 1
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("test accuracy less that of the library's own gradient, in points")
    axes.legend(frameon=False, loc="lower right")
    return drawn


def main() -> None:
    """Write the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="an .svg or .png file")
    out: Path = parser.parse_args().out
    with mpl.rc_context(STYLE):
        metadata = {"Date": None} if out.suffix == ".svg" else None
        figure(recorded()).savefig(out, metadata=metadata, facecolor="white")


if __name__ == "__main__":
    main()
