"""Importing the package imports no library, and works where none is installed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from interpreter import ROOT, python
from models import SpikingJellyNet, inputs

import tssl_adapters
from tssl_adapters.adapters.library import installed, libraries

LIBRARIES = ("snntorch", "spikingjelly", "norse")

BLOCK = """
import importlib.abc, importlib.metadata, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
real = importlib.metadata.version
def version(name):
    if name in {blocked}:
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.version = version
"""
LOADED = f"[m for m in sys.modules if m.split('.')[0] in {LIBRARIES}]"


def test_nobody_asks_which_reset_it_is() -> None:
    """Its arithmetic is its own: only those that make a reset of a layer know the kinds."""
    users = {
        path.relative_to(ROOT / "tssl_adapters").parts[0]
        for path in (ROOT / "tssl_adapters").rglob("*.py")
        if "tssl_adapters.resets" in path.read_text()
    }
    assert users == {"adapters", "neuron.py"}  # the latter in words


def test_import_imports_no_library() -> None:
    """Nor anything else that is not asked for; nor do inspect, supported and wrap, as long as the
    model needs none.
    """
    steps = python(
        f"""
import torch
torchs = set(sys.modules)
import tssl_adapters
first = sorted(set(sys.modules) - torchs)
import tssl_adapters.adapters
before = set(sys.modules)
after_import = {LOADED}
from torch import nn
model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
rows = [row.layer for row in tssl_adapters.supported()]
found = tssl_adapters.inspect(model)
prints = "rich" in sys.modules
text = str(found)
wrapped = tssl_adapters.is_wrapped(model)
same = tssl_adapters.unwrap(model) is model
try:
    tssl_adapters.wrap(model)
except tssl_adapters.errors.NoSpikingLayersError as error:
    said = str(error)
adapters = [m for m in set(sys.modules) - before if m.startswith("tssl_adapters.adapters.")]
found = [first, after_import, {LOADED}, adapters, rows, text, wrapped, same, said, prints]
print(json.dumps(found))
"""
    )
    first, after_import, at_the_end, adapters, rows, text, wrapped, same, said, prints = steps
    assert first == ["tssl_adapters"]
    assert not prints  # until a table is
    assert after_import == at_the_end == []
    assert adapters == []
    known = [layer for library in libraries().values() for layer in library.layers]
    assert rows == [layer for layer in known if installed(layer)]
    assert text.startswith("No layer of snnTorch")
    assert (wrapped, same) == (False, True)
    assert "Sequential has no spiking layer to wrap" in said


def test_without_any_library() -> None:
    blocked = BLOCK.format(blocked=LIBRARIES)
    importable, rows, text, said, version = python(
        f"""{blocked}
import tssl_adapters
importable = []
for name in {LIBRARIES}:
    try:
        __import__(name)
        importable.append(name)
    except ModuleNotFoundError:
        pass
from torch import nn
try:
    tssl_adapters.wrap(nn.Linear(2, 2))
except tssl_adapters.errors.NoSpikingLayersError as error:
    said = str(error)
report = tssl_adapters.supported()
print(json.dumps([importable, len(report), str(report), said, tssl_adapters.__version__]))
"""
    )
    assert importable == []
    assert rows == 0
    assert text.startswith("None of snntorch, spikingjelly, norse is installed. Next: ")
    assert "Linear has no spiking layer to wrap" in said
    assert version == tssl_adapters.__version__


USES = {
    "snntorch": "import snntorch; layer = snntorch.Leaky(0.8)",
    "spikingjelly": "from spikingjelly.activation_based import neuron; layer = neuron.LIFNode()",
    "norse": "import norse.torch; layer = norse.torch.LIFBoxCell()",
}
SEQUENCES = {
    "spikingjelly": "from spikingjelly.activation_based import neuron; "
    'layer = neuron.LIFNode(step_mode="m")',
    "norse": "import norse.torch; layer = norse.torch.LIF()",
}
CELLS = {
    "snntorch": "import snntorch; layer = snntorch.Synaptic(0.8, 0.7)",
    "spikingjelly": "from spikingjelly.activation_based import neuron; layer = neuron.KLIFNode()",
    "norse": "import norse.torch; layer = norse.torch.LSNNCell()",
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_with_one_library_only(library: str) -> None:
    """It is enough, whether it is imported before this package or after."""
    others = tuple(name for name in LIBRARIES if name != library)
    loaded, supported, gradient = python(
        f"""{BLOCK.format(blocked=others)}
import torch, tssl_adapters
{USES[library]}
tssl_adapters.wrap(layer)
x = torch.full((2, 3), 0.4, requires_grad=True)
out = layer(x)
(out[0] if isinstance(out, tuple) else out).sum().backward()
loaded = sorted({{m.split(".")[0] for m in {LOADED}}})
supported = sorted({{row.library for row in tssl_adapters.supported()}})
print(json.dumps([loaded, supported, x.grad.abs().sum().item()]))
"""
    )
    assert loaded == supported == [library]
    assert gradient > 0.0


@pytest.mark.parametrize("library", LIBRARIES)
def test_who_compiles_nothing_does_not_import_torchs_compiler(library: str) -> None:
    """Nor sympy: they take a second, and half of one."""
    uses = [kind[library] for kind in (USES, SEQUENCES, CELLS) if library in kind]
    make = "\n".join(f"{use}; layers.append(layer)" for use in uses)
    before, wrapped, after = python(
        f"""
import torch
layers = []
{make}
loaded = lambda: [name for name in ("torch._dynamo", "sympy") if name in sys.modules]
before, wrapped = loaded(), 0
import tssl_adapters
for layer in layers:
    wrapped += tssl_adapters.is_wrapped(tssl_adapters.wrap(layer))
    x = torch.full((4, 2, 3), 0.4, requires_grad=True)
    out = layer(x)
    (out[0] if isinstance(out, tuple) else out).sum().backward()
print(json.dumps([before, wrapped, loaded()]))
"""
    )
    assert (before, wrapped, after) == ([], len(uses), [])


def test_a_pickle_opens_in_a_fresh_process(tmp_path: Path) -> None:
    """It brings this package and its library along, works, and unwraps."""
    torch.manual_seed(0)
    model = tssl_adapters.wrap(SpikingJellyNet().eval(), tau_s=3.0)
    with torch.no_grad():
        expected = model(inputs())[0].sum().item()
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    before, wrapped, found, after = python(
        f"""
import pickle
before = {LOADED}
model = pickle.load(open({str(tmp_path / "model.pickle")!r}, "rb"))
import torch, tssl_adapters
from models import inputs
with torch.no_grad():
    found = model(inputs())[0].sum().item()
wrapped = tssl_adapters.is_wrapped(model)
tssl_adapters.unwrap(model)
after = [type(m).__name__ for m in model.modules() if "Wrapped" in type(m).__name__]
print(json.dumps([before, wrapped, found, after]))
"""
    )
    assert before == after == []
    assert wrapped
    assert found == expected


def test_names_that_are_loaded_once_they_are_asked_for() -> None:
    assert sorted(set(tssl_adapters.__all__) - set(dir(tssl_adapters))) == []
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        tssl_adapters.nothing  # noqa: B018
