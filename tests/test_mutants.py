"""The faults of tools/mutants.py can still be put in: code that moves takes its faults along."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import mutate
import pytest
from mutants import MUTANTS, Mutant, change

ROOT = Path(__file__).parent.parent


def test_every_fault_goes_into_the_source() -> None:
    problems = (mutate.problem(mutant, ROOT) for mutant in MUTANTS)
    stale = [f"{m.name}: {why}" for m, why in zip(MUTANTS, problems, strict=True) if why]
    assert stale == []


def test_no_change_of_a_fault_undoes_another() -> None:
    lost = []
    for mutant in MUTANTS:
        texts = {change.file: (ROOT / change.file).read_text() for change in mutant.changes}
        for file, old, new, _ in mutant.changes:
            before = texts[file]
            texts[file] = before.replace(old, new)
            if texts[file] == before:
                lost.append(f"{mutant.name}: {old!r} changes nothing")
    assert lost == []


def test_the_tests_that_should_catch_a_fault_exist() -> None:
    missing = []
    for test in sorted({test for mutant in MUTANTS for test in mutant.tests}):
        file, _, name = test.partition("::")
        source = ROOT / file
        text = source.read_text() if source.exists() else ""
        if not re.search(rf"^def {name.partition('[')[0]}\b", text, re.MULTILINE):
            missing.append(test)
    assert missing == []


def test_every_fault_has_a_name_of_its_own() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("count", [0, 2])
def test_a_text_that_is_not_there_as_often_is_told(tmp_path: Path, count: int) -> None:
    (tmp_path / "tssl_adapters").mkdir()
    (tmp_path / "tssl_adapters" / "a.py").write_text("here\n" * count)
    mutant = Mutant("a fault", (change("a.py", "here", "gone"),), ())
    why = f"tssl_adapters/a.py has 'here' {count} times, not 1"
    assert mutate.problem(mutant, tmp_path) == why


def test_a_copy_has_all_but_what_would_catch_every_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that is in does not go in again, and a package may be named like a data folder."""
    kept = ["benchmarks/zoo.json", "package/data/code.py", "tests/test_engine.py"]
    left = ["data/images.gz", ".git/HEAD", "benchmarks/one/runs/1.json", "tests/test_mutants.py"]
    project, copy = tmp_path / "project", tmp_path / "copy"
    for name in kept + left:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).touch()
    monkeypatch.setattr(mutate, "ROOT", project)
    shutil.copytree(project, copy, ignore=mutate.left_out)
    files = [path for path in copy.glob("**/*") if path.is_file()]
    assert sorted(str(path.relative_to(copy)) for path in files) == kept
    assert Path(__file__).name in mutate.ANYWHERE
