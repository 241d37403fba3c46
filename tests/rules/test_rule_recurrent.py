"""The further rules in recurrent layers: what comes back, and ST-RSBP's complete derivative."""

from __future__ import annotations

import re
from typing import Any

import norse.torch as norse
import pytest
import snntorch
import torch
import torch.nn.functional as F
from compat_norse import lifted
from compat_spikingjelly import STEP_MODES, functional, node
from compat_spikingjelly import layer as containers
from norse.torch.functional.lif import LIFParameters, lif_step
from rule_layers import golden, relative
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.adapters.norse.whole import goes_whole

DATA = {
    key.removeprefix("recurrent/"): value
    for key, value in golden("strsbp").items()
    if key.startswith("recurrent/")
}
RATE = 0.05
"""Norse's gain is dt tau_mem_inv, 1 - decay here; the golden neuron's is 1."""
whole = pytest.mark.skipif(
    not goes_whole(lif_step), reason="this version's membrane sees its input a step later"
)


def golden_layer(rule: rules.Rule) -> Any:
    """The golden file's layer: no memory in the synapse, weights over the gain."""
    p = LIFParameters(
        tau_syn_inv=torch.tensor(1.0), tau_mem_inv=torch.tensor(RATE), v_leak=torch.tensor(0.0),
        v_th=torch.tensor(1.0), v_reset=torch.tensor(0.0),
    )  # fmt: skip
    weights = (nn.Parameter(DATA[key] / RATE) for key in ("weight", "weight_recurrent"))
    of_input, recurrent = weights
    layer = norse.LIFRecurrent(
        6, 7, p, input_weights=of_input, recurrent_weights=recurrent, autapses=True, dt=1.0
    ).double()
    return tssl_adapters.wrap(layer, rule=rule)


def run_golden(rule: rules.Rule) -> tuple[Any, Tensor]:
    layer = golden_layer(rule)
    x = DATA["pre_spike"].clone().requires_grad_()
    state = layer.state_fallback(x)
    state = type(state)(*(torch.zeros(2, 7, dtype=torch.float64) for _ in state))
    out, _ = layer(x, state)
    assert torch.equal(out.detach(), DATA["spike"])
    out.backward(DATA["delta"].expand_as(out))
    assert x.grad is not None
    counts = DATA["pre_spike"].sum(0)
    return layer, (x.grad * DATA["pre_spike"]).sum(0) / counts


@whole
def test_full_against_the_golden_file() -> None:
    layer, delta_pre = run_golden(rules.STRSBP(silent="zero", recurrent="full"))
    for weight, key in (
        (layer.input_weights, "grad_weight"),
        (layer.recurrent_weights, "grad_weight_recurrent"),
    ):
        # Norse's rates are float32 numbers.
        assert relative(weight.grad / RATE, DATA[key]) <= 1e-6
    seen = DATA["pre_spike"].sum(0) > 0
    assert relative(delta_pre[seen], DATA["delta_pre"][seen]) <= 1e-6


@whole
def test_diagonal_against_the_golden_file() -> None:
    layer, _ = run_golden(rules.STRSBP(silent="zero"))
    assert relative(layer.input_weights.grad / RATE, DATA["grad_weight_published"]) <= 1e-6


def norse_gradients(cls: Any, rule: rules.Rule, grad: Tensor, **settings: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    weights = [torch.randn(shape, generator=generator) for shape in ((5, 3), (5, 5))]
    layer = tssl_adapters.wrap(
        cls(3, 5, LIFParameters(), input_weights=nn.Parameter(3.0 * weights[0]),
            recurrent_weights=nn.Parameter(weights[1]), dt=0.01, **settings),
        rule=rule,
    )  # fmt: skip
    x = torch.rand(20, 2, 3, generator=generator).requires_grad_()
    run = layer if cls is norse.LIFRecurrent else lifted(layer)
    out, _ = run(x)
    assert 0 < out.sum() < 100
    out.backward(grad.expand_as(out))
    return [x.grad, layer.input_weights.grad, layer.recurrent_weights.grad]


@whole
@pytest.mark.parametrize("settings", [{}, {"record_states": True}], ids=str)
def test_a_whole_sequence_and_its_steps_agree(settings: Any) -> None:
    grad = torch.rand(1, 2, 5)
    stepwise = norse_gradients(norse.LIFRecurrentCell, rules.STRSBP(credit="spike"), grad)
    for credit in ("spike", "train"):
        rule = rules.STRSBP(credit=credit)  # type: ignore[arg-type]
        found = norse_gradients(norse.LIFRecurrent, rule, grad, **settings)
        for ours, theirs in zip(found, stepwise, strict=True):
            assert relative(ours, theirs.double()) <= 1e-5
    full = norse_gradients(norse.LIFRecurrent, rules.STRSBP(recurrent="full"), grad)
    assert relative(full[0], stepwise[0].double()) > 0.01


@whole
def test_states_of_a_whole_sequence() -> None:
    """They are the library's, bit for bit."""
    torch.manual_seed(0)
    native = norse.LIFRecurrent(3, 5, dt=0.01, record_states=True)
    x = 5.0 * torch.rand(30, 2, 3)
    native.input_weights.data.abs_().mul_(3.0)
    expected, states = native(x)
    out, ours = tssl_adapters.wrap(native, rule=rules.STRSBP())(x)
    assert bool(out.any())
    assert torch.equal(out, expected)
    for name in states._fields:
        assert torch.equal(getattr(ours, name), getattr(states, name))


def test_snntorch_leaves_out_what_comes_back() -> None:
    """The layer is one that is fed its own spikes from outside."""
    torch.manual_seed(1)
    rule = rules.STRSBP(credit="spike")
    layer = tssl_adapters.wrap(snntorch.RLeaky(beta=0.8, linear_features=4), rule=rule)
    plain = tssl_adapters.wrap(snntorch.Leaky(beta=0.8), rule=rule)
    recurrent = layer.recurrent
    x = torch.rand(10, 2, 4)
    grads = []
    for fed_back in (True, False):
        leaf = x.clone().requires_grad_()
        spk, mem = layer.init_rleaky() if fed_back else (torch.zeros(2, 4), plain.init_leaky())
        recurrent.weight.grad = None
        total = torch.zeros(())
        for step in leaf:
            if fed_back:
                spk, mem = layer(step, spk, mem)
            else:
                spk, mem = plain(step + recurrent(spk.detach()), mem)
            total = total + spk.sum()
        total.backward()
        grads.append((leaf.grad, recurrent.weight.grad))
    for ours, theirs in zip(*grads, strict=True):
        assert float(theirs.abs().sum()) > 0.0
        torch.testing.assert_close(ours, theirs)


def test_lee_does_not() -> None:
    """A spike that only comes back later has a gradient through the recurrent weight."""
    layer = tssl_adapters.wrap(snntorch.RLeaky(beta=0.5, all_to_all=False, V=2.0), rule="lee")
    x = torch.tensor([2.0, 0.0]).reshape(2, 1, 1).requires_grad_()
    spk, mem = layer.init_rleaky()
    for step in x:
        spk, mem = layer(step, spk, mem)
    spk.sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [2.0, 1.0]


def container(kind: str, mode: str) -> Any:
    torch.manual_seed(2)
    inside = nn.Sequential(nn.Linear(3, 4), node("LIFNode"))
    if kind == "linear":
        return containers.LinearRecurrentContainer(inside, 3, 4, step_mode=mode)
    return containers.ElementWiseRecurrentContainer(
        nn.Sequential(node("LIFNode")), torch.add, step_mode=mode
    )


@pytest.mark.skipif(not STEP_MODES, reason="this version's containers take no step mode")
@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("kind", ["linear", "element"])
def test_spikingjelly_leaves_out_what_comes_back(kind: str, mode: str) -> None:
    model = container(kind, mode)
    types = [type(m) for m in model.modules()]
    tssl_adapters.wrap(model, rule=rules.STRSBP(credit="spike"))
    by_hand = container(kind, mode)
    tssl_adapters.wrap(by_hand.sub_module, rule=rules.STRSBP(credit="spike"))
    x = 20.0 * torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(3))
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    out = model(ours) if mode == "m" else torch.stack([model(step) for step in ours])
    y, outs = torch.zeros(2, 4 if kind == "linear" else 3), []
    for step in theirs:
        given = by_hand.rc(torch.cat((step, y), -1)) if kind == "linear" else y + step
        spk = by_hand.sub_module(given)
        y = spk.detach()
        outs.append(spk)
    assert bool(out.any())
    assert torch.equal(out, torch.stack(outs))
    weight = torch.rand(out.shape, generator=torch.Generator().manual_seed(5))
    (out * weight).sum().backward()
    (torch.stack(outs) * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert float(theirs.grad.abs().sum()) > 0.0  # type: ignore[union-attr]
    assert re.sub(r"(, )?tssl_adapters: [^\n]*?engine='\w+'", "", repr(model)) == repr(
        container(kind, mode)
    )
    functional.reset_net(model)
    assert [type(m) for m in tssl_adapters.unwrap(model).modules()] == types


@pytest.mark.skipif(not STEP_MODES, reason="this version's containers take no step mode")
def test_containers_stay_native_under_other_rules() -> None:
    model = container("linear", "s")
    status = {r.path: r.status for r in tssl_adapters.inspect(model)}
    assert status["LinearRecurrentContainer"] == "native"
    rule = rules.STRSBP(credit="spike")
    status = {r.path: r.status for r in tssl_adapters.inspect(model, rule=rule)}
    assert status["LinearRecurrentContainer"] == "wrap"
    full = rules.STRSBP(credit="spike", recurrent="full")
    with pytest.raises(tssl_adapters.errors.UnsupportedConfigError, match="recurrent='full' needs"):
        tssl_adapters.wrap(model, rule=full)


def test_recurrent_weights_get_a_papers_gradient() -> None:
    """R's gradient pairs eps k with the spikes of the step before."""
    x, weight = torch.ones(3, 1, 1), torch.full((1, 1), 0.5, requires_grad=True)
    layer = tssl_adapters.wrap(
        snntorch.Leaky(beta=0.0, reset_mechanism="zero"), rule=rules.STRSBP(credit="spike")
    )
    spk, mem, total = torch.zeros(1, 1), layer.init_leaky(), torch.zeros(())
    for step in x:
        spk, mem = layer(1.5 * step + F.linear(spk.detach(), weight), mem)
        total = total + spk.sum()
    total.backward()
    # beta 0, T = o = 3: 1 - S = 1/2.
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(4.0)


@whole
def test_float64_from_the_librarys_own_start() -> None:
    """Its first potential is float32, its spikes are not."""
    layer = norse.LIFRecurrent(3, 4).double()
    native, _ = layer(torch.ones(5, 2, 3, dtype=torch.float64))
    tssl_adapters.wrap(layer, rule=rules.STRSBP(credit="spike"))
    ours, _ = layer(torch.ones(5, 2, 3, dtype=torch.float64))
    assert torch.equal(ours, native)


@whole
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_full_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = norse.LIFRecurrent(3, 4, LIFParameters(v_th=torch.tensor(0.1))).to(dtype)
    tssl_adapters.wrap(layer, rule=rules.STRSBP(recurrent="full"))
    state = layer.state_fallback(torch.ones(5, 2, 3, dtype=dtype))
    state = type(state)(*(value.detach().to(dtype) for value in state))
    out, _ = layer(torch.ones(5, 2, 3, dtype=dtype), state)
    assert out.any()
    out.sum().backward()
    assert layer.recurrent_weights.grad.isfinite().all()
    assert layer.input_weights.grad.any()
