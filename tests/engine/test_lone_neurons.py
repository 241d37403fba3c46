"""A layer of one neuron whose tensors have no dimension gives what one of shape ``[1]`` gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch
import torch
from compat_spikingjelly import node
from spikingjelly.activation_based import functional
from torch import Tensor

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.errors import LostLinkWarning

STEPS = 8
Loop = Callable[[Any, Tensor], tuple[Tensor, Tensor]]
"""``(layer, drive) -> outputs, last potential``."""


def whole(layer: Any, drive: Tensor) -> tuple[Tensor, Tensor]:
    functional.reset_net(layer)
    return layer(drive), layer.v


def by_steps(layer: Any, drive: Tensor) -> tuple[Tensor, Tensor]:
    functional.reset_net(layer)
    return torch.stack([layer(step) for step in drive]), layer.v


def snntorch_steps(layer: Any, drive: Tensor) -> tuple[Tensor, Tensor]:
    layer.reset_mem()
    outs: list[Tensor] = []
    states: list[Tensor] = []
    for step in drive:
        out, *states = layer(step, *states)
        outs.append(out)
    return torch.stack(outs), states[-1]


def norse_steps(layer: Any, drive: Tensor) -> tuple[Tensor, Tensor]:
    state, outs = None, []
    for step in drive:
        out, state = layer(step, state)
        outs.append(out)
    assert state is not None
    return torch.stack(outs), state.v


def norse_whole(layer: Any, drive: Tensor) -> tuple[Tensor, Tensor]:
    out, state = layer(drive)
    return out, state.v


def izhikevich() -> Any:
    numbers = norse.IzhikevichParameters(0.3, 0.25, -0.3, 0.3, 0.4, -0.8, 0.1, 0.4, 500.0)
    start = norse.IzhikevichState(torch.tensor(0.05), torch.tensor(0.02))
    return norse.IzhikevichCell(norse.IzhikevichSpikingBehavior(numbers, start))


LINEAR: dict[str, tuple[Callable[[], Any], Loop]] = {
    "LIFNode-s": (lambda: node("LIFNode", step_mode="s"), by_steps),
    "LIFNode-m": (lambda: node("LIFNode", step_mode="m"), whole),
    "ParametricLIFNode-s": (lambda: node("ParametricLIFNode", step_mode="s"), by_steps),
    "Leaky": (lambda: snntorch.Leaky(0.8, learn_threshold=True), snntorch_steps),
    "Synaptic": (lambda: snntorch.Synaptic(alpha=0.7, beta=0.8), snntorch_steps),
    "LIFCell": (lambda: norse.LIFCell(norse.LIFParameters(v_th=torch.tensor(0.3))), norse_steps),
    "LIF": (lambda: norse.LIF(norse.LIFParameters(v_th=torch.tensor(0.3))), norse_whole),
}
CELLS: dict[str, tuple[Callable[[], Any], Loop]] = {
    "IzhikevichNode": (lambda: node("IzhikevichNode", step_mode="m"), whole),
    "IzhikevichCell": (izhikevich, norse_steps),
    "LIFAdEx": (
        lambda: norse.LIFAdEx(norse.LIFAdExParameters(v_th=torch.tensor(1.0))),
        norse_whole,
    ),
}
FOR_ALL = {
    "smooth": rules.SmoothTSSLBP(),
    "tsslbp": rules.TSSLBP(),
    "native": rules.Native(),
}
FOR_LINEAR = {
    "lee": rules.Lee(gate="active"),
    "normalised": rules.Lee(normalise=True),
    "stdbp": rules.STDBP(strict=False),
    "strsbp": rules.STRSBP(credit="spike"),
    "eventprop": rules.EventProp(),
}


def ran(name: str, rule: rules.Rule, engine: str, shape: tuple[int, ...]) -> list[Tensor]:
    """The values, and the gradients of the drive and the parameters, without their shape."""
    make, loop = (LINEAR | CELLS)[name]
    torch.manual_seed(0)
    layer = tssl_adapters.wrap(make(), rule=rule, engine=engine)
    drive = 0.5 + 1.5 * torch.randn(STEPS, generator=torch.Generator().manual_seed(3))
    drive = drive.reshape(STEPS, *shape).requires_grad_()
    out, v = loop(layer, drive)
    assert out.shape == drive.shape
    assert 0.0 < float(out.detach().mean()) < 1.0
    loss = (out.flatten() * torch.linspace(1.0, -2.0, STEPS)).sum() + 0.7 * v.sum()
    grads = torch.autograd.grad(loss, [drive, *layer.parameters()])
    return [value.detach().flatten() for value in (out, v, *grads)]


CASES = [(name, rule) for name in LINEAR for rule in (*FOR_ALL, *FOR_LINEAR)]
CASES += [(name, rule) for name in CELLS for rule in FOR_ALL]


@pytest.mark.parametrize("engine", ["torch", "cpu"])
@pytest.mark.parametrize(("name", "rule"), CASES)
def test_without_dimensions(name: str, rule: str, engine: str) -> None:
    """Not even the batch's, and no link is lost on the way."""
    kind = (FOR_ALL | FOR_LINEAR)[rule]
    with warnings.catch_warnings():
        warnings.simplefilter("error", LostLinkWarning)
        lone = ran(name, kind, engine, ())
    assert any(bool(grad.any()) for grad in lone[2:])
    for ours, theirs in zip(lone, ran(name, kind, engine, (1,)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_normalised_by_the_one_neuron_there_is() -> None:
    """N = n = 1, and g = 1/theta is its own mean: of kappa (g/g_mean) sqrt(N/n) G, G is left."""
    for rule in (rules.Lee(normalise=True), rules.Lee(normalise=True, gate="active")):
        layer = tssl_adapters.wrap(node("IFNode", step_mode="s", v_threshold=0.5), rule=rule)
        drive = torch.tensor([0.2, 0.9, 0.1], requires_grad=True)
        spikes = torch.stack([layer(step) for step in drive])
        assert spikes.tolist() == [0.0, 1.0, 0.0]
        (spikes * torch.tensor([1.0, -2.0, 3.0])).sum().backward()
        assert drive.grad is not None
        assert drive.grad.tolist() == [1.0, -2.0, 3.0]


@pytest.mark.parametrize("engine", ["cpu", "torch"])
def test_numbers_promote_what_has_no_dimension(engine: str) -> None:
    """Natively two tensors without dimensions have the wider dtype of both."""
    found, x = [], torch.rand(STEPS)
    for wrap in (False, True):
        layer = snntorch.Alpha(alpha=0.9, beta=0.8, learn_threshold=True).double()
        if wrap:
            tssl_adapters.wrap(layer, engine=engine)
        layer.reset_mem()
        state: list[Tensor] = []
        for step in x:
            out, *state = layer(step, *state)
        found.append([out, *state])
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
