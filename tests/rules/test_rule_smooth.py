"""The default rule: its formula against one written here, equality with the libraries' own."""

from __future__ import annotations

import math
import warnings
from typing import Any

import naive
import norse.torch as norse
import pytest
import snntorch
import torch
from rule_layers import by_engine, leaky
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.errors import LostLinkWarning
from tssl_adapters.neuron import LinearCharge, Neuron
from tssl_adapters.resets import Subtract, ToValue
from tssl_adapters.rules import SmoothTSSLBP, SurrogateGradient

F64 = torch.float64


def kernel(distance: Tensor, drop: float, memory: float) -> Tensor:
    """phi, of h - theta."""
    cusp = min(max(memory - 6.0, 0.0) ** 2 / 16.0, 20.0)
    z = math.pi * distance / drop
    return 1.0 / (drop * (1.0 + cusp * z.abs() + z**2))


def drive(steps: int = 30, scale: float = 0.5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(steps, 3, 8, generator=generator, dtype=F64) + 0.1


def gradient(rule: rules.Rule, layer: Neuron, x: Tensor, cuts: Any = ()) -> Tensor:
    x = x.clone().requires_grad_()
    out = by_engine(rule, layer, x, cuts=cuts)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    (found,) = torch.autograd.grad((out * weight).sum(), x)
    return found


@pytest.mark.parametrize(
    ("decay", "steps", "memory"),
    [(0.5, 30, 2), (0.9, 30, 10), (0.95, 30, 20), (0.95, 12, 12), (1.0, 16, 16), (0.99, 60, 60)],
)
@pytest.mark.parametrize(
    ("reset", "theta", "drop"),
    [("zero", 1.0, 1.0), ("zero", 2.5, 2.5), ("subtract", 0.4, 0.4), ("below", 0.5, 0.8)],
)
@pytest.mark.parametrize("cuts", [(), "steps", (5, 11)])
def test_the_gradient_is_that_of_the_kernel(
    decay: float, steps: int, memory: float, reset: str, theta: float, drop: float, cuts: Any
) -> None:
    """The oracle is another rule's engine path, given the kernel written out above."""
    kinds = {"zero": ToValue(0.0), "below": ToValue(-0.3), "subtract": Subtract()}
    charge = LinearCharge(decay, 1.0, 0.0, lambda v, x: decay * v + x)
    layer = Neuron(charge, kinds[reset], theta)
    expected = gradient(SurrogateGradient(lambda d: kernel(d, drop, memory)), layer, drive(steps))
    assert expected.abs().max() > 0.01
    found = gradient(SmoothTSSLBP(), layer, drive(steps), cuts)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_memory_can_be_named() -> None:
    layer = leaky(0.5, 1.0, "zero")
    fine, own = SmoothTSSLBP(memory=20.0), SmoothTSSLBP()
    expected = gradient(SurrogateGradient(lambda d: kernel(d, 1.0, 20.0)), layer, drive())
    torch.testing.assert_close(gradient(fine, layer, drive()), expected, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(gradient(own, layer, drive()), expected)


@pytest.mark.parametrize("path", ["none", "complete"])
def test_reset_path(path: Any) -> None:
    layer = leaky(0.9, 1.0, "subtract")
    theirs = SurrogateGradient(lambda d: kernel(d, 1.0, 10.0), reset_path=path)
    expected = gradient(theirs, layer, drive())
    found = gradient(SmoothTSSLBP(reset_path=path), layer, drive(), "steps")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_each_neuron_has_its_own_scales() -> None:
    """Decays and thresholds that differ from neuron to neuron: as many layers of one neuron."""
    decays, thetas = torch.linspace(0.5, 0.97, 8, dtype=F64), torch.linspace(0.3, 2.0, 8, dtype=F64)
    charge = LinearCharge(decays, 1.0, 0.0, lambda v, x: decays * v + x)
    found = gradient(SmoothTSSLBP(), Neuron(charge, ToValue(0.0), thetas), drive())
    for i, (decay, theta) in enumerate(zip(decays.tolist(), thetas.tolist(), strict=True)):
        memory = min(1 / (1 - decay), 30.0)

        def slope(d: Tensor, theta: float = theta, memory: float = memory) -> Tensor:
            return kernel(d, theta, memory)

        alone = gradient(SurrogateGradient(slope), leaky(decay, theta, "zero"), drive())
        torch.testing.assert_close(found[..., i], alone[..., i], rtol=1e-12, atol=1e-14)


def test_naive_agrees() -> None:
    layer, x = leaky(0.95, 1.0, "subtract"), drive()
    rest = torch.zeros_like(x[0])
    run = naive.forward(layer, 1.0, x, rest, rest)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    expected = naive.backward(layer, SmoothTSSLBP(), 1.0, x, run, weight, torch.zeros_like(x))
    found = gradient(SmoothTSSLBP(), layer, x)
    torch.testing.assert_close(found, expected.drive, rtol=1e-12, atol=1e-14)


# --- the libraries' own surrogates ------------------------------------------------------------


def snntorch_gradient(layer: Any, x: Tensor) -> list[Tensor]:
    x = x.float().requires_grad_()
    mem, spikes, potentials = layer.init_leaky(), [], []
    for step in x.unbind():
        spike, mem = layer(step, mem)
        spikes.append(spike)
        potentials.append(mem)
    loss = torch.stack(spikes).square().sum() + torch.stack(potentials).square().sum()
    return [torch.stack(spikes), *torch.autograd.grad(loss, x)]


@pytest.mark.parametrize("mechanism", ["subtract", "zero", "none"])
@pytest.mark.parametrize("delay", [True, False])
def test_on_a_coarse_grid_it_is_snntorchs_default(mechanism: str, delay: bool) -> None:
    layer = snntorch.Leaky(beta=0.8, reset_mechanism=mechanism, reset_delay=delay)
    native = snntorch_gradient(layer, drive(20))
    wrapped = snntorch_gradient(tssl_adapters.wrap(layer), drive(20))
    assert torch.equal(wrapped[0], native[0])
    torch.testing.assert_close(wrapped[1], native[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("v_reset", [0.0, None])
@pytest.mark.parametrize("detach", [False, True])
def test_on_a_coarse_grid_it_is_spikingjellys_atan(mode: str, v_reset: Any, detach: bool) -> None:
    layer = neuron.LIFNode(
        v_reset=v_reset, detach_reset=detach, surrogate_function=surrogate.ATan(), step_mode=mode
    )

    def found() -> list[Tensor]:
        functional.reset_net(layer)
        x = (4.0 * drive(12)).requires_grad_()
        out = layer(x) if mode == "m" else torch.stack([layer(step) for step in x])
        return [out, *torch.autograd.grad(out.square().sum() + layer.v.sum(), x)]

    native = found()
    functional.reset_net(layer)
    tssl_adapters.wrap(layer)
    for ours, theirs in zip(found(), native, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert native[0].any()


# --- what it is told ---------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.9, 0.95, 1.0])
def test_a_state_the_model_computed_is_that_of_the_next_step(beta: float) -> None:
    """A mask of ones between the steps changes nothing."""
    masked, known = snntorch.Leaky(beta=beta), snntorch.Leaky(beta=beta)
    tssl_adapters.wrap(masked)
    tssl_adapters.wrap(known)
    found = []
    for layer, mask in ((masked, True), (known, False)):
        x = drive(12).float().requires_grad_()
        mem, total = layer.init_leaky(), torch.zeros(())
        for step in x.unbind():
            spike, mem = layer(step, mem)
            total = total + spike.square().sum()
            mem = mem * 1.0 if mask else mem
        found.append(torch.autograd.grad(total, x)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


# Rules that ask for T, along other loops than a plain one:


def run_from(layer: Any, x: Tensor, mem: Tensor, mask: bool = False) -> Tensor:
    """The spikes of a loop; a mask of ones changes nothing but makes each state anew."""
    spikes = []
    for step in x:
        spike, mem = layer(step, mem * 1.0 if mask else mem)
        spikes.append(spike)
    return torch.stack(spikes)


def grads_of(x: Tensor, *outs: Tensor) -> Tensor:
    x.grad = None
    for out in outs:
        out.square().sum().backward()
    assert x.grad is not None
    return x.grad


def close_to(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(params=["torch", "cpu"])
def slow(request: Any) -> Any:
    """A wrapped layer that does not leak, whose kernel is that of T."""
    return tssl_adapters.wrap(snntorch.Leaky(beta=1.0), engine=request.param)


@pytest.fixture
def x() -> Tensor:
    return drive(12).float().requires_grad_()


@pytest.mark.parametrize("between", ["nothing", "evaluation", "no backward pass"])
def test_a_learned_start_begins_a_sequence_in_every_iteration(
    slow: Any, x: Tensor, between: str
) -> None:
    zeros = torch.zeros(x.shape[1:])
    expected = grads_of(x, run_from(slow, x, zeros))
    for mask in (False, True, True):
        learned = torch.zeros(1, requires_grad=True).expand(x.shape[1:])
        close_to(grads_of(x, run_from(slow, x, learned, mask)), expected)
        if between != "nothing":
            with torch.set_grad_enabled(between != "evaluation"):
                run_from(slow, x, zeros)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("mask", [False, True])
def test_sequences_of_several_lengths_in_checkpoints(
    slow: Any, x: Tensor, mask: bool, reentrant: bool
) -> None:
    """The longer first, and both backward after that."""
    zeros = torch.zeros(x.shape[1:])

    def run(x: Tensor) -> Tensor:
        return run_from(slow, x, zeros, mask)

    expected = [grads_of(x, run_from(slow, x[:steps], zeros)) for steps in (12, 7)]
    outs = [checkpoint(run, x[:steps], use_reentrant=reentrant) for steps in (12, 7)]
    close_to(grads_of(x, *outs), sum(expected, torch.zeros(())))
    close_to(grads_of(x, checkpoint(run, x[:7], use_reentrant=reentrant)), expected[1])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_that_go_on_from_one_another(slow: Any, x: Tensor, reentrant: bool) -> None:
    """Reentrant ones hand on states of which nothing is known: that is said, once."""
    zeros = torch.zeros(x.shape[1:])
    expected = grads_of(x, run_from(slow, x, zeros))

    def run() -> Tensor:
        mem, outs = zeros, []
        for step in x:
            spikes, mem = checkpoint(slow, step, mem, use_reentrant=reentrant)
            outs.append(spikes)
        return torch.stack(outs)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = grads_of(x, run())
        grads_of(x, run())
    said = [str(one.message) for one in seen if one.category is LostLinkWarning]
    assert len(said) == reentrant
    assert all("use_reentrant=False" in one for one in said)
    assert torch.allclose(found, expected) is not reentrant


def test_two_sequences_in_turns_with_masks(slow: Any, x: Tensor) -> None:
    zeros, mems, spikes = torch.zeros(x.shape[1:]), {}, {12: [], 7: []}
    for t, step in enumerate(x):
        for steps, found in spikes.items():
            if t < steps:
                spike, mems[steps] = slow(step, mems.get(steps, zeros) * 1.0)
                found.append(spike)
    expected = [grads_of(x, run_from(slow, x[:steps], zeros)) for steps in (12, 7)]
    outs = [torch.stack(found) for found in spikes.values()]
    close_to(grads_of(x, *outs), sum(expected, torch.zeros(())))


def test_a_start_that_another_layer_computed_begins_a_sequence(slow: Any, x: Tensor) -> None:
    other = tssl_adapters.wrap(snntorch.Leaky(beta=1.0))
    _, mem = other(x[0].detach().requires_grad_(), torch.zeros(x.shape[1:]))
    expected = grads_of(x, run_from(slow, x, mem.detach() * 1.0))
    close_to(grads_of(x, run_from(slow, x, mem * 1.0)), expected)


@pytest.mark.parametrize("engine", ["torch", "cpu"])
def test_a_sequence_begins_before_its_input_reaches_the_potential(engine: Any) -> None:
    """In LSNN's cells, a step later: the first potential has no graph, but is no start either."""
    found, x = [], drive(12).requires_grad_()
    for rule in (SmoothTSSLBP(), SmoothTSSLBP(memory=12.0)):
        p = norse.LSNNParameters(tau_mem_inv=torch.tensor(60.0), v_th=torch.tensor(0.1))
        cell = norse.LSNNCell(p)
        layer, outs = tssl_adapters.wrap(cell, rule=rule, engine=engine), []
        _, state = layer(x[0], None)
        state = type(state)(*(part.detach() for part in state))
        for step in x:
            out, state = layer(step, state)
            outs.append(out + state.v)
        found.append(grads_of(x, torch.stack(outs)))
    assert found[0].abs().max() > 0.1
    close_to(*found)


def test_masks_with_a_backward_pass_at_every_step(slow: Any, x: Tensor) -> None:
    found = []
    for mask in (False, True):
        mem, x.grad = torch.zeros(x.shape[1:]), None
        for step in x:
            spike, mem = slow(step, mem * 1.0 if mask else mem)
            spike.square().sum().backward(retain_graph=True)
        found.append(x.grad)
    close_to(*found)


@pytest.mark.parametrize("engine", ["torch", "cpu"])
@pytest.mark.parametrize("mode", ["s", "m"])
def test_a_step_counts_before_its_input_reaches_the_potential(mode: str, engine: Any) -> None:
    """Resonate-and-fire: the input arrives through another state, a step later."""
    steps, decay = 12, math.exp(-0.05) * math.cos(0.25)
    assert 1.0 / (1.0 - decay) > steps

    def grad_under(rule: rules.Rule) -> Tensor:
        settings = {"b": -0.1, "omega": 0.5, "dt": 0.5, "v_threshold": 0.3, "v_reset": -0.2}
        node = neuron.RAFNode(**settings, step_mode=mode).double()
        tssl_adapters.wrap(node, rule=rule, engine=engine)
        x = (3.0 * drive(steps)).requires_grad_()
        out = node(x) if mode == "m" else torch.stack([node(step) for step in x])
        assert 0.1 < float(out.detach().mean()) < 0.9
        (found,) = torch.autograd.grad((out * drive(steps)).sum(), x)
        return found

    expected = grad_under(SurrogateGradient(lambda d: kernel(d, 0.5, steps)))
    torch.testing.assert_close(grad_under(SmoothTSSLBP()), expected, rtol=1e-12, atol=1e-14)


def test_a_sample_does_not_see_its_batch() -> None:
    layer, x = leaky(0.95, 1.0, "zero"), drive()
    whole = gradient(SmoothTSSLBP(), layer, x)
    x = x[:, :1]
    weight = torch.randn(30, 3, 8, generator=torch.Generator().manual_seed(1), dtype=F64)[:, :1]
    alone = x.clone().requires_grad_()
    out = by_engine(SmoothTSSLBP(), layer, alone)
    assert torch.equal(torch.autograd.grad((out * weight).sum(), alone)[0], whole[:, :1])


@pytest.mark.parametrize(
    ("theta", "v_reset"), [(math.inf, 0.0), (1e9, 0.0), (1e9, None), (0.0, 0.0), (0.0, None)]
)
def test_thresholds_without_a_scale(theta: float, v_reset: Any) -> None:
    """One that is never reached makes no NaN; at 0 the drop counts as 1."""
    layer = tssl_adapters.wrap(neuron.IFNode(v_threshold=theta, v_reset=v_reset, step_mode="m"))
    x = drive(12).float().requires_grad_()
    out = layer(x)
    (found,) = torch.autograd.grad(out.sum() + layer.v.sum(), x)
    assert torch.isfinite(found).all()
    if theta == math.inf:
        assert torch.equal(found, torch.ones_like(found))


def test_an_infinite_potential_has_no_slope() -> None:
    layer = leaky(0.5, 1.0, "zero")
    x = drive()
    x[3, 0, 0] = -math.inf
    found = gradient(SmoothTSSLBP(reset_path="none"), layer, x)
    assert found[3, 0, 0] == 0.0


def test_half_precision_has_the_kernel_of_float32() -> None:
    x = drive(12)
    layer = tssl_adapters.wrap(neuron.LIFNode(tau=20.0, step_mode="m"))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        functional.reset_net(layer)
        given = (20.0 * x).to(torch.bfloat16).to(dtype).requires_grad_()
        out = layer(given)
        found.append(torch.autograd.grad(out.float().sum(), given)[0].float())
    assert found[0].abs().max() > 0
    cosine = torch.cosine_similarity(found[0].flatten(), found[1].flatten(), 0)
    assert cosine > 0.99


# --- as the default ----------------------------------------------------------------------------


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
def test_it_is_the_default(tau_s: float) -> None:
    found = []
    for rule in (None, "smooth-tsslbp", SmoothTSSLBP()):
        layer = tssl_adapters.wrap(norse.LIF(), rule=rule, tau_s=tau_s)
        x = (30.0 * drive(12)).float().requires_grad_()
        found.append(torch.autograd.grad(layer(x)[0].square().sum(), x)[0])
    assert found[0].abs().sum() > 0
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_it_has_no_state() -> None:
    layer = tssl_adapters.wrap(snntorch.Leaky(beta=0.95))
    first, second = (snntorch_gradient(layer, drive()) for _ in range(2))
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"memory": 0.5}, ValueError, "memory must be 1 or more, not 0.5"),
        ({"memory": math.inf}, ValueError, "memory must be positive and finite"),
        ({"memory": "long"}, TypeError, "memory must be a number, not 'long'"),
        ({"reset_path": "reference"}, ValueError, "reset_path must be one of"),
        ({"checkpoint": 0}, ValueError, "checkpoint must be 1 step or more"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        SmoothTSSLBP(**options)
