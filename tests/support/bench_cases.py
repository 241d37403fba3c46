"""Small runs of the benchmark, for its tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tssl_adapters.bench.__main__ import main
from tssl_adapters.bench.settings import Settings

SMALL = "--data digits --networks 20 --limit 200 --batch-size 50 --workers 0 --quiet".split()
LOG_KEYS = {
    "library", "library_version", "rule", "tau_s", "data", "network", "seed", "epoch",
    "train_loss", "train_accuracy", "test_accuracy", "seconds", "spike_rate",
}  # fmt: skip


def accuracy(folder: Path, options: str) -> int:
    """Run the command on few images and a small network; its exit status."""
    return main(["accuracy", *SMALL, "--out", str(folder), *options.split()])


def lines(path: Path) -> list[dict[str, Any]]:
    """The records of a jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def results(folder: Path) -> list[dict[str, Any]]:
    """An experiment's epochs, but for what differs each time."""
    return but_seconds(lines(folder / "results.jsonl"))


def but_seconds(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without what no run repeats."""
    return [{key: value for key, value in line.items() if key != "seconds"} for line in records]


def settings(**changed: Any) -> Settings:
    """A small run's."""
    chosen: dict[str, Any] = {
        "library": "spikingjelly", "data": "digits", "network": "20", "rule": "tsslbp",
        "tau_s": 1.0, "loss": "cross-entropy", "time_steps": 5, "batch_size": 50, "lr": 5e-4,
        "epochs": 1, "seed": 0, "limit": 200,
    }  # fmt: skip
    return Settings(**(chosen | changed))
