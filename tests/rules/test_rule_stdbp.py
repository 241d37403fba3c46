"""STDBP: its golden file, continuous time, the libraries, silence, and losses that do not suit."""

from __future__ import annotations

import warnings
from typing import Any

import norse.torch as norse
import pytest
import snntorch
import torch
import torch.nn.functional as F
from compat_norse import lifted
from compat_spikingjelly import node
from norse.torch.functional.iaf import IAFFeedForwardState
from norse.torch.functional.lif import LIFParameters
from rule_layers import by_engine, golden, relative
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import losses, rules
from tssl_adapters.errors import RuleWarning
from tssl_adapters.neuron import LinearCharge, Neuron
from tssl_adapters.resets import Subtract, ToValue

DATA = golden("stdbp")
CASES = [f"discrete/case{i:02d}" for i in range(int(DATA["discrete/n_cases"]))]
CONTINUOUS = [f"continuous/case{i:02d}" for i in range(int(DATA["continuous/n_cases"]))]
ONCE = -1e9
"""A reset to it leaves no second spike."""


def integrator(threshold: float, reset: Any = None) -> Neuron:
    charge = LinearCharge(1.0, 1.0, 0.0, lambda v, x: v + x)
    return Neuron(charge, reset or ToValue(ONCE), threshold)


def rule_of(case: str, silent: Any = "none") -> rules.STDBP:
    return rules.STDBP(max_slope=float(DATA[f"{case}/max_slope"]), silent=silent)


@pytest.mark.parametrize("silent", ["none", "virtual"])
@pytest.mark.parametrize("cuts", [(), (7, 19), "steps"])
@pytest.mark.parametrize("case", CASES)
def test_engine(case: str, cuts: Any, silent: str) -> None:
    """In one call, in several, and step by step."""
    d = {key.rpartition("/")[2]: v for key, v in DATA.items() if key.startswith(case)}
    pre, weight = (d[key].clone().requires_grad_() for key in ("pre_spike", "weight"))
    x = F.linear(pre, weight)
    x.retain_grad()
    neuron = integrator(float(d["threshold"]))
    out = by_engine(rule_of(case, silent), neuron, x.cumsum(0), cuts=cuts)
    assert torch.equal(out.detach(), d["spike"])
    times = losses.first_spike_time(out)
    assert torch.equal(times, d["time_out"].double())
    (seen,) = torch.autograd.grad(times, out, d["grad_time_out"], retain_graph=True)
    assert torch.equal(seen, d["grad_spike"])
    times.backward(d["grad_time_out"])
    if silent == "virtual":
        assert relative(x.grad, d["grad_drive_virtual"]) <= 1e-12
        return
    assert relative(x.grad, d["grad_drive"]) <= 1e-12
    assert relative(weight.grad, d["grad_weight"]) <= 1e-12
    # dE/dt_in is the forward difference of what the inputs get.
    assert pre.grad is not None
    ahead = torch.cat([pre.grad[1:], torch.zeros_like(pre.grad[:1])]) - pre.grad
    time_in = d["pre_spike"].argmax(0)
    inner = d["pre_spike"].any(0) & (time_in < len(ahead) - 1)
    found = ahead.gather(0, time_in[None])[0]
    assert relative(found * inner, d["grad_time_in"] * inner) <= 1e-12


def snntorch_run(x: Tensor, threshold: float, rule: rules.Rule) -> Tensor:
    """It fires on, which the read-out does not see."""
    layer = snntorch.Synaptic(alpha=1.0, beta=1.0, threshold=threshold)
    tssl_adapters.wrap(layer, rule=rule)
    states, outs = layer.init_synaptic(), []
    for step in x:
        out, *states = layer(step, *states)
        outs.append(out)
    return losses.first_spike(torch.stack(outs))


def spikingjelly_run(x: Tensor, threshold: float, rule: rules.Rule) -> Tensor:
    """With the synapse in front of the node."""
    layer = tssl_adapters.wrap(
        node("IFNode", step_mode="m", v_threshold=threshold, v_reset=ONCE), rule=rule
    )
    layer.v = torch.zeros_like(x[0])
    return layer(x.cumsum(0))  # type: ignore[no-any-return]


def spikingjelly_steps(x: Tensor, threshold: float, rule: rules.Rule) -> Tensor:
    layer = tssl_adapters.wrap(node("IFNode", v_threshold=threshold, v_reset=ONCE), rule=rule)
    layer.v = torch.zeros_like(x[0])
    return torch.stack([layer(step) for step in x.cumsum(0)])


def _norse(threshold: float) -> dict[str, Any]:
    return {"p": LIFParameters(
        tau_syn_inv=torch.tensor(0.0), tau_mem_inv=torch.tensor(1e-5), v_leak=torch.tensor(0.0),
        v_th=torch.tensor(1e-8 * threshold), v_reset=torch.tensor(ONCE),
    )}  # fmt: skip


def norse_sequence(x: Tensor, threshold: float, rule: rules.Rule) -> Tensor:
    """The gain is dt tau_mem_inv = 1e-8, and so is what is left of a threshold."""
    layer = tssl_adapters.wrap(norse.LIF(**_norse(threshold)), rule=rule)
    return layer(x)[0]  # type: ignore[no-any-return]


def norse_cell(x: Tensor, threshold: float, rule: rules.Rule) -> Tensor:
    return lifted(tssl_adapters.wrap(norse.LIFCell(**_norse(threshold)), rule=rule))(x)[0]  # type: ignore[no-any-return]


def norse_iaf(x: Tensor, threshold: float, rule: rules.Rule) -> Tensor:
    """With the synapse in front of the cell."""
    p = norse.IAFParameters(v_th=torch.tensor(threshold), v_reset=torch.tensor(ONCE))
    cell = tssl_adapters.wrap(norse.IAFCell(p), rule=rule)
    state, outs = IAFFeedForwardState(torch.zeros_like(x[0])), []
    for step in x.cumsum(0):
        out, state = cell(step, state)
        outs.append(out)
    return torch.stack(outs)


RUNS = {
    "snntorch": (snntorch_run, 1.0),
    "spikingjelly-m": (spikingjelly_run, 1.0),
    "spikingjelly-s": (spikingjelly_steps, 1.0),
    "norse-LIF": (norse_sequence, 1e8),
    "norse-LIFCell": (norse_cell, 1e8),
    "norse-IAFCell": (norse_iaf, 1.0),
}


@pytest.mark.parametrize("library", RUNS)
@pytest.mark.parametrize("case", CASES)
def test_library(case: str, library: str) -> None:
    run, unit = RUNS[library]
    d = {key.rpartition("/")[2]: v for key, v in DATA.items() if key.startswith(case)}
    for silent, key in (("none", "grad_drive"), ("virtual", "grad_drive_virtual")):
        rule = rules.STDBP(max_slope=unit * float(d["max_slope"]), silent=silent)  # type: ignore[arg-type]
        x = d["drive"].float().requires_grad_()
        out = run(x, float(d["threshold"]), rule)
        assert torch.equal(out.detach().double(), d["spike"])
        losses.first_spike_time(out).backward(d["grad_time_out"].float())
        assert relative(x.grad, d[key]) <= 1e-5


def network_times(weights: list[Tensor], time_in: Tensor, theta: float, dt: float) -> Tensor:
    """The output's first spike times, in continuous units, of the discretised network."""
    steps = int(40.0 / dt)
    t = torch.round(time_in / dt).long()
    x = F.one_hot(t.clamp(max=steps - 1), steps).T.double()[:, None]
    for weight in weights:
        drive = F.linear(x, weight) * dt
        x = by_engine(
            rules.STDBP(max_slope=1e9, silent="none"), integrator(theta), (drive).cumsum(0)
        )
    return losses.first_spike_time(x)[0] * dt


@pytest.mark.parametrize("case", CONTINUOUS)
def test_continuous_time(case: str) -> None:
    """The closed form that the rule discretises, against finite differences; then the rule itself
    tends to it with the time step.
    """
    d = {key.rpartition("/")[2]: v for key, v in DATA.items() if key.startswith(case)}
    theta, tau, label = float(d["threshold"]), float(d["loss_tau"]), int(d["label"])
    weights = [d["weight0"], d["weight1"]]

    def loss_of(flat: Tensor) -> Tensor:
        first, second = flat[: weights[0].numel()], flat[weights[0].numel() :]
        times = d["time_in"]
        for weight in (first.view_as(weights[0]), second.view_as(weights[1])):
            times = torch.stack([closed_form(row, times, theta) for row in weight])
        return F.cross_entropy((-times / tau)[None], torch.tensor([label]))

    flat = torch.cat([w.flatten() for w in weights])
    assert float(loss_of(flat)) == pytest.approx(float(d["loss"]), abs=1e-12)
    step = 1e-6
    numeric = torch.stack(
        [
            (loss_of(flat + step * e) - loss_of(flat - step * e)) / (2 * step)
            for e in torch.eye(len(flat), dtype=torch.float64)
        ]
    )
    theirs = torch.cat([d["weight0_grad"].flatten(), d["weight1_grad"].flatten()])
    assert relative(theirs, numeric) <= 1e-6

    errors = []
    for dt in (0.05, 0.0125):
        leaves = [w.clone().requires_grad_() for w in weights]
        times = network_times(leaves, d["time_in"], theta, dt)
        F.cross_entropy((-times / tau)[None], torch.tensor([label])).backward()
        ours = torch.cat([leaf.grad.flatten() for leaf in leaves if leaf.grad is not None])
        errors.append(relative(ours, theirs))
    assert errors[1] <= 0.02
    assert errors[1] <= errors[0]


def closed_form(row: Tensor, times: Tensor, theta: float) -> Tensor:
    """t = (theta + sum_C w t_i) / W, with C the inputs before it; infinite where it never fires."""
    order = torch.argsort(times)
    finite = order[times[order].isfinite()]
    for n in range(1, len(finite) + 1):
        causal = finite[:n]
        total = row[causal].sum()
        if total <= 0:
            continue
        t = (theta + (row[causal] * times[causal]).sum()) / total
        following = times[finite[n]] if n < len(finite) else torch.tensor(torch.inf)
        if times[causal[-1]] <= t <= following:
            return t
    return torch.tensor(torch.inf, dtype=torch.float64)


@pytest.mark.parametrize("rule", [rules.STDBP(), rules.STDBP(silent="none")], ids=str)
@pytest.mark.parametrize("cuts", [(), "steps"])
def test_one_step_has_no_time(rule: rules.STDBP, cuts: Any) -> None:
    x = torch.tensor([[[2.0, 0.1]]], requires_grad=True)
    out = by_engine(rule, integrator(1.0), x, cuts=cuts)
    losses.first_spike_time(out).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[[0.0, 0.0]]]


@pytest.mark.parametrize(("silent", "expected"), [("none", 0.0), ("virtual", -8.0)])
@pytest.mark.parametrize("cuts", [(), "steps"])
def test_all_silent(silent: Any, expected: float, cuts: Any) -> None:
    """A neuron that never fires and does not rise has the largest slope, at the last step."""
    x = torch.full((5, 1, 2), -0.1, requires_grad=True)
    out = by_engine(rules.STDBP(silent=silent), integrator(1.0), x, cuts=cuts)
    times = losses.first_spike_time(out)
    assert times.tolist() == [[5.0, 5.0]]
    times.sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == pytest.approx([expected] * 10, rel=1e-6)


def test_always_firing() -> None:
    """A spike at every step: finite, and the first decides."""
    x = torch.full((6, 2, 3), 5.0, dtype=torch.float64, requires_grad=True)
    out = by_engine(rules.STDBP(), integrator(1.0, Subtract()), x)
    assert bool(out.detach().all())
    losses.first_spike_time(out).sum().backward()
    assert x.grad is not None
    expected = torch.zeros(6, 2, 3, dtype=torch.float64)
    expected[0] = -1.0 / 5.0
    torch.testing.assert_close(x.grad, expected, rtol=1e-12, atol=1e-15)


def test_a_falling_potential_has_the_largest_slope() -> None:
    """A second spike on the way down, after a subtraction that left more than the threshold."""
    x = torch.tensor([3.0, -0.5, -9.0], dtype=torch.float64).reshape(3, 1, 1).requires_grad_()
    out = by_engine(rules.STDBP(max_slope=4.0), integrator(1.0, Subtract()), x)
    assert out.flatten().tolist() == [1.0, 1.0, 0.0]
    ramp = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    out.flatten().backward(ramp)
    assert x.grad is not None
    # D[1] = 1 alone; the slope's bound stands for 1/d at d = -0.5.
    assert x.grad.flatten().tolist() == [-4.0, -4.0, 0.0]


class TimesOrCounts(nn.Module):
    """A layer in whole sequences or in steps."""

    def __init__(self, steps: bool) -> None:
        super().__init__()
        self.layer = node("IFNode", step_mode="s" if steps else "m", v_reset=ONCE)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        self.layer.reset()
        self.layer.v = torch.zeros_like(x[0])
        return torch.stack([self.layer(step) for step in x]) if self.steps else self.layer(x)


@pytest.mark.parametrize("steps", [False, True])
def test_a_loss_on_counts_is_warned_of_once(steps: bool) -> None:
    model = tssl_adapters.wrap(TimesOrCounts(steps), rule="stdbp")
    x = torch.full((6, 2, 3), 0.4, requires_grad=True)
    with pytest.warns(RuleWarning, match=r"layer 'layer' is the same at every time step") as caught:
        model(x).sum().backward()
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x).sum().backward()


@pytest.mark.parametrize("steps", [False, True])
def test_a_loss_on_times_is_not(steps: bool) -> None:
    model = tssl_adapters.wrap(TimesOrCounts(steps), rule="stdbp")
    x = torch.full((6, 2, 3), 0.4, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (0.0 * model(x)).sum().backward()  # no gradient at all says nothing
        losses.first_spike_time(model(x)).sum().backward()
        model(x).sum().backward()  # it was found to suit


def test_a_loss_that_ends_early() -> None:
    """Steps that the loss does not look at have G = 0, step by step as in a whole sequence."""
    found = []
    for mode in ("m", "s"):
        layer = tssl_adapters.wrap(node("IFNode", step_mode=mode, v_reset=ONCE), rule="stdbp")
        layer.v = torch.zeros(1, 1)
        x = torch.full((6, 1, 1), 0.4, requires_grad=True)
        outs = layer(x) if mode == "m" else [layer(step) for step in x]
        outs[2].sum().backward()  # whose later steps are no part of the graph, step by step
        found.append(x.grad)
    assert torch.equal(*found)
    # D = -G, d = 0.4: the spike's own e = G / d at every step up to it.
    assert found[0].flatten().tolist() == pytest.approx([2.5] * 3 + [0.0] * 3, rel=1e-5)


def test_first_spike() -> None:
    spikes = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    out = losses.first_spike(spikes)
    assert out.tolist() == [[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    out.backward(torch.arange(8.0).reshape(4, 2))
    assert spikes.grad is not None
    assert spikes.grad.T.tolist() == [[0.0, 2.0, 4.0, 4.0], [1.0, 3.0, 3.0, 3.0]]


@pytest.mark.parametrize("function", [losses.first_spike, losses.first_spike_time])
def test_spike_times_refuse_integers(function: Any) -> None:
    with pytest.raises(ValueError, match=r"floating point tensor \[T, ...\], not int64 \[2, 1\]"):
        function(torch.zeros(2, 1, dtype=torch.int64))


def test_arguments() -> None:
    with pytest.raises(ValueError, match="max_slope must be positive and finite, not 0"):
        rules.STDBP(max_slope=0)
    with pytest.raises(ValueError, match="silent must be one of 'virtual', 'none', not 'half'"):
        rules.STDBP(silent="half")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="strict must be True or False, not 'no'"):
        rules.STDBP(strict="no")  # type: ignore[arg-type]
