"""Statistics over seeds: means, bests, intervals, and differences to native, as fractions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd
from scipy import stats

from tssl_adapters.bench.observer import Record

SETTING = ["data", "network", "loss", "tau_s", "library"]
"""The settings under which rules are compared."""
CONFIDENCE = 0.95
REFERENCE = "native"


class Estimate(NamedTuple):
    """A mean over seeds, and half its 95 % interval by Student's t; no interval from one seed."""

    mean: float
    half: float | None

    def percent(self, sign: str = "") -> str:
        """In percent, or, with the sign ``+``, in percentage points."""
        if self.half is None:
            return f"{100 * self.mean:{sign}.2f}"
        return f"{100 * self.mean:{sign}.2f} ± {100 * self.half:.2f}"


class Row(NamedTuple):
    """A rule's results under one setting.

    ``best`` and ``last`` are the test accuracies of a run's best epoch and of its last; differences
    are to ``native``, seed by seed. ``seconds`` of training per epoch and ``mebibytes`` saved for
    the backward pass per batch are medians; ``spike_rate`` is the mean in the last epoch.
    """

    setting: dict[str, str]
    rule: str
    seeds: int
    epochs: int
    best: Estimate
    highest: float
    last: Estimate
    best_difference: Estimate | None
    last_difference: Estimate | None
    seconds: float
    mebibytes: float | None
    spike_rate: float


def reference_first(record: Record) -> bool:
    """A sort key that puts native before the rules compared with it."""
    return bool(record["rule"] != REFERENCE)


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per epoch; records of the examples lack the loss."""
    table = pd.DataFrame(records)
    for name, value in (("loss", ""), ("kept_bytes", float("nan"))):
        table[name] = table[name].fillna(value) if name in table else value
    return table


def estimate(values: pd.Series) -> Estimate:
    """Mean and interval of independent values."""
    number = len(values)
    if number < 2:
        return Estimate(float(values.mean()), None)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, number - 1) * stats.sem(values)
    return Estimate(float(values.mean()), float(half))


def rows(table: pd.DataFrame) -> list[Row]:
    """One row per setting and rule, in the order of the records."""
    found = []
    for keys, setting in table.groupby(SETTING, sort=False):
        named = {name: _text(value) for name, value in zip(SETTING, keys, strict=True)}
        by_rule = {rule: _by_seed(epochs) for rule, epochs in setting.groupby("rule", sort=False)}
        reference = by_rule.get(REFERENCE)
        for rule, epochs in setting.groupby("rule", sort=False):
            found.append(_row(named, str(rule), epochs, by_rule[rule], reference))
    return found


def differing(rows: Sequence[Row]) -> list[str]:
    """The settings that the rows do not share; the library at least."""
    found = [name for name in SETTING if len({row.setting[name] for row in rows}) > 1]
    return found or ["library"]


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _by_seed(epochs: pd.DataFrame) -> pd.DataFrame:
    """Best and last test accuracy of each seed's run, and its number of epochs."""
    runs = epochs.sort_values("epoch").groupby("seed")
    accuracy = runs["test_accuracy"]
    found = {"best": accuracy.max(), "last": accuracy.last(), "epochs": runs["epoch"].max()}
    return pd.DataFrame(found)


def _row(
    setting: dict[str, str],
    rule: str,
    epochs: pd.DataFrame,
    mine: pd.DataFrame,
    reference: pd.DataFrame | None,
) -> Row:
    last_epochs = epochs.loc[epochs.groupby("seed")["epoch"].idxmax()]
    kept = epochs["kept_bytes"].median()
    return Row(
        setting=setting,
        rule=rule,
        seeds=len(mine),
        epochs=int(epochs["epoch"].max()),
        best=estimate(mine["best"]),
        highest=float(mine["best"].max()),
        last=estimate(mine["last"]),
        best_difference=_difference(rule, mine, reference, "best"),
        last_difference=_difference(rule, mine, reference, "last"),
        seconds=float(epochs["seconds"].median()),
        mebibytes=None if pd.isna(kept) else float(kept) / 2**20,
        spike_rate=float(last_epochs["spike_rate"].mean()),
    )


def _difference(
    rule: str, mine: pd.DataFrame, reference: pd.DataFrame | None, which: str
) -> Estimate | None:
    """The difference over the seeds that both have, trained for the same number of epochs."""
    if rule == REFERENCE or reference is None:
        return None
    difference = mine - reference  # by seed; NaN where one of them lacks it
    paired = difference.loc[difference["epochs"] == 0, which]
    return estimate(paired) if len(paired) else None
