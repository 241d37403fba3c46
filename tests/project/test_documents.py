"""README and documentation: every Python block runs, links lead somewhere, the API page is whole.

A block knows no name of another, so that a reader may copy any. What must hold after it is in
comments that Markdown does not show, which follow it and share its names.
"""

import json
import re
from operator import attrgetter
from pathlib import Path

import pytest
import snntorch
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import tssl_adapters

ROOT = Path(__file__).parents[2]
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


def pages_said(*names: str) -> set[str]:
    """What these API pages describe, without the package's name."""
    text = "".join((ROOT / f"docs/{name}.md").read_text() for name in names)
    return set(re.findall(r"^::: tssl_adapters\.([\w.]+)$", text, re.MULTILINE))


def test_api_pages_have_every_public_name() -> None:
    modules = {"adapters", "errors", "losses", "arithmetic"}
    functions = set(tssl_adapters.__all__) - modules - {"__version__", "rules"}
    rules = {f"rules.{name}" for name in tssl_adapters.rules.__all__} - {"rules.BY_NAME"}
    assert functions | modules | rules <= pages_said("api", "extending")


def test_hooks_are_on_the_extenders_page_alone() -> None:
    hooks = {f"rules.{name}" for name in ("Rule", "Step", "Window", "Feedback")} | {"arithmetic"}
    assert hooks <= pages_said("extending")
    assert not hooks & pages_said("api")


def test_the_interface_of_adapters_is_on_the_extenders_page() -> None:
    page = (ROOT / "docs/extending.md").read_text()
    named = set(re.findall(r"^::: tssl_adapters\.adapters\.(\w+)$", page, re.MULTILINE))
    named |= set(re.findall(r"`(\w+)`", page.partition("### Small things")[2]))
    assert named >= set(tssl_adapters.adapters.__all__)
    shown = {f"testing.{name}" for name in ("AdapterSuite", "Case", "Golden", "Refusal", "Run")}
    assert shown <= pages_said("extending")


def test_the_page_on_adding_a_library_counts_right() -> None:
    page = (ROOT / "docs/adding_a_library.md").read_text()
    package = ROOT / "examples/adapter_for_sinabs"
    for folder in ("adapter_for_sinabs", "tests"):
        lines = sum(len(f.read_text().splitlines()) for f in (package / folder).glob("*.py"))
        assert f"| `{folder}/` | {lines} |" in page
    tiny = ROOT / "tests/outside/adapter_for_tinysnn/__init__.py"
    marks = tiny.read_text().count("# --8<--")
    assert f"{len(tiny.read_text().splitlines()) - marks} lines" in page


@pytest.mark.parametrize(
    "file", sorted((ROOT / "docs/tutorials").glob("*.ipynb")), ids=attrgetter("stem")
)
def test_tutorials_keep_what_they_show(file: Path) -> None:
    """Run from the top in one go, with a plot, without errors or warnings; nox runs them again."""
    cells = [c for c in json.loads(file.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    kinds = {output.get("name", output["output_type"]) for output in outputs}
    assert kinds <= {"stdout", "display_data", "execute_result"}
    shown = [set(output["data"]) for output in outputs if "data" in output]
    assert shown
    assert all("image/png" in data for data in shown)
