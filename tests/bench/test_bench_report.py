"""The report: its figures against sums by hand, and that the page needs no other file."""

from __future__ import annotations

import html
import json
import re
from functools import partial
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_cases import accuracy, lines
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tssl_adapters.bench.__main__ import main
from tssl_adapters.bench.report import plot, plots, tables
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
    options = "--rules native,arctan,tsslbp --seeds 2 --epochs 2"
    assert accuracy(tmp_path, options) == 0
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.tags.count("figure") == 8
    assert page.tags.count("svg") == 16  # each for a broad window and for a narrow one
    assert text.count('<div class="broad">') == text.count('<div class="narrow">') == 8
    wide = page.tags.count("table") - 1  # the options' lines break
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


@pytest.mark.parametrize("kind", ["html", "md"])
def test_the_report_says_first_what_it_is_of(kind: str, tmp_path: Path) -> None:
    """Title, date, command, versions and machine; then the table, then plots."""
    options = "--libraries norse --rules native,tsslbp --seeds 1 --epochs 2"
    assert accuracy(tmp_path, options) == 0
    text = html.unescape((tmp_path / f"report.{kind}").read_text())
    head, _, rest = text.partition("Test accuracies in percent")
    where = json.loads((tmp_path / "environment.json").read_text())
    assert where["command"].endswith(options)
    for said in (
        "Training under native, tsslbp on digits",
        where["date"].replace("T", " ").replace("+00:00", " UTC"),
        where["command"],
        f"torch {torch.__version__}",
        where["machine"]["system"],
        f"{where['machine']['cores']} cores",
    ):
        assert head.count(said) >= 1, said
    table, figure = rest.index("native"), rest.index("Differences to native")
    assert table < figure
    assert head.index("Command") < head.index("Versions") < head.index("Machine")


def test_of_one_epoch_there_is_no_curve(tmp_path: Path) -> None:
    """It would be a lonely dot; the difference is drawn once, as best and last are one."""
    assert accuracy(tmp_path, "--libraries norse --rules native,tsslbp --seeds 1 --epochs 1") == 0
    text = (tmp_path / "report.md").read_text()
    assert "Runs of one epoch have no curve." in text
    drawn = re.findall(r"!\[(.*?)\]", text)
    assert drawn[:2] == ["Differences to native", "Time and memory"]
    assert not {"Test accuracy", "Training loss", "Firing rate"} & {*drawn}
    plot = (tmp_path / "plots/differences_to_native.svg").read_text()
    assert "last epoch" in plot
    assert "best epoch" not in plot


def test_runs_of_more_epochs_are_drawn_beside_those_of_one() -> None:
    short = [record("native", 0, 1, 0.5, library="snntorch")]
    curves = plots.curves(tables.frame([*RECORDS, *short]))
    assert set(curves["library"]) == {"norse"}


def test_a_report_keeps_what_else_is_in_the_folder(tmp_path: Path) -> None:
    """What was trained before, compared with what is new; and files that are not its own."""
    (tmp_path / "notes.txt").write_text("mine")
    options = "--libraries norse --seeds 1 --epochs 2 --rules"
    assert accuracy(tmp_path, f"{options} native") == 0
    assert accuracy(tmp_path, f"{options} tsslbp") == 0
    text = (tmp_path / "report.md").read_text()
    row = re.search(r"^\| norse \| tsslbp \| [\d.]+ \| ([+-][\d.]+) \|", text, re.MULTILINE)
    assert row is not None
    assert text.index("| norse | native |") < row.start()  # though trained before
    (group,) = json.loads((tmp_path / "gradients.json").read_text())
    assert group["rules"] == ["native", "tsslbp"]
    runs = {line["rule"]: line["test_accuracy"] for line in lines(tmp_path / "results.jsonl")}
    assert float(row.group(1)) == pytest.approx(100 * (runs["tsslbp"] - runs["native"]), abs=0.01)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    small = "--data digits --networks 20 --limit 200 --batch-size 50 --libraries norse --quiet"
    command = ["gradients", *small.split(), "--seeds", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    text = (tmp_path / "report.md").read_text()
    assert row.group() in text
    assert "## Agreement of the gradients" in text
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--lr", "0.1"])


def test_failures_of_earlier_commands_stay_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tssl_adapters.bench import runs

    def fails(settings: Any, samples: Any) -> Any:
        raise ValueError("out of luck")

    with monkeypatch.context() as patched:
        patched.setattr(runs, "network", fails)
        assert accuracy(tmp_path, "--libraries norse --rules tsslbp --seeds 1 --epochs 1") == 1
    assert accuracy(tmp_path, "--libraries norse --rules native --seeds 1 --epochs 1") == 0
    text = (tmp_path / "report.html").read_text()
    assert "<strong>1 run failed:</strong>" in text
    assert "out of luck" in text


def test_runs_of_other_lengths_are_not_subtracted() -> None:
    longer = [*RECORDS, record("native", 0, 3, 0.9, loss="count")]
    native, tsslbp = tables.rows(tables.frame(longer))
    assert native.epochs == 3
    assert tsslbp.last_difference is not None
    assert tsslbp.last_difference == tables.Estimate(pytest.approx(0.05), None)  # seed 1's alone


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
    """And those of the gradients say what sets the panels apart, the data and the network here."""
    deep = "15C5-P2-40C5-P2-300"
    groups = [
        {"data": data, "network": network, "library": "spikingjelly", "tau_s": 3.0,
         "loss": "cross-entropy", "rules": ["native"], "norm": {"native": [1.0, 2.0]}}
        for data, network in (("fashion-mnist", deep), ("dvs-gesture", deep), ("mnist", "400"))
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
    titles = [axis.get_title() for axis in through_depth(groups).axes]
    assert titles == [f"fashion-mnist, {deep}", f"dvs-gesture, {deep}", "mnist, 400"]


def test_figures_that_are_compared_have_the_same_axis() -> None:
    """Losses that are not of one kind have each its own."""
    table = tables.frame(
        [
            record(rule, 0, epoch, height * epoch, library=library, train_loss=height)
            for library, height in (("norse", 0.1), ("snntorch", 0.3))
            for rule in ("native", "tsslbp")
            for epoch in (1, 2)
        ]
    )

    def limits(figure: Figure, which: str) -> list[Any]:
        return [getattr(axis, f"get_{which}lim")() for axis in figure.axes]

    left, right = limits(plots.over_epochs(table, "test_accuracy", ""), "y")
    assert left == right
    assert left[0] < 0.1
    assert left[1] > 0.6
    left, right = limits(plots.over_epochs(table, "train_loss", "", share=False), "y")
    assert left != right
    rows = [
        row._replace(last_difference=tables.Estimate(row.last.mean, 0.01),
                     best_difference=tables.Estimate(row.last.mean, 0.01))
        for row in tables.rows(table)
    ]  # fmt: skip
    figure = plots.differences(rows)
    left, right = limits(figure, "x")
    assert left == right
    drawn(figure)
    for axis in figure.axes:
        assert any(label.get_text() for label in axis.get_xticklabels())
    group = {"data": "a", "network": "b", "tau_s": 1.0, "loss": "c", "rules": ["native"]}
    groups = [
        {**group, "library": library, "norm": {"native": norms}}
        for library, norms in (("norse", [1.0, 2.0]), ("snntorch", [10.0, 20.0]))
    ]
    left, right = limits(through_depth(groups), "y")
    assert left == right


def test_a_narrow_window_gets_panels_one_below_the_other() -> None:
    table = tables.frame(
        [record("native", 0, epoch, 0.5, library=library)
         for library in ("norse", "snntorch") for epoch in (1, 2)]
    )  # fmt: skip
    found = plot("A heading", "", partial(plots.over_epochs, table, "test_accuracy", "%"))
    assert found.name == "a_heading"
    assert found.narrow is not None
    broad, narrow = (
        [float(size) for size in re.findall(r'(?:width|height)="([\d.]+)pt"', text)][:2]
        for text in (found.svg, found.narrow)
    )
    assert broad[0] > broad[1]
    assert narrow[0] < narrow[1]
    assert narrow[0] < 72 * 1.1 * plots.WIDTH
    alone = plot("Alone", "", lambda columns: plots.panels(1, columns)[0])
    assert alone.narrow is None
