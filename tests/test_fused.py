"""The compiled loops against plain torch, and through wrapped layers of each library."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from fused_cases import (
    Variant,
    a_neuron,
    check_against_torch,
    check_layer,
    check_nothing_unwritten_is_read,
    check_steps,
    leaky_both,
    leaky_steps,
    norse_model,
    norse_steps,
    spikingjelly_model,
    variants,
)

import tssl_adapters
from tssl_adapters.engine import fused, kernels
from tssl_adapters.engine.numba_backend import NumbaBackend
from tssl_adapters.engine.numba_kernels import forward
from tssl_adapters.engine.plan import Plan
from tssl_adapters.errors import EngineNotAvailableError
from tssl_adapters.rules import TSSLBP


@variants
def test_the_loops_are_the_torch_recursion(variant: Variant) -> None:
    check_against_torch(NumbaBackend(), variant)


@pytest.mark.parametrize("steps", [1, 9])
@pytest.mark.parametrize("make", [norse_model, spikingjelly_model])
def test_wrapped_layers(make: Any, steps: int) -> None:
    check_layer("numba", make, steps)


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("make", [leaky_steps, leaky_both, norse_steps])
def test_steps(make: Any, tau_s: float) -> None:
    check_steps("numba", make, tau_s)


def test_nothing_is_read_that_was_not_written() -> None:
    check_nothing_unwritten_is_read(NumbaBackend())


def test_variants_of_a_loop_are_kept_apart_on_disk() -> None:
    neuron = a_neuron("both", "value", False)
    plan = Plan(neuron, TSSLBP(), 3.0, 0, False, False, False)
    spec = fused.call_of(plan, torch.float64, False, True, NumbaBackend()).spec
    forms = (spec.form, spec.form._replace(psc=False), spec.form._replace(strict=False))
    names = {
        forward(spec._replace(form=form), keep).__qualname__
        for form in forms
        for keep in (False, True)
    }
    assert len(names) == 6


def test_engines_are_listed_and_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [e.name for e in tssl_adapters.engines()] == ["torch", "numba", "triton"]
    assert [e.available for e in tssl_adapters.engines()][:2] == [True, True]
    layer = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="engine='gpu'; known engines: 'torch', 'numba', 'triton'"):
        tssl_adapters.wrap(layer, engine="gpu")
    monkeypatch.setenv("TSSL_ADAPTERS_ENGINE", "nonsense")
    with pytest.raises(ValueError, match="Unknown TSSL_ADAPTERS_ENGINE='nonsense'"):
        tssl_adapters.wrap(layer)
    monkeypatch.setenv("TSSL_ADAPTERS_ENGINE", "numba")
    monkeypatch.setattr("tssl_adapters._engines.find_spec", lambda package: None)
    with pytest.raises(EngineNotAvailableError, match="numba is not installed; pip install"):
        tssl_adapters.wrap(layer)
    assert [e.available for e in tssl_adapters.engines()] == [True, False, False]


def test_the_best_engine_that_is_installed_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TSSL_ADAPTERS_ENGINE")
    layer, run = spikingjelly_model()
    tssl_adapters.wrap(layer)
    assert layer._tssl_settings.engine == "numba"
    x = torch.randn(3, 2, 5, requires_grad=True)
    expected = run(x)
    assert expected.grad_fn.name() == "FusedFunctionBackward"
    # Loaded where there is no numba
    copied = pickle.loads(pickle.dumps(layer))
    kernels.backend.cache_clear()
    monkeypatch.setattr("tssl_adapters.engine.kernels.find_spec", lambda package: None)
    copied.reset()
    assert torch.equal(copied(x), expected)
    assert copied(x).grad_fn.name() == "SequenceFunctionBackward"
    monkeypatch.setattr("tssl_adapters._engines.find_spec", lambda package: None)
    layer, _ = spikingjelly_model()
    assert tssl_adapters.wrap(layer)._tssl_settings.engine == "torch"
    kernels.backend.cache_clear()
