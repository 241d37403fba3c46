"""The library's own surrogate, plugged in as the rule, must reproduce the native gradient.

The sharpest test that an adapter has: autograd on the library's own layer is the oracle.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import BATCH, NEURONS, Case
from layers import CASES

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.testing import STEPS, close, gradients


def native_rule(case: Case, losses: str) -> rules.Rule:
    """The library's gradient: by its derivative, and as the layer has it."""
    if losses == "spikes+membrane":
        return rules.Native()
    return rules.SurrogateGradient(case.derivative)


def tolerance(case: Case, losses: str) -> float:
    return case.tolerance or (1e-12 if losses == "spikes+membrane" else 1e-9)


@pytest.mark.parametrize("losses", ["spikes", "membrane", "spikes+membrane"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_native_gradient(case: Case, losses: str) -> None:
    """Input, incoming state, decay, threshold and the rest, from losses on spikes and membrane."""
    torch.manual_seed(0)
    dtype = torch.float64
    native = case.make(dtype)
    wrapped = _twin(case, dtype)
    tssl_adapters.wrap(wrapped, rule=native_rule(case, losses))
    x = 0.6 + torch.randn(STEPS, BATCH, NEURONS, dtype=dtype)
    v0 = 0.3 * torch.randn(BATCH, NEURONS, dtype=dtype) + 0.3
    values, grads = gradients(case, native, x, v0, losses)
    our_values, our_grads = gradients(case, wrapped, x, v0, losses)
    assert 0.1 < float((values[0] != 0).double().mean()) < 0.9
    for ours, theirs in zip(our_values, values, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(our_grads, grads, strict=True):
        close(ours, theirs, tolerance(case, losses))


def _twin(case: Case, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    return case.make(dtype)
