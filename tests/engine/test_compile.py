"""torch.compile of stacks of convolution, normalisation and neurons: what eager gives."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from shutil import which
from typing import Any

import compiler
import norse.torch as norse
import pytest
import snntorch
import torch
from compat_snntorch import start
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn
from usage import own_instances  # noqa: F401

import tssl_adapters


def jelly(mode: str) -> nn.Sequential:
    nodes = [neuron.LIFNode(v_threshold=0.3) for _ in range(2)]
    first = [layer.Conv2d(1, 4, 3), layer.BatchNorm2d(4), nodes[0], layer.MaxPool2d(2)]
    second = [layer.Conv2d(4, 4, 3, padding=1), layer.BatchNorm2d(4), nodes[1]]
    model = nn.Sequential(*first, *second)
    functional.set_step_mode(model, mode)
    return model


def leaky() -> nn.Sequential:
    neurons = [snntorch.Leaky(0.8, init_hidden=True) for _ in range(2)]
    first = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), neurons[0]]
    return nn.Sequential(*first, nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), neurons[1])


def cells(make: Callable[[], nn.Module]) -> nn.Sequential:
    first = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), Gain(), make()]
    second = [nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), Gain(), make()]
    return norse.SequentialState(*first, *second)  # type: ignore[no-any-return]


def lifted() -> nn.Sequential:
    parts: list[nn.Module] = []
    for channels in (1, 4):
        lifts = [norse.Lift(nn.Conv2d(channels, 4, 3)), norse.Lift(nn.BatchNorm2d(4))]
        parts += [*lifts, Gain(), norse.LIF()]
    return norse.SequentialState(*parts)  # type: ignore[no-any-return]


class Gain(nn.Module):
    """Norse's neurons take a small part of their input."""

    def forward(self, x: Tensor) -> Tensor:
        return 20.0 * x


needs_compiler = pytest.mark.skipif(
    which(os.environ.get("CXX", "g++")) is None, reason="Inductor needs a C++ compiler"
)
STACKS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "snntorch": (leaky, False),
    "spikingjelly-s": (lambda: jelly("s"), False),
    "spikingjelly-m": (lambda: jelly("m"), True),
    "norse-cells": (lambda: cells(norse.LIFBoxCell), False),
    "norse-sequences": (lifted, True),
}
"""How a stack is made, and whether it takes whole sequences."""


def numbers(model: Any, run: Any, whole: bool) -> list[Tensor]:
    """Spikes over time, then the gradients of all parameters."""
    x = 3.0 * torch.rand(3, 4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    state: Any = None
    for module in model.modules():
        if isinstance(module, snntorch.SpikingNeuron):
            start(module)
    functional.reset_net(model)
    if whole:
        out = run(x)
        out = out[0] if isinstance(out, tuple) else out
    else:
        outs = []
        for step in x.unbind(0):
            if isinstance(model, norse.SequentialState):
                out, state = run(step, state)
            else:
                out = run(step)
            outs.append(out)
        out = torch.stack(outs)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    return [out, *torch.autograd.grad((out * weights).sum(), list(model.parameters()))]


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return tssl_adapters.wrap(STACKS[name][0](), engine="torch")


@pytest.mark.singly
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=needs_compiler)])
@pytest.mark.parametrize("name", STACKS)
def test_a_stack(name: str, backend: str) -> None:
    plain, model, whole = made(name), made(name), STACKS[name][1]
    compiler.forget()
    expected = numbers(plain, plain, whole)
    found = numbers(model, torch.compile(model, backend=backend), whole)
    assert 0.02 < float(expected[0].detach().mean()) < 0.98
    assert torch.equal(found[0], expected[0])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_graphs_behind_a_layer_are_for_its_size() -> None:
    """Inductor fails on SpikingJelly's ``Conv2d`` for sequences where its size is any. A node that
    stores its states breaks the graph.
    """
    graphs: list[list[Any]] = []

    def backend(graph: Any, examples: list[Any]) -> Any:
        graphs.append(examples)
        return graph

    torch.manual_seed(0)
    node = neuron.LIFNode(store_v_seq=True)
    parts = [layer.Conv2d(1, 4, 3), node, layer.Conv2d(4, 4, 3), layer.BatchNorm2d(4)]
    model = nn.Sequential(*parts)
    functional.set_step_mode(model, "m")
    tssl_adapters.wrap(model)
    compiler.forget()
    torch.compile(model, backend=backend)(torch.rand(3, 4, 1, 8, 8))
    assert len(graphs) >= 2
    assert not [one for examples in graphs for one in examples if isinstance(one, torch.SymInt)]


@pytest.mark.skipif(
    "reason" not in inspect.signature(torch.compiler.disable).parameters,
    reason="this version of torch takes no reason",
)
def test_the_break_says_why() -> None:
    model = made("spikingjelly-s")
    compiler.forget()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="wrapped by tssl_adapters computes its gradient itself"):
        compiled(torch.rand(4, 1, 8, 8))
