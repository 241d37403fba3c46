"""The report itself: ``report.html``, which needs no other file, and ``report.md``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from tssl_adapters.bench.experiment import CONFIG, ENVIRONMENT, Experiment, write
from tssl_adapters.bench.observer import Record
from tssl_adapters.bench.report import gradient_plots, names, plots, tables
from tssl_adapters.bench.report.gradient_plots import Group, title

PLOTS = "plots"


class Plot(NamedTuple):
    """A plot of the report: its file's name, heading, what it shows, and itself as SVG."""

    name: str
    heading: str
    caption: str
    svg: str


class Published(NamedTuple):
    """Test accuracies of the best epochs, as fractions: their mean over runs, and the best."""

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
    """Write both files into the experiment's folder, and the plots that the second one shows.

    Args:
        experiment: whose folder has the options and the environment already.
        records: lines of its results.
        failures: lines of its failed runs.
        left_out: what was not run, and why.
        gradients: what ``bench.gradients.compare`` returned, for each setting.
        published: accuracies to put beside these, by data and network.
    """
    records, gradients = names.of_records(records), names.of_gradients(gradients)
    rows = tables.rows(tables.frame(records)) if records else []
    drawn = [*(_accuracy_plots(records, rows) if rows else []),
             *(_gradient_plots(gradients) if gradients else [])]  # fmt: skip
    folder = experiment.folder
    context: dict[str, Any] = {
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
        "gradients": [(title(group), group["activity"]) for group in gradients],
    }
    render(folder, "report", context)


def render(folder: Path, template: str, context: Mapping[str, Any]) -> None:
    """Write ``report.html`` and ``report.md`` from the templates of a name, and the plots.

    Args:
        folder: the experiment's, with its options and its environment.
        template: the name, without its ending.
        context: what the templates show, ``plots`` among it.
    """
    context = {
        **context,
        "config": yaml.safe_load((folder / CONFIG).read_text()),
        "environment": json.loads((folder / ENVIRONMENT).read_text()),
    }
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


def _run(failure: Record) -> str:
    names = ("library", "rule", "tau_s", "data", "network", "seed")
    return ", ".join(
        f"{name} {failure[name]}" if name in ("tau_s", "seed") else failure[name] for name in names
    )


def _accuracy_plots(records: Sequence[Record], rows: Sequence[tables.Row]) -> list[Plot]:
    table = tables.frame(records)
    spread = "Lines are means over seeds, shaded from the lowest to the highest seed."
    found = [
        plot("Test accuracy", spread,
             plots.over_epochs(table, "test_accuracy", "test accuracy (%)", 100.0)),
        plot("Training loss", spread,
             plots.over_epochs(table, "train_loss", "training loss (per sample)")),
        plot("Firing rate", f"{spread} On the test set, over all spiking layers.",
             plots.over_epochs(table, "spike_rate", "spikes per neuron and step")),
        plot("Time and memory", "Medians over epochs: seconds of training, and what autograd "
             "keeps of one batch between forward and backward.", plots.costs(rows)),
    ]  # fmt: skip
    differences = plots.differences(rows)
    if differences is not None:
        caption = "Means over the seeds that both have, and 95 % intervals (none from one seed)."
        found.insert(1, plot("Differences to native", caption, differences))
    return found


def _gradient_plots(gradients: Sequence[Group]) -> list[Plot]:
    same = "On one batch, from the same weights."
    return [
        plot("Gradients through depth", f"{same} Layer 1 is the input's.",
             gradient_plots.through_depth(gradients)),
        plot("Gradients through time", f"{same} Norm over the batch's neurons.",
             gradient_plots.through_time(gradients)),
        plot("Agreement of the gradients", f"{same} Cosines between the rules' weight gradients.",
             gradient_plots.agreement(gradients)),
    ]  # fmt: skip


def plot(heading: str, caption: str, figure: Figure) -> Plot:
    """A plot whose file is named for its heading."""
    return Plot(heading.lower().replace(" ", "_"), heading, caption, plots.svg(figure))
