"""The suite's report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from tssl_adapters.bench.experiment import Experiment
from tssl_adapters.bench.networks import suite, tables
from tssl_adapters.bench.observer import Record
from tssl_adapters.bench.report import Plot, listed, names, plot, plots, render
from tssl_adapters.bench.report.tables import reference_first


def write_page(
    experiment: Experiment,
    records: Sequence[Record],
    failures: Sequence[Record],
    left_out: Sequence[str],
) -> None:
    """Write ``report.html``, ``report.md`` and their plots into the experiment's folder.

    Args:
        experiment: its folder already has the options and the environment.
        records: lines of the results.
        failures: runs that failed.
        left_out: the runs that were left out, and why.
    """
    order = {name: place for place, name in enumerate(suite.networks())}
    records = sorted(names.of_records(records), key=reference_first)
    records = sorted(records, key=lambda record: order.get(record["network"], -1))
    table = tables.frame(records)
    rows = tables.of_networks(table)
    rules = listed((row.rule for row in rows), "rules")
    networks = listed((row.network for row in rows), "networks")
    context: dict[str, Any] = {
        "title": f"Training under {rules}: {networks} of the suite",
        "one_epoch": False,
        "rows": rows,
        "pooled": tables.pooled(table),
        "timing": tables.of_timing(table),
        "starts": tables.other_starts(records),
        "plots": _plots(records, rows),
        "failures": failures,
        "left_out": left_out,
    }
    render(experiment.folder, "networks", context)


def _plots(records: Sequence[Record], rows: Sequence[tables.NetworkRow]) -> list[Plot]:
    spread = "Lines are means over seeds, shaded from the lowest to the highest seed."
    found = []
    compared = [row for row in rows if row.final_difference is not None]
    if compared:
        caption = "Final accuracy, means over seeds and 95 % intervals (none from one seed)."
        found.append(plot("Differences to native", caption, partial(differences, compared)))
    curves = plots.curves(tables.epochs(records))
    if len(curves):
        draw = partial(partial, plots.over_epochs, curves)
        found += [
            plot("Test accuracy", spread, draw("test_accuracy", "test accuracy (%)", 100.0)),
            plot("Training loss", f"{spread} Each network has its own loss.",
                 draw("train_loss", "training loss (per sample)", share=False)),
        ]  # fmt: skip
    return found


def differences(rows: Sequence[tables.NetworkRow], *, columns: int = plots.COLUMNS) -> Figure:
    """Differences to native in points, one line per network, one marker per rule."""
    networks = list(dict.fromkeys(row.network for row in rows))
    rules = list(dict.fromkeys(row.rule for row in rows))
    styles = plots.looks(rules)
    figure, (axis,) = plots.panels(1)
    figure.set_size_inches(
        min(2, columns) * plots.WIDTH, max(plots.HEIGHT, 0.3 * len(networks) + 1.2)
    )
    for number, rule in enumerate(rules):
        mine = [row for row in rows if row.rule == rule]
        found = [row.final_difference for row in mine if row.final_difference is not None]
        offset = 0.6 * ((number + 0.5) / len(rules) - 0.5)
        axis.errorbar(
            [100 * estimate.mean for estimate in found],
            [networks.index(row.network) + offset for row in mine],
            xerr=[100 * (estimate.half or 0.0) for estimate in found],
            capsize=2,
            label=rule,
            **{**styles[rule], "linestyle": "none"},
        )
    axis.axvline(0.0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(networks)), networks)
    axis.set_ylim(len(networks) - 0.5, -0.5)
    axis.set(xlabel="final test accuracy minus native's (points)")
    plots.legend(figure, [axis])
    return figure
