"""The report: its figures against sums by hand, and that the page needs no other file."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from bench_cases import accuracy
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tssl_adapters.bench.report import plots, tables
from tssl_adapters.bench.report.gradient_plots import through_depth

STUDENT = {2: 12.7062, 3: 4.30265}
"""97.5 % quantiles of Student's t for so many seeds, from a printed table."""


def record(rule: str, seed: int, epoch: int, accuracy: float, **more: Any) -> dict[str, Any]:
    """A line of the results."""
    return {
        "library": "norse", "rule": rule, "tau_s": 1.0, "data": "digits", "network": "20",
        "seed": seed, "epoch": epoch, "train_loss": 1.0, "train_accuracy": 0.5,
        "test_accuracy": accuracy, "seconds": float(epoch), "spike_rate": 0.1 * epoch, **more,
    }  # fmt: skip


RECORDS = [
    record(rule, seed, epoch, accuracy, loss="count", kept_bytes=2**21)
    for rule, seed, curve in [
        ("native", 0, (0.5, 0.6)),
        ("native", 1, (0.5, 0.7)),
        ("tsslbp", 0, (0.7, 0.62)),
        ("tsslbp", 1, (0.2, 0.75)),
        ("tsslbp", 2, (0.1, 0.2)),
    ]
    for epoch, accuracy in enumerate(curve, start=1)
]


def test_means_bests_and_intervals() -> None:
    native, tsslbp = tables.rows(tables.frame(RECORDS))
    assert (native.seeds, tsslbp.seeds, native.epochs) == (2, 3, 2)
    assert native.best.mean == pytest.approx(0.65)
    assert native.best.half == pytest.approx(STUDENT[2] * 0.05, rel=1e-4)  # sem of 0.6, 0.7
    assert tsslbp.best.mean == pytest.approx((0.7 + 0.75 + 0.2) / 3)
    assert tsslbp.highest == 0.75
    assert tsslbp.last.mean == pytest.approx((0.62 + 0.75 + 0.2) / 3)
    deviations = [0.62 - 0.5233333, 0.75 - 0.5233333, 0.2 - 0.5233333]
    sem = (sum(value**2 for value in deviations) / 2 / 3) ** 0.5
    assert tsslbp.last.half == pytest.approx(STUDENT[3] * sem, rel=1e-4)
    assert (native.seconds, native.mebibytes) == (1.5, 2.0)
    assert native.spike_rate == pytest.approx(0.2)


def test_differences_are_paired_by_seed() -> None:
    """Seed 2, which native lacks, has no part in them."""
    native, tsslbp = tables.rows(tables.frame(RECORDS))
    assert native.best_difference is None
    assert tsslbp.best_difference is not None
    assert tsslbp.last_difference is not None
    assert tsslbp.best_difference.mean == pytest.approx((0.1 + 0.05) / 2)
    assert tsslbp.best_difference.half == pytest.approx(STUDENT[2] * 0.025, rel=1e-4)
    assert tsslbp.last_difference.mean == pytest.approx((0.02 + 0.05) / 2)
    assert tsslbp.best_difference.percent("+") == "+7.50 ± 31.77"


def test_one_seed_has_no_interval() -> None:
    (row,) = tables.rows(tables.frame(RECORDS[:2]))
    assert row.best.half is None
    assert row.best.percent() == "60.00"


def test_lines_of_the_examples_will_do() -> None:
    """They lack the loss and the memory."""
    (row,) = tables.rows(tables.frame([record("native", 0, 1, 0.5)]))
    assert row.mebibytes is None
    assert row.setting["loss"] == ""


class Page(HTMLParser):
    """Its tags, and what it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.refers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        wanted = ("src", "href", "xlink:href")
        self.refers += [value for name, value in attrs if name in wanted and value]


def test_report_of_a_run(tmp_path: Path) -> None:
    options = "--rules native,arctan,tsslbp --seeds 2 --epochs 1"
    assert accuracy(tmp_path, options) == 0
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.tags.count("svg") == 8
    wide = page.tags.count("svg") + page.tags.count("table") - 1  # the options' lines break
    assert text.count('<div class="wide">') == wide  # on a phone each scrolls by itself
    assert all(target.startswith(("#", "data:")) for target in page.refers)  # within a plot
    assert "script" not in page.tags
    assert "link" not in page.tags
    for label in ("test accuracy (%)", "epoch", "training time (s per epoch)",
                  "kept for backward (MiB per batch)", "spikes per neuron and step",
                  "test accuracy minus native's (points)"):  # fmt: skip
        assert label in text
    markdown = (tmp_path / "report.md").read_text()
    rows = [
        line
        for line in markdown.splitlines()
        if re.match(r"\| \w+ \| (native|arctan|tsslbp) ", line)
    ]
    assert len(rows) == 8  # Norse has no arctan
    assert {line.count("|") for line in rows} == {13}
    for part in (text, markdown):
        assert "norse has no arctan surrogate" in part
    for name in re.findall(r"\]\((.*?)\)", markdown):
        assert (tmp_path / name).read_text().startswith("<svg")


def test_failures_are_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tssl_adapters.bench import runs

    network = runs.network

    def fails(settings: Any, samples: Any) -> Any:
        if settings.seed == 1:
            raise ValueError("<this> is why")
        return network(settings, samples)

    monkeypatch.setattr(runs, "network", fails)
    assert accuracy(tmp_path, "--libraries norse --rules tsslbp --seeds 2 --epochs 1") == 1
    assert "seed 1: ValueError: <this> is why" in (tmp_path / "report.md").read_text()
    assert "ValueError: &lt;this&gt; is why" in (tmp_path / "report.html").read_text()


# Plots


def drawn(figure: Figure) -> Any:
    """Draw it; what knows how large its parts are."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def test_no_two_lines_look_alike_in_grey() -> None:
    """Ten contestants are in one panel of ``bench speed``'s plots."""
    looks = plots.looks([str(number) for number in range(40)])
    assert len({(look["linestyle"], look["marker"]) for look in looks.values()}) == 40


@pytest.mark.parametrize(
    ("low", "factor"), [(40.0, 1.5), (2.0, 6.0), (2.0, 16.0), (0.0031, 90.0), (0.0031, 1e8)]
)
def test_numbers_on_a_logarithmic_axis_have_room(low: float, factor: float) -> None:
    values = [low, low * factor]
    figure, (panel,) = plots.panels(1)
    panel.loglog(values, values)
    panel.set(xlabel="x", ylabel="y", title="two\nlines")
    for axis in (panel.xaxis, panel.yaxis):
        plots.plain_numbers(axis)
    renderer = drawn(figure)
    for place, axis in enumerate((panel.xaxis, panel.yaxis)):
        first, last = axis.get_view_interval()
        labels = [label for label in axis.get_ticklabels(which="both")
                  if label.get_text() and first <= label.get_position()[place] <= last]  # fmt: skip
        boxes = [label.get_window_extent(renderer).get_points() for label in labels]
        ends = sorted(tuple(box[:, place]) for box in boxes)
        assert len(ends) >= 2
        assert all(before[1] < after[0] for before, after in pairwise(ends)), labels


def test_long_titles_stay_over_their_panels() -> None:
    """And those of the gradients say the data and the network too."""
    network = "15C5-P2-40C5-P2-300"
    groups = [
        {"data": data, "network": network, "library": "spikingjelly", "tau_s": 3.0,
         "loss": "cross-entropy", "rules": ["native"], "norm": {"native": [1.0, 2.0]}}
        for data in ("fashion-mnist", "dvs-gesture", "mnist")
    ]  # fmt: skip
    table = tables.frame(
        [
            record("native", 0, epoch, 0.5, **{**group, "library": library})
            for group, library in zip(groups, ("spikingjelly", "norse", "snntorch"), strict=True)
            for epoch in (1, 2)
        ]
    )
    for figure in (through_depth(groups), plots.over_epochs(table, "train_loss", "loss")):
        renderer = drawn(figure)
        boxes = [axis.title.get_window_extent(renderer) for axis in figure.axes]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert network in through_depth(groups).axes[0].get_title()
