"""``bench paper``: the paper's set-up, and the published figures beside what was found."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

import pytest
from bench_cases import results

from tssl_adapters.bench import known, paper, places
from tssl_adapters.bench.__main__ import command_of, main
from tssl_adapters.bench.data import images

WHOLE = ["--experiments", ",".join(paper.TRIALS), "--epochs", "100"]
"""What the paper did, but for its seeds."""


def args(*more: str) -> Namespace:
    _, parser = command_of("paper")
    return parser.parse_args(["--out", "folder", *more])


def test_set_up_is_the_papers() -> None:
    grid, _ = paper.settings_of(args("--libraries", "norse", *WHOLE, "--seeds", "1"))
    found = [(run.data, run.network, run.batch_size) for run in grid]
    assert found == [
        ("fashion-mnist", "400-400", 100), ("fashion-mnist", "cnn-fashion", 50),
        ("mnist", "cnn", 50),
    ]  # fmt: skip
    for run in grid:
        assert (run.tau_s, run.loss, run.time_steps, run.lr) == (3.0, "kernel", 5, 5e-4)
        assert (run.rule, run.epochs, run.schedule) == ("tsslbp", 100, "constant")
    assert len(paper.settings_of(args(*WHOLE, "--seeds", "5"))[0]) == 3 * 3 * 5
    grid, left_out = paper.settings_of(args(*WHOLE, "--rules", "arctan"))
    assert len(grid) == 3 * 2
    assert left_out == [
        "arctan in norse, kernel, tau_s = 3: norse has no arctan surrogate; it has native, "
        "fast-sigmoid"
    ]


def test_unless_more_is_asked_for_it_is_minutes() -> None:
    """One network, one seed and a few epochs in each library."""
    grid, _ = paper.settings_of(args())
    assert [(run.library, run.network, run.epochs, run.seed) for run in grid] == [
        (library, "400-400", 5, 0) for library in known.LIBRARIES
    ]


def test_report_has_the_published_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "find_idx_files", lambda name, folder: tmp_path)
    monkeypatch.setattr(images, "fashion_mnist", lambda folder: images.mnist5k())
    options = "--experiments fashion-400-400 --libraries spikingjelly --seeds 1 --epochs 1"
    where = ["--limit", "100", "--workers", "0", "--quiet", "--out", str(tmp_path)]
    assert main(["paper", *options.split(), *where]) == 0
    (line,) = results(tmp_path)
    accuracy = f"{100 * line['test_accuracy']:.2f}"
    text = (tmp_path / "report.md").read_text()
    row = re.search(r"^\| fashion-mnist \|.*$", text, re.MULTILINE)
    assert row is not None
    cells = [cell.strip() for cell in row.group().strip("|").split("|")]
    assert cells == [
        "fashion-mnist", "400-400", "spikingjelly", "tsslbp", "1", "1", accuracy, accuracy,
        "89.75", "89.92",
    ]  # fmt: skip
