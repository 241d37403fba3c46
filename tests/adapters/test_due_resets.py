"""``reset``, which snnTorch leaves on a layer, and a wrapped layer computes when it is read."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import tssl_adapters

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
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda mem: mem,
    "masked": lambda mem: mem * (torch.arange(mem.numel()).reshape(mem.shape) % 2),
    "detached": lambda mem: mem.detach(),
    "written to": lambda mem: mem.detach().mul_(-1.0).add_(1.2),
    "other memory": lambda mem: torch.full_like(mem, 0.6),
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
    assert not hasattr(LAYERS["Leaky"](), "reset")


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
