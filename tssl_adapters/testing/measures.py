"""How a case is run, and how two runs are compared."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tssl_adapters.testing.cases import BATCH, NEURONS, STEPS, Case, Run


def made(case: Case, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The same layer at every call."""
    torch.manual_seed(0)
    return case.make(dtype)


def drive(dtype: torch.dtype = torch.float64, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Input ``[T, batch, neurons]`` and incoming potential ``[batch, neurons]``."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.6 + torch.randn(STEPS, BATCH, NEURONS, generator=generator, dtype=dtype)
    return x, 0.3 * torch.randn(BATCH, NEURONS, generator=generator, dtype=dtype) + 0.3


def flat(run: Run) -> list[Tensor]:
    """All results of a run."""
    return [run.out, run.membrane, *run.others]


def gradients(
    case: Case, layer: nn.Module, x: Tensor, v0: Tensor | None, losses: str
) -> tuple[list[Tensor], list[Tensor]]:
    """The results of a run, and the gradients of input, incoming potential and parameters.

    ``losses`` names what the loss is on: spikes, membrane, or both.
    """
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
    return flat(run), grads


def close(left: Tensor, right: Tensor, off: float) -> None:
    """Check that two tensors differ by at most ``off`` times the largest entry, as terms cancel.

    Raises:
        AssertionError: they differ by more.
    """
    scale = max(1.0, float(right.detach().abs().max())) if right.numel() else 1.0
    assert torch.isfinite(left).all()
    assert float((left - right).detach().abs().max()) <= off * scale
