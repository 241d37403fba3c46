"""Lee's rule: against its golden file, and what it does about silence and membrane losses."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch
import torch
import torch.nn.functional as F
from rule_layers import LIBRARIES, by_engine, golden, leaky, offered, relative
from torch import Tensor

import tssl_adapters
from tssl_adapters import rules

DATA = golden("lee")
CASES = [f"case{i:02d}" for i in range(int(DATA["n_cases"]))]
KINDS = {
    "grad_drive": rules.Lee(gate="active"),
    "grad_drive_ungated": rules.Lee(),
    "grad_drive_normalised": rules.Lee(gate="active", normalise=True),
}


@pytest.mark.parametrize("cuts", [(), (1,), "steps"])
@pytest.mark.parametrize("case", CASES)
def test_engine(case: str, cuts: object) -> None:
    d = {key: DATA[f"{case}/{key}"] for key in ("drive", "threshold", "grad_spike")}
    decay, gain, reset = (DATA[f"{case}/{key}"] for key in ("decay", "gain", "reset"))
    for key, rule in KINDS.items():
        x = d["drive"].clone().requires_grad_()
        theta = d["threshold"].clone().requires_grad_()
        neuron = leaky(float(decay), theta, reset, float(gain))
        out = by_engine(rule, neuron, x, cuts=cuts)
        assert torch.equal(out.detach(), DATA[f"{case}/spike"])
        out.backward(d["grad_spike"])
        assert relative(x.grad, DATA[f"{case}/{key}"]) <= 1e-12
        if key == "grad_drive":
            assert relative(theta.grad, DATA[f"{case}/grad_threshold"]) <= 1e-12


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("case", CASES)
def test_library(case: str, library: str) -> None:
    """The neurons are made alike by scaling the drive, which leaves 1/theta to autograd."""
    decay, gain, reset = (DATA[f"{case}/{key}"] for key in ("decay", "gain", "reset"))
    if not offered(library, reset, float(decay)):
        pytest.skip("this version lacks the reset")
    make, run = LIBRARIES[library]
    for key in ("grad_drive", "grad_drive_ungated"):
        layer = tssl_adapters.wrap(make(float(decay), reset), rule=KINDS[key])
        x = DATA[f"{case}/drive"].float().requires_grad_()
        out = run(layer, x * float(gain) / DATA[f"{case}/threshold"].float())
        assert torch.equal(out.detach().double(), DATA[f"{case}/spike"])
        out.backward(DATA[f"{case}/grad_spike"].float())
        assert relative(x.grad, DATA[f"{case}/{key}"]) <= 1e-5


def test_network() -> None:
    """Three layers, the hidden ones gated, the output not, against explicit traces."""
    d = {key.removeprefix("network/"): v for key, v in DATA.items() if key.startswith("network/")}
    weights = [d[f"weight{k}"].clone().requires_grad_() for k in range(3)]
    neuron = leaky(float(d["decay"]), float(d["threshold"]), "subtract")
    x = d["input_spike"]
    for weight, rule in zip(weights, (KINDS["grad_drive"],) * 2 + (rules.Lee(),), strict=True):
        x = by_engine(rule, neuron, F.linear(x, weight))
    assert torch.equal(x.detach(), d["output_spike"])
    x.backward(d["grad_output_spike"])
    for k, weight in enumerate(weights):
        assert relative(weight.grad, d[f"weight{k}_grad"]) <= 1e-12


@pytest.mark.parametrize("rule", KINDS.values(), ids=str)
@pytest.mark.parametrize(("drive", "rate"), [(-1.0, 0.0), (0.0, 0.0), (5.0, 1.0)])
@pytest.mark.parametrize("steps", [1, 6])
def test_silent_and_always_firing(rule: rules.Lee, drive: float, rate: float, steps: int) -> None:
    x = torch.full((steps, 2, 3), drive, dtype=torch.float64, requires_grad=True)
    out = by_engine(rule, leaky(0.8, 0.5, "zero"), x)
    assert out.detach().unique().tolist() == [rate]
    out.backward(torch.ones_like(out))
    gated = rule.gate == "active" and rate == 0.0
    # Normalised, a layer without a spike counts as one with a single active neuron.
    ungated = 1.0 if rule.normalise else 2.0
    expected = 0.0 if gated else ungated
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full_like(x, expected), rtol=1e-12, atol=0.0)


def membrane_gradient(rule: rules.Rule, delay: bool, gate: Tensor) -> Tensor:
    layer = tssl_adapters.wrap(snntorch.Leaky(beta=0.8, reset_delay=delay), rule=rule)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(8, 3, 4, generator=generator).mul(1.5).requires_grad_()
    mem, loss = layer.init_leaky(), torch.zeros(())
    for step in x:
        _, mem = layer(step, mem)
        loss = loss + (mem * gate).sum()
    (gradient,) = torch.autograd.grad(loss, x)
    return gradient


@pytest.mark.parametrize("delay", [True, False])
@pytest.mark.parametrize("rule", KINDS.values(), ids=str)
def test_a_loss_on_the_membrane_keeps_its_adjoint(rule: rules.Lee, delay: bool) -> None:
    """It is what a surrogate whose reset is cut gives, gate or not, where neurons fire too."""
    gate = torch.rand(4, generator=torch.Generator().manual_seed(2))
    plain = rules.SurrogateGradient(torch.zeros_like, reset_path="none")
    expected = membrane_gradient(plain, delay, gate)
    assert float(expected.abs().min()) > 0.0
    torch.testing.assert_close(membrane_gradient(rule, delay, gate), expected)


def test_synapses_keep_theirs() -> None:
    """e goes to the membrane, and from there down the synapse's own filter."""
    layer = tssl_adapters.wrap(snntorch.Synaptic(alpha=0.5, beta=0.8), rule=rules.Lee())
    x = torch.full((3, 1, 1), 0.1, requires_grad=True)
    states, out = layer.init_synaptic(), torch.zeros(())
    for step in x:
        out, *states = layer(step, *states)
    out.sum().backward()  # one at the last step
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0.25, 0.5, 1.0]


@pytest.mark.parametrize("detach", [Tensor.detach, Tensor.detach_])
def test_a_detached_state_starts_a_new_window(detach: Any) -> None:
    layer = tssl_adapters.wrap(snntorch.Leaky(beta=0.5), rule=rules.Lee(gate="active"))
    x = torch.tensor([2.0, 0.0, 0.0]).reshape(3, 1, 1).requires_grad_()
    mem, outs = layer.init_leaky(), []
    for t, step in enumerate(x):
        mem = detach(mem) if t == 2 else mem
        spk, mem = layer(step, mem)
        outs.append(spk)
    torch.stack(outs).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1.0, 1.0, 0.0]


def test_a_cloned_state_is_warned_of() -> None:
    layer = tssl_adapters.wrap(snntorch.Leaky(beta=0.5), rule=rules.Lee(gate="active"))
    _, mem = layer(torch.ones(1, 1, requires_grad=True), layer.init_leaky())
    with pytest.warns(tssl_adapters.errors.LostLinkWarning, match="counts of spikes start anew"):
        layer(torch.ones(1, 1), mem.clone())


def test_arguments() -> None:
    with pytest.raises(ValueError, match=r"gate must be one of 'none', 'active', not 'on'"):
        rules.Lee(gate="on")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="normalise must be True or False, not 1"):
        rules.Lee(normalise=1)  # type: ignore[arg-type]
    assert str(rules.Lee(gate="active")) == "Lee(gate='active')"


def test_an_empty_batch() -> None:
    layer = tssl_adapters.wrap(snntorch.Leaky(beta=0.8), rule=rules.Lee(normalise=True))
    x = torch.zeros(0, 3, requires_grad=True)
    spikes, _ = layer(x)
    spikes.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == (0, 3)
