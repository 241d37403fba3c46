"""Statistics over seeds and networks. Accuracies are fractions, differences are to ``native``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from tssl_adapters.bench import known
from tssl_adapters.bench.networks import suite
from tssl_adapters.bench.observer import Record
from tssl_adapters.bench.report.tables import REFERENCE, Estimate, estimate

NARROW = ("superspike-10", "superspike-25", "superspike-100", "arctan-10", "arctan-20")
"""The baseline for timing tasks: kernels that are narrow relative to the threshold."""
MEASURES = ("final", "mean")


class NetworkRow(NamedTuple):
    """A rule's results on a network; differences are over the seeds that both have.

    ``ratio`` and ``cosine`` compare the first batch's gradient with native's, averaged over seeds,
    for the first connection and for all parameters.
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
    """A rule's differences over a group of networks; each counts once, by its mean over seeds.

    The intervals of ``final`` and ``mean`` are Student's t over networks: the range for another
    network of the kind. That of ``over_seeds``, for the final accuracy, is over the seeds that all
    networks of the group have: the range for other seeds of these networks.
    """

    group: str
    rule: str
    networks: int
    runs: int
    final: Estimate
    over_seeds: Estimate | None
    mean: Estimate
    worst: float
    worst_network: str


class TimingRow(NamedTuple):
    """A rule on a timing task, minus the best narrow kernel there, paired by seed."""

    network: str
    rule: str
    best: str
    difference: Estimate


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row per run, with the columns that the tables need."""
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
    """One row per epoch, in the form that the plots of curves need."""
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


def paired(table: pd.DataFrame, to: str = REFERENCE) -> pd.DataFrame:
    """The other rules' runs minus one rule's, for the networks and seeds that both have."""
    run = ["network", "seed"]
    reference = table.loc[table["rule"] == to, [*run, *MEASURES]]
    found = table[table["rule"] != to].merge(reference, on=run, suffixes=("", "_reference"))
    for measure in MEASURES:
        found[measure] -= found[f"{measure}_reference"]
    return found


def of_networks(table: pd.DataFrame) -> list[NetworkRow]:
    """One row per network and rule, in the order of the records."""
    differences = dict(list(paired(table).groupby(["network", "rule"])))
    found = []
    for (network, rule), runs in table.groupby(["network", "rule"], sort=False):
        first, mine = runs.iloc[0], differences.get((network, rule))
        found.append(
            NetworkRow(
                network,
                first["kind"],
                first["group"],
                rule,
                len(runs),
                estimate(runs["final"]),
                estimate(runs["mean"]),
                None if mine is None else estimate(mine["final"]),
                None if mine is None else estimate(mine["mean"]),
                (runs["ratio_first"].mean(), runs["ratio_all"].mean()),
                (runs["cosine_first"].mean(), runs["cosine_all"].mean()),
                runs["seconds"].median(),
            )
        )
    return found


def groups(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The runs of all networks in a set, of each kind, of each set, and of each kind in each."""
    yield known.ALL, table[table["group"] != ""]
    for kind in known.KINDS:
        yield kind, table[table["kind"] == kind]
    for name in known.SETS:
        of_set = table[table["group"] == name]
        yield name, of_set
        for kind in known.KINDS:
            yield f"{name}, {kind}", of_set[of_set["kind"] == kind]


def pooled(table: pd.DataFrame) -> list[PooledRow]:
    """One row for each group that has networks and each rule except the reference."""
    return [
        _pooled(group, str(rule), mine)
        for group, runs in groups(paired(table))
        for rule, mine in runs.groupby("rule", sort=False)
    ]


def _pooled(group: str, rule: str, differences: pd.DataFrame) -> PooledRow:
    by_network = differences.groupby("network", sort=False)[list(MEASURES)].mean()
    by_seed = differences.pivot(index="seed", columns="network", values="final").dropna()
    return PooledRow(
        group,
        rule,
        len(by_network),
        len(differences),
        estimate(by_network["final"]),
        estimate(by_seed.mean(axis=1)) if len(by_seed) else None,
        estimate(by_network["mean"]),
        float(by_network["final"].min()),
        str(by_network["final"].idxmin()),
    )


def of_timing(table: pd.DataFrame) -> list[TimingRow]:
    """Rules on the timing tasks, minus the :data:`NARROW` rule of highest mean accuracy."""
    found = []
    for network, runs in table[table["kind"] == "timing"].groupby("network", sort=False):
        narrow = runs[runs["rule"].isin(NARROW)].groupby("rule", sort=False)["final"].mean()
        if narrow.empty:
            continue
        best = str(narrow.idxmax())
        for rule, mine in paired(runs, best).groupby("rule", sort=False):
            found.append(TimingRow(str(network), str(rule), best, estimate(mine["final"])))
    return found


def other_starts(records: Sequence[Record]) -> list[str]:
    """Runs that cannot be compared, as their loss on the first batch differs from native's."""
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
