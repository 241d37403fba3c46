"""``bench`` with a rule of the user's own, and with a validation split."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bench_cases import accuracy, lines, results, settings

from tssl_adapters.bench import data, rules, runs
from tssl_adapters.bench.__main__ import main
from tssl_adapters.bench.report import names
from tssl_adapters.bench.runs import Job
from tssl_adapters.bench.trainer import CheckpointError, Trainer
from tssl_adapters.rules import TSSLBP

RULE = """
from dataclasses import dataclass

from tssl_adapters.rules import TSSLBP

@dataclass(frozen=True)
class Halved(TSSLBP):
    share: float = 0.5

    def slope(self, step):
        return self.share * super().slope(step)

same, halved, number = TSSLBP(), Halved(), 3
slow = TSSLBP(max_slope=2.0)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(RULE)
    return path


def test_a_rule_of_ones_own_is_compared_with_the_others(source: Path, tmp_path: Path) -> None:
    folder, small = tmp_path / "out", "--libraries spikingjelly --seeds 1 --epochs 2"
    assert accuracy(folder, f"{small} --rules tsslbp,{source}:same,{source}:halved") == 0
    losses: dict[str, list[float]] = {}
    for line in results(folder):
        losses.setdefault(line["rule"], []).append(line["train_loss"])
    assert list(losses) == ["tsslbp", f"{source}:same", f"{source}:halved"]
    known, same, halved = losses.values()
    assert same == known
    assert halved != known
    assert len(list((folder / "runs").iterdir())) == 3
    report = (folder / "report.md").read_text()
    assert "| own.py:halved |" in report
    _, _, table = report.partition("## ")[0].partition("Test accuracies")  # below the command
    assert table
    assert str(source) not in table


def test_workers_find_it_too(source: Path, tmp_path: Path) -> None:
    options = f"--libraries norse --seeds 1 --epochs 1 --rules {source}:halved --workers 1"
    assert accuracy(tmp_path / "out", options) == 0
    assert [line["rule"] for line in results(tmp_path / "out")] == [f"{source}:halved"]


def test_a_model_of_ones_own_under_a_rule_of_ones_own(source: Path, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "import snntorch, torch\n"
        "def build():\n"
        "    lif = snntorch.Leaky(0.9, init_hidden=True, reset_mechanism='zero')\n"
        "    net = torch.nn.Sequential(torch.nn.Linear(4, 3), lif)\n"
        "    return net, *[[(torch.ones(2, 4), torch.arange(2))]] * 2\n"
    )
    model, out = f"{tmp_path / 'model.py'}:build", tmp_path / "out"
    small = f"--rules {source}:halved --seeds 1 --epochs 1 --workers 0 --quiet --out {out}"
    assert main(["model", model, *small.split()]) == 0
    assert [line["rule"] for line in lines(out / "results.jsonl")] == [f"{source}:halved"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tsslpb", r"'tsslpb' is none of native, .*, nor path/to/file.py:name of a rule of yours"),
        ("nowhere.py:rule", r"nowhere.py:rule: there is no file nowhere.py"),
        ("{}:missing", r"own.py has no missing"),
        ("{}:number", r"own.py:number is no tssl_adapters.rules.Rule but int"),
        ("{}:Halved", r"own.py:Halved is a class; name an instance of it, as in mine = Mine"),
        ("{}:", r"own.py:: name a file and what it has"),
    ],
)
def test_what_is_no_rule(
    name: str, message: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        accuracy(tmp_path / "out", f"--rules {name.format(source)}")
    assert message.split(r"'")[-1][:20].strip(".") in " ".join(capsys.readouterr().err.split())
    with pytest.raises(rules.UnknownRuleError, match=message):
        rules.contestant(name.format(source))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "bad.py",
            "from tssl_adapters.rules import *\nx = TSSLBP(max_slope=-2.0)",
            "ValueError: TSS",
        ),
        ("bad.py", "from tssl_adapters.rules import *\nx = TSSLBP(slope=2)", "TypeError: TSSLBP."),
        ("bad.py", "import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_al"),
        ("bad.py", "x = (", "SyntaxError: '(' was never closed"),
        ("bad.txt", "x = 1", "ImportError: it is no Python file"),
    ],
)
def test_errors_of_the_file_are_told(
    name: str, text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit):
        accuracy(tmp_path / "out", f"--rules {tmp_path / name}:x")
    assert f"{name}: {said}" in " ".join(capsys.readouterr().err.split())


def test_a_rule_that_changed_is_not_taken_for_what_it_was(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = f"--libraries norse --seeds 1 --epochs 1 --rules {source}:slow,{source}:halved"
    assert accuracy(tmp_path / "out", options) == 0
    (first, second) = lines(tmp_path / "out" / "results.jsonl")
    assert first["definition"] == "TSSLBP(max_slope=2.0)"
    assert second["definition"].startswith("Halved() ")
    for old, new, name in (("slope=2.0", "slope=4.0", "slow"), ("self.share *", "2 *", "halved")):
        before = source.read_text()
        source.write_text(before.replace(old, new))
        with pytest.raises(SystemExit):
            accuracy(tmp_path / "out", options)
        assert f"own.py:{name} is " in capsys.readouterr().err
        source.write_text(before)
    assert accuracy(tmp_path / "out", options) == 0
    assert lines(tmp_path / "out" / "results.jsonl") == [first, second]


def test_a_rule_through_the_reset_is_left_out_where_neurons_fire_once(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from tssl_adapters.rules import SurrogateGradient\n"
        "whole = SurrogateGradient(lambda x: 1 / (1 + x**2), reset_path='complete')\n"
        "cut = SurrogateGradient(lambda x: 1 / (1 + x**2), reset_path='none')\n"
    )
    why = rules.why_not("spikingjelly", f"{tmp_path}/own.py:whole", once=True)
    assert why is not None
    assert "reckons with what a reset takes" in why
    assert rules.why_not("spikingjelly", f"{tmp_path}/own.py:cut", once=True) is None
    named = rules.definition(f"{tmp_path}/own.py:cut")
    assert named == "SurrogateGradient(derivative=<function <lambda>>, reset_path='none')"


def test_runs_of_files_named_alike_are_told_apart() -> None:
    one, other = (
        settings(rule=name, definition="TSSLBP()").name for name in ("a/b.py:x", "a_b.py:x")
    )
    assert one != other
    assert len(settings(rule=f"{'long/' * 60}b.py:x", definition="TSSLBP()").name) < 100


def test_too_much_for_validation_is_refused_before_a_folder_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        accuracy(tmp_path / "out", "--validation 9999")
    assert "--validation, digits: 9999 samples for validation leave none" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_from_before_there_was_a_validation_split(tmp_path: Path) -> None:
    options = "--libraries norse --rules tsslbp --seeds 1 --epochs"
    assert accuracy(tmp_path, f"{options} 1") == 0
    (path,) = (tmp_path / "checkpoints").iterdir()
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["settings"]["validation"], checkpoint["settings"]["definition"]
    torch.save(checkpoint, path)
    assert accuracy(tmp_path, f"{options} 2") == 0
    split = settings(library="norse", validation=100)
    trainer = Trainer(split, Job(split, tmp_path).workload(), path)
    with pytest.raises(CheckpointError, match="made with --validation None, not 100"):
        trainer.load()


def test_validation_samples_are_not_trained_on_and_the_test_set_is_not_read() -> None:
    whole = data.load("digits", None, 5)
    split = data.load("digits", None, 5, limit=300, validation=200)
    assert torch.equal(split.train_images, whole.train_images[:300])
    assert torch.equal(split.test_images, whole.train_images[-200:])
    assert torch.equal(split.test_labels, whole.train_labels[-200:])
    work = Job(settings(limit=None, validation=200), Path()).workload()
    assert work.num_batches == -(-(len(whole.train_labels) - 200) // 50)
    assert sum(len(labels) for _, labels in work.test_batches()) == 200
    with pytest.raises(ValueError, match="9999 samples for validation leave none of 1438"):
        data.load("digits", None, 5, validation=9999)


def test_a_report_says_that_it_is_of_a_validation_split(tmp_path: Path) -> None:
    small = "--libraries snntorch --rules native --seeds 1 --epochs 1"
    said = "the last 100 training samples, which were left out of training"
    assert accuracy(tmp_path / "a", f"{small} --validation 100") == 0
    assert accuracy(tmp_path / "b", small) == 0
    for name in ("report.md", "report.html"):
        assert said in " ".join((tmp_path / "a" / name).read_text().split())
        assert said not in " ".join((tmp_path / "b" / name).read_text().split())
    with pytest.raises(SystemExit):  # a folder is of one kind
        accuracy(tmp_path / "b", f"{small} --validation 100")


def test_rules_whose_files_are_named_alike_keep_their_folders() -> None:
    found = names.short(["tsslbp", "a/own.py:x", "b/own.py:x", "b/own.py:y"])
    assert list(found.values()) == ["tsslbp", "a/own.py:x", "b/own.py:x", "own.py:y"]


def test_the_network_of_a_rule_of_ones_own_starts_like_the_others(source: Path) -> None:
    samples = data.load("digits", None, 5, limit=20)
    found = [
        runs.network(settings(rule=rule), samples).model for rule in ("tsslbp", f"{source}:same")
    ]
    assert all(map(torch.equal, found[0].parameters(), found[1].parameters()))
    assert rules.contestant(f"{source}:same").make(torch.abs) == TSSLBP()
