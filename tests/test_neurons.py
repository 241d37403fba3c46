"""One suite over every neuron of every library: the library's own layer is the oracle.

The cases are in tests/neurons_*.py; those of tests/layers.py have suites of their own.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import BATCH, NEURONS, Case
from neurons_norse import CASES as NORSE
from neurons_snntorch import CASES as SNNTORCH
from neurons_spikingjelly import CASES as SPIKINGJELLY
from test_native_identity import STEPS, close, gradients, native_rule, tolerance
from torch import Tensor, nn

import tssl_adapters

CASES: list[Case] = [*SNNTORCH, *SPIKINGJELLY, *NORSE]


def made(case: Case, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The same layer at every call."""
    torch.manual_seed(0)
    return case.make(dtype)


def drive(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Input and incoming potential."""
    generator = torch.Generator().manual_seed(1)
    x = 0.6 + torch.randn(STEPS, BATCH, NEURONS, generator=generator, dtype=dtype)
    return x, 0.3 * torch.randn(BATCH, NEURONS, generator=generator, dtype=dtype) + 0.3


@pytest.mark.parametrize("losses", ["spikes", "membrane", "spikes+membrane"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_native_gradient(case: Case, losses: str) -> None:
    """The library's surrogate as the rule: input, state and parameters, losses on every state."""
    wrapped = tssl_adapters.wrap(made(case), rule=native_rule(case, losses))
    x, v0 = drive()
    values, grads = gradients(case, made(case), x, v0, losses)
    our_values, our_grads = gradients(case, wrapped, x, v0, losses)
    assert 0.05 < float((values[0] != 0).double().mean()) < 0.95
    assert sum(float(grad.abs().sum()) > 0.0 for grad in grads) > len(grads) // 2
    for ours, theirs in zip(our_values, values, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(our_grads, grads, strict=True):
        close(ours, theirs, tolerance(case, losses))


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case: Case, dtype: torch.dtype, grad: bool) -> None:
    """Spikes and every state, from the library's start and from a potential handed in."""
    native, wrapped = made(case, dtype), tssl_adapters.wrap(made(case, dtype))
    x, v0 = drive(dtype)
    with torch.set_grad_enabled(grad):
        for start in (None, v0):
            ours, theirs = case.run(wrapped, x, start), case.run(native, x, start)
            for a, b in zip(flat(ours), flat(theirs), strict=True):
                assert a.dtype == b.dtype
                assert torch.equal(a, b)


def flat(run: Any) -> list[Tensor]:
    """Everything that a run gave."""
    return [run.out, run.membrane, *run.others]


@pytest.mark.parametrize("case", [c for c in CASES if c.psc], ids=str)
def test_psc(case: Case) -> None:
    """tau_s = 3: the output is the PSC of the native spikes, the states are native, both ways."""
    x, _ = drive()
    theirs = case.run(made(case), x, None)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            ours = case.run(tssl_adapters.wrap(made(case), tau_s=3.0), x, None)
        trace, expected = torch.zeros_like(theirs.out[0]), []
        for spike in theirs.out:
            trace = trace + (spike - trace) / 3.0
            expected.append(trace)
        torch.testing.assert_close(ours.out, torch.stack(expected), rtol=1e-6, atol=1e-6)
        for a, b in zip(flat(ours)[1:], flat(theirs)[1:], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_training_step(case: Case, tau_s: float) -> None:
    """Gradients of the input and of every parameter are finite, and not all zero."""
    if tau_s > 1.0 and not case.psc:
        pytest.skip("refused at tau_s > 1: see its refusal's own test")
    layer = tssl_adapters.wrap(made(case), tau_s=tau_s)
    x, _ = drive()
    x.requires_grad_()
    run = case.run(layer, x, None)
    (run.out * torch.linspace(-1.0, 2.0, run.out.numel()).view_as(run.out)).sum().backward()
    for tensor in (x, *case.params(layer)):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
    assert x.grad is not None
    assert (x.grad != 0).double().mean() > 0.2


@pytest.mark.parametrize("case", CASES, ids=str)
def test_unwrap(case: Case) -> None:
    """Class, attributes and gradient are the native ones again, after use."""
    layer = made(case)
    x, v0 = drive()
    with torch.no_grad():
        case.run(layer, x, None)  # some libraries add attributes when they run
    before, cls = sorted(vars(layer)), type(layer)
    tssl_adapters.wrap(layer, tau_s=3.0 if case.psc else 1.0)
    case.run(layer, x.clone().requires_grad_(), None).out.sum().backward()
    tssl_adapters.unwrap(layer)
    assert type(layer) is cls
    assert sorted(vars(layer)) == before
    for parameter in layer.parameters():
        parameter.grad = None
    for ours, theirs in zip(
        gradients(case, layer, x, v0, "spikes")[1],
        gradients(case, made(case), x, v0, "spikes")[1],
        strict=True,
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_copies(case: Case) -> None:
    """A deep copy of a wrapped layer that has run trains as a wrapped copy of the native one does.

    Copies natively lose the hooks on their tensors: Norse's against autapses are such.
    """
    layer = tssl_adapters.wrap(made(case))
    x, _ = drive()
    with torch.no_grad():
        case.run(layer, x, None)
    try:
        native = copy.deepcopy(made(case))
    except Exception:  # natively impossible (Norse's learnable parameters)
        return
    twins = (tssl_adapters.wrap(native), copy.deepcopy(layer))
    first, second = (gradients(case, one, x, None, "spikes")[1] for one in twins)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
