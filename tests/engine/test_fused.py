"""The compiled loops against plain torch, and through wrapped layers of each library."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fused_cases import (
    OVERFLOWS,
    Demanding,
    Variant,
    check_against_naive,
    check_against_torch,
    check_layer,
    check_nothing_unwritten_is_read,
    check_overflow,
    check_steps,
    leaky_both,
    leaky_steps,
    norse_model,
    norse_steps,
    spikingjelly_model,
    spikingjelly_steps,
    variants,
    windowed,
    windowed_steps,
)

import tssl_adapters
from tssl_adapters import _engines
from tssl_adapters.engine.compiled import kernels
from tssl_adapters.engine.compiled.threads import over
from tssl_adapters.engine.cpu.backend import CpuBackend
from tssl_adapters.engine.cpu.function import LARGE
from tssl_adapters.errors import EngineNotAvailableError, EngineWarning
from tssl_adapters.rules import Rule


@variants
def test_the_loops_are_the_torch_recursion(variant: Variant) -> None:
    check_against_torch(CpuBackend(), variant)


@OVERFLOWS
def test_an_overflow_is_what_it_is_in_torch(variant: Variant) -> None:
    check_overflow(CpuBackend(), variant)


@pytest.mark.parametrize(("steps", "neurons"), [(1, 1), (40, 3), (9, 1031), (9, 1040)])
@pytest.mark.parametrize("tau_s", [1.0, 2.5])
@pytest.mark.parametrize("large", [LARGE, 0])
def test_against_the_readable_recursion(large: int, tau_s: float, steps: int, neurons: int) -> None:
    check_against_naive(CpuBackend(large), tau_s, steps, neurons)


@pytest.mark.parametrize("steps", [1, 9])
@pytest.mark.parametrize("make", [norse_model, spikingjelly_model])
def test_wrapped_layers(make: Any, steps: int) -> None:
    check_layer("cpu", make, steps)


@windowed
@pytest.mark.parametrize("make", [norse_model, spikingjelly_model])
def test_a_rule_is_told_of_its_window(make: Any, rule: Rule, tau_s: float) -> None:
    check_layer("cpu", make, 9, rule=rule, tau_s=tau_s)


@windowed_steps
@pytest.mark.parametrize("make", [leaky_steps, leaky_both, norse_steps, spikingjelly_steps])
def test_steps_of_a_window(make: Any, rule: Rule, tau_s: float) -> None:
    """Also where torch computes some of them: what a step hands back is the same."""
    check_steps("cpu", make, tau_s, rule=rule)


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("make", [leaky_steps, leaky_both, norse_steps])
def test_steps(make: Any, tau_s: float) -> None:
    check_steps("cpu", make, tau_s)


def test_steps_of_a_rule_with_a_gate_of_its_own() -> None:
    check_steps("cpu", norse_steps, 3.0, rule=Demanding())


def test_a_compiled_step_has_the_loops_within() -> None:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    gradients = []
    for compiled in (False, True):
        torch.manual_seed(0)
        layer = neuron.LIFNode()
        model = torch.nn.Sequential(torch.nn.Linear(6, 5), layer)
        tssl_adapters.wrap(model, engine="cpu", rule="tsslbp")
        step = torch.compile(model, backend="aot_eager") if compiled else model
        out = torch.stack([step(x) for x in 3.0 * torch.randn(4, 3, 6)])
        (out * torch.randn_like(out)).sum().backward()
        gradients.append([out.detach(), *(p.grad for p in model.parameters())])
        assert len(layer._tssl_settings.loops) == 1
        assert None not in layer._tssl_settings.loops.values()
    for eager, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, eager, rtol=0.0, atol=0.0)
    assert gradients[0][1].abs().sum() > 0


def test_long_sequences_leave_room_for_few_neurons_at_a_time() -> None:
    variant = Variant("both", "value", 3.0, "reference", True, True, True)
    check_against_torch(CpuBackend(), variant, steps=1500)


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_threads_share_the_neurons(two_threads: None) -> None:
    torch.manual_seed(0)
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    x, weight = 2.0 * torch.randn(2, 3, 1, 70_001)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        layer = tssl_adapters.wrap(
            neuron.ParametricLIFNode(step_mode="m"), engine="cpu", rule="tsslbp"
        )
        given = x.clone().requires_grad_()
        out = layer(given)
        (out * weight).sum().backward()
        assert given.grad is not None
        found.append((out.detach(), given.grad, layer.w.grad))
    one, two = found
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    torch.testing.assert_close(one[2], two[2])  # torch adds the neurons up, in another order
    assert found[0][1][:, 0, -1].abs().sum() > 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks only where there is fork()")
def test_a_forked_process_has_threads_of_its_own(two_threads: None) -> None:
    def ranges() -> set[tuple[int, int]]:
        found = set()
        over(lambda first, last, *_: found.add((first, last)), 2, 2**17)
        return found

    assert ranges() == {(0, 2**16), (2**16, 2**17)}
    child = multiprocessing.get_context("fork").Process(target=ranges)
    child.start()
    child.join(30)
    assert child.exitcode == 0


def test_nothing_is_read_that_was_not_written() -> None:
    check_nothing_unwritten_is_read(CpuBackend())


def test_engines_are_listed_and_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [e.name for e in tssl_adapters.engines()] == ["torch", "cpu", "triton"]
    assert [e.available for e in tssl_adapters.engines()][:2] == [True, True]
    layer = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="engine='gpu'; known engines: 'torch', 'cpu', 'triton'"):
        tssl_adapters.wrap(layer, engine="gpu", rule="tsslbp")
    monkeypatch.setenv("TSSL_ADAPTERS_ENGINE", "nonsense")
    with pytest.raises(ValueError, match="Unknown TSSL_ADAPTERS_ENGINE='nonsense'"):
        tssl_adapters.wrap(layer, rule="tsslbp")
    monkeypatch.setenv("TSSL_ADAPTERS_ENGINE", "cpu")
    monkeypatch.setattr("tssl_adapters._engines.find_spec", lambda package: None)
    with pytest.raises(EngineNotAvailableError, match="llvmlite is not installed; python -m pip"):
        tssl_adapters.wrap(layer, rule="tsslbp")
    assert [e.available for e in tssl_adapters.engines()] == [True, False, False]


def test_an_engine_may_be_asked_for_by_the_name_that_it_had() -> None:
    layer, _ = spikingjelly_model()
    with pytest.warns(DeprecationWarning, match="engine 'numba' is now called 'cpu'"):
        assert tssl_adapters.wrap(layer, engine="numba")._tssl_settings.engine == "cpu"


def test_the_best_engine_that_is_installed_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TSSL_ADAPTERS_ENGINE", raising=False)
    layer, run = spikingjelly_model()
    tssl_adapters.wrap(layer, rule="tsslbp")
    assert layer._tssl_settings.engine == "cpu"
    x = torch.randn(3, 2, 5, requires_grad=True)
    expected = run(x)
    assert expected.grad_fn.name() == "CompiledSequenceFunctionBackward"
    # Loaded where there is no llvmlite
    copied = pickle.loads(pickle.dumps(layer))
    kernels.backend.cache_clear()
    monkeypatch.setattr("tssl_adapters.engine.compiled.kernels.find_spec", lambda package: None)
    copied.reset()
    assert torch.equal(copied(x), expected)
    assert copied(x).grad_fn.name() == "SequenceFunctionBackward"
    monkeypatch.setattr("tssl_adapters._engines.find_spec", lambda package: None)
    _engines._say_what_is_missing.cache_clear()
    with pytest.warns(EngineWarning, match="llvmlite is not installed; python -m pip"):
        layer = tssl_adapters.wrap(spikingjelly_model()[0], rule="tsslbp")
    assert layer._tssl_settings.engine == "torch"
    tssl_adapters.wrap(spikingjelly_model()[0])  # said once: a second warning would be an error
    kernels.backend.cache_clear()
