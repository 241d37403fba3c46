"""Smooth charges and states beside the potential, against plain autograd over the same loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import sigmoid
from spikingjelly.activation_based import neuron
from torch import Tensor

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.engine.call.settings import Settings
from tssl_adapters.engine.probe import NativeForward
from tssl_adapters.engine.smooth import attach_smooth, valued
from tssl_adapters.neuron import Reset
from tssl_adapters.resets import ByFormula, Subtract, ToValue


def derivative(distance: Tensor) -> Tensor:
    """Of a surrogate with wide tails, so that every path carries gradient."""
    return 1.0 / (1.0 + distance.abs()) ** 2


class Surrogate(torch.autograd.Function):
    """A spike with :func:`derivative`."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor) -> Tensor:
        ctx.save_for_backward(distance)
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * derivative(*ctx.saved_tensors)


def formula(h: Tensor, s: Tensor, sharpness: Tensor) -> Tensor:
    """A reset that depends on a parameter whether there was a spike or not."""
    return (0.7 + sharpness) * h.tanh() - s * (0.5 + 0.2 * h + sharpness * s)


class Cell(torch.nn.Module):
    """Nonlinear charge, adaptation by potential and spike, a threshold that moves with it."""

    def __init__(self, reset: Reset, detached: bool) -> None:
        super().__init__()
        self.sharpness = torch.nn.Parameter(torch.tensor(0.4))
        self.step_size = torch.nn.Parameter(torch.linspace(0.2, 0.5, 6))
        self.reset, self.detached = reset, detached

    def charge(self, v: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return v + self.step_size * (x - v + self.sharpness * (2.0 * v).tanh() - 0.2 * w)

    def threshold(self, w: Tensor) -> Tensor:
        return 1.0 + 0.2 * w

    def adapted(self, h: Tensor, s: Tensor, w: Tensor) -> Tensor:
        return 0.8 * w + 0.1 * h + 0.3 * s * self.sharpness

    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.charge(v, x, w)
        theta = self.threshold(w)
        s = Surrogate.apply(h - theta)
        due = s.detach() if self.detached else s
        if isinstance(self.reset, ByFormula):
            u = formula(h, due, self.sharpness)
        elif isinstance(self.reset, Subtract):
            u = h - due * theta
        else:
            u = (1 - due) * h + due * -0.3
        return s, u, self.adapted(h, s, w)

    def ours(
        self, settings: Settings, x: Tensor, v: Tensor, w: Tensor, trace: Tensor | None
    ) -> tuple[Any, Tensor]:
        def values() -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                return self.step(x, v, w)[:2]

        def probe(given: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            with torch.no_grad():
                return (self.charge(v, given, w), *self.step(given, v, w)[:2])

        by_formula = isinstance(self.reset, ByFormula)
        result = attach_smooth(
            settings,
            lambda v: self.charge(v, x, w),
            v,
            trace,
            NativeForward(x, values, probe),
            reset=ByFormula(formula, (self.sharpness,)) if by_formula else self.reset,
            threshold=self.threshold(w),
            strict=True,
            detached=self.detached,
        )
        with torch.no_grad():
            value = self.step(x, v, w)[2]
        return result, valued(value, self.adapted(result.charged, result.fired, w))


@pytest.mark.parametrize("tau_s", [1.0, 2.5])
@pytest.mark.parametrize("detached", [True, False])
@pytest.mark.parametrize(
    "reset",
    [ToValue(-0.3), Subtract(), ByFormula(formula)],
    ids=["value", "subtract", "formula"],
)
def test_a_surrogate_is_plain_autograd(reset: Reset, detached: bool, tau_s: float) -> None:
    cell = Cell(reset, detached).double()
    generator = torch.Generator().manual_seed(0)
    drive = torch.randn(12, 3, 6, generator=generator, dtype=torch.float64) * 3.0 + 1.0
    weights = torch.randn(12, 3, 3, 6, generator=generator, dtype=torch.float64)
    start = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)

    def gradients(wrapped: bool) -> tuple[list[Tensor], list[Tensor]]:
        x, (v, w) = drive.clone().requires_grad_(), start.clone().requires_grad_()
        leaves = [x, v, w]
        settings = Settings("cell", rules.SurrogateGradient(derivative), tau_s)
        loss, values, trace = torch.zeros((), dtype=torch.float64), [], None
        psc = torch.zeros_like(start[0])
        for now, weight in zip(x, weights, strict=True):
            if wrapped:
                result, w = cell.ours(settings, now, v, w, trace)
                out, v, trace = result.out, result.state, result.trace
            else:
                s, v, w = cell.step(now, v, w)
                out = psc = psc + (s - psc) / tau_s
            values += [out.detach(), v.detach(), w.detach()]
            loss = loss + (weight * torch.stack([out, v, w])).sum()
        leaves += list(cell.parameters())
        return list(torch.autograd.grad(loss, leaves)), values

    ours, our_values = gradients(True)
    theirs, their_values = gradients(False)
    spikes = torch.stack(their_values[::3])
    assert 0.15 < float((spikes > 0.3).double().mean()) < 0.85
    assert all(torch.equal(a, b) for a, b in zip(our_values, their_values, strict=True))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(4,), (), (1, 4)])
def test_a_start_potential_that_broadcasts(shape: tuple[int, ...]) -> None:
    """F_v is one neuron's, not the sum over the neurons that start from one number."""
    noise = torch.Generator().manual_seed(3)
    x = torch.randn(3, 2, 4, generator=noise, dtype=torch.float64)
    v0 = torch.randn(shape, generator=noise, dtype=torch.float64).requires_grad_()

    def gradient(layer: neuron.SimpleIFNode) -> Tensor:
        layer.v = v0
        spikes = torch.stack([*map(layer, x)])
        weights = torch.arange(spikes.numel(), dtype=spikes.dtype).view_as(spikes)
        (found,) = torch.autograd.grad((spikes * weights).sum() + layer.v.sum(), v0)
        return found

    native = gradient(neuron.SimpleIFNode())
    rule = rules.SurrogateGradient(sigmoid)
    ours = gradient(tssl_adapters.wrap(neuron.SimpleIFNode(), rule=rule))
    torch.testing.assert_close(ours, native, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("make", [neuron.QIFNode, neuron.RAFNode, neuron.IFNode], ids=str)
def test_whole_numbers_as_spikes(make: Any, dtype: torch.dtype) -> None:
    """The library's states then start as whole numbers, and are made such at every call."""
    x = torch.randint(0, 2, (4, 2, 3), generator=torch.Generator().manual_seed(2)).to(dtype)
    spikes = []
    for tau_s in (1.0, 2.5):
        native, ours = make(v_reset=0.0), tssl_adapters.wrap(make(v_reset=0.0), tau_s=tau_s)
        trace = torch.zeros(2, 3)
        for step in x:
            spike = native(step)
            trace = trace + (spike - trace) / tau_s
            assert torch.equal(ours(step), trace)
            assert torch.equal(ours.v, native.v)
            spikes.append(spike)
    assert make is not neuron.IFNode or torch.stack(spikes).any()


def test_whole_numbers_layer_by_layer() -> None:
    """As in a loop, where the potential loses its fraction at every step."""
    x = torch.tensor([[1], [0], [1], [1], [1]], dtype=torch.uint8)
    outs = []
    for wrapped in (False, True):
        node = neuron.LIFNode(v_threshold=0.9, decay_input=False)
        node = tssl_adapters.wrap(node) if wrapped else node
        outs += [torch.stack([*map(node, x)])]
        node.reset()
        outs += [tssl_adapters.multi_step_forward(node, x)]
    assert all(torch.equal(out, outs[0]) for out in outs)
