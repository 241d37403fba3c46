"""What users of SpikingJelly do, whatever their version: loops, containers, resets, monitors."""

from __future__ import annotations

import copy
import importlib
import pickle
import warnings
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from compat_spikingjelly import (
    PACKAGE,
    STEP_MODES,
    base,
    cuts_in_evaluation,
    detach,
    functional,
    has,
    layer,
    linear,
    neuron,
    node,
    surrogate,
)
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters.adapters.library import libraries
from tssl_adapters.errors import LostLinkWarning, UnsupportedLayerError

STEPS, BATCH, NEURONS = 8, 3, 5
NODES = [
    name
    for name in ("LIFNode", "IFNode", "ParametricLIFNode", "QIFNode", "EIFNode", "IzhikevichNode")
    if has(name)
]
MODES = [(name, mode) for name in NODES for mode in "sm" if has(name, mode)]
every = pytest.mark.parametrize(("name", "mode"), MODES, ids=[f"{n}-{m}" for n, m in MODES])
both = pytest.mark.parametrize("tau_s", [1.0, 3.0])


def made(name: str, mode: str = "s", **settings: Any) -> Any:
    return node(name, step_mode=mode, v_threshold=0.5, **settings)


def drive() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (0.6 + torch.randn(STEPS, BATCH, NEURONS, generator=generator)).requires_grad_()


def run(layer: Any, x: Tensor, mode: str) -> Tensor:
    """A sequence in one call, or in a loop."""
    return layer(x) if mode == "m" else torch.stack([layer(step) for step in x])


def weighted(out: Tensor) -> Tensor:
    weight = torch.linspace(-1.0, 2.0, out.numel(), dtype=out.dtype)
    return (out * weight.view_as(out)).sum()


def gradient(out: Tensor, x: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(weighted(out), x)
    return found


@both
@pytest.mark.parametrize("name", [name for name, mode in MODES if mode == "m"])
def test_a_sequence_is_its_steps(name: str, tau_s: float) -> None:
    """TSSL-BP in both step modes, its chain through spike times included."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", LostLinkWarning)
        for mode in "sm":
            x = drive()
            node = tssl_adapters.wrap(made(name, mode), tau_s=tau_s, rule="tsslbp")
            out = run(node, x, mode)
            found.append((out, gradient(out, x)))
    for steps, sequence in zip(*found, strict=True):
        torch.testing.assert_close(steps, sequence, rtol=1e-5, atol=1e-6)
    assert found[0][1].any()


@both
@every
def test_reset_net_starts_anew_and_detach_cuts(name: str, mode: str, tau_s: float) -> None:
    """Truncated backpropagation: the states and the trace go on, the gradient does not."""
    net = tssl_adapters.wrap(nn.Sequential(made(name, mode)), tau_s=tau_s)
    x = drive()
    whole = run(net, x, mode)
    functional.reset_net(net)
    assert torch.equal(run(net, x[:4], mode), whole[:4])
    detach(net)
    assert not any(m.requires_grad for m in net[0].memories() if isinstance(m, Tensor))
    later = run(net, x[4:], mode)
    assert torch.equal(later, whole[4:])
    grad = gradient(later, x)
    assert not grad[:4].any()
    assert grad[4:].any()


@both
@every
def test_copies_and_pickles_carry_their_states(name: str, mode: str, tau_s: float) -> None:
    net = tssl_adapters.wrap(nn.Sequential(made(name, mode)), tau_s=tau_s)
    x = drive()
    with torch.no_grad():
        run(net, x[:4], mode)
        twins = copy.deepcopy(net), pickle.loads(pickle.dumps(net))
        expected = run(net, x[4:], mode)
        for twin in twins:
            assert tssl_adapters.is_wrapped(twin)
            if tau_s == 1.0:
                assert torch.equal(run(twin, x[4:], mode), expected)
    for twin in twins:
        functional.reset_net(twin)
        assert gradient(run(twin, x, mode), x).any()


def lively(name: str, mode: str = "s") -> Any:
    return node(name, step_mode=mode, v_threshold=0.1)


@both
@pytest.mark.parametrize("name", ["LIFNode", "IFNode", "ParametricLIFNode"])
def test_containers(name: str, tau_s: float) -> None:
    """Steps in a loop of the library's, layers without time, and a recurrent connection."""
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.SeqToANNContainer(nn.Linear(NEURONS, 6), nn.Dropout(0.0)),
        lively(name, "m"),
        layer.MultiStepContainer(
            nn.Linear(6, 6), layer.LinearRecurrentContainer(lively(name), 6, 6)
        ),
        linear(6, 2),
    )
    if STEP_MODES:
        net[3].step_mode = "m"
    native = copy.deepcopy(net)
    tssl_adapters.wrap(net, tau_s=tau_s)
    x = drive()
    out = net(x)
    assert out.shape == (STEPS, BATCH, 2)
    if tau_s == 1.0:
        assert torch.equal(out, native(x))
        functional.reset_net(native)
        assert not torch.equal(gradient(out, x), gradient(native(x), x))
    functional.reset_net(net)
    weighted(net(x)).backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_training_lowers_a_loss() -> None:
    """The loop of the library's tutorials: sum of spikes, reset after every batch."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(NEURONS, 16), made("LIFNode"), nn.Linear(16, 2), made("IFNode"))
    optimizer = torch.optim.Adam(tssl_adapters.wrap(net).parameters(), 0.02)
    x, label = drive().detach(), torch.tensor([0, 1, 0])
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        rate = sum(net(step) for step in x) / STEPS
        loss = nn.functional.mse_loss(rate, nn.functional.one_hot(label, 2).float())
        loss.backward()
        optimizer.step()
        functional.reset_net(net)
        losses.append(loss.item())
    assert min(losses[-5:]) < 0.5 * losses[0]


@pytest.mark.skipif(not STEP_MODES, reason="a class for each mode: nothing to change")
@both
def test_settings_that_change_after_wrap(tau_s: float) -> None:
    """Step mode, and whether potentials are kept, which may add a memory after the trace."""
    net = tssl_adapters.wrap(nn.Sequential(made("LIFNode")), tau_s=tau_s)
    x = drive()
    steps = run(net, x, "s")
    functional.reset_net(net)
    functional.set_step_mode(net, "m")
    net[0].store_v_seq = True
    assert torch.equal(net(x), steps)
    assert net[0].v_seq.shape == x.shape
    assert gradient(net[0].v_seq, x).any()
    functional.reset_net(net)
    assert net[0].v_seq is None
    functional.set_step_mode(net, "s")
    assert torch.equal(run(net, x, "s"), steps)
    assert torch.equal(net[0].v, tssl_adapters.unwrap(net)[0].v)


@every
def test_a_start_of_the_users_own(name: str, mode: str) -> None:
    """A number is a potential; ``reset`` goes back to the library's own start."""
    native = made(name, mode)
    wrapped = tssl_adapters.wrap(copy.deepcopy(native))
    x = drive()
    for start in (0.3, torch.full((BATCH, NEURONS), 0.3)):
        for each in (native, wrapped):
            each.reset()
            each.v = start
        assert torch.equal(run(wrapped, x, mode), run(native, x, mode))
        assert torch.equal(wrapped.v, native.v)
    native.reset()
    wrapped.reset()
    assert wrapped.v == native.v


@pytest.mark.skipif(STEP_MODES, reason="the threshold is a setting there, not a memory")
def test_the_threshold_is_a_memory() -> None:
    """What is set lasts until the next reset, and may be one of each neuron."""
    native = made("LIFNode")
    wrapped = tssl_adapters.wrap(copy.deepcopy(native))
    x = drive()
    label = nn.functional.one_hot(torch.tensor([0, 1, 2]), NEURONS)
    for each in (native, wrapped):
        functional.set_threshold_margin(each, label.float(), 0.9, 0.8, 0.4)
    out = run(wrapped, x, "s")
    assert torch.equal(out, run(native, x, "s"))
    assert gradient(out, x).any()
    wrapped.reset()
    assert wrapped.v_threshold == 0.5
    assert list(wrapped._memories) == list(native._memories)


@every
def test_monitors(name: str, mode: str) -> None:
    """They find wrapped nodes, and read from them what they read natively."""
    monitor = importlib.import_module(f"{PACKAGE}.monitor")
    native = nn.Sequential(made(name, mode))
    wrapped = tssl_adapters.wrap(copy.deepcopy(native))
    found = []
    for net in (native, wrapped):
        if hasattr(monitor, "OutputMonitor"):
            outputs = monitor.OutputMonitor(net, neuron.BaseNode)
            states = monitor.AttributeMonitor("v", False, net, neuron.BaseNode)
            run(net, drive().detach(), mode)
            found.append([*outputs.records, *states.records])
        else:
            one = monitor.Monitor(net, "cpu", "torch")
            one.enable()
            run(net, drive().detach(), mode)
            found.append([one.get_avg_firing_rate(), net[0].fire_mask, torch.tensor(net[0].cnt)])
            one.disable()
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_evaluation_keeps_the_rule_s_gradient() -> None:
    """Even where the library's spikes have none then: fine-tuning with batch norm fixed, say."""
    for name in NODES:
        found = []
        for training in (True, False):
            one = tssl_adapters.wrap(made(name)).train(training)
            x = drive()
            found.append(gradient(run(one, x, "s"), x))
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
        native = made(name).eval()
        assert native(drive()[0]).requires_grad != cuts_in_evaluation(native)


def test_what_is_refused() -> None:
    """With the reason, and what can be done about it."""
    off = made("LIFNode", surrogate_function=surrogate.ATan(spiking=False))
    with pytest.raises(UnsupportedLayerError, match="set_spiking_mode"):
        tssl_adapters.wrap(off)
    if hasattr(neuron, "GeneralNode"):
        broken = neuron.GeneralNode(0.5, 1.0)
        with pytest.raises(TypeError):
            broken(drive()[0])
        with pytest.raises(UnsupportedLayerError, match="coefficients"):
            tssl_adapters.wrap(broken)
    if not hasattr(base.MemoryModule, "functional_forward"):
        compiled = made("LIFNode", "m")
        compiled.__dict__["_backend" if STEP_MODES else "backend"] = "cupy"
        with pytest.raises(UnsupportedLayerError, match="backend is 'cupy'"):
            tssl_adapters.wrap(compiled)
    if hasattr(made("LIFNode"), "cupy_fp32_inference"):
        in_place = made("LIFNode")
        in_place.cupy_fp32_inference = True
        with pytest.raises(UnsupportedLayerError, match="cupy_fp32_inference"):
            tssl_adapters.wrap(in_place)


def test_supported_names_what_is_there() -> None:
    """Every class of the static table that this version has can be wrapped, and no other."""
    (kinds,) = (a.kinds for a in tssl_adapters.adapters.loaded() if a.library == "spikingjelly")
    prefix = f"{PACKAGE}.neuron."
    known = [name for name in libraries()["spikingjelly"].layers if prefix in name]
    there = {name.removeprefix(prefix) for name in known if has(name.removeprefix(prefix))}
    assert there == {cls.__name__ for cls in kinds if cls.__module__.startswith(prefix[:-1])}


@pytest.mark.skipif(not find_spec("spikingjelly.clock_driven"), reason="not in this version")
@pytest.mark.parametrize("name", ["LIFNode", "IFNode", "ParametricLIFNode", "EIFNode"])
def test_clock_driven_beside_activation_based(name: str) -> None:
    """One version has both packages: the old one's nodes are wrapped there too."""
    old: Any = importlib.import_module("spikingjelly.clock_driven.neuron")
    x = drive()
    found = []
    for each in (name, f"MultiStep{name}"):
        native = getattr(old, each)(v_threshold=0.5)
        wrapped = tssl_adapters.wrap(copy.deepcopy(native))
        mode = "m" if each != name else "s"
        out = run(wrapped, x, mode)
        assert torch.equal(out, run(native, x, mode))
        found.append(gradient(out, x))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["native", "smooth-tsslbp"])
@every
def test_every_node_is_compiled_in_training(name: str, mode: str, rule: str) -> None:
    """Torch would give the same, in up to three times the native time."""
    native = made(name, mode)
    net = tssl_adapters.wrap(copy.deepcopy(native), rule=rule, engine="cpu")
    x = drive()
    out = run(net, x, mode)
    assert torch.equal(out, run(native, x, mode))
    loops = net._tssl_settings.loops
    assert loops
    assert all(loops.values())
    assert gradient(out, x).abs().sum() > 0


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("mode", "sm")
def test_training_is_compiled_and_evaluation_is_the_library_s(mode: str, decay_input: bool) -> None:
    """Versions with steps of their own for evaluation round differently there, and compute an input
    that does not decay by another formula.
    """
    native = made("LIFNode", mode, tau=3.0, decay_input=decay_input)
    net = tssl_adapters.wrap(copy.deepcopy(native), engine="cpu")
    x = torch.randn(16, 4, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for training in (False, True, False, True):
        for one in (net, native):
            one.train(training).reset()
        if not training and cuts_in_evaluation(native):
            assert net._tssl_settings.decided is None
        assert torch.equal(run(net, x, mode), run(native, x, mode))
        assert torch.equal(net.v, native.v)
    if decay_input:
        assert any(net._tssl_settings.loops.values())
