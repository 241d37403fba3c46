"""A library that the package does not know, adapted from outside: tests/outside/.

Everything that works for the libraries of the package works for it, by its entry point alone.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from interpreter import python
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import rules, versions
from tssl_adapters.adapters import library, loaded
from tssl_adapters.errors import (
    AdapterError,
    LibraryVersionError,
    NotSequentialError,
    UnsupportedConfigError,
    UnsupportedLayerError,
    UntestedVersionWarning,
)

OUTSIDE = Path(__file__).parents[1] / "outside"
PACKAGE = Path(tssl_adapters.__file__).parent
BUILT_IN = ("norse", "snntorch", "spikingjelly")
VERSION = json.loads((OUTSIDE / "adapter_for_tinysnn" / "library.json").read_text())["tested"]


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both packages are installed, as far as this process knows, until the test's end."""
    monkeypatch.syspath_prepend(OUTSIDE)
    library.libraries.cache_clear()
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("tinysnn", "adapter_for_tinysnn")):
            del sys.modules[name]
    library.libraries.cache_clear()


@pytest.fixture
def tinysnn(outside: None) -> ModuleType:
    import tinysnn

    return tinysnn


def network(tinysnn: Any, lif: str = "LIF") -> nn.Sequential:
    torch.manual_seed(0)
    layer = getattr(tinysnn, lif)
    model = nn.Sequential(nn.Linear(6, 8), layer(), nn.Linear(8, 4), tinysnn.Leak(), layer(0.6))
    with torch.no_grad():
        model[2].weight.mul_(8.0)  # so that the second layer spikes too
    return model


def drive(steps: int = 7) -> Tensor:
    return 3.0 * torch.randn(steps, 5, 6, generator=torch.Generator().manual_seed(1))


def ran(tinysnn: Any, model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Spikes, and the gradients of the input and every weight."""
    tinysnn.reset(model)
    x = x.clone().requires_grad_()
    out = torch.stack([*map(model, x)])
    weight = torch.linspace(-1.0, 2.0, out.numel()).view_as(out)
    return out, list(torch.autograd.grad((out * weight).sum(), [x, *model.parameters()]))


def close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).abs().max()) <= 1e-5 * float(b.abs().max())


pytestmark = pytest.mark.filterwarnings("ignore::tssl_adapters.errors.RuleWarning")

# --- how it is found --------------------------------------------------------------------------


def test_it_is_loaded_only_once_the_library_is_imported() -> None:
    """``supported`` lists its classes before, and ``inspect`` and ``wrap`` know its name."""
    before, text, layers, after = python(
        f"""
sys.path.insert(0, {str(OUTSIDE)!r})
import tssl_adapters
from torch import nn
there = lambda: sorted(m for m in sys.modules if "tinysnn" in m)
text = str(tssl_adapters.inspect(nn.Linear(2, 2)))
try:
    tssl_adapters.wrap(nn.Linear(2, 2))
except tssl_adapters.errors.NoSpikingLayersError:
    pass
rows = [(r.version, r.layer, r.mode) for r in tssl_adapters.supported() if r.library == "tinysnn"]
before = there()
import tinysnn
assert "adapter_for_tinysnn" not in there()
model = tssl_adapters.wrap(nn.Sequential(tinysnn.LIF()))
assert tssl_adapters.is_wrapped(model)
print(json.dumps([before, text, rows, there()]))
"""
    )
    assert before == []
    assert text.startswith("No layer of snnTorch, SpikingJelly, Norse or TinySNN in this model.")
    assert layers == [
        ["1.5", "tinysnn.layers.LIF", "step"],
        ["1.5", "tinysnn.layers.LIFSequence", "sequence"],
    ]
    assert after == ["adapter_for_tinysnn", "tinysnn", "tinysnn.layers"]


def entries(monkeypatch: pytest.MonkeyPatch, *more: tuple[str, str]) -> None:
    """Other entry points beside those that are installed."""
    found = [*entry_points(group=library.GROUP), *(EntryPoint(*p, library.GROUP) for p in more)]
    monkeypatch.setattr(library.metadata, "entry_points", lambda group: found)
    library.libraries.cache_clear()


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("norse", "adapter_for_tinysnn:ADAPTER", "two adapters of norse, tssl_adapters.adapters.n"),
        ("tinysnn", "other:ADAPTER", "two adapters of tinysnn, adapter_for_tinysnn:ADAPTER and"),
        ("other", "no_such_package:ADAPTER", "there is no module no_such_package"),
        ("other", "tinysnn:ADAPTER", r"library.json cannot be read \(FileNotFoundError"),
        ("other", "adapter_for_tinysnn:ADAPTER", "lists tinysnn.layers.LIF, which is not of other"),
    ],
)
def test_an_entry_point_that_is_wrong(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries(monkeypatch, (name, value))
    for call in (tssl_adapters.supported, lambda: tssl_adapters.wrap(nn.Linear(2, 2))):
        with pytest.raises(AdapterError, match=said):
            call()


def test_what_is_no_adapter(tinysnn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import adapter_for_tinysnn

    monkeypatch.setattr(adapter_for_tinysnn, "ADAPTER", 3)
    with pytest.raises(AdapterError, match="is not an adapter of tinysnn, but 3"):
        tssl_adapters.wrap(tinysnn.LIF())


def test_a_library_that_lacks_what_its_adapter_needs(
    tinysnn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tinysnn, "LIFSequence")
    with pytest.raises(LibraryVersionError, match=r"tinysnn 1\.5 lacks .*'LIFSequence'"):
        tssl_adapters.wrap(tinysnn.LIF())


# --- what works for it ------------------------------------------------------------------------


def test_wrapped_and_unwrapped(tinysnn: Any) -> None:
    """Same spikes, another gradient, and the library's own one again."""
    native, model = network(tinysnn), network(tinysnn)
    out, grads = ran(tinysnn, native, drive())
    assert 0.05 < float(out.detach().mean()) < 0.95
    tssl_adapters.wrap(model, rule="tsslbp")
    ours, rule = ran(tinysnn, model, drive())
    assert torch.equal(ours, out)
    assert not torch.allclose(rule[0], grads[0], rtol=0.1)
    tssl_adapters.unwrap(model)
    assert [*map(type, model)] == [*map(type, native)]
    again, back = ran(tinysnn, model, drive())
    assert torch.equal(again, out)
    assert all(torch.equal(a, b) for a, b in zip(back, grads, strict=True))


@pytest.mark.parametrize("engine", ["torch", "cpu"])
def test_the_library_s_own_gradient(tinysnn: Any, engine: str) -> None:
    """``rule="native"``, on both engines."""
    native, model = network(tinysnn), network(tinysnn)
    tssl_adapters.wrap(model, rule="native", engine=engine)
    assert f"engine='{engine}'" in tssl_adapters.inspect(model)[0].detail
    assert f"engine='{engine}'" in str(model)
    out, grads = ran(tinysnn, native, drive())
    ours, found = ran(tinysnn, model, drive())
    assert torch.equal(ours, out)
    close(found, grads)
    assert all(model[i]._tssl_settings.loops for i in (1, 4)) == (engine == "cpu")


@pytest.mark.parametrize("name", ["smooth-tsslbp", "tsslbp", "eventprop"])
def test_engines_agree(tinysnn: Any, name: str) -> None:
    found = []
    for engine in ("torch", "cpu"):
        model = tssl_adapters.wrap(network(tinysnn), rule=rules.BY_NAME[name](), engine=engine)
        found.append(ran(tinysnn, model, drive()))
    assert torch.equal(found[0][0], found[1][0])
    close(found[1][1], found[0][1])


def test_inspect(tinysnn: Any) -> None:
    model = nn.Sequential(tinysnn.LIF(), tinysnn.Gate(), tinysnn.Leak(), tinysnn.LIF(0.5, -1.0))
    rows = list(tssl_adapters.inspect(model, skip=[]))
    assert [(row.layer, row.library, row.version, row.status) for row in rows] == [
        ("LIF", "tinysnn", "1.5", "wrap"),
        ("Gate", "tinysnn", "1.5", "refused"),
        ("Leak", "tinysnn", "1.5", "native"),
        ("LIF", "tinysnn", "1.5", "refused"),
    ]
    assert rows[0].detail.startswith("step: SmoothTSSLBP(")
    assert rows[1].detail == "its output is no spike"
    assert rows[3].detail == "its threshold is not positive; take one that is"


def test_refused_before_anything_is_changed(tinysnn: Any) -> None:
    bad = nn.Sequential(tinysnn.LIF(), tinysnn.LIF(0.5, -1.0))
    with pytest.raises(UnsupportedConfigError, match=r"1 \(tinysnn 1.5 LIF\): its threshold"):
        tssl_adapters.wrap(bad)
    with pytest.raises(UnsupportedLayerError, match=r"0 \(tinysnn 1.5 Gate\): its output is no"):
        tssl_adapters.wrap(nn.Sequential(tinysnn.Gate()))
    assert not tssl_adapters.is_wrapped(bad)


def test_an_untested_version(tinysnn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried out; one that does something else is refused."""
    assert versions.tested("tinysnn") == tuple(VERSION) == ("1.4", "1.5")
    monkeypatch.setattr(versions, "version_of", lambda name: "1.6")
    with pytest.warns(UntestedVersionWarning, match=r"tinysnn 1\.6 was not tested .*: 1\.4, 1\.5"):
        tssl_adapters.wrap(network(tinysnn))

    import adapter_for_tinysnn

    monkeypatch.setattr(adapter_for_tinysnn.WrappedLIF, "forward", lambda layer, x: 0.5 * x)
    with pytest.raises(LibraryVersionError, match=r"LIF of tinysnn 1\.6 .* nothing was changed"):
        tssl_adapters.wrap(network(tinysnn))


def test_a_class_of_the_user_s(tinysnn: Any) -> None:
    """A registered one is tried out; one that computes something else is refused."""

    class Doubled(tinysnn.LIF):  # type: ignore[misc,name-defined]
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(2.0 * x)  # type: ignore[no-any-return]

    class Named(tinysnn.LIF):  # type: ignore[misc,name-defined]
        def rate(self) -> float:
            return float(self.v.mean())  # type: ignore[union-attr]

    with pytest.raises(UnsupportedLayerError, match="it overrides forward"):
        tssl_adapters.register(Doubled, like=tinysnn.LIF)
    with pytest.raises(UnsupportedLayerError, match="it defines rate"):
        tssl_adapters.wrap(Named())
    tssl_adapters.register(Named, like=tinysnn.LIF)
    layer: Any = tssl_adapters.wrap(Named())
    layer(drive()[0])
    assert isinstance(layer.rate(), float)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("lif", ["LIF", "LIFSequence"])
def test_layer_by_layer(tinysnn: Any, lif: str, wrapped: bool) -> None:
    """What a loop over time gives, or the layers that take whole sequences."""
    native, model = network(tinysnn), network(tinysnn, lif)
    if wrapped:
        tssl_adapters.wrap(model)
    x = drive()[:, :4]
    expected, _ = ran(tinysnn, native, x)
    assert torch.equal(tssl_adapters.multi_step_forward(model, x), expected)


def test_what_cannot_go_layer_by_layer(tinysnn: Any) -> None:
    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = tinysnn.LIF()

        def forward(self, x: Tensor) -> Tensor:
            return self.lif(x)  # type: ignore[no-any-return]

    with pytest.raises(NotSequentialError, match=r"nn\.Sequential, tinysnn's into an nn"):
        tssl_adapters.multi_step_forward(Custom(), drive())
    mixed = nn.Sequential(tinysnn.LIF(), tinysnn.LIFSequence())
    with pytest.raises(NotSequentialError, match=r"one kind \(.*tinysnn: LIF and LIFSequence\)"):
        tssl_adapters.multi_step_forward(mixed, drive())


def test_several_spikes_a_step(tinysnn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that know of one refuse the layer; native and surrogate gradients take it."""
    import adapter_for_tinysnn

    one = adapter_for_tinysnn.Layer._tssl_traits
    several = classmethod(lambda cls, layer: replace(one(layer), several=True))
    monkeypatch.setattr(adapter_for_tinysnn.Layer, "_tssl_traits", several)
    surrogate = rules.SurrogateGradient(lambda x: 1.0 / (1.0 + x.abs()))
    taken = {
        name: tssl_adapters.inspect(tinysnn.LIF(), rule=rule)[0].status
        for name, rule in {**rules.BY_NAME, "surrogate": lambda: surrogate}.items()
        for rule in [rule()]
    }
    assert {name for name, status in taken.items() if status == "wrap"} == {"native", "surrogate"}
    with pytest.raises(UnsupportedConfigError, match="several spikes, and SmoothTSSLBP knows of"):
        tssl_adapters.wrap(tinysnn.LIF())


def test_at_a_longer_synaptic_time_constant(tinysnn: Any) -> None:
    layer, native = tssl_adapters.wrap(tinysnn.LIF(), tau_s=3.0), tinysnn.LIF()
    psc = torch.zeros(5, 6)
    for step in drive():
        psc = psc + (native(step) - psc) / 3.0
        torch.testing.assert_close(layer(step), psc)
    assert torch.equal(layer.v, native.v)


# --- the libraries of the package -------------------------------------------------------------

PUBLIC = ("adapters", "arithmetic", "errors", "rules")


def imported(tree: ast.Module) -> set[str]:
    """The modules that a file imports from this package, and the names from the package itself."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            whole = node.module == "tssl_adapters"
            found |= {f"tssl_adapters.{a.name}" for a in node.names} if whole else {node.module}
    return {name for name in found if name.split(".")[0] == "tssl_adapters"}


@pytest.mark.parametrize("name", BUILT_IN)
def test_adapters_use_the_public_interface_alone(name: str) -> None:
    own, public = f"tssl_adapters.adapters.{name}", {f"tssl_adapters.{part}" for part in PUBLIC}
    files = sorted((PACKAGE / "adapters" / name).glob("*.py"))
    assert len(files) > 5
    for file in files:
        used = imported(ast.parse(file.read_text()))
        beyond = {module for module in used - public if f"{module}.".split(f"{own}.")[0]}
        assert not beyond, file.name


def test_no_library_is_named_outside_its_adapter() -> None:
    """But for docstrings, and the list of those that the package brings."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        inside = file.relative_to(PACKAGE).parts
        if inside[0] == "bench" or (inside[0] == "adapters" and inside[1] in BUILT_IN):
            continue
        tree = ast.parse(file.read_text())
        prose = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        named = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
            if id(node) not in prose and any(name in node.value for name in BUILT_IN)
        ]
        if named or any("tssl_adapters.adapters." + n in imported(tree) for n in BUILT_IN):
            found["/".join(inside)] = named
    assert found == {"adapters/library.py": ["snntorch", "spikingjelly", "norse"]}


def test_they_are_the_first_ones() -> None:
    assert [adapter.library for adapter in loaded()][:3] == ["snntorch", "spikingjelly", "norse"]
