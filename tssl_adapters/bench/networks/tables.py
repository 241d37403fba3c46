"""Figures over seeds and networks. Accuracies are fractions, differences are to ``native``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd

from tssl_adapters.bench.networks import suite
from tssl_adapters.bench.observer import Record
from tssl_adapters.bench.report.tables import REFERENCE, Estimate, estimate

NARROW = ("superspike-10", "superspike-25", "superspike-100", "arctan-10", "arctan-20")
"""What timing tasks are held against: kernels that are narrow beside the threshold."""
MEASURES = ("final", "mean")


class NetworkRow(NamedTuple):
    """What a rule came to on a network; differences of the seeds that both have.

    ``ratio`` and ``cosine`` are means over seeds of the first batch's gradient beside native's,
    of the first connection and of all parameters.
    """

    network: str
    kind: str
    group: str
    rule: str
    seeds: int
    final: Estimate
    mean: Estimate
    final_difference: Estimate | None
    mean_difference: Estimate | None
    ratio: tuple[float, float]
    cosine: tuple[float, float]
    seconds: float


class PooledRow(NamedTuple):
    """A rule's differences over a group of networks, each counted once by its mean over seeds.

    The interval is Student's t over the networks: what another network of the kind may show.
    """

    group: str
    rule: str
    networks: int
    runs: int
    final: Estimate
    mean: Estimate
    worst: float
    worst_network: str


class TimingRow(NamedTuple):
    """A rule on a timing task, less the best of the narrow kernels there, paired by seed."""

    network: str
    rule: str
    best: str
    difference: Estimate


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """A line a run, with what the tables need."""
    return pd.DataFrame(
        {
            **{name: record[name] for name in ("network", "kind", "rule", "seed", *MEASURES)},
            "group": suite.set_of(record["network"]) or "",
            "seconds": record["cpu_seconds"],
            **{
                f"{figure}_{of}": _number(record["gradient"][of][figure])
                for figure in ("ratio", "cosine")
                for of in ("first", "all")
            },
        }
        for record in records
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def epochs(records: Sequence[Record]) -> pd.DataFrame:
    """A line an epoch, as the plots of curves take it."""
    return pd.DataFrame(
        {
            **{"data": "", "loss": "", "tau_s": 1.0, "library": ""},
            **{name: record[name] for name in ("network", "rule", "seed")},
            "epoch": epoch,
            "test_accuracy": accuracy,
            "train_loss": _number(loss),
        }
        for record in records
        for epoch, (accuracy, loss) in enumerate(
            zip(record["test_accuracy"], record["train_loss"], strict=True), start=1
        )
    )


def of_networks(table: pd.DataFrame) -> list[NetworkRow]:
    """A row for each network and rule, in the order of the records."""
    found = []
    for (network, rule), runs in table.groupby(["network", "rule"], sort=False):
        first = runs.iloc[0]
        differences = [_paired(table, network, rule, measure) for measure in MEASURES]
        estimates = [estimate(d) if d is not None and len(d) else None for d in differences]
        found.append(
            NetworkRow(
                network,
                first["kind"],
                first["group"],
                rule,
                len(runs),
                estimate(runs["final"]),
                estimate(runs["mean"]),
                estimates[0],
                estimates[1],
                (runs["ratio_first"].mean(), runs["ratio_all"].mean()),
                (runs["cosine_first"].mean(), runs["cosine_all"].mean()),
                runs["seconds"].median(),
            )
        )
    return found


def _by_seed(table: pd.DataFrame, network: str, rule: str, measure: str) -> pd.Series:
    runs = table[(table["network"] == network) & (table["rule"] == rule)]
    return runs.set_index("seed")[measure]


def _paired(
    table: pd.DataFrame, network: str, rule: str, measure: str, to: str = REFERENCE
) -> pd.Series | None:
    """Differences of the seeds that both have; ``None`` for the reference itself."""
    if rule == to:
        return None
    mine = _by_seed(table, network, rule, measure)
    return (mine - _by_seed(table, network, to, measure)).dropna()


Chooses = Callable[[NetworkRow], bool]


def groups() -> dict[str, Chooses]:
    """What is pooled, by its name: all, kinds, sets, and each kind of each set."""
    found: dict[str, Chooses] = {suite.ALL: lambda row: bool(row.group)}
    for kind in suite.KINDS:
        found[kind] = lambda row, kind=kind: row.kind == kind  # type: ignore[misc]
    for name in suite.SETS:
        found[name] = lambda row, name=name: row.group == name  # type: ignore[misc]
        for kind in suite.KINDS:
            found[f"{name}, {kind}"] = lambda row, name=name, kind=kind: (  # type: ignore[misc]
                row.group == name and row.kind == kind
            )
    return found


def pooled(rows: Sequence[NetworkRow]) -> list[PooledRow]:
    """A row for each group that has networks, and each rule but the reference."""
    found = []
    for group, chooses in groups().items():
        of_group = [row for row in rows if chooses(row) and row.final_difference is not None]
        for rule in dict.fromkeys(row.rule for row in of_group):
            mine = [row for row in of_group if row.rule == rule]
            finals, means = (
                pd.Series([getattr(row, f"{measure}_difference").mean for row in mine])
                for measure in MEASURES
            )
            worst = int(finals.idxmin())
            found.append(
                PooledRow(
                    group,
                    rule,
                    len(mine),
                    sum(row.seeds for row in mine),
                    estimate(finals),
                    estimate(means),
                    float(finals[worst]),
                    mine[worst].network,
                )
            )
    return found


def of_timing(table: pd.DataFrame) -> list[TimingRow]:
    """Rules on the timing tasks beside the best of :data:`NARROW` by the mean final accuracy."""
    found = []
    for network, runs in table[table["kind"] == "timing"].groupby("network", sort=False):
        finals = runs.groupby("rule", sort=False)["final"].mean()
        known = finals[[rule for rule in finals.index if rule in NARROW]]
        if known.empty:
            continue
        best = str(known.idxmax())
        for rule in finals.index:
            difference = _paired(table, network, rule, "final", best)
            if difference is not None and len(difference):
                found.append(TimingRow(network, rule, best, estimate(difference)))
    return found


def other_starts(records: Sequence[Record]) -> list[str]:
    """Runs that cannot be compared: their first batch has another loss than native's."""
    native = {
        (record["network"], record["seed"]): record["first_loss"]
        for record in records
        if record["rule"] == REFERENCE
    }
    return [
        "{network}, {rule}, seed {seed}".format_map(record)
        for record in records
        if (key := (record["network"], record["seed"])) in native
        and native[key] != record["first_loss"]
    ]
