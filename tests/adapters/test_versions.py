"""What holds for any version of a library: run by `nox -s versions` against the older ones."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import snntorch
import torch
from interpreter import python
from models import MODELS, SPIKING, anatomy, assert_same_anatomy, equal, numbers
from torch import Tensor, nn
from torch.torch_version import TorchVersion

import tssl_adapters
from tssl_adapters import adapters, versions
from tssl_adapters.adapters.snntorch.layers import WrappedLeaky, WrappedSynaptic
from tssl_adapters.errors import LibraryVersionError, UntestedVersionWarning

LIBRARIES = ["snntorch", "spikingjelly", "norse"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_model_wraps_trains_and_unwraps(library: str) -> None:
    """Same forward, another gradient, and the native one back."""
    torch.manual_seed(0)
    model = MODELS[library]().eval()
    native = numbers(model)
    before = anatomy(model)
    tssl_adapters.wrap(model)
    ours = numbers(model)
    outs = len(native) - len([*model.parameters()]) - 1
    assert equal(ours[:outs], native[:outs])
    assert not equal(ours[outs:], native[outs:])
    assert all(torch.isfinite(part).all() for part in ours)
    tssl_adapters.unwrap(model)
    assert equal(numbers(model), native)
    assert list(anatomy(model)) == list(before)


@pytest.mark.parametrize("library", LIBRARIES)
def test_inspect_names_the_version(library: str) -> None:
    report = tssl_adapters.inspect(MODELS[library]())
    rows = {row.path: row for row in report if row.status == "wrap"}
    assert list(rows) == SPIKING[library]
    assert {row.version for row in rows.values()} == {tssl_adapters.adapters.version_of(library)}


# --- a version that was not tested ------------------------------------------------------------


@pytest.fixture
def untested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every library's version, with a torch that was."""
    known = dict.fromkeys(LIBRARIES, ("0.1", "0.2")) | {"torch": (torch.__version__,)}
    monkeypatch.setattr(versions, "tested", known.__getitem__)


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch, with libraries that were tested."""
    known = {library: (adapters.version_of(library),) for library in LIBRARIES}
    monkeypatch.setattr(versions, "tested", (known | {"torch": ("1.0.0", "1.13.1")}).__getitem__)


@pytest.mark.usefixtures("untested")
@pytest.mark.parametrize("library", LIBRARIES)
def test_every_class_passes_its_trial(library: str) -> None:
    adapter = next(a for a in adapters.loaded() if a.library == library)
    random = torch.get_rng_state()
    with pytest.warns(UntestedVersionWarning, match=f"{library} .* was not tested.*: 0.1, 0.2"):
        versions.check(adapter, list(adapter.kinds))
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.usefixtures("untested")
@pytest.mark.parametrize("library", LIBRARIES)
def test_an_untested_version_is_wrapped_with_a_warning(library: str) -> None:
    model = MODELS[library]()
    with pytest.warns(UntestedVersionWarning) as caught:
        tssl_adapters.wrap(model)
    assert [warning.filename for warning in caught] == [__file__]
    assert tssl_adapters.is_wrapped(model)


@pytest.mark.usefixtures("newer")
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_newer_torch_passes_the_same_trial(library: str) -> None:
    """One warning, with the library that was tried."""
    model = MODELS[library]()
    named = f"{library} {adapters.version_of(library)} with torch {torch.__version__}"
    message = rf"{re.escape(named.partition('+')[0])} was not tested .*; of torch: 1.0.0, 1.13.1\."
    with pytest.warns(UntestedVersionWarning, match=message) as caught:
        tssl_adapters.wrap(model)
    assert [warning.filename for warning in caught] == [__file__]
    assert tssl_adapters.is_wrapped(model)


@pytest.mark.usefixtures("newer")
def test_a_newer_torch_that_fails_its_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["snntorch"]()
    before = anatomy(model)
    monkeypatch.setattr(WrappedLeaky, "forward", lambda layer, x: 0.5 * x)
    with pytest.raises(LibraryVersionError, match=r"Leaky of snntorch .* with torch .*: 1.0.0"):
        tssl_adapters.wrap(model)
    assert_same_anatomy(anatomy(model), before)


@pytest.mark.parametrize(
    ("installed", "newer"),
    [
        ("2.14.2+cu130", "2.14.2"),
        ("2.15.0.dev20261101+cpu", "2.15.0.dev20261101"),
        ("10.0.0+cpu", "10.0.0"),
        ("2.14.1+cu130", None),  # the label is the build's
        ("2.14.0a0+git1234567", None),
        ("2.7.0+cpu", None),
    ],
)
def test_which_torch_is_newer_than_the_newest_that_was_tested(
    installed: str, newer: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "tested", {"torch": ("2.0.0", "2.14.1")}.__getitem__)
    monkeypatch.setattr(torch, "__version__", TorchVersion(installed))
    assert versions.newer_torch() == newer


@pytest.mark.usefixtures("untested")
def test_a_trial_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a GPU's random numbers nor the library's list of its layers change."""
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    known = list(snntorch.SpikingNeuron.instances)
    model = snntorch.Leaky(beta=0.9)
    with pytest.warns(UntestedVersionWarning):
        tssl_adapters.wrap(model)
    assert seeds == []
    assert [id(one) for one in snntorch.SpikingNeuron.instances] == [*map(id, known), id(model)]


MODES = {
    "inference_mode": "torch.inference_mode()",
    "no_grad": "torch.no_grad()",
    "another device": "torch.device('meta')",
    "half precision": "torch.autocast('cpu', torch.bfloat16)",
}


@pytest.mark.singly
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_first_look_at_a_library_in_any_mode(library: str, mode: str) -> None:
    """What an adapter asks its library when it is loaded does not depend on the program's mode."""
    script = f"""
import torch, json
from models import MODELS
import tssl_adapters
from tssl_adapters import versions
model = MODELS[{library!r}]()
versions.tested = lambda product: ("0",)
with {mode}:
    tssl_adapters.wrap(model)
print(json.dumps(tssl_adapters.is_wrapped(model)))
"""
    assert python(script) is True


def test_a_tested_version_gets_none(
    recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "tested", lambda product: (adapters.version_of(product),))
    tssl_adapters.wrap(MODELS["mixed"]())
    assert not [w for w in recwarn if issubclass(w.category, UntestedVersionWarning)]


SPOILT = {
    "another forward": lambda layer, x: 0.5 * x,
    "an error of its own": lambda layer, x: layer.no_such_thing,
}


@pytest.mark.usefixtures("untested")
@pytest.mark.parametrize("forward", SPOILT.values(), ids=SPOILT)
def test_an_untested_version_that_fails_its_trial(
    forward: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is changed, and the layer whose class passed is not wrapped either."""
    model = nn.ModuleList([snntorch.Leaky(beta=0.9), snntorch.Synaptic(alpha=0.9, beta=0.8)])
    before = anatomy(model)
    monkeypatch.setattr(WrappedSynaptic, "forward", forward)
    with pytest.raises(LibraryVersionError, match=r"Synaptic of snntorch .* nothing was changed"):
        tssl_adapters.wrap(model)
    assert_same_anatomy(anatomy(model), before)
    tssl_adapters.wrap(model[0])


@pytest.mark.usefixtures("untested")
def test_an_untested_version_of_another_neuron(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial does not do with the library's own gradient."""
    native = snntorch.Leaky.forward

    def forward(self: Any, input_: Tensor, mem: Any = None) -> Any:
        return native(self, 1.5 * input_, mem)

    monkeypatch.setattr(snntorch.Leaky, "forward", forward)
    with pytest.raises(LibraryVersionError, match=r"Leaky of snntorch .* in a trial it failed"):
        tssl_adapters.wrap(snntorch.Leaky(beta=0.9))


class NeedsArguments(snntorch.Leaky):
    def __init__(self, *, name: str) -> None:
        super().__init__(beta=0.5)


@pytest.mark.usefixtures("untested")
def test_a_registered_class_is_tried_as_the_one_it_is_like(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = next(a for a in adapters.loaded() if a.library == "snntorch")
    tssl_adapters.register(NeedsArguments, like=snntorch.Leaky)
    kind = adapter.kinds.pop(NeedsArguments)
    monkeypatch.setitem(adapter.kinds, NeedsArguments, kind)  # until the test's end
    with pytest.warns(UntestedVersionWarning):
        tssl_adapters.wrap(NeedsArguments(name="lif"))


def test_a_library_that_lacks_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "tssl_adapters.adapters.snntorch"
    parts = [part for part in sys.modules if part.startswith(name)]
    for part in parts:
        monkeypatch.delitem(sys.modules, part)
    monkeypatch.delattr(snntorch, "Leaky")
    with pytest.raises(LibraryVersionError, match=r"snntorch .* lacks .*'Leaky'"):
        tssl_adapters.wrap(nn.Linear(2, 2))
