"""Every command that the documents and docstrings show: its own parser takes it, and it runs.

Commands of a kind that is cheap run here at a tiny size, unless another test runs them already.
"""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import demo
import learning
import nox.project
import nox.registry
import older_speed
import plot_networks
import plot_results
import pytest
import rule_costs
import versions
from packaging.requirements import Requirement
from packaging.version import Version
from quick import SMALL
from torch.distributed.run import get_args_parser

from tssl_adapters.bench import known, speed
from tssl_adapters.bench.__main__ import COMMANDS, command_of, main
from tssl_adapters.bench.options import with_config
from tssl_adapters.bench.speed.floors import Floor

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(ROOT.glob("benchmarks/*.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
]
MODULES = [
    path
    for folder in ("tssl_adapters/bench", "examples", "tools")
    for path in sorted(ROOT.glob(f"{folder}/**/*.py"))
]
PROGRAM = r"(?:\w+=\S+ )*(?:python |pytest |torchrun |nox -)"
LINE = re.compile(rf"^ *({PROGRAM}(?:[^\n]*\\\n)*[^\n]*)", re.MULTILINE)
IN_TEXT = re.compile(rf"`({PROGRAM}[^`]+)`")
SET = re.compile(r"[A-Z_]+=")  # a variable, in front of a command
OURS = re.compile(r"python (?:-m tssl_adapters\.bench|examples/|tools/)|torchrun -")
PLACEHOLDERS = {
    "ADDRESS": ["tcp://10.0.0.1:8786"],
    "COMMAND": [f"{name} --help" for name in COMMANDS],  # its required options are not shown
    "DIR": ["folder"],
    "FILE": ["file"],
    "LIBRARY": list(known.LIBRARIES),
    "NET": ["400", "400-400"],
    " N ": [" 0 "],
    "RULE": ["native", "smooth-tsslbp", "tsslbp"],
}


def text_of(path: Path) -> str:
    """A page, or a module's docstring."""
    text = path.read_text()
    return text if path.suffix == ".md" else ast.get_docstring(ast.parse(text)) or ""


def commands(text: str) -> list[str]:
    return [*LINE.findall(text), *IN_TEXT.findall(text)]


def filled_in(command: str) -> Iterator[str]:
    """With every value of each placeholder that it has."""
    names = [name for name in PLACEHOLDERS if name in command]
    for values in product(*(PLACEHOLDERS[name] for name in names)):
        filled = command
        for name, value in zip(names, values, strict=True):
            filled = filled.replace(name, value)
        yield filled


SHOWN = [
    pytest.param(command, id=f"{path.relative_to(ROOT)}: {' '.join(command.split())}")
    for path in [*PAGES, *MODULES]
    for command in commands(text_of(path))
]


@pytest.fixture
def only_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script ends with status 0 once its parser has taken the command line."""
    parse = ArgumentParser.parse_args

    def parse_and_exit(self: ArgumentParser, *given: Any) -> None:
        parse(self, *given)
        raise SystemExit(0)

    monkeypatch.setattr(ArgumentParser, "parse_args", parse_and_exit)


@pytest.mark.usefixtures("only_parsed")
@pytest.mark.parametrize("command", SHOWN)
def test_shown_command_is_taken(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    for line in filled_in(command.replace("\\\n", " ")):
        for part in line.split("&&"):
            words = [word for word in shlex.split(part, comments=True) if not SET.match(word)]
            assert status(words, monkeypatch) == 0, f"{part}\n{capsys.readouterr().err}"


def status(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    try:
        take(words, monkeypatch)
    except SystemExit as ended:
        return ended.code
    return 0


@cache
def nox_sessions() -> set[str]:
    runpy.run_path("noxfile.py")
    return set(nox.registry.get())


def take(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand a command line to what reads it."""
    match words:
        case ["python", "-m", "tssl_adapters.bench", name, *options]:
            parser = command_of(name)[1]
            parser.parse_args(with_config(parser, options))  # a recorded file of options, too
        case ["python", "-m", "tssl_adapters.bench"]:
            pass
        case ["python", "-m", "pip", "install", *what]:
            project = nox.project.load_toml("pyproject.toml")["project"]
            wanted = ",".join(re.findall(r"\[(.*?)\]", " ".join(what)))
            assert set(filter(None, wanted.split(","))) <= set(project["optional-dependencies"])
        case ["python", "-m", "nox", "-s", *sessions] | ["nox", "-s", *sessions]:
            assert sessions
            assert set(sessions) <= nox_sessions()
        case ["python", script, *options] if script.endswith(".py"):
            monkeypatch.setattr(sys, "argv", [script, *options])
            runpy.run_path(script, run_name="__main__")
            raise AssertionError(f"{script} reads no options")
        case ["torchrun", *options]:
            given, _ = get_args_parser().parse_known_args(options)
            take(["python", given.training_script, *given.training_script_args], monkeypatch)
        case ["pytest", *options]:
            files = [option for option in options if option.endswith(".py")]
            assert all(Path(file).is_file() for file in files)
        case _:
            raise AssertionError(f"no rule for {words}")


@pytest.mark.parametrize("path", [*PAGES, *MODULES], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_command_is_overlooked(path: Path) -> None:
    text = text_of(path)
    assert sum(len(OURS.findall(command)) for command in commands(text)) == len(OURS.findall(text))


# Those that no other test runs


def test_demo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All nine trainings, in one table."""
    monkeypatch.setattr(demo, "OPTIONS", [*SMALL, "--epochs", "1"])
    demo.main()
    printed = capsys.readouterr().out
    said = [printed.count(f" {description} ") for description in demo.RULES.values()]
    assert said == [3, 3, 3]
    assert len(re.findall(r"[0-9.]+%", printed)) == 9


def test_speed_in_a_hurry(tmp_path: Path) -> None:
    """``--quick`` is one size and one ``tau_s``, and nothing is compiled by torch."""
    assert main(["speed", "--quick", "--works", "norse-lifcell", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "speed.json").read_text())["results"]
    assert {(row["steps"], row["neurons"], row["threads"]) for row in rows} == {(8, 512, 1)}
    names = [row["contestant"] for row in rows]
    assert any("tau_s = 1" in name for name in names)
    assert not [name for name in names if "compile" in name or "tau_s = 3" in name]


@pytest.mark.parametrize(("measured", "status"), [(2.0, 0), (0.5, 1)])
def test_speed_against_floors(
    measured: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    floor = Floor("a layer", "times faster", "at least", 1.0, measured)
    monkeypatch.setattr(speed, "against_floors", lambda *given: iter([floor]))
    assert main(["speed", "--floors", "--out", str(tmp_path)]) == status
    record = json.loads((tmp_path / "speed.json").read_text())
    assert record["floors"] == [floor.record()]
    assert "results" not in record


def run_tool(tool: Any, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [tool.__file__, *options])
    assert not tool.main()


def test_rule_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_costs, "SHAPE", (3, 2, 4))
    out = tmp_path / "costs.json"
    run_tool(rule_costs, ["--rounds", "1", "--out", str(out)], monkeypatch)
    found = json.loads(out.read_text())
    assert set(found["sequence"]) == set(found["steps"]) == set(rule_costs.SEQUENCE)
    assert found["steps"]["TSSLBP()"]["ratio"] == 1.0


def test_older_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(older_speed, "STEPS", 3)
    monkeypatch.setattr(older_speed, "BATCH", 4)
    out = tmp_path / "older.json"
    run_tool(older_speed, ["--rounds", "1", "--out", str(out)], monkeypatch)
    rows = json.loads(out.read_text())["rows"]
    assert [row["network"] for row in rows] == [made.__name__ for made in older_speed.NETWORKS] * 2
    assert [row["way"] for row in rows] == ["sequence"] * 5 + ["step"] * 5
    assert all(row["default"] > 0 and row["native-compiled"] > 0 for row in rows)
    assert "native-compiled" in capsys.readouterr().out
    for made in older_speed.NETWORKS:  # what is timed computes the same, natively and wrapped
        native, wrapped = (
            older_speed.Step(made, True, rule).forward().item() for rule in (None, "native")
        )
        assert native == wrapped


def test_what_keeps_networks_from_learning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says which layers are silent, and measures nothing twice."""
    case = replace(learning.CASES["silent"], epochs=1)
    monkeypatch.setattr(learning, "CASES", {"silent": case})
    out = tmp_path / "learning.json"
    run_tool(learning, ["--seeds", "1", "--out", str(out)], monkeypatch)
    found = json.loads(out.read_text())
    assert list(found) == ["silent | native", "silent | default"]
    assert found["silent | default"]["start"]["flags"][0] == ["dead", ["5", "7", "9", "11", "13"]]
    monkeypatch.setattr(learning, "trained", None)
    said = capsys.readouterr().out
    run_tool(learning, ["--seeds", "1", "--out", str(out)], monkeypatch)
    assert capsys.readouterr().out == said


def test_figures_on_learning_are_those_recorded() -> None:
    page = (ROOT / "docs/learning.md").read_text()
    record = json.loads((ROOT / "benchmarks/learning.json").read_text())
    assert list(record) == [f"{n} | {rule}" for n, c in learning.CASES.items() for rule in c.rules]
    for name, found in record.items():
        finals = [sum(curve[-2:]) / 2 for curve in found["accuracy"]]
        assert f"{100 * sum(finals) / len(finals):.1f}" in page, name


def test_the_picture_is_that_of_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """README's, as the tested version of matplotlib draws it."""
    out = tmp_path / "networks.svg"
    run_tool(plot_networks, ["--out", str(out)], monkeypatch)
    assert out.read_text() == (ROOT / "docs/assets/networks.svg").read_text()


def test_the_plots_of_results_are_those_of_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_tool(plot_results, ["--out", str(tmp_path)], monkeypatch)
    for name in plot_results.PLOTS:
        drawn = (tmp_path / f"{name}.svg").read_text()
        assert drawn == (ROOT / f"docs/assets/{name}.svg").read_text(), name


def test_version_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCH", "PAGE"):
        copied = tmp_path / name
        copied.write_text(getattr(versions, name).read_text())
        monkeypatch.setattr(versions, name, copied)
    files = {library: tmp_path / f"{library}.json" for library in versions.FILES}
    before = {library: json.loads(file.read_text()) for library, file in versions.FILES.items()}
    for library, file in files.items():
        file.write_text(json.dumps(before[library]))
    monkeypatch.setattr(versions, "FILES", files)
    monkeypatch.setattr(versions, "version", {"torch": "9.9", "norse": "0.0.1"}.get)
    run_tool(versions, ["norse"], monkeypatch)
    after = {library: json.loads(file.read_text()) for library, file in files.items()}
    assert next(iter(after["norse"].pop("tested"))) == "0.0.1"  # oldest first
    del before["norse"]["tested"]
    assert after == before
    assert "| Norse | 0.0.1 | torch 9.9, Python" in versions.PAGE.read_text()
    installed = {"torch": "9.9+cpu", "snntorch": "1.2", "spikingjelly": "3.4", "norse": "5.6"}
    monkeypatch.setattr(versions, "version", installed.get)
    run_tool(versions, ["torch"], monkeypatch)
    line = "| torch | 9.9 | snnTorch 1.2, SpikingJelly 3.4, Norse 5.6, Python"
    assert line in versions.PAGE.read_text()


def test_every_torch_that_is_claimed_was_run() -> None:
    """Each file of constraints has passed with its libraries; the oldest of them is the floor."""
    ran = {}
    for file in (ROOT / "constraints").glob("*.txt"):
        pins = dict(re.findall(r"^([\w-]+)==(\S+)$", file.read_text(), re.MULTILINE))
        beside = (f"{name} {pins[library]}" for library, name in versions.LIBRARIES.items())
        ran[pins["torch"]] = f"{', '.join(beside)}, Python 3.11"
    assert ran == versions.read()["torch"]
    files = {file.stem.removeprefix("torch-") for file in (ROOT / "constraints").glob("torch-*")}
    assert files == set(runpy.run_path("noxfile.py")["TORCH"])
    needs = nox.project.load_toml("pyproject.toml")["project"]["dependencies"]
    (floor,) = (Requirement(need).specifier for need in needs if need.startswith("torch"))
    assert str(floor) == f">={'.'.join(min(ran, key=Version).split('.')[:2])}"
