"""Copies of a library within another project are known by the module that a class lives in."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters.errors import UnsupportedLayerError

ONE_FILE = """
import torch
from spikingjelly.activation_based import base, surrogate


class BaseNode(base.MemoryModule):
    def __init__(self, v_threshold=1.0, v_reset=0.0, detach_reset=False):
        super().__init__()
        self.v_threshold, self.v_reset, self.detach_reset = v_threshold, v_reset, detach_reset
        self.surrogate_function = surrogate.Sigmoid()
        self.store_v_seq = False
        self.register_memory("v", 0.0)

    def single_step_forward(self, x):
        self.neuronal_charge(x)
        spike = self.surrogate_function(self.v - self.v_threshold)
        self.v = (1.0 - spike) * self.v + spike * self.v_reset
        return spike


class LIFNode(BaseNode):
    def __init__(self, tau=2.0, decay_input=True):
        super().__init__()
        self.tau, self.decay_input = tau, decay_input

    def neuronal_charge(self, x):
        self.v = self.v + (x - (self.v - self.v_reset)) / self.tau


class IFNode(BaseNode):
    def neuronal_charge(self, x):
        self.v = self.v + 2.0 * x


class LIAFNode(BaseNode):
    pass


class SpikeCounter(BaseNode):
    pass
"""
"""A file in the manner of older versions, whose nodes charge, fire and reset."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project that has the libraries' sources in a package of its own, and one file of nodes."""
    folder = tmp_path_factory.mktemp("project")
    package = folder / "mymodels"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "neuron.py").write_text(ONE_FILE)
    for library in ("spikingjelly", "snntorch"):
        (spec,) = importlib.util.find_spec(library).submodule_search_locations  # type: ignore[union-attr]
        (package / library).symlink_to(spec)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "mymodels"]:
        del sys.modules[name]


NEURON = "mymodels.spikingjelly.activation_based.neuron"
LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "LIFNode": (NEURON, {}),
    "LIFNode-m": (NEURON, {"step_mode": "m"}),
    "KLIFNode": (NEURON, {}),
    "CUBALIFNode": (NEURON, {"v_threshold": 0.4}),
    "Leaky": ("mymodels.snntorch", {"beta": 0.8, "init_hidden": True}),
    "RSynaptic": (
        "mymodels.snntorch",
        {"alpha": 0.9, "beta": 0.8, "linear_features": 4, "init_hidden": True},
    ),
    "LIFNode-file": ("mymodels.neuron", {}),
}


def made(name: str, package: str = "") -> Any:
    """A layer of the copy, or of the library that it is a copy of."""
    module, settings = LAYERS[name]
    torch.manual_seed(0)
    cls = getattr(importlib.import_module(module.removeprefix(package)), name.partition("-")[0])
    return cls(**settings)


def run(layer: Any) -> list[Tensor]:
    x = torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(0)).mul_(3.0)
    x.requires_grad_()
    whole = getattr(layer, "step_mode", "s") == "m"
    out = layer(x) if whole else torch.stack([*map(layer, x)])
    loss = (out * torch.linspace(-1.0, 2.0, out.numel()).view_as(out)).sum()
    return [out.detach(), torch.autograd.grad(loss, x)[0]]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("name", LAYERS)
def test_a_copy_is_wrapped_as_what_it_is_a_copy_of(name: str, tau_s: float) -> None:
    model = nn.Sequential(made(name))
    cls = type(model[0])
    row = tssl_adapters.inspect(model, tau_s=tau_s)[0]
    assert (row.status, row.version) == ("wrap", f"copied to {cls.__module__}")
    tssl_adapters.wrap(model, tau_s=tau_s)
    assert tssl_adapters.inspect(model)[0].status == "wrapped"
    original = made(name.removesuffix("-file"), "mymodels.")
    ours, expected = run(model[0]), run(tssl_adapters.wrap(original, tau_s=tau_s))
    assert expected[0].any()
    assert torch.equal(ours[0], expected[0])
    torch.testing.assert_close(ours[1], expected[1])
    assert type(tssl_adapters.unwrap(model)[0]) is cls
    assert torch.equal(run(made(name))[0], expected[0]) == (tau_s == 1.0)


@pytest.mark.usefixtures("project")
def test_pickles_and_subclasses() -> None:
    lif = importlib.import_module(NEURON).LIFNode
    own = type("Own", (lif,), {"TAU": 3.0})
    assert tssl_adapters.inspect(own())[0].status == "wrap"
    layer = tssl_adapters.wrap(lif(), tau_s=2.0)
    twin = pickle.loads(pickle.dumps(layer))
    assert type(twin) is type(layer)
    assert type(tssl_adapters.unwrap(twin)) is lif


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("module", "name", "why"),
    [
        ("mymodels.neuron", "IFNode", "it does not compute the neuron of IFNode"),
        ("mymodels.neuron", "LIAFNode", "its output is not a binary spike but an activation"),
        ("mymodels.neuron", "SpikeCounter", "its neuron is not known"),
        (NEURON, "DSRIFNode", "it has a learning rule of its own"),
    ],
)
def test_another_neuron_is_refused_by_its_module(module: str, name: str, why: str) -> None:
    cls = getattr(importlib.import_module(module), name)
    model = nn.Sequential(nn.Linear(3, 3), cls())
    with pytest.raises(UnsupportedLayerError) as caught:
        tssl_adapters.wrap(model)
    text = str(caught.value)
    assert f"{cls.__module__}.{name}, a copy of spikingjelly's: {why}" in text
    assert "regist" not in text
    assert type(model[1]) is cls


ALONE = """
import copy
import torch
from torch import nn


class MemoryModule(nn.Module):
    def __init__(self):
        super().__init__()
        self._memories, self._memories_rv = {}, {}

    def register_memory(self, name, value):
        self._memories[name] = value
        self._memories_rv[name] = copy.deepcopy(value)

    def reset(self):
        self._memories.update(copy.deepcopy(self._memories_rv))

    def __getattr__(self, name):
        memories = self.__dict__.get("_memories", {})
        return memories[name] if name in memories else super().__getattr__(name)

    def __setattr__(self, name, value):
        if name in self.__dict__.get("_memories", {}):
            self._memories[name] = value
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name):
        if name in self._memories:
            del self._memories[name], self._memories_rv[name]
        else:
            super().__delattr__(name)

    def forward(self, x):
        return self.single_step_forward(x)


class base:
    MemoryModule = MemoryModule


class surrogate:
    class Sigmoid(torch.autograd.Function):
        def __new__(cls):
            return cls.apply

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return (x >= 0).to(x)

        @staticmethod
        def backward(ctx, grad):
            s = (4.0 * ctx.saved_tensors[0]).sigmoid()
            return 4.0 * s * (1.0 - s) * grad
"""


def test_where_the_library_itself_is_not_there(tmp_path: Path) -> None:
    nodes = ONE_FILE.replace("from spikingjelly.activation_based import base, surrogate", "")
    (tmp_path / "nodes.py").write_text(ALONE + nodes.replace("import torch\n", ""))
    script = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "spikingjelly":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch, tssl_adapters, nodes
model = torch.nn.Sequential(torch.nn.Linear(2, 2), nodes.LIFNode())
native = [model(x) for x in torch.ones(3, 5, 2)]
model[1].reset()
tssl_adapters.wrap(model)
assert tssl_adapters.is_wrapped(model[1])
assert all(map(torch.equal, native, [model(x) for x in torch.ones(3, 5, 2)]))
sum(native).sum().backward()
assert type(tssl_adapters.unwrap(model)[1]) is nodes.LIFNode
try:
    tssl_adapters.wrap(nodes.IFNode())
except tssl_adapters.errors.UnsupportedLayerError as error:
    assert "nodes.IFNode, a copy of spikingjelly's: it does not compute" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)


def test_a_package_of_the_library_s_name_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is installed says nothing about its version."""
    import snntorch

    monkeypatch.setattr(snntorch, "__file__", str(tmp_path / "snntorch" / "__init__.py"))
    model = nn.Sequential(snntorch.Leaky(0.9))
    assert tssl_adapters.inspect(model)[0].version == f"in {tmp_path / 'snntorch'}"
    with pytest.warns(tssl_adapters.errors.UntestedVersionWarning, match=str(tmp_path)):
        tssl_adapters.wrap(model)
