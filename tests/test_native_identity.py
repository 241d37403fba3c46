"""The library's own surrogate, plugged in as the rule, must reproduce the native gradient.

The sharpest test that an adapter has: autograd on the library's own layer is the oracle.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import BATCH, NEURONS, Case
from layers import CASES
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import rules

STEPS = 7


def gradients(
    case: Case, layer: nn.Module, x: Tensor, v0: Tensor | None, losses: str
) -> tuple[list[Tensor], list[Tensor]]:
    """Values, and gradients of input, incoming state and parameters."""
    generator = torch.Generator().manual_seed(1)
    x = x.clone().requires_grad_()
    v0 = None if v0 is None else v0.clone().requires_grad_()
    run = case.run(layer, x, v0)
    loss: Tensor = torch.zeros((), dtype=x.dtype)
    if "spikes" in losses:
        weight = torch.randn(run.out.shape, generator=generator, dtype=torch.float64)
        loss = loss + (run.out * weight.to(run.out.dtype)).sum()
    if "membrane" in losses:
        for states in (run.membrane, *run.others):
            weight = torch.randn(states.shape, generator=generator, dtype=torch.float64)
            loss = loss + (states * weight.to(x.dtype)).sum()
    wanted = [x, *([] if v0 is None else [v0]), *case.params(layer)]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    grads = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found, strict=True)]
    return [run.out, run.membrane, *run.others], grads


def native_rule(case: Case, losses: str) -> rules.Rule:
    """The library's gradient: by its derivative, and as the layer has it."""
    if losses == "spikes+membrane":
        return rules.Native()
    return rules.SurrogateGradient(case.derivative)


def tolerance(case: Case, losses: str) -> float:
    """snnTorch's spikes are float32 whatever the input, and so are their cotangents."""
    if "snntorch" in case.name:
        return 5e-6
    return 1e-12 if losses == "spikes+membrane" else 1e-9


def close(left: Tensor, right: Tensor, off: float) -> None:
    """Within ``off`` of the largest entry (sums of many terms cancel)."""
    scale = max(1.0, float(right.detach().abs().max())) if right.numel() else 1.0
    assert torch.isfinite(left).all()
    assert float((left - right).detach().abs().max()) <= off * scale


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
