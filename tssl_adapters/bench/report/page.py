"""The report itself: ``report.html``, which needs no other file, and ``report.md``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from tssl_adapters.bench.experiment import CONFIG, ENVIRONMENT, Experiment, write
from tssl_adapters.bench.report import plots, tables
from tssl_adapters.bench.trainer import Record

PLOTS = "plots"


class Plot(NamedTuple):
    """A plot of the report: its file's name, heading, what it shows, and itself as SVG."""

    name: str
    heading: str
    caption: str
    svg: str


def write_report(
    experiment: Experiment,
    records: Sequence[Record],
    failures: Sequence[Record] = (),
    left_out: Sequence[str] = (),
) -> None:
    """Write both files into the experiment's folder, and the plots that the second one shows."""
    if not records:
        return
    table = tables.frame(records)
    rows = tables.rows(table)
    drawn = _plots(table, rows)
    folder = experiment.folder
    context: dict[str, Any] = {
        "rows": rows,
        "settings": tables.differing(rows),
        "plots": drawn,
        "failures": failures,
        "left_out": left_out,
        "config": yaml.safe_load((folder / CONFIG).read_text()),
        "environment": json.loads((folder / ENVIRONMENT).read_text()),
    }
    (folder / PLOTS).mkdir(exist_ok=True)
    for plot in drawn:
        write(folder / PLOTS / f"{plot.name}.svg", plot.svg)
    templates = Environment(
        loader=PackageLoader("tssl_adapters.bench.report", "."),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for kind in ("html", "md"):
        text = templates.get_template(f"report.{kind}.j2").render(context)
        write(folder / f"report.{kind}", text)


def _plots(table: Any, rows: Sequence[tables.Row]) -> list[Plot]:
    spread = "Lines are means over seeds, shaded from the lowest to the highest seed."
    figures: list[tuple[str, str, str, Figure | None]] = [
        ("test_accuracy", "Test accuracy", spread,
         plots.over_epochs(table, "test_accuracy", "test accuracy (%)", 100.0)),
        ("differences", "Differences to native",
         "Means over the seeds that both have, and 95 % intervals (none from one seed).",
         plots.differences(rows)),
        ("train_loss", "Training loss", spread,
         plots.over_epochs(table, "train_loss", "training loss (per sample)")),
        ("spike_rate", "Firing rate", f"{spread} On the test set, over all spiking layers.",
         plots.over_epochs(table, "spike_rate", "spikes per neuron and step")),
        ("costs", "Time and memory",
         "Medians over epochs. What autograd keeps of one batch between forward and backward.",
         plots.costs(rows)),
    ]  # fmt: skip
    return [
        Plot(name, heading, caption, plots.svg(figure))
        for name, heading, caption, figure in figures
        if figure is not None
    ]
