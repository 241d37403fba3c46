"""A threshold that is a Parameter, in SpikingJelly, which has no such setting.

Natively its nodes take it and give it no gradient. Under a rule it has the rule's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import sigmoid
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import rules

Charge = Callable[[Tensor, Tensor], Tensor]

NODES: dict[str, tuple[Callable[..., Any], Charge]] = {
    "IF": (neuron.IFNode, lambda v, x: v + x),
    "LIF": (neuron.LIFNode, lambda v, x: v + (x - v) / 2.0),
    "QIF": (
        lambda **settings: neuron.QIFNode(v_rest=0.0, **settings),
        lambda v, x: v + (x + v * (v - 0.8)) / 2.0,
    ),
}


class Spike(torch.autograd.Function):
    """The spike with SpikingJelly's surrogate."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor) -> Tensor:
        ctx.save_for_backward(distance)
        return (distance >= 0).to(distance)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * sigmoid(ctx.saved_tensors[0])


def by_autograd(
    charge: Charge, x: Tensor, threshold: Tensor, v_reset: float | None, detached: bool
) -> Tensor:
    """The neuron in plain torch, step by step."""
    v, spikes = torch.zeros_like(x[0]), []
    for step in x.unbind(0):
        h = charge(v, step)
        s = Spike.apply(h - threshold)
        due = s.detach() if detached else s
        v = h - due * threshold if v_reset is None else (1.0 - due) * h + due * v_reset
        spikes.append(s)
    return torch.stack(spikes)


def made(make: Any, threshold: Tensor, mode: str, **settings: Any) -> Any:
    node = make(step_mode=mode, **settings)
    del node.v_threshold
    node.v_threshold = nn.Parameter(threshold.clone())
    return node


def run(node: Any, x: Tensor) -> Tensor:
    functional.reset_net(node)
    out: Tensor = node(x) if node.step_mode == "m" else torch.stack([*map(node, x)])
    return out


@pytest.mark.parametrize("threshold", [torch.tensor(0.7), 0.5 + 0.1 * torch.arange(5.0)])
@pytest.mark.parametrize(
    "settings", [{"v_reset": 0.0}, {"v_reset": None}, {"v_reset": None, "detach_reset": True}]
)
@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("name", NODES)
def test_the_gradient_is_autograds(
    name: str, mode: str, settings: dict[str, Any], threshold: Tensor
) -> None:
    make, charge = NODES[name]
    generator = torch.Generator().manual_seed(0)
    x = 0.5 + torch.rand(6, 3, 5, dtype=torch.float64, generator=generator)
    weights = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    threshold = threshold.double()
    node = tssl_adapters.wrap(
        made(make, threshold, mode, **settings), rule=rules.SurrogateGradient(sigmoid)
    )
    out = run(node, x)
    (ours,) = torch.autograd.grad((out * weights).sum(), node.v_threshold)
    leaf = threshold.clone().requires_grad_()
    expected = by_autograd(
        charge, x, leaf, settings["v_reset"], settings.get("detach_reset", False)
    )
    (theirs,) = torch.autograd.grad((expected * weights).sum(), leaf)
    assert torch.equal(out, expected)
    assert float(theirs.abs().min()) > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["s", "m"])
def test_natively_there_is_none(mode: str) -> None:
    """As README says."""
    node = made(neuron.LIFNode, torch.tensor(0.7), mode)
    x = torch.rand(6, 3, 5, requires_grad=True)
    run(node, x).sum().backward()
    assert x.grad is not None
    assert node.v_threshold.grad is None
