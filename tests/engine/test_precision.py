"""Every class of every library in half precision, in float64, and with an input of another dtype.

The library's own layer says what comes out, and in which dtype. The gradient is held to that of the
same layer in float64, computed by torch, of those samples in which precision moved no spike.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from functools import cache
from typing import Any

import pytest
import torch
from cases import Case
from layers import CASES as CORE
from neurons import CASES as FURTHER
from torch import Tensor

import tssl_adapters
from tssl_adapters.errors import EngineWarning, NativeGradientWarning
from tssl_adapters.testing import flat, made

STEPS, BATCH, NEURONS = 5, 64, 5
DTYPES = {
    "float16": (torch.float16, torch.float16),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float64": (torch.float64, torch.float64),
    "bfloat16-into-float32": (torch.float32, torch.bfloat16),
    "float64-into-float32": (torch.float32, torch.float64),
    "float32-into-bfloat16": (torch.bfloat16, torch.float32),
}
"""Of the layer and of its input."""
NEAR = {torch.float16: 5e-3, torch.bfloat16: 0.03, torch.float32: 1e-6, torch.float64: 1e-12}
"""How far the median sample's gradient may be off, of the largest, by the coarser of the two."""
ROUNDED = ("spikingjelly-KLIF-scaled-s-soft", "float64-into-float32")
"""Takes a threshold away that was divided in float32."""


def spread() -> list[Any]:
    """Every class in every one of these dtypes; its settings in turn."""
    named = {case.name: case for case in [*CORE, *FURTHER]}
    classes: dict[str, list[str]] = defaultdict(list)
    for name in named:
        if "quantised" not in name:  # whose few levels no precision leaves where they were
            classes["-".join(name.split("-")[:2])].append(name)
    chosen = {
        (names[(5 * k) % len(names)], dtypes)
        for names in classes.values()
        for k, dtypes in enumerate(DTYPES)
    }
    return [
        pytest.param(named[name], dtypes, id=f"{name}-{dtypes}")
        for name, dtypes in sorted({*chosen, ROUNDED})
    ]


def drive() -> Tensor:
    """Numbers that bfloat16 can hold."""
    generator = torch.Generator().manual_seed(3)
    x = 0.6 + torch.randn(STEPS, BATCH, NEURONS, generator=generator)
    return x.bfloat16().double()


def ran(case: Case, layer: Any, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """All values, and the gradient of the input."""
    x = x.clone().requires_grad_()
    run = case.run(layer, x, None)
    weight = torch.linspace(-1.0, 1.0, run.out.numel(), dtype=torch.float64).view(run.out.shape)
    (grad,) = torch.autograd.grad((run.out * weight.to(run.out.dtype)).sum(), [x])
    return flat(run), grad.double()


@cache
def exactly(case: Case) -> tuple[Tensor, Tensor]:
    """Spikes and gradient of the recursion in float64."""
    layer = tssl_adapters.wrap(made(case), engine="torch")
    (out, *_), grad = ran(case, layer, drive())
    return out != 0, grad


@pytest.mark.parametrize(("case", "dtypes"), spread())
def test_values_are_the_librarys_and_the_gradient_is_near(case: Case, dtypes: str) -> None:
    dtype, given = DTYPES[dtypes]
    x = drive().to(given)
    wrapped = tssl_adapters.wrap(made(case, dtype))
    try:
        theirs, _ = ran(case, made(case, dtype), x)
    except Exception as error:
        with pytest.raises(type(error)):
            ran(case, wrapped, x)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error", EngineWarning)
        warnings.simplefilter("error", NativeGradientWarning)
        ours, grad = ran(case, wrapped, x)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    assert grad.isfinite().all()
    spikes, expected = exactly(case)
    moved = ((ours[0] != 0) != spikes).transpose(0, 1).flatten(1).any(1)
    assert moved.float().mean() < 0.5
    off = (grad - expected).abs().transpose(0, 1).flatten(1).amax(1)[~moved]
    lowest = max(dtype, given, key=lambda dtype: torch.finfo(dtype).eps)
    assert off.median() <= NEAR[lowest] * expected.abs().max()
