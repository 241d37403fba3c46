"""float64 stays float64: the library's own surrogate as the rule gives its gradient to 1e-12.

snnTorch's spikes are float32 whatever the layer. It multiplies them by the threshold, in float32
where that has no dimensions, and so the reset of a float64 layer is rounded, as is the threshold's
gradient. What else it rounds is gradients that pass through its spikes, with ``reset_delay=False``
or as they come back to a layer. There the oracle is the same layer with spikes that are float64.
"""

from __future__ import annotations

from typing import Any

import norse.torch as norse
import pytest
import torch
from cases import BATCH, NEURONS, Case
from layers import CASES as CORE
from neurons import CASES as FURTHER
from norse.torch.functional.iaf import IAFFeedForwardState
from torch import Tensor

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.arithmetic import arithmetic
from tssl_adapters.testing import STEPS, close, gradients

CASES = [case for case in {c.name: c for c in [*CORE, *FURTHER]}.values() if case.float64]
SUBTRACTING = [
    case
    for case in CASES
    if "snntorch" in case.name and "subtract" in case.name and "nodelay" not in case.name
]


def made(case: Case) -> Any:
    torch.manual_seed(0)
    return case.make(torch.float64)


def check_identity(case: Case, native: Any, wrapped: Any) -> None:
    """Values to the bit, in the dtypes that the library returns; gradients to 1e-12."""
    tssl_adapters.wrap(wrapped, rule=rules.SurrogateGradient(case.derivative))
    generator = torch.Generator().manual_seed(3)
    x = 0.6 + torch.randn(STEPS, BATCH, NEURONS, dtype=torch.float64, generator=generator)
    # Norse's own start is float32, in which the first step's gradient of a leak would be rounded.
    v0 = torch.full_like(x[0], 0.2) if case in CORE else None
    values, expected = gradients(case, native, x, v0, "spikes+membrane")
    our_values, found = gradients(case, wrapped, x, v0, "spikes+membrane")
    for ours, theirs in zip(our_values, values, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(found, expected, strict=True):
        # A parameter that the library keeps in float32 has a gradient in float32.
        close(ours, theirs, 1e-12 if theirs.dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("case", SUBTRACTING, ids=str)
def test_delayed_subtraction(case: Case) -> None:
    """What a spike takes is what the library's float32 makes of the threshold."""
    native, wrapped = made(case), made(case)
    for layer in (native, wrapped):
        with torch.no_grad():
            layer.threshold.add_(1e-9)  # no float32
    check_identity(case, native, wrapped)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_spikes_in_float64(case: Case) -> None:
    """Every neuron and reset of every library."""

    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return (x > 0).to(x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * case.derivative(ctx.saved_tensors[0])

    native, wrapped = made(case), made(case)
    for layer in (native, wrapped):
        if "snntorch" in case.name:  # the other libraries' spikes have the potential's dtype
            layer.spike_grad = Spike.apply
    check_identity(case, native, wrapped)


@pytest.mark.parametrize("sequence", [False, True])
def test_numbers_beside_others_of_each_neuron(sequence: bool) -> None:
    """A rule without a chain, so that single steps take the loops of sequences too."""
    level, reset = torch.full((NEURONS,), 0.9).double(), torch.tensor(-0.2, dtype=torch.float64)
    p = norse.IAFParameters(v_th=level, v_reset=reset)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(STEPS, BATCH, NEURONS, dtype=torch.float64, generator=generator)
    found = []
    for engine in ("cpu", "torch"):
        layer = norse.IAF(p=p) if sequence else norse.IAFCell(p=p)
        rule = rules.SurrogateGradient(arctan, chain=False)
        tssl_adapters.wrap(layer, rule=rule, engine=engine)
        x.requires_grad_()
        outs: list[Tensor] = []
        state = IAFFeedForwardState(torch.zeros_like(x[0]))  # its own would have v_reset learn
        for step in [x] if sequence else x:
            out, state = layer(step, state)
            outs.append(out)
        total = torch.stack([out.square().sum() for out in outs]).sum()
        found.append([*outs, state.v, *torch.autograd.grad(total + state.v.sum(), x)])
        assert any(layer._tssl_settings.loops.values()) == (engine == "cpu")
    for ours, theirs in zip(*found, strict=True):
        close(ours, theirs, 1e-13)


@arithmetic
def arctan(z: Any) -> Any:
    return 1.0 / (1.0 + z * z)
