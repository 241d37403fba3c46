"""README and documentation: every Python block runs, links lead somewhere, the API page is whole.

A block knows no name of another, so that a reader may copy any. What must hold after it is in
comments that Markdown does not show, which follow it and share its names.
"""

import re
from pathlib import Path

import pytest
import snntorch
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import tssl_adapters

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^ *```py", re.MULTILINE)
FILES = (ROOT / "README.md", *ROOT.glob("docs/**/*.md"))
WITH_CODE = [str(path.relative_to(ROOT)) for path in FILES if FENCE.search(path.read_text())]
DOCUMENTS = Sybil([PythonCodeBlockParser()])


@pytest.mark.parametrize("file", sorted(WITH_CODE))
def test_code_blocks_run(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(snntorch.SpikingNeuron, "instances", [])  # it keeps every layer ever made
    torch.manual_seed(0)
    document = DOCUMENTS.parse(ROOT / file)
    visible = 0
    for example in document:
        if FENCE.match(document.text, example.region.start):
            visible += 1
            document.namespace.clear()
            document.namespace["page"] = document.text  # what is shown, to compare with what is so
        example.evaluate()
    assert visible == len(FENCE.findall(document.text))


def test_readme_is_a_first_look() -> None:
    """Short, and what it points to is there; mkdocs checks the links between pages."""
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert "docs/assets/networks.svg" in targets
    assert [target for target in targets if not (ROOT / target).is_file()] == []


def test_api_page_has_every_public_name() -> None:
    said = re.findall(r"^::: tssl_adapters\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.M)
    assert sorted(said) == sorted(set(tssl_adapters.__all__) - {"__version__"})
