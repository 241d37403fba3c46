"""Models and loops as each library's users write them: wrapped against the unwrapped twin.

The forward must be the library's, bit for bit: at tau_s = 3 that of a twin whose spiking layers
emit their post-synaptic current through a hook. With the library's own surrogate as the rule the
gradient must be the native one, whatever the loop and the loss; with TSSL-BP it must be there.
tests/test_ways_*.py have further ways.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import norse.torch as norse
import pytest
import snntorch
import torch
from norse.torch.functional.lif import LIFParameters
from norse.torch.functional.lif_box import LIFBoxParameters
from norse.torch.functional.regularization import spike_accumulator, voltage_accumulator
from snntorch import functional as SF
from snntorch import utils
from spikingjelly.activation_based import functional, layer, monitor, neuron
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader
from usage import (  # noqa: F401
    BATCH,
    CLASSES,
    HIDDEN,
    INPUTS,
    STEPS,
    TARGETS,
    TAUS,
    Run,
    check,
    close,
    data,
    emitting_psc,
    learns,
    leaves,
    no_lost_links,
    own_instances,
    rule_of,
    seeded,
)

import tssl_adapters
from tssl_adapters import rules

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from snntorch import backprop

pytestmark = pytest.mark.singly

# --- snnTorch ---------------------------------------------------------------------------------


class Tutorial5(nn.Module):
    """The network of snnTorch's tutorial 5: states made anew in each forward pass."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.lif1 = snntorch.Leaky(beta=0.9, threshold=0.5, **settings)
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.lif2 = snntorch.Leaky(beta=0.9, threshold=0.5, **settings)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk2_rec, mem2_rec = [], []
        for step in x:
            spk1, mem1 = self.lif1(self.fc1(step), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec), torch.stack(mem2_rec)


def tutorial5_loss(model: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Cross-entropy on the membrane at every step."""
    spikes, mem = model(x)
    loss = sum((cross_entropy(m, TARGETS) for m in mem), torch.zeros(()))
    return loss, [spikes, mem]


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("delay", [True, False])
def test_snntorch_tutorial_5(tau_s: float, reset: str, delay: bool) -> None:
    def make() -> nn.Module:
        return Tutorial5(
            reset_mechanism=reset, reset_delay=delay, learn_beta=True, learn_threshold=True
        )

    def run(model: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        loss, values = tutorial5_loss(model, x)
        return loss + (values[0] - 0.3).square().mean(), values  # for the last threshold

    check(make, run, "snntorch", data(), tau_s)


@pytest.mark.parametrize("tau_s", TAUS)
def test_snntorch_tutorial_5_learns(tau_s: float) -> None:
    learns(Tutorial5, tutorial5_loss, tau_s)


def hidden_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(INPUTS, HIDDEN),
        snntorch.Leaky(beta=0.9, threshold=0.5, init_hidden=True),
        nn.Linear(HIDDEN, CLASSES),
        snntorch.Leaky(beta=0.8, threshold=0.5, init_hidden=True, output=True),
    )


def hidden_run(model: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    utils.reset(model)
    records = [model(step) for step in x]
    spikes, mem = (torch.stack(list(r)) for r in zip(*records, strict=True))
    loss = SF.ce_rate_loss()(spikes, TARGETS) + SF.ce_max_membrane_loss()(mem, TARGETS)
    return loss, [spikes, mem]


@pytest.mark.parametrize("tau_s", TAUS)
def test_snntorch_hidden_states(tau_s: float) -> None:
    """``utils.reset`` between sequences, so that the second is as good as the first."""
    check(hidden_net, hidden_run, "snntorch", data(), tau_s)
    model = tssl_adapters.wrap(seeded(hidden_net), tau_s=tau_s)
    first = hidden_run(model, data())
    hidden_run(model, data(seed=5))
    again = hidden_run(model, data())
    for left, right in zip(first[1], again[1], strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("tau_s", TAUS)
def test_snntorch_hidden_states_learn(tau_s: float) -> None:
    learns(hidden_net, hidden_run, tau_s, lr=1e-2)


LOSSES: dict[str, Callable[[], Any]] = {
    "ce_rate": SF.ce_rate_loss,
    "ce_count": SF.ce_count_loss,
    "ce_max_membrane": SF.ce_max_membrane_loss,
    "mse_count": lambda: SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2),
    "mse_membrane": lambda: SF.mse_membrane_loss(on_target=1.0, off_target=0.2),
    "mse_temporal": lambda: SF.mse_temporal_loss(on_target=1, off_target=5),
    "ce_temporal": SF.ce_temporal_loss,
    "ce_rate+l1": SF.ce_rate_loss,
}


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("name", LOSSES)
def test_snntorch_functional_losses(name: str, tau_s: float) -> None:
    def run(model: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        spikes, mem = model(x)
        loss = LOSSES[name]()(mem if "membrane" in name else spikes, TARGETS)
        if name.endswith("l1"):
            loss = loss + SF.l1_rate_sparsity(1e-2)(spikes)
        return loss, [spikes, mem]

    check(Tutorial5, run, "snntorch", data(), tau_s)


def loader() -> DataLoader[Any]:
    """Two batches of static data."""
    batches = [(data(seed=seed)[0], TARGETS) for seed in (3, 4)]
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def trained(tau_s: float | None, rule: rules.Rule | None, truncated: int | None) -> list[Tensor]:
    model = seeded(hidden_net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if tau_s is not None:
        tssl_adapters.wrap(model, tau_s=tau_s, rule=rule)
    options: dict[str, Any] = {"num_steps": 6, "time_var": False, "optimizer": optimizer}
    options["criterion"] = SF.mse_count_loss(0.8, 0.2)
    if truncated is None:
        loss = backprop.BPTT(model, loader(), **options)
    else:
        loss = backprop.TBPTT(model, loader(), K=truncated, **options)
    return [loss.detach(), *(p.detach().clone() for p in model.parameters())]


@pytest.mark.parametrize("truncated", [None, 1, 3], ids=["BPTT", "TBPTT-1", "TBPTT-3"])
def test_snntorch_backprop(truncated: int | None) -> None:
    """With the native rule an epoch ends at the native weights, with TSSL-BP elsewhere."""
    native = trained(None, None, truncated)
    close(trained(1.0, rule_of("snntorch"), truncated), native, 1e-5)
    for tau_s in TAUS:
        loss, *weights = trained(tau_s, rules.TSSLBP(), truncated)
        assert torch.isfinite(loss)
        moved = [float((a - b).abs().max()) for a, b in zip(weights, native[1:], strict=True)]
        assert all(math.isfinite(m) and m > 1e-5 for m in moved)


# --- SpikingJelly -----------------------------------------------------------------------------


def jelly_net(**settings: Any) -> nn.Sequential:
    return nn.Sequential(
        layer.Flatten(),
        layer.Linear(INPUTS, HIDDEN),
        neuron.LIFNode(v_threshold=0.6, **settings),
        layer.Linear(HIDDEN, CLASSES),
        neuron.ParametricLIFNode(v_threshold=0.4, **settings),
    )


def jelly_steps(model: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    functional.reset_net(model)
    out = torch.stack([model(step) for step in x])
    return mse_loss(out.mean(0), torch.eye(CLASSES)[TARGETS]), [out, model[-1].v]


def jelly_sequence(model: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    functional.reset_net(model)
    out = model(x)
    return mse_loss(out.mean(0), torch.eye(CLASSES)[TARGETS]), [out, model[-1].v]


def in_mode(mode: str, **settings: Any) -> nn.Sequential:
    model = jelly_net(**settings)
    functional.set_step_mode(model, mode)
    return model


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize(
    "settings", [{}, {"detach_reset": True}, {"v_reset": None}], ids=["", "detached", "soft"]
)
def test_spikingjelly_sequential(tau_s: float, settings: dict[str, Any]) -> None:
    for mode, run in (("s", jelly_steps), ("m", jelly_sequence)):
        check(lambda m=mode: in_mode(m, **settings), run, "spikingjelly", data(), tau_s)


@pytest.mark.parametrize("tau_s", TAUS)
def test_spikingjelly_learns(tau_s: float) -> None:
    learns(lambda: in_mode("s"), jelly_steps, tau_s)
    learns(lambda: in_mode("m"), jelly_sequence, tau_s)


@pytest.mark.parametrize("tau_s", TAUS)
def test_spikingjelly_step_mode_after_wrap(tau_s: float) -> None:
    """``set_step_mode`` back and forth, between sequences and within one."""
    model, plain = (tssl_adapters.wrap(seeded(jelly_net), tau_s=tau_s) for _ in range(2))

    def mixed(model: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        functional.reset_net(model)
        functional.set_step_mode(model, "s")
        first = torch.stack([model(step) for step in x[:2]])
        functional.set_step_mode(model, "m")
        second = model(x[2:5])
        functional.set_step_mode(model, "s")
        third = torch.stack([model(step) for step in x[5:]])
        out = torch.cat([first, second, third])
        return mse_loss(out.mean(0), torch.eye(CLASSES)[TARGETS]), [out, model[-1].v]

    def in_sequence(model: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        functional.set_step_mode(model, "m")
        return jelly_sequence(model, x)

    x = data()
    loss, values = jelly_steps(plain, x)
    expected = torch.autograd.grad(loss, list(plain.parameters()))
    for run in (in_sequence, mixed, in_sequence):
        loss, found = run(model, x)
        for left, right in zip(found, values, strict=True):
            close([left], [right], 1e-6)
        close(torch.autograd.grad(loss, list(model.parameters())), expected, 1e-5)


def jelly_conv() -> nn.Sequential:
    model = nn.Sequential(
        layer.Conv2d(1, 4, 3, padding=1, bias=False),
        layer.BatchNorm2d(4),
        neuron.IFNode(v_threshold=0.5),
        layer.MaxPool2d(2),
        layer.Flatten(),
        layer.Linear(4 * 9, CLASSES),
        neuron.LIFNode(v_threshold=0.3),
    )
    functional.set_step_mode(model, "m")
    return model


@pytest.mark.parametrize("tau_s", TAUS)
def test_spikingjelly_convolutions(tau_s: float) -> None:
    check(jelly_conv, jelly_sequence, "spikingjelly", data(size=(1, 6, 6)), tau_s)


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("mode", ["s", "m"])
def test_spikingjelly_stored_potentials(tau_s: float, mode: str) -> None:
    """A loss on ``v_seq`` of a hidden layer."""

    def make() -> nn.Module:
        return in_mode(mode, store_v_seq=True)

    def run(model: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        loss, values = (jelly_steps if mode == "s" else jelly_sequence)(model, x)
        stored = [model[2].v_seq, model[4].v_seq]
        assert stored[0].shape == (STEPS, BATCH, HIDDEN)
        return loss + stored[0].square().mean() + stored[1].mean(), [*values, *stored]

    check(make, run, "spikingjelly", data(), tau_s)


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("mode", ["s", "m"])
def test_spikingjelly_monitors(tau_s: float, mode: str) -> None:
    """Outputs, potentials and gradients of a class of layers, found by isinstance."""

    def watched(model: nn.Module) -> dict[str, list[Tensor]]:
        options = {"net": model, "instance": neuron.LIFNode}
        monitors = {
            "out": monitor.OutputMonitor(**options),
            "in": monitor.InputMonitor(**options),
            "v": monitor.AttributeMonitor("v", pre_forward=False, **options),
            "grad": monitor.GradOutputMonitor(**options),
        }
        run = jelly_steps if mode == "s" else jelly_sequence
        loss, _ = run(model, data())
        loss.backward()
        return {name: list(m.records) for name, m in monitors.items()}

    twin, ours = seeded(lambda: in_mode(mode)), seeded(lambda: in_mode(mode))
    tssl_adapters.wrap(ours, tau_s=tau_s, rule=rule_of("spikingjelly"))
    with emitting_psc(twin, tau_s):
        native = watched(twin)
    found = watched(ours)
    calls = STEPS if mode == "s" else 1
    assert {name: len(records) for name, records in found.items()} == dict.fromkeys(found, calls)
    for name in ("in", "v") if tau_s > 1.0 else ("out", "in", "v"):  # its hook is not ours
        for left, right in zip(found[name], native[name], strict=True):
            assert torch.equal(left, right)
    for left, right in zip(found["grad"], native["grad"], strict=True):
        assert float(left.abs().max()) > 0
        if tau_s == 1.0:
            close([left], [right], 1e-5)


class QNet(nn.Module):
    """As in SpikingJelly's DQN example: Q-values are potentials of a layer that never spikes."""

    def __init__(self, readout: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(INPUTS, HIDDEN),
            neuron.IFNode(v_threshold=0.5),
            nn.Linear(HIDDEN, CLASSES),
            readout(),
        )

    def forward(self, x: Tensor) -> Tensor:
        for step in x:
            self.fc(step)
        values: Tensor = self.fc[-1].v
        return values


READOUTS: dict[str, Callable[[], nn.Module]] = {
    "never spikes": lambda: neuron.LIFNode(tau=2.0, v_threshold=math.inf),
    "spikes": lambda: neuron.LIFNode(tau=2.0, v_threshold=0.2),
    "soft": lambda: neuron.LIFNode(tau=2.0, v_threshold=0.2, v_reset=None),
}


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("readout", READOUTS)
def test_spikingjelly_loss_on_the_potential(tau_s: float, readout: str) -> None:
    def run(model: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        functional.reset_net(model)
        q = model(x).gather(1, TARGETS.unsqueeze(1)).squeeze(1)
        with torch.no_grad():  # a target network's share of the loss: states set up again
            functional.reset_net(model)
            reward = 1.0 + 0.9 * model(data(seed=9)).amax(1)
        functional.reset_net(model)
        return nn.functional.smooth_l1_loss(q, reward), [q, reward]

    make = lambda: QNet(READOUTS[readout])  # noqa: E731
    twin, ours = seeded(make), tssl_adapters.wrap(seeded(make), tau_s=tau_s)
    loss, values = run(ours, data())
    if tau_s == 1.0:
        expected, native = run(twin, data())
        assert torch.equal(loss, expected)
        for left, right in zip(values, native, strict=True):
            assert torch.equal(left, right)
        other = tssl_adapters.wrap(seeded(make), rule=rule_of("spikingjelly"))
        found = torch.autograd.grad(run(other, data())[0], leaves(other))
        close(found, torch.autograd.grad(expected, leaves(twin)), 2e-5)
    for grad in torch.autograd.grad(loss, leaves(ours)):
        assert torch.isfinite(grad).all()
        assert float(grad.abs().max()) > 0


def recurrent_net() -> nn.Sequential:
    return nn.Sequential(
        layer.Linear(INPUTS, HIDDEN),
        layer.LinearRecurrentContainer(
            neuron.LIFNode(v_threshold=0.2), in_features=HIDDEN, out_features=HIDDEN
        ),
        layer.ElementWiseRecurrentContainer(
            neuron.IFNode(v_threshold=0.4), element_wise_function=lambda x, y: x + 0.5 * y
        ),
        layer.Linear(HIDDEN, CLASSES),
        neuron.LIFNode(v_threshold=0.1),
    )


@pytest.mark.parametrize("tau_s", TAUS)
def test_spikingjelly_recurrent_containers(tau_s: float) -> None:
    check(recurrent_net, jelly_steps, "spikingjelly", data(), tau_s)


@pytest.mark.parametrize("tau_s", TAUS)
def test_spikingjelly_multi_step_forward(tau_s: float) -> None:
    """A single-step network stepped by the library's own loop."""

    def run(model: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        functional.reset_net(model)
        out = functional.multi_step_forward(x, model)
        return mse_loss(out.mean(0), torch.eye(CLASSES)[TARGETS]), [out, model[-1].v]

    check(jelly_net, run, "spikingjelly", data(), tau_s)


# --- Norse ------------------------------------------------------------------------------------


def norse_net() -> norse.SequentialState:
    return norse.SequentialState(
        norse.Lift(nn.Conv2d(1, 4, 3, padding=1)),
        norse.LIF(LIFParameters(v_th=torch.tensor(0.2), tau_mem_inv=torch.tensor(400.0))),
        nn.Flatten(2),
        norse.Lift(nn.Linear(4 * 36, CLASSES)),
        norse.LI(),
    )


def norse_run(model: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The maximum over time of a leaky readout's voltage, as in Norse's MNIST example."""
    voltages, states = model(x)
    return cross_entropy(voltages.amax(0), TARGETS), [voltages, states[1].v, states[1].i]


@pytest.mark.parametrize("tau_s", TAUS)
def test_norse_sequential_state(tau_s: float) -> None:
    check(norse_net, norse_run, "norse", data(size=(1, 6, 6)), tau_s)


@pytest.mark.parametrize("tau_s", TAUS)
def test_norse_sequential_state_in_parts(tau_s: float) -> None:
    """The list of states goes into the next call."""
    x = data(size=(1, 6, 6))

    def run(parts: Sequence[Tensor]) -> list[Tensor]:
        model = tssl_adapters.wrap(seeded(norse_net), tau_s=tau_s)
        state, outs = None, []
        for part in parts:
            out, state = model(part, state)
            outs.append(out)
        loss = cross_entropy(torch.cat(outs).amax(0), TARGETS)
        return [torch.cat(outs), *torch.autograd.grad(loss, list(model.parameters()))]

    close(run(x.split([2, 1, 4])), run([x]), 1e-5)


def norse_cells() -> nn.ModuleDict:
    strong = LIFParameters(v_th=torch.tensor(0.3), tau_mem_inv=torch.tensor(400.0))
    return nn.ModuleDict(
        {
            "fc": nn.Linear(INPUTS, HIDDEN),
            "lif": norse.LIFCell(strong),
            "box": norse.LIFBoxCell(
                LIFBoxParameters(tau_mem_inv=torch.tensor(500.0), v_th=torch.tensor(0.1))
            ),
            "out": norse.LILinearCell(HIDDEN, CLASSES),
        }
    )


def norse_loop(model: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    s0 = s1 = s2 = None
    voltages = []
    for step in x:
        z, s0 = model["lif"](model["fc"](step), s0)
        z, s1 = model["box"](z, s1)
        v, s2 = model["out"](z, s2)
        voltages.append(v)
    out = torch.stack(voltages)
    return cross_entropy(out.amax(0), TARGETS), [out, s0.v, s0.i, s1.v]


@pytest.mark.parametrize("tau_s", TAUS)
def test_norse_cells(tau_s: float) -> None:
    check(norse_cells, norse_loop, "norse", data(), tau_s)


@pytest.mark.parametrize("tau_s", TAUS)
def test_norse_cells_learn(tau_s: float) -> None:
    learns(norse_cells, norse_loop, tau_s)


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("accumulator", [spike_accumulator, voltage_accumulator])
def test_norse_regularization(tau_s: float, accumulator: Any) -> None:
    def run(model: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        regularize = norse.RegularizationCell(accumulator)
        state, term, outs = None, torch.zeros(()), []
        for step in x:
            z, state = model["lif"](model["fc"](step), state)
            z, term = regularize(z, state)
            outs.append(z)
        out = torch.stack(outs)
        return out.mean() + 1e-3 * term.sum(), [out, term]

    def make() -> nn.Module:
        model = norse_cells()
        del model["box"], model["out"]
        return model

    check(make, run, "norse", data(), tau_s)


@pytest.mark.parametrize("tau_s", TAUS)
def test_norse_recorded_states(tau_s: float) -> None:
    """A loss on every step's voltage and current."""

    def make() -> nn.Module:
        p = LIFParameters(v_th=torch.tensor(0.3), tau_mem_inv=torch.tensor(400.0))
        return norse.SequentialState(nn.Linear(INPUTS, HIDDEN), norse.LIF(p, record_states=True))

    def run(model: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        out, (_, states) = model(x)
        assert states.v.shape == states.i.shape == (STEPS, BATCH, HIDDEN)
        loss = out.mean() + states.v.square().mean() + 0.1 * states.i.mean()
        return loss, [out, states.v, states.i]

    check(make, run, "norse", data(), tau_s)


@pytest.mark.parametrize("tau_s", TAUS)
def test_norse_lifted_cell(tau_s: float) -> None:
    """``Lift`` loops over a cell that has a state."""

    def make() -> nn.Module:
        p = LIFParameters(v_th=torch.tensor(0.3), tau_mem_inv=torch.tensor(400.0))
        return nn.Sequential(nn.Linear(INPUTS, HIDDEN), norse.Lift(norse.LIFCell(p)))

    def run(model: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        out, state = model(x)
        return out.square().mean() + state.v.mean(), [out, state.v, state.i]

    check(make, run, "norse", data(), tau_s)


@pytest.mark.parametrize("tau_s", TAUS)
def test_norse_recurrent_sequential(tau_s: float) -> None:
    """A layer's output comes back as its input one step later."""
    from norse.torch.module.sequential import RecurrentSequential

    def make() -> nn.Module:
        p = LIFParameters(v_th=torch.tensor(0.3), tau_mem_inv=torch.tensor(400.0))
        return RecurrentSequential(nn.Linear(INPUTS, INPUTS), norse.LIFCell(p))

    def run(model: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        state, outs = None, []
        for step in x:
            out, state = model(step, state)
            outs.append(out)
        out = torch.stack(outs)
        return out.square().mean(), [out, state.state[1].v]

    check(make, run, "norse", data(), tau_s)


def learnable_norse() -> nn.ModuleDict:
    def parameter(value: float) -> nn.Parameter:
        return nn.Parameter(torch.tensor(value))

    p = LIFParameters(
        tau_syn_inv=parameter(300.0),
        tau_mem_inv=parameter(400.0),
        v_leak=parameter(0.05),
        v_th=parameter(0.3),
        v_reset=parameter(-0.1),
    )
    return nn.ModuleDict({"fc": nn.Linear(INPUTS, HIDDEN), "lif": norse.LIFCell(p)})


def learnable_run(model: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    state, outs = None, []
    for step in x:
        z, state = model["lif"](model["fc"](step), state)
        outs.append(z)
    out = torch.stack(outs)
    return out.square().mean() + state.v.mean(), [out, state.v, state.i]


@pytest.mark.parametrize("tau_s", TAUS)
def test_norse_learnable_parameters(tau_s: float) -> None:
    """All five receive gradients, and the forward follows what an optimizer makes of them."""
    check(learnable_norse, learnable_run, "norse", data(), tau_s)
    model, twin = seeded(learnable_norse), seeded(learnable_norse)
    assert len(leaves(model)) == 7
    tssl_adapters.wrap(model, tau_s=tau_s)
    optimizer = torch.optim.Adam(leaves(model)[2:], lr=0.02)
    learnable_run(model, data())[0].backward()
    before = [p.detach().clone() for p in leaves(model)[2:]]
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, leaves(model)[2:], strict=True))
    with torch.no_grad():
        for theirs, ours in zip(leaves(twin), leaves(model), strict=True):
            theirs.copy_(ours)
        found = learnable_run(model, data())[1]
        with emitting_psc(twin, tau_s):
            native = learnable_run(twin, data())[1]
    for left, right in zip(found, native, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("name", ["LIFCell", "LIF"])
def test_norse_sparse_input(name: str) -> None:
    """Sparse spikes in, sparse spikes out, as natively; the gradient is that of dense input."""
    p = LIFParameters(v_th=torch.tensor(0.3), tau_mem_inv=torch.tensor(400.0))
    twin, ours, dense = (getattr(norse, name)(p) for _ in range(3))
    tssl_adapters.wrap(ours)
    tssl_adapters.wrap(dense)
    x = (data(seed=2) > 1.4).float() * 2.0
    x = x if name == "LIF" else x[0]
    out, state = ours(x.to_sparse())
    expected, their_state = twin(x.to_sparse())
    assert out.is_sparse
    assert torch.equal(out.to_dense(), expected.to_dense())
    assert 0 < float(out.to_dense().sum()) < out.numel()
    assert torch.equal(state.v, their_state.v)
    assert torch.equal(state.i, their_state.i)

    grads = []
    for layer_, convert in ((ours, Tensor.to_sparse), (dense, Tensor.clone)):
        leaf = x.clone().requires_grad_()
        out, state = layer_(convert(leaf))
        out = out.to_dense() if out.is_sparse else out
        (out.square().sum() + state.v.sum()).backward()
        grads.append(leaf.grad)
    assert float(grads[0].abs().max()) > 0
    assert torch.equal(grads[0][x != 0], grads[1][x != 0])


@pytest.mark.parametrize("name", ["LIFCell", "LIF"])
def test_norse_sparse_input_emits_psc(name: str) -> None:
    ours, dense = (tssl_adapters.wrap(getattr(norse, name)(), tau_s=3.0) for _ in range(2))
    x = (data(seed=2) > 1.4).float() * 30.0
    x = x if name == "LIF" else x[0]
    out, _ = ours(x.to_sparse())
    expected, _ = dense(x)
    assert float(expected.sum()) > 0
    assert torch.equal(out.to_dense(), expected)


# --- settings changed after wrap --------------------------------------------------------------


def _set(**values: Any) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        for name, value in values.items():
            setattr(layer, name, value)

    return change


def _fill(name: str, value: float) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        getattr(getattr(layer, "p", layer), name).fill_(value)

    return change


def _replace(**values: float) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        layer.p = layer.p._replace(**{k: torch.tensor(v) for k, v in values.items()})

    return change


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "snntorch threshold": (lambda: snntorch.Leaky(beta=0.9), _fill("threshold", 0.4)),
    "snntorch beta": (lambda: snntorch.Leaky(beta=0.9), _set(beta=torch.tensor(0.3))),
    "snntorch delay": (lambda: snntorch.Leaky(beta=0.9), _set(reset_delay=False)),
    "snntorch graded": (
        lambda: snntorch.Leaky(beta=0.9),
        _fill("graded_spikes_factor", 2.0),
    ),
    "spikingjelly threshold": (neuron.LIFNode, _set(v_threshold=0.4)),
    "spikingjelly tau": (neuron.LIFNode, _set(tau=4.0)),
    "spikingjelly decay_input": (neuron.LIFNode, _set(decay_input=False)),
    "spikingjelly reset": (lambda: neuron.IFNode(v_threshold=0.5), _set(v_reset=None)),
    "spikingjelly detach": (neuron.LIFNode, _set(detach_reset=True)),
    "norse fill": (norse.LIFBoxCell, _fill("v_th", 0.05)),
    "norse replace": (norse.LIFCell, _replace(v_th=0.1, tau_mem_inv=300.0)),
    "norse dt": (norse.LIFCell, _set(dt=0.004)),
    "norse sequence": (norse.LIF, _replace(v_th=0.1, tau_mem_inv=300.0)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_settings_changed_after_wrap(name: str) -> None:
    """A layer is asked anew for what it is: values of the twin, with the native gradient."""
    make, change = CHANGES[name]
    library = name.split()[0]

    def run(layer: Any) -> list[Tensor]:
        x = data(seed=3).requires_grad_()
        if library == "spikingjelly":
            functional.reset_net(layer)
            out = torch.stack([layer(step) for step in x])
        elif isinstance(layer, norse.LIF):
            out, _ = layer(x)
        else:
            state, outs = (layer.init_leaky() if library == "snntorch" else None), []
            for step in x:
                out, state = layer(step, state)
                outs.append(out)
            out = torch.stack(outs)
        (grad,) = torch.autograd.grad((out * data(seed=6)).sum(), x)
        return [out.detach(), grad]

    twin, ours = make(), tssl_adapters.wrap(make(), rule=rule_of(library))
    before, _ = run(ours)
    if name == "norse fill":  # Norse's default parameters are shared by all layers
        for one in (twin, ours):
            one.p = one.p._replace(v_th=torch.tensor(1.0))
    for one in (twin, ours):
        change(one)
    (out, grad), (their_out, their_grad) = run(ours), run(twin)
    assert torch.equal(out, their_out)
    close([grad], [their_grad], 2e-5)
    if name != "spikingjelly detach":
        assert not torch.equal(out, before)


# --- all three --------------------------------------------------------------------------------

MODELS: dict[str, tuple[Callable[[], Any], Run, tuple[int, ...]]] = {
    "snntorch explicit": (Tutorial5, tutorial5_loss, (INPUTS,)),
    "snntorch hidden": (hidden_net, hidden_run, (INPUTS,)),
    "spikingjelly s": (lambda: in_mode("s"), jelly_steps, (INPUTS,)),
    "spikingjelly m": (lambda: in_mode("m"), jelly_sequence, (INPUTS,)),
    "norse cells": (norse_cells, norse_loop, (INPUTS,)),
    "norse sequence": (norse_net, norse_run, (1, 6, 6)),
}


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("name", MODELS)
def test_gradient_accumulation(name: str, tau_s: float) -> None:
    """Several backward passes before a step add up, also when run one after the other."""
    make, run, size = MODELS[name]
    model = tssl_adapters.wrap(seeded(make), tau_s=tau_s)
    batches = [data(seed=seed, size=size) for seed in range(3)]
    alone = [torch.autograd.grad(run(model, x)[0], list(model.parameters())) for x in batches]
    for x in batches:
        (run(model, x)[0] / len(batches)).backward()
    grads = [p.grad for p in model.parameters()]
    close(grads, [sum(g) / len(batches) for g in zip(*alone, strict=True)], 1e-5)
    # Two graphs alive at once: neither the trace nor the link of one is the other's.
    model.zero_grad()
    losses = [run(model, x)[0] for x in batches]
    sum(losses).backward()
    close([p.grad / len(batches) for p in model.parameters()], grads, 1e-5)


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_anomaly_detection(name: str, tau_s: float) -> None:
    make, run, size = MODELS[name]
    model = tssl_adapters.wrap(seeded(make), tau_s=tau_s)
    x = data(size=size)
    expected = torch.autograd.grad(run(model, x)[0], list(model.parameters()))
    with torch.autograd.detect_anomaly(check_nan=True):
        found = torch.autograd.grad(run(model, x)[0], list(model.parameters()))
    for left, right in zip(found, expected, strict=True):
        assert torch.equal(left, right)
    bad = x.clone()
    bad[1, 0] = math.nan
    loss = run(model, bad)[0]
    with (
        torch.autograd.detect_anomaly(check_nan=True),
        pytest.raises(RuntimeError, match="returned nan values"),
    ):
        loss.backward()


def paper_net(library: str) -> nn.ModuleDict:
    """Two layers of the paper's neuron: tau_m = 5, threshold 1, reset to zero."""
    torch.manual_seed(1)
    weights = {
        "fc1": nn.Linear(INPUTS, HIDDEN, bias=False),
        "fc2": nn.Linear(HIDDEN, CLASSES, bias=False),
    }
    nn.init.normal_(weights["fc2"].weight, std=0.5)
    makers: dict[str, Callable[[], nn.Module]] = {
        "snntorch": lambda: snntorch.Leaky(beta=0.8, reset_mechanism="zero"),
        "spikingjelly": lambda: neuron.LIFNode(tau=5.0, decay_input=False, v_reset=0.0),
        "norse": lambda: norse.LIFBoxCell(
            LIFBoxParameters(tau_mem_inv=torch.tensor(200.0, dtype=torch.float64))
        ),
    }
    cells = {name: makers[library]() for name in ("lif1", "lif2")}
    return nn.ModuleDict({**weights, **cells}).double()


def paper_run(library: str, model: Any, x: Tensor) -> Tensor:
    states: dict[str, Any] = {"lif1": None, "lif2": None}
    if library == "snntorch":
        states = {name: model[name].init_leaky() for name in states}
    outs = []
    for a in x:
        for fc, lif in (("fc1", "lif1"), ("fc2", "lif2")):
            drive = model[fc](a)
            if library == "spikingjelly":
                a = model[lif](drive)
            else:
                drive = 5.0 * drive if library == "norse" else drive
                a, states[lif] = model[lif](drive, states[lif])
            a = a.to(x.dtype)  # snnTorch's spikes are float32, whatever comes in
        outs.append(a)
    return torch.stack(outs)


@pytest.mark.parametrize("tau_s", TAUS)
def test_same_network_in_three_libraries(tau_s: float) -> None:
    """Same weights, same neuron: the same output and the same TSSL-BP gradients."""
    results = {}
    for library in ("snntorch", "spikingjelly", "norse"):
        model = tssl_adapters.wrap(paper_net(library), tau_s=tau_s, rule="tsslbp")
        x = data(seed=8).double().requires_grad_()
        out = paper_run(library, model, x)
        target = torch.eye(CLASSES, dtype=torch.float64)[TARGETS]
        loss = 0.5 * (out - target).square().sum()
        results[library] = [out.detach(), *torch.autograd.grad(loss, [x, *model.parameters()])]
    exact, *others = results["spikingjelly"], results["norse"], results["snntorch"]
    assert 0.05 < float((exact[0] > 0).double().mean()) < 0.95
    assert all(float(g.abs().max()) > 0 for g in exact[1:])
    for found, tolerance in zip(others, (1e-12, 2e-6), strict=True):
        close(found, exact, tolerance)
