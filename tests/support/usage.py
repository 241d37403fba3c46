"""What the tests of ways to use the package share: a model, a loop, and their native twin."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import snntorch
import spikingjelly.activation_based.neuron  # noqa: F401
import torch
from cases import atan, sigmoid
from compat_norse import superspike
from norse.torch.module.snn import SNN, SNNRecurrent
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.adapters import loaded
from tssl_adapters.errors import LostLinkWarning

TAUS = [1.0, 3.0]
STEPS, BATCH, INPUTS, HIDDEN, CLASSES = 7, 8, 12, 24, 4
SPIKING = tuple(cls for adapter in loaded() for cls in adapter.kinds)
Run = Callable[[Any, Tensor], tuple[Tensor, list[Tensor]]]
"""Runs a model on ``[T, batch, ...]``: the loss, and the values to compare."""


@pytest.fixture(autouse=True)
def own_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    """SnnTorch resets and detaches every layer that was ever made: here, only those of a test."""
    monkeypatch.setattr(snntorch.SpikingNeuron, "instances", [])


@pytest.fixture(autouse=True)
def no_lost_links() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", LostLinkWarning)
        yield


def data(steps: int = STEPS, seed: int = 0, size: tuple[int, ...] = (INPUTS,)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(steps, BATCH, *size, generator=generator) * 2.0


TARGETS = torch.arange(BATCH) % CLASSES


def rule_of(library: str) -> rules.SurrogateGradient:
    """The library's default surrogate as a rule."""
    return rules.SurrogateGradient(
        {"snntorch": atan, "spikingjelly": sigmoid, "norse": superspike}[library]
    )


@contextmanager
def emitting_psc(model: nn.Module, tau_s: float) -> Iterator[None]:
    """Have a native model's spiking layers emit their PSC, for one sequence."""
    traces: dict[nn.Module, Tensor] = {}

    def filtered(module: nn.Module, spikes: Tensor) -> Tensor:
        before = traces.get(module, torch.zeros_like(spikes))
        traces[module] = before + (spikes - before) / tau_s
        return traces[module]

    def hook(module: Any, args: Any, output: Any) -> Any:
        spikes = output[0] if isinstance(output, tuple) else output
        if isinstance(module, SNN | SNNRecurrent) or getattr(module, "step_mode", "s") == "m":
            psc = torch.stack([filtered(module, step) for step in spikes])
        else:
            psc = filtered(module, spikes)
        return (psc, *output[1:]) if isinstance(output, tuple) else psc

    spiking = [m for m in model.modules() if isinstance(m, SPIKING)] if tau_s > 1.0 else []
    handles = [module.register_forward_hook(hook) for module in spiking]
    yield
    for handle in handles:
        handle.remove()


def seeded(make: Callable[[], Any]) -> Any:
    torch.manual_seed(1)
    return make()


def leaves(model: Any) -> list[Tensor]:
    """Parameters, and those that Norse hides in a layer's ``p``."""
    hidden = [
        value
        for module in model.modules()
        for value in getattr(module, "p", ())
        if isinstance(value, Tensor) and value.requires_grad
    ]
    known = {id(p) for p in model.parameters()}
    return [*model.parameters(), *(value for value in hidden if id(value) not in known)]


def close(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float) -> None:
    assert len(ours) == len(theirs)
    for left, right in zip(ours, theirs, strict=True):
        assert left.shape == right.shape
        error, scale = float((left - right).detach().abs().max()), float(right.detach().abs().max())
        assert error <= tolerance * max(scale, 1e-3)


def check(make: Callable[[], Any], run: Run, library: str, x: Tensor, tau_s: float) -> None:
    """Forward of the twin; TSSL-BP's gradients there; the native ones with the native rule."""
    twin, ours = seeded(make), seeded(make)
    tssl_adapters.wrap(ours, tau_s=tau_s)
    loss, values = run(ours, x)
    with emitting_psc(twin, tau_s):
        native_loss, native_values = run(twin, x)
    assert torch.equal(loss, native_loss)
    for left, right in zip(values, native_values, strict=True):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    assert sum(float(v.detach().abs().sum()) for v in values) > 0
    for grad in torch.autograd.grad(loss, leaves(ours)):
        assert torch.isfinite(grad).all()
        assert float(grad.abs().max()) > 0
    other = tssl_adapters.wrap(seeded(make), tau_s=tau_s, rule=rule_of(library))
    found = torch.autograd.grad(run(other, x)[0], leaves(other))
    native = torch.autograd.grad(native_loss, leaves(twin))
    close(found, native, 2e-5)


def learns(make: Callable[[], Any], run: Run, tau_s: float, lr: float = 5e-3) -> None:
    """A few steps of Adam, by an optimizer that was built before ``wrap``, lower the loss."""
    model = seeded(make)
    optimizer = torch.optim.Adam(leaves(model), lr=lr)
    tssl_adapters.wrap(model, tau_s=tau_s)
    x, losses = data(), []
    for _ in range(25):
        optimizer.zero_grad()
        loss, _ = run(model, x)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
