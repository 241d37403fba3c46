"""The command line answers at once, its help is whole, and what is missing is told in a line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from bench_cases import accuracy, settings

from tssl_adapters import engines
from tssl_adapters.bench import accuracy as accuracy_command
from tssl_adapters.bench import known, paper, places, rules
from tssl_adapters.bench.__main__ import COMMANDS, command_of, main
from tssl_adapters.bench.architectures import connections
from tssl_adapters.bench.commands.networks import WORDS
from tssl_adapters.bench.commands.speed import QUICK, SIZES
from tssl_adapters.bench.data import LOADERS
from tssl_adapters.bench.networks import suite
from tssl_adapters.bench.networks.spec import Kind
from tssl_adapters.bench.settings import Schedule
from tssl_adapters.bench.speed import works

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "numpy", "matplotlib", "distributed", "pandas", *known.LIBRARIES)
OUT = "--out nowhere_that_is_there"

ANSWERS = f"""
import contextlib, io, json, sys, time
from tssl_adapters.bench.__main__ import main
found = {{}}
for line in json.load(sys.stdin):
    began = time.process_time()
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(said):
        try:
            main(line.split())
        except SystemExit as ended:
            status = ended.code
    heavy = [name for name in {HEAVY} if name in sys.modules]
    found[line] = status, said.getvalue(), time.process_time() - began, heavy
print(json.dumps(found))
"""


def answers(*lines: str) -> dict[str, tuple[int, str]]:
    """Status and text of command lines, each of which loads nothing heavy and takes no time."""
    done = subprocess.run(
        [sys.executable, "-c", ANSWERS],
        input=json.dumps(lines),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = json.loads(done.stdout)
    for line, (_, _, seconds, heavy) in found.items():
        assert not heavy, line
        assert seconds < 1.0, line
    return {line: (status, said) for line, (status, said, *_) in found.items()}


def test_help_is_in_groups_with_examples_at_the_end_and_answers_at_once() -> None:
    lines = {name: f"{name} --help" for name in COMMANDS}
    found = answers("--help", *lines.values())
    status, said = found["--help"]
    assert status == 0
    assert all(f"  {name:<10} {does}\n" in said for name, does in COMMANDS.items())
    for name, line in lines.items():
        status, said = found[line]
        assert status == 0
        assert said.startswith(f"usage: python -m tssl_adapters.bench {name} ")
        groups = re.findall(r"^(\w.*):$", said, re.MULTILINE)
        assert groups[-2:] == ["more", "examples"]
        assert len(groups) >= 5 - (name == "speed")
        assert "options" not in groups
        assert max(map(len, said.splitlines())) <= 100
        _, _, examples = said.partition("\nexamples:\n")
        assert len(examples.splitlines()) >= 2
        for example in examples.splitlines():
            assert example.startswith(f"  python -m tssl_adapters.bench {name}")


def test_rules_are_explained_where_they_can_be_named() -> None:
    _, said = answers("accuracy --help")["accuracy --help"]
    _, _, listed = said.partition("\nrules:\n")
    for name, about in known.RULES.items():
        assert re.search(rf"^  {name} +{re.escape(about)}$", listed, re.MULTILINE)


WRONG = {
    f"accuracy --rule native {OUT}": "did you mean --rules? unrecognized arguments: --rule native",
    f"accuracy --rules smoth-tsslbp {OUT}": "did you mean smooth-tsslbp? 'smoth-tsslbp' is none",
    f"accuracy --rules nowhere.py:mine {OUT}": "nowhere.py:mine: there is no file nowhere.py",
    f"accuracy --data digtis {OUT}": "--data: did you mean digits? 'digtis' is none of digits",
    f"accuracy --libraries nengo {OUT}": "--libraries: 'nengo' is none of snntorch",
    f"accuracy --networks 400-x {OUT}": "'400-x' is none of cnn, cnn-fashion, cnn-nmnist, nor lay",
    f"accuracy --device gpu {OUT}": "--device: 'gpu' is no device, such as cpu, cuda or cuda:1",
    f"accuracy --lr -1 {OUT}": "--lr: must be a finite number above 0, not -1",
    f"accuracy --workers -1 {OUT}": "--workers: must be 0 or more, not -1",
    f"accuracy --loss count --time-steps 2 {OUT}": "--loss count needs --time-steps 3 or more",
    f"accuracy --data-dir /nowhere {OUT}": "--data-dir /nowhere: there is no such folder; name",
    f"accuracy --data mnist --data-dir tests {OUT}": "are not in /",
    "accuracy": "the following arguments are required: --out",
    "accuracy --out README.md": "--out README.md: README.md is a file; name a folder",
    "accuracy --out README.md/new/folder": "/README.md is a file; name a folder, which may be new",
    "speed --out README.md": "--out README.md: README.md is a file; name a folder",
    f"gradients --checkpoint nowhere.pt {OUT}": "--checkpoint nowhere.pt: there is no such file",
    f"model nowhere.py:build {OUT}": "nowhere.py:build: there is no file nowhere.py",
    f"model README.md {OUT}": "README.md: name a file and what it has, as in path/to/file.py:build",
    f"networks --networks snntorch-deap {OUT}": "did you mean snntorch-deep? 'snntorch-deap' is",
    f"networks --networks fashion --data-dir tests {OUT}": "Fashion-MNIST's four files",
    f"networks --seeds , {OUT}": "--seeds: ',' names no seed",
    f"paper --experiments mnist-cnn --data-dir tests {OUT}": "MNIST's four files, train-images",
    "speed --networks snntorch-deap": "did you mean snntorch-deep? 'snntorch-deap' is none",
    "speed --works norse-lif,nonsense": "'nonsense' is none of spikingjelly-lif,",
    f"networks --epoch 1 {OUT}": "networks: error: unrecognized arguments: --epoch 1",
    f"accuracy --batch 8 {OUT}": "did you mean --batch-size? unrecognized arguments: --batch",
    "learn": "error: argument command: 'learn' is none of accuracy, paper, networks, model,",
    "accuray": "argument command: did you mean accuracy? 'accuray' is none of accuracy, paper",
    "": "the following arguments are required: command",
}


def test_a_wrong_word_is_one_line_at_once() -> None:
    """And nothing is written."""
    before = {*ROOT.iterdir()}
    for line, (status, said) in answers(*WRONG).items():
        assert status == 2
        assert said.startswith("python -m tssl_adapters.bench"), line
        assert WRONG[line] in said
        assert said.count("\n") == 1
    assert {*ROOT.iterdir()} == before


def test_a_folder_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(SystemExit, match="2"):
        accuracy(tmp_path / "out", "")
    assert f"--out {tmp_path}/out: you may not write in {tmp_path}; name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--device cuda:99", "--device cuda:99: torch .* cannot compute there .*; take --device c"),
        ("--networks cnn", r"--network cnn is too deep for images of \(8, 8\)"),
        ("--validation 9999", "--validation, digits: 9999 samples for validation leave none"),
        ("--scheduler tcp://127.0.0.1:9", "--scheduler tcp://127.0.0.1:9: no Dask scheduler ans"),
    ],
)
def test_what_the_first_run_needs_is_checked_once(
    options: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a line, not by each run; before anything is written."""
    monkeypatch.setattr("tssl_adapters.bench.checks.SECONDS_TO_ANSWER", 0.2)
    with pytest.raises(SystemExit, match="2"):
        accuracy(tmp_path / "out", f"--libraries norse {options}")
    told = capsys.readouterr().err
    assert re.search(said, told)
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["networks", "speed"])
def test_other_commands_look_for_the_engine_and_the_device(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"networks": "--engine triton --workers 0", "speed": "--device cuda:99"}
    if command == "networks" and torch.cuda.is_available():
        options["networks"] = "--scheduler tcp://127.0.0.1:9"
    with pytest.raises(SystemExit, match="2"):
        main([command, *options[command].split(), "--out", str(tmp_path / "out")])
    assert re.search("triton|cuda:99|9", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_library_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is left out unless it is named; then a line says how to get it."""
    monkeypatch.setattr(known, "installed", lambda name: name != "norse")
    monkeypatch.setattr(suite, "installed", lambda name: name != "norse")
    parser = command_of("accuracy")[1]
    assert parser.get_default("libraries") == ["snntorch", "spikingjelly"]
    for words in ("accuracy --libraries norse", "networks --networks norse-dense",
                  "speed --works norse-lif"):  # fmt: skip
        with pytest.raises(SystemExit, match="2"):
            main([*words.split(), "--out", str(tmp_path / "out")])
        said = capsys.readouterr().err
        assert "needs norse, which is not installed; python -m pip install norse" in said
    suite.networks.cache_clear()
    there = suite.networks()
    suite.networks.cache_clear()
    assert {network.library for network in there.values()} == {"snntorch", "spikingjelly"}


def test_what_the_benchmark_needs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'pandas'", name="pandas")

    monkeypatch.setattr("tssl_adapters.bench.__main__.runner_of", missing)
    with pytest.raises(SystemExit, match="2"):
        main(["accuracy", "--data", "digits", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert "pandas is not installed; python -m pip install 'tssl-adapters[bench]'" in said


def test_names_are_those_of_what_they_stand_for() -> None:
    """They are written down apart, so that the help needs no torch."""
    assert list(known.RULES) == list(rules.RULES)
    assert list(known.DATA) == list(LOADERS)
    assert {name: trial.data for name, trial in paper.TRIALS.items()} == known.EXPERIMENTS
    assert {*known.NETWORKS} == {*suite.networks()}
    assert {*known.FASHION} == {
        name for name, network in suite.networks().items() if network.kind == "fashion"
    }
    assert all(known.library_of(name) == n.library for name, n in suite.networks().items())
    assert get_args(Kind) == known.KINDS
    assert get_args(Schedule) == known.SCHEDULES
    assert list(known.ENGINES) == [row.name for row in engines()]
    assert list(known.WORKS) == [work.name for work in works.load()[0]]
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in known.DTYPES)
    for word in WORDS:
        assert suite.chosen([word])
    for name in known.PRESETS:
        assert connections(name, (1, 34, 34), 10)
    assert set(QUICK) == set(SIZES)


def test_the_first_line_says_how_many_runs_there_are_and_where_their_data_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file of a model of one's own may have the name of a data set."""
    for name in places.IDX_FILES:
        (tmp_path / name).touch()
    grid = [settings(data=data, seed=seed) for data in ("digits", "mnist") for seed in (0, 1)]
    line = accuracy_command.announcement(grid, 7, tmp_path, None)
    assert line == f"4 of 7 runs are to be trained; data: digits, mnist in {tmp_path}"
    line = accuracy_command.announcement(grid[2:], 2, None, "mnist.py:build")
    assert line == "2 of 2 runs are to be trained; data: mnist"
    options = "--data digits --networks 20 --limit 50 --libraries norse --rules native --epochs 1"
    words = ["accuracy", *options.split(), "--workers", "0", "--out", str(tmp_path / "out")]
    for first in ("3 of 3 runs are to be trained; data: digits", ""):
        assert main(words) == 0
        assert capsys.readouterr().err.partition("\n")[0] == first


def test_help_names_the_folders_that_data_is_looked_for_in() -> None:
    lines = ("accuracy --help", "networks --help")
    for _, said in answers(*lines).values():
        folders = ", ".join(map(str, (places.DATASETS_FOLDER, *places.DATA_ROOTS)))
        assert f"without it they are looked for in {folders}" in " ".join(said.split())


def test_torch_does_not_warn_of_spikingjellys_triton_kernels() -> None:
    code = (
        "import tssl_adapters.bench, logging, torch\n"
        "logging.getLogger('torch._library.triton').warning('Triton not available')\n"
        "from spikingjelly.activation_based.neuron import LIFNode\n"
        "LIFNode(step_mode='m')(torch.rand(2, 3))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "Triton not available" not in done.stderr


def test_after_training_the_rules_are_compared_in_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    options = "--data digits --networks 20 --limit 200 --libraries norse --seeds 2 --epochs 2"
    assert main(["accuracy", *options.split(), "--workers", "0", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    (native,) = re.findall(r"norse .* native .*", printed)
    assert re.search(r" 2 .* 2 .* \d+\.\d\d ± \d+\.\d\d ", native)
    (ours,) = re.findall(r"norse .* smooth-tsslbp .*", printed)
    assert re.search(r"[+-]\d+\.\d\d ± \d+\.\d\d", ours)
    assert printed.splitlines()[-1] == f"report: {tmp_path / 'report.html'}"
