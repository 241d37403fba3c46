"""The training script of the three further rules."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("train_further_rules")


@pytest.mark.parametrize(
    ("task", "rule"), [("rates", "lee"), ("times", "stdbp")], ids=lambda value: value
)
def test_it_learns_digits_and_goes_on(script: Any, tmp_path: Path, task: str, rule: str) -> None:
    options = [task, "--rule", rule, "--data", "digits", "--network", "50", "--limit", "600"]
    options += ["--lr", "2e-3", "--quiet", "--checkpoints", str(tmp_path)]
    options += ["--log", str(tmp_path / "log.jsonl")]
    script.main([*options, "--epochs", "2"])
    (last,) = script.main([*options, "--epochs", "3"])
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    assert last["test_accuracy"] > 0.6


def test_rows_learn(script: Any, tmp_path: Path) -> None:
    options = ["rows", "--data", "mnist5k", "--network", "40", "--limit", "600", "--quiet"]
    options += ["--rule", "strsbp", "--epochs", "2", "--lr", "4e-3", "--checkpoints", str(tmp_path)]
    first, last = script.main(options)
    assert last["train_loss"] < 0.9 * first["train_loss"]


def test_it_names_a_tasks_rules(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.parse_args(["rates", "--rule", "stdbp"])
    said = capsys.readouterr().err
    assert "must be one of native, smooth-tsslbp, tsslbp, lee, lee-silent, not stdbp" in said
