"""The compiled loops against plain torch, and through wrapped layers of each library."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import tssl_adapters
from tssl_adapters.engine import fused
from tssl_adapters.engine.plan import Plan, link_size
from tssl_adapters.engine.sequence import SequenceFunction
from tssl_adapters.errors import EngineNotAvailableError
from tssl_adapters.neuron import (
    LinearCharge,
    Neuron,
    Never,
    Subtract,
    SubtractEarly,
    ToValue,
    computes,
)
from tssl_adapters.rules import TSSLBP

T, BATCH, FEATURES = 7, 3, 5


def plain(v: Any, x: Any, decay: Any, gain: Any, offset: Any) -> Any:
    return decay * v + gain * x + offset


@computes(plain)
def affine(v: Tensor, x: Tensor, decay: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    return decay * v + gain * x + offset


def parameter(value: float, dense: bool) -> Tensor:
    shape = (FEATURES,) if dense else ()
    return torch.full(shape, value, dtype=torch.float64, requires_grad=True)


def a_neuron(timing: str, reset: str, dense: bool) -> Neuron:
    decay, gain, offset, threshold, value = (
        parameter(v, dense) for v in (0.7, 0.9, 0.05, 0.8, 0.1)
    )
    resets = {
        "value": ToValue(value),
        "subtract": Subtract(),
        "early": SubtractEarly(),
        "never": Never(),
    }
    charge = LinearCharge(decay, gain, offset, affine, (decay, gain, offset))
    return Neuron(charge, resets[reset], threshold, timing)  # type: ignore[arg-type]


CASES = [
    (timing, reset, tau_s, path, index % 2 == 0, index % 3 == 0, index % 5 != 0)
    for index, (timing, reset, (tau_s, path)) in enumerate(
        itertools.product(
            ("immediate", "delayed", "both"),
            ("value", "subtract", "early", "never"),
            ((1.0, "reference"), (3.0, "complete"), (1.0, "none")),
        )
    )
    if not (timing == "immediate" and reset == "early")
]


@pytest.mark.parametrize(("timing", "reset", "tau_s", "path", "linked", "dense", "fallback"), CASES)
def test_the_loops_are_the_torch_recursion(
    timing: str, reset: str, tau_s: float, path: Any, linked: bool, dense: bool, fallback: bool
) -> None:
    torch.manual_seed(0)
    neuron = a_neuron(timing, reset, dense)
    rule = TSSLBP(reset_path=path, fallback=fallback)
    size = (BATCH, FEATURES)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    # Not contiguous, as a batch-first user's transposed input is not.
    drive = leaf(BATCH, T, FEATURES)
    state, trace = leaf(*size), leaf(*size) if tau_s > 1 else None
    links = link_size(neuron, rule)
    link = [leaf(*size) if linked else None for _ in range(links)]
    plan = Plan(neuron, rule, tau_s, links, linked, dense, False)
    tail = (drive.transpose(0, 1), state, trace, *link, *neuron.values())
    assert fused.why_not(plan, *tail[:3]) is None
    ours = fused.known(plan, tail[0]).run(*tail)
    theirs = SequenceFunction.apply(plan, None, *tail)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    weights = [torch.randn(out.shape, dtype=torch.float64) for out in theirs]
    leaves = [t for t in (drive, state, trace, *link, *neuron.values()[:5]) if torch.is_tensor(t)]
    found, expected = (
        torch.autograd.grad(
            sum((out * w).sum() for out, w in zip(outs, weights, strict=True)),
            leaves,
            allow_unused=True,
        )
        for outs in (ours, theirs)
    )
    for ours_grad, theirs_grad in zip(found, expected, strict=True):
        zero = torch.zeros(())
        left = zero if ours_grad is None else ours_grad
        right = zero if theirs_grad is None else theirs_grad
        torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-11)


def norse_model() -> Any:
    norse = pytest.importorskip("norse.torch")
    layer = norse.LIF()
    return layer, lambda x: layer(x)[0]


def spikingjelly_model() -> Any:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    layer = neuron.LIFNode(step_mode="m", detach_reset=True)
    return layer, layer


@pytest.mark.parametrize("steps", [1, 9])
@pytest.mark.parametrize("make", [norse_model, spikingjelly_model])
def test_wrapped_layers(make: Any, steps: int) -> None:
    torch.manual_seed(0)
    x = 2.0 * torch.randn(steps, 5, 33)
    weight = torch.randn_like(x)
    _, run = make()
    expected = run(x)
    gradients = []
    for engine in ("torch", "numba"):
        layer, run = make()
        tssl_adapters.wrap(layer, engine=engine)
        given = x.clone().requires_grad_()
        out = run(given)
        assert torch.equal(out, expected)
        gradients.append(torch.autograd.grad((out * weight).sum(), given)[0])
        compiled = [k for k in layer._tssl_settings.reproduces if isinstance(k[0], fused.Spec)]
        assert len(compiled) == (engine == "numba")
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
    assert gradients[0].abs().sum() > 0


def test_nothing_is_read_that_was_not_written() -> None:
    torch.manual_seed(0)
    neuron, rule = a_neuron("both", "value", False), TSSLBP()
    drive = torch.randn(T, BATCH, FEATURES, dtype=torch.float64, requires_grad=True)
    plan = Plan(neuron, rule, 3.0, 0, False, False, False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:  # torch fills what it allocates with NaN
        tail = (drive, torch.zeros(BATCH, FEATURES, dtype=torch.float64), None, *neuron.values())
        out, after, *_ = fused.known(plan, drive).run(*tail)
        (grad,) = torch.autograd.grad(out.sum() + after.sum(), drive)
    finally:
        torch.use_deterministic_algorithms(False)
    assert out.isfinite().all()
    assert after.isfinite().all()
    assert grad.isfinite().all()


def test_engines_are_listed_and_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [e.name for e in tssl_adapters.engines()] == ["torch", "numba"]
    assert all(e.available for e in tssl_adapters.engines())
    layer = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="Unknown engine='gpu'; known engines: 'torch', 'numba'"):
        tssl_adapters.wrap(layer, engine="gpu")
    monkeypatch.setenv("TSSL_ADAPTERS_ENGINE", "nonsense")
    with pytest.raises(ValueError, match="Unknown TSSL_ADAPTERS_ENGINE='nonsense'"):
        tssl_adapters.wrap(layer)
    monkeypatch.setenv("TSSL_ADAPTERS_ENGINE", "numba")
    monkeypatch.setattr("tssl_adapters._engines.find_spec", lambda package: None)
    with pytest.raises(EngineNotAvailableError, match="numba is not installed; pip install"):
        tssl_adapters.wrap(layer)
    assert [e.available for e in tssl_adapters.engines()] == [True, False]
