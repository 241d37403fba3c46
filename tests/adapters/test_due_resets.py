"""``reset``, which snnTorch leaves on a layer, and a wrapped layer computes when it is read."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import snntorch as snn
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

import tssl_adapters
from tssl_adapters.adapters.snntorch.due import Due

LAYERS: dict[str, Callable[[], Any]] = {
    "Leaky": lambda: snn.Leaky(0.9, threshold=0.5),
    "zero": lambda: snn.Leaky(0.9, threshold=0.5, reset_mechanism="zero"),
    "at once": lambda: snn.Leaky(0.9, threshold=0.5, reset_delay=False),
    "learned": lambda: snn.Leaky(0.9, threshold=0.5, learn_threshold=True),
    "many": lambda: snn.Leaky(0.9, threshold=torch.tensor([0.3, 0.5, 0.7, 0.9])),
    "Synaptic": lambda: snn.Synaptic(0.8, 0.9, threshold=0.5),
    "Alpha": lambda: snn.Alpha(0.9, 0.8, threshold=0.1),
    "RLeaky": lambda: snn.RLeaky(0.9, all_to_all=False, V=0.5, threshold=0.5),
}


def with_other_data(mem: Tensor) -> Tensor:
    mem.data = torch.full_like(mem, 0.6)
    return mem


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda mem: mem,
    "masked": lambda mem: mem * (torch.arange(mem.numel()).reshape(mem.shape) % 2),
    "detached": lambda mem: mem.detach(),
    "written to": lambda mem: mem.detach().mul_(-1.0).add_(1.2),
    "another": lambda mem: torch.full_like(mem, 0.6),
    "other data": with_other_data,
}


def steps(layer: Any, change: Callable[[Tensor], Tensor] = lambda mem: mem) -> list[Tensor]:
    """The resets of four steps, each with a changed potential."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 3, 4, generator=generator).requires_grad_()
    state: list[Tensor] = []
    found = []
    for step in x:
        if state:
            state[-1] = change(state[-1])
        _, *state = layer(step, *state)
        found.append(layer.reset)
    return found


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", LAYERS)
def test_it_is_the_librarys(name: str, change: str) -> None:
    expected = steps(LAYERS[name](), CHANGES[change])
    layer = tssl_adapters.wrap(LAYERS[name]())
    for _ in range(2):  # the steps are decided at the first one
        layer.reset_mem()
        assert all(map(torch.equal, steps(layer, CHANGES[change]), expected))
    assert any(reset.any() for reset in expected)


def stepped(change: Callable[[Tensor], Tensor] = lambda mem: mem) -> tuple[Any, Tensor, Tensor]:
    """A layer after some steps, whose reset nobody has read; its potential and that reset. The
    potential before each step was changed, and is overwritten after it.
    """
    native, layer = LAYERS["Leaky"](), tssl_adapters.wrap(LAYERS["Leaky"]())
    x = torch.rand(4, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mem = layer.init_leaky()
    for step in x:
        before = change(mem)
        _, mem = layer(step, before)
        native(step)
    with torch.no_grad():
        before.zero_()  # it was what the reset is of
    return layer, mem, native.reset


def test_it_is_computed_when_it_is_read() -> None:
    layer, _, expected = stepped()
    assert not isinstance(vars(layer)["reset"], Tensor)
    assert torch.equal(layer.reset, expected)
    assert vars(layer)["reset"] is layer.reset
    assert expected.any()


@pytest.mark.parametrize("change", [lambda mem: mem, torch.clone], ids=["own", "copied"])
def test_it_is_what_it_was_at_the_step(change: Callable[[Tensor], Tensor]) -> None:
    """Whatever is written to the potential or the threshold since."""
    layer, mem, expected = stepped(change)
    with torch.no_grad():
        mem.zero_()
        layer.threshold.fill_(10.0)
    assert torch.equal(layer.reset, expected)


@pytest.mark.parametrize("way", ["copy", "deepcopy", "unwrap"])
def test_it_outlives_the_layer(way: str) -> None:
    layer, _, expected = stepped()
    layer.mem = layer.mem.detach()
    ways = {"copy": copy.copy, "deepcopy": copy.deepcopy, "unwrap": tssl_adapters.unwrap}
    found: Any = ways[way](layer)
    assert torch.equal(found.reset, expected)
    if way == "unwrap":
        assert isinstance(vars(found)["reset"], Tensor)


def test_it_can_be_set_and_deleted() -> None:
    layer, _, expected = stepped()
    layer.reset = expected + 1.0
    assert torch.equal(layer.reset, expected + 1.0)
    del layer.reset
    assert not hasattr(layer, "reset")
    with pytest.raises(AttributeError, match="reset"):
        del layer.reset
    assert not hasattr(LAYERS["Leaky"](), "reset")


@contextmanager
def fake() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@contextmanager
def transformed() -> Iterator[None]:
    """Inside a transform, after which its tensors are of no use."""
    level = torch._C._functorch._vmap_increment_nesting(2, "error")
    try:
        yield
    finally:
        torch._C._functorch._vmap_decrement_nesting()
        assert level


CONTEXTS: dict[str, Callable[[], Any]] = {
    "inference": torch.inference_mode,
    "fake": fake,
    "transform": transformed,
    "device": lambda: torch.device("meta"),
    "no gradient": torch.no_grad,
}


@pytest.mark.parametrize("context", CONTEXTS)
def test_it_is_an_ordinary_tensor_wherever_it_is_first_read(context: str) -> None:
    layer, _, expected = stepped()
    with CONTEXTS[context]():
        found = layer.reset
    assert type(found) is Tensor
    assert not found.is_inference()
    assert not found.requires_grad
    assert torch.equal(found, expected)
    assert torch.equal(layer.reset, expected)


def test_it_is_read_in_a_compiled_graph() -> None:
    layer, _, expected = stepped()
    twice = torch.compile(lambda: layer.reset * 2.0, fullgraph=True, backend="eager")
    assert torch.equal(twice(), expected * 2.0)
    assert torch.equal(layer.reset, expected)


def test_what_a_compiled_graph_writes_to_it_stays() -> None:
    layer, _, expected = stepped()
    added = torch.compile(lambda: layer.reset.add_(5.0).sum(), fullgraph=True, backend="eager")
    assert torch.equal(added(), (expected + 5.0).sum())
    assert torch.equal(layer.reset, expected + 5.0)


class Reading(torch.nn.Module):
    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        before: Tensor = self.layer.reset
        spikes, _ = self.layer(x, torch.full_like(x, 0.7))
        return spikes + 2.0 * before


@pytest.mark.parametrize("strict", [False, True])
def test_it_is_read_in_an_exported_graph(strict: bool) -> None:
    layer, _, expected = stepped()
    x = torch.rand(3, 4)
    exported = torch.export.export(Reading(layer), (x,), strict=strict).module()
    native = LAYERS["Leaky"]()
    native.reset = expected
    assert torch.equal(exported(x), Reading(native)(x))


def test_pickles_know_nothing_of_ours() -> None:
    """A file outlives where our classes are."""
    layer, _, expected = stepped()
    saved = layer.__reduce_ex__(pickle.DEFAULT_PROTOCOL)[2]
    assert type(saved["reset"]) is Tensor
    assert torch.equal(saved["reset"], expected)


def test_a_step_of_another_thread_may_come_between(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, mem, expected = stepped()
    plain = Due.computed

    def computed(due: Due) -> Tensor:
        found = plain(due)
        monkeypatch.setattr(Due, "computed", plain)
        layer(torch.ones(3, 4, requires_grad=True), mem)
        return found

    monkeypatch.setattr(Due, "computed", computed)
    assert torch.equal(layer.reset, expected)
    assert torch.equal(layer.reset, (mem > 0.5).float())


class WithMethod(snn.Leaky):
    def reset(self) -> str:
        return "the user's"


class WithAttribute(snn.Leaky):
    reset = "the user's"


class WithProperty(snn.Leaky):
    kept: ClassVar[Any] = "the user's"

    @property
    def reset(self) -> Any:
        return self.kept

    @reset.setter
    def reset(self, value: Tensor) -> None:
        self.__dict__["kept"] = value


@pytest.mark.parametrize("cls", [WithMethod, WithAttribute, WithProperty])
def test_a_class_of_the_users_may_have_its_own(cls: type[Any]) -> None:
    tssl_adapters.register(cls, like=snn.Leaky)
    native, layer = cls(0.9, threshold=0.5), tssl_adapters.wrap(cls(0.9, threshold=0.5))
    before = layer.reset
    assert before == native.reset or before() == native.reset()
    x = torch.rand(4, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mem, theirs = layer.init_leaky(), native.init_leaky()
    for step in x:
        _, mem = layer(step, mem)
        _, theirs = native(step, theirs)
    assert torch.equal(layer.reset, native.reset)
    assert ("kept" in vars(layer)) is (cls is WithProperty)


def test_it_may_be_a_buffer() -> None:
    native, layer = LAYERS["Leaky"](), LAYERS["Leaky"]()
    for one in (native, layer):
        one.register_buffer("reset", torch.zeros(3, 4))
    layer = tssl_adapters.wrap(layer)
    x = torch.rand(4, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mem, theirs = layer.init_leaky(), native.init_leaky()
    for step in x:
        _, mem = layer(step, mem)
        _, theirs = native(step, theirs)
    assert torch.equal(layer.reset, native.reset)
    assert torch.equal(layer.state_dict()["reset"], native.state_dict()["reset"])
    assert native.reset.any()


def test_a_hook_may_set_an_attribute_during_a_step() -> None:
    """Which discards what was decided about its steps."""
    native, layer = LAYERS["Leaky"](), tssl_adapters.wrap(LAYERS["Leaky"]())
    x = torch.rand(3, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    layer.saved, mem, theirs = 0, layer.init_leaky(), native.init_leaky()

    def pack(saved: Tensor) -> Tensor:
        layer.saved += saved.numel()
        return saved

    with saved_tensors_hooks(pack, lambda saved: saved):
        for step in x:
            _, mem = layer(step, mem)
    for step in x:
        _, theirs = native(step, theirs)
    assert layer.saved
    assert torch.equal(layer.reset, native.reset)
