"""The report itself: ``report.html``, which is self-contained, and ``report.md``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from tssl_adapters.bench.experiment import CONFIG, ENVIRONMENT, Experiment, write
from tssl_adapters.bench.observer import Record
from tssl_adapters.bench.report import gradient_plots, names, plots, tables
from tssl_adapters.bench.report.gradient_plots import Group, titles

PLOTS = "plots"
MOST_NAMED = 4


class Plot(NamedTuple):
    """A plot of the report: file name, heading, caption, and the plot as SVG.

    ``narrow`` is a version for narrow windows, if it needs one.
    """

    name: str
    heading: str
    caption: str
    svg: str
    narrow: str | None


class Published(NamedTuple):
    """Test accuracies of the best epochs, as fractions: mean over runs, and best."""

    mean: float
    best: float


NOTHING_PUBLISHED: Mapping[tuple[str, str], Published] = MappingProxyType({})


def write_report(
    experiment: Experiment,
    records: Sequence[Record] = (),
    failures: Sequence[Record] = (),
    left_out: Sequence[str] = (),
    gradients: Sequence[Group] = (),
    published: Mapping[tuple[str, str], Published] = NOTHING_PUBLISHED,
) -> None:
    """Write both files into the experiment's folder, with the plots that the Markdown file shows.

    Args:
        experiment: its folder already has the options and the environment.
        records: lines of its results.
        failures: lines of its failed runs.
        left_out: what was not run, and why.
        gradients: the results of ``bench.gradients.compare``, one per setting.
        published: accuracies to compare with, by data and network.
    """
    records = sorted(names.of_records(records), key=tables.reference_first)
    gradients = names.of_gradients(gradients)
    table = tables.frame(records) if records else None
    rows = [] if table is None else tables.rows(table)
    drawn = [*([] if table is None else _accuracy_plots(table, rows)),
             *(_gradient_plots(gradients) if gradients else [])]  # fmt: skip
    folder = experiment.folder
    context: dict[str, Any] = {
        "title": _title(rows, gradients),
        "one_epoch": any(row.epochs == 1 for row in rows),
        "rows": rows,
        "settings": tables.differing(rows),
        "plots": drawn,
        "published": [
            (row, published[key])
            for row in rows
            if (key := (row.setting["data"], row.setting["network"])) in published
        ],
        "failures": [{"run": _run(failure), "error": failure["error"]} for failure in failures],
        "left_out": left_out,
        "gradients": [
            (name, group["activity"])
            for name, group in zip(titles(gradients), gradients, strict=True)
        ],
    }
    render(folder, "report", context)


def render(folder: Path, template: str, context: Mapping[str, Any]) -> None:
    """Write ``report.html`` and ``report.md`` from the templates of that name, and the plots.

    Args:
        folder: the experiment's folder, with options and environment.
        template: the templates' name, without suffix.
        context: what the templates show, including ``plots``.
    """
    context = {
        **context,
        "config": yaml.safe_load((folder / CONFIG).read_text()),
        "environment": json.loads((folder / ENVIRONMENT).read_text()),
    }
    context["environment"].setdefault("command", "")  # missing in older records
    (folder / PLOTS).mkdir(exist_ok=True)
    for drawn in context["plots"]:
        write(folder / PLOTS / f"{drawn.name}.svg", drawn.svg)
    templates = Environment(
        loader=PackageLoader("tssl_adapters.bench.report", "."),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for kind in ("html", "md"):
        text = templates.get_template(f"{template}.{kind}.j2").render(context)
        write(folder / f"report.{kind}", text)


def listed(names: Iterable[str], what: str) -> str:
    """A few names, or their number."""
    found = list(dict.fromkeys(names))
    return ", ".join(found) if len(found) <= MOST_NAMED else f"{len(found)} {what}"


def _title(rows: Sequence[tables.Row], gradients: Sequence[Group]) -> str:
    """What was compared, and on what."""
    if rows:
        rules, data = [row.rule for row in rows], [row.setting["data"] for row in rows]
        return f"Training under {listed(rules, 'rules')} on {listed(data, 'data sets')}"
    rules = [rule for group in gradients for rule in group["rules"]]
    data = [group["data"] for group in gradients]
    return f"Gradients of {listed(rules, 'rules')} on {listed(data, 'data sets')}"


def _run(failure: Record) -> str:
    names = ("library", "rule", "tau_s", "data", "network", "seed")
    return ", ".join(
        f"{name} {failure[name]}" if name in ("tau_s", "seed") else failure[name] for name in names
    )


def _accuracy_plots(table: pd.DataFrame, rows: Sequence[tables.Row]) -> list[Plot]:
    found = []
    if plots.compared(rows):
        caption = (
            "Means over the seeds that both have, and 95 % intervals (none from one seed); of runs "
            "of as many epochs."
        )
        found.append(plot("Differences to native", caption, partial(plots.differences, rows)))
    curves = plots.curves(table)
    if len(curves):
        found += _curves(curves)
    caption = (
        "Medians over epochs: seconds of training, and what autograd keeps of one batch between "
        "forward and backward."
    )
    return [*found, plot("Time and memory", caption, partial(plots.costs, rows))]


def _curves(table: pd.DataFrame) -> list[Plot]:
    spread = "Lines are means over seeds, shaded from the lowest to the highest seed."
    draw = partial(partial, plots.over_epochs, table)
    same_loss = table["loss"].nunique() == table["data"].nunique() == 1
    return [
        plot("Test accuracy", spread, draw("test_accuracy", "test accuracy (%)", 100.0)),
        plot("Training loss", spread,
             draw("train_loss", "training loss (per sample)", share=same_loss)),
        plot("Firing rate", f"{spread} On the test set, over all spiking layers.",
             draw("spike_rate", "spikes per neuron and step")),
    ]  # fmt: skip


def _gradient_plots(gradients: Sequence[Group]) -> list[Plot]:
    same = "On one batch, from the same weights."
    most = {name: max(len(group[name]) for group in gradients) for name in ("rules", "cosine")}
    found = []
    if most["cosine"] > 1:
        found.append(
            plot("Gradients through depth", f"{same} Layer 1 is the input's.",
                 partial(gradient_plots.through_depth, gradients))
        )  # fmt: skip
    if max(group["time_steps"] for group in gradients) > 1:
        found.append(
            plot("Gradients through time", f"{same} Norm over the batch's neurons.",
                 partial(gradient_plots.through_time, gradients))
        )  # fmt: skip
    if most["rules"] > 1:
        caption = f"{same} Cosines between the rules' weight gradients."
        draw = partial(gradient_plots.agreement, gradients)
        found.append(plot("Agreement of the gradients", caption, draw))
    return found


def plot(heading: str, caption: str, draw: Callable[..., Figure]) -> Plot:
    """A plot whose file is named after its heading; ``draw`` takes ``columns``, panels per row."""
    figure = draw(columns=plots.COLUMNS)
    narrow = None
    if figure.get_figwidth() > 1.5 * plots.WIDTH:
        narrow = plots.svg(draw(columns=1))
    name = heading.lower().replace(" ", "_")
    return Plot(name, heading, caption, plots.svg(figure), narrow)
