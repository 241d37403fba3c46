"""The faults of tests/faults can still be put in: code that moves takes its faults along."""

from __future__ import annotations

import re
from pathlib import Path

import faults
import pytest
from faults import Fault

ROOT = Path(__file__).parents[2]
ALL = faults.faults()


@pytest.mark.parametrize("fault", ALL, ids=lambda fault: fault.patch.stem)
def test_a_fault_goes_into_the_source(fault: Fault) -> None:
    assert faults.applies(fault, ROOT, check=True)


def test_the_tests_that_should_catch_a_fault_exist() -> None:
    missing = []
    for test in sorted({test for fault in ALL for test in fault.tests}):
        file, _, name = test.partition("::")
        source = ROOT / file
        text = source.read_text() if source.exists() else ""
        outermost = re.split(r"::|\[", name)[0]
        if not re.search(rf"^(def|class) {outermost}", text, re.MULTILINE):
            missing.append(test)
    assert missing == []


def test_every_fault_has_a_name_of_its_own() -> None:
    assert len({fault.name for fault in ALL}) == len(ALL) > 30


@pytest.mark.parametrize(("broken", "status"), [(False, 0), (True, 1)])
def test_a_fault_is_caught_or_survives(
    broken: bool,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a project of two files."""
    (tmp_path / "tssl_adapters").mkdir()
    (tmp_path / "tssl_adapters" / "__init__.py").write_text("one = 1\n")
    (tmp_path / "tests" / "faults").mkdir(parents=True)
    wanted = "one < 9" if broken else "one == 1"
    (tmp_path / "tests" / "test_one.py").write_text(
        f"from tssl_adapters import one\n\ndef test_one():\n    assert {wanted}\n"
    )
    for name in ("tools", "examples"):
        (tmp_path / name).mkdir()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "tests" / "faults" / "two.patch").write_text(
        "one is two\n\nTests: tests/test_one.py\n\n"
        "--- a/tssl_adapters/__init__.py\n+++ b/tssl_adapters/__init__.py\n"
        "@@ -1 +1 @@\n-one = 1\n+one = 2\n"
    )
    monkeypatch.setattr(faults, "ROOT", tmp_path)
    monkeypatch.setattr(faults, "FOLDER", tmp_path / "tests" / "faults")
    assert faults.main([]) == status
    printed = capsys.readouterr().out
    assert f"1 faults, {status} not caught" in printed
    assert ("survived" in printed) == broken
    assert faults.main(["--skip", "is two"]) == 0
    assert "0 faults" in capsys.readouterr().out
