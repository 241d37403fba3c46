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
    linked = linked and links > 0
    link = leaf(links, *size) if linked else None
    plan = Plan(neuron, rule, tau_s, links, linked, dense, False)
    given = (drive.transpose(0, 1), state, trace)
    assert fused.why_not(plan) is None
    assert fused.layout(given[0], given[0].shape[1:], *given[1:], neuron.values()) is dense
    call = fused.Call(plan, fused.spec_of(plan, drive.dtype, dense), True)
    ours = call.run(*given, link, *neuron.values())
    links_in = (None,) * links if link is None else link.unbind()
    theirs = SequenceFunction.apply(plan, None, *given, *links_in, *neuron.values())
    theirs = (*theirs[:2], torch.stack(theirs[2:])) if links else theirs
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    weights = [torch.randn(out.shape, dtype=torch.float64) for out in theirs]
    leaves = [t for t in (drive, state, trace, link, *neuron.values()[:5]) if torch.is_tensor(t)]
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
        assert len(layer._tssl_settings.loops) == (engine == "numba")
        assert None not in layer._tssl_settings.loops.values()
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
    assert gradients[0].abs().sum() > 0


def leaky_steps(**settings: Any) -> Any:
    snntorch = pytest.importorskip("snntorch")
    layer = snntorch.Leaky(beta=0.8, learn_beta=True, **settings)
    return layer, lambda x, mem: layer(x, layer.init_leaky() if mem is None else mem)


def leaky_both() -> Any:
    return leaky_steps(reset_delay=False)


def norse_steps() -> Any:
    layer = pytest.importorskip("norse.torch").LIFCell()
    return layer, layer


def potential(state: Any) -> Tensor:
    found: Tensor = getattr(state, "v", state)
    return found


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("make", [leaky_steps, leaky_both, norse_steps])
def test_steps(make: Any, tau_s: float) -> None:
    torch.manual_seed(0)
    x, weight, weight_v = 2.0 * torch.randn(3, 6, 5, 33)
    results = []
    # Engines that take turns hand each other's links on.
    for engines in (("torch",), ("numba",), ("numba", "torch"), ("torch", "torch", "numba")):
        layer, run = make()
        tssl_adapters.wrap(layer, engine="numba", tau_s=tau_s)
        given, state, outputs, states = x.clone().requires_grad_(), None, [], []
        for t, step in enumerate(given):
            layer._tssl_settings.engine = engines[t % len(engines)]
            out, state = run(step, state)
            outputs.append(out)
            states.append(potential(state))
        out, v = torch.stack(outputs), torch.stack(states)
        loss = (out * weight).sum() + 0.1 * (v[2:] * weight_v[2:]).sum()
        grads = torch.autograd.grad(loss, [given, *layer.parameters()])
        results.append((out.detach(), v.detach(), *grads))
        assert bool(layer._tssl_settings.loops) == ("numba" in engines)
        assert None not in layer._tssl_settings.loops.values()
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        assert torch.equal(other[1], results[0][1])
        for found, expected in zip(other[2:], results[0][2:], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert results[0][2].abs().sum() > 0


def test_nothing_is_read_that_was_not_written() -> None:
    torch.manual_seed(0)
    neuron, rule = a_neuron("both", "value", False), TSSLBP()
    drive = torch.randn(T, BATCH, FEATURES, dtype=torch.float64, requires_grad=True)
    plan = Plan(neuron, rule, 3.0, 0, False, False, False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:  # torch fills what it allocates with NaN
        call = fused.Call(plan, fused.spec_of(plan, drive.dtype, False), True)
        state = torch.zeros(BATCH, FEATURES, dtype=torch.float64)
        out, after, *_ = call.run(drive, state, None, None, *neuron.values())
        (grad,) = torch.autograd.grad(out.sum() + after.sum(), drive)
    finally:
        torch.use_deterministic_algorithms(False)
    assert out.isfinite().all()
    assert after.isfinite().all()
    assert grad.isfinite().all()


def test_variants_of_a_loop_are_kept_apart_on_disk() -> None:
    neuron = a_neuron("both", "value", False)
    plan = Plan(neuron, TSSLBP(), 3.0, 0, False, False, False)
    spec = fused.spec_of(plan, torch.float64, False)
    names = {
        fused.forward(variant, keep).__qualname__
        for variant in (spec, spec._replace(psc=False), spec._replace(strict=False))
        for keep in (False, True)
    }
    assert len(names) == 6


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
