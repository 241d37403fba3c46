"""What the package says of itself, once in each place; ``nox -s package`` looks into the wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nox.project
import pytest
import yaml

import tssl_adapters

ROOT = Path(__file__).parents[2]
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")["project"]
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_citation_is_of_this_package() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert citation["title"] == tssl_adapters.__name__
    said = {name: citation[name] for name in ("version", "license")}
    assert said == {name: PROJECT[name] for name in said}
    assert [author["name"] for author in citation["authors"]] == [
        author["name"] for author in PROJECT["authors"]
    ]


def test_types_are_told_to_checkers() -> None:
    """The wheel is held to have every file of the package."""
    assert (ROOT / "tssl_adapters/py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["classifiers"]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_issue_forms_are_as_github_reads_them(form: Path) -> None:
    found = read(form)
    assert found["name"]
    assert found["description"]
    asked = [part for part in found["body"] if part["type"] != "markdown"]
    assert asked
    assert all(part["attributes"]["label"] for part in asked)
    assert len({part["id"] for part in asked}) == len(asked)
