"""What users of any version of snnTorch do, run against every one of them."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import snntorch
import torch
from compat_snntorch import STATES, delays, runs, start
from neurons_snntorch import make_layer, run_explicit, run_hidden
from snntorch import utils
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.errors import NativeGradientWarning, UnsupportedConfigError

TAUS = pytest.mark.parametrize("tau_s", [1.0, 3.0])
NAMES = pytest.mark.parametrize("name", STATES)


def layer_of(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    recurrence = "linear" if name.startswith("R") else ""
    return make_layer(name, torch.float32, recurrence=recurrence, **settings)


def net(name: str) -> nn.Sequential:
    """Hidden states in a container, the last layer with its states for output."""
    hidden = layer_of(name, init_hidden=True)
    last = layer_of(name, init_hidden=True, output=True)
    return nn.Sequential(nn.Linear(5, 5), hidden, nn.Linear(5, 5), last)


def drive(steps: int = 6, *, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 0.6 + torch.randn(steps, 3, 5, generator=generator, dtype=dtype)


def restart(model: nn.Sequential, name: str) -> None:
    utils.reset(model)
    for layer in (model[1], model[3]):
        if name == "RSynaptic" and isinstance(getattr(layer, "spk", None), Tensor):
            layer.spk = torch.zeros_like(layer.spk)  # which utils.reset leaves out


@NAMES
@TAUS
def test_reset_between_sequences(name: str, tau_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """``utils.reset`` starts anew, in training and under no_grad."""
    monkeypatch.setattr(snntorch.SpikingNeuron, "instances", [])  # it resets every layer alive
    native, model = net(name), tssl_adapters.wrap(net(name), tau_s=tau_s)
    model.load_state_dict(native.state_dict())
    x, seen = drive(), []
    for grad in (True, False, True):
        with torch.set_grad_enabled(grad):
            restart(model, name)
            out = torch.stack([model(step)[0] for step in x])
        seen.append(out.detach())
        if grad:
            model.zero_grad()
            out.sum().backward()
            assert model[0].weight.grad.abs().sum() > 0.0
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    if tau_s == 1.0:
        restart(native, name)
        assert torch.equal(seen[0], torch.stack([native(step)[0] for step in x]))


@NAMES
def test_detach_hidden_cuts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No gradient from behind ``detach_hidden``, and the PSC goes on."""
    monkeypatch.setattr(snntorch.SpikingNeuron, "instances", [])  # it detaches every layer alive
    layer = tssl_adapters.wrap(layer_of(name, init_hidden=True), tau_s=3.0)
    x, outs = drive().requires_grad_(), []
    start(layer)
    for t, step in enumerate(x):
        if t == 3:
            type(layer).detach_hidden()
            if name == "RSynaptic":  # which the library leaves out
                layer.spk.detach_()
        outs.append(layer(step))
    torch.stack(outs[3:]).sum().backward()
    assert not x.grad[:3].any()
    assert x.grad[3:].any()
    trace = torch.zeros_like(x[0])
    spikes = run_hidden(layer_of(name, init_hidden=True), drive(), None).out
    for ours, spike in zip(outs, spikes, strict=True):
        trace = trace + (spike - trace) / 3.0
        torch.testing.assert_close(ours, trace, rtol=1e-6, atol=1e-6)


@NAMES
@TAUS
def test_truncated_by_argument(name: str, tau_s: float) -> None:
    """States detached in place every other step train, and leave the forward as it is."""
    layer = tssl_adapters.wrap(layer_of(name, learn=True), tau_s=tau_s)
    native, x = layer_of(name), drive()
    states, theirs = start(layer), start(native)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    for t, step in enumerate(x):
        out, *after = layer(step, *states)
        spikes, *known = native(step, *theirs)
        assert all(torch.equal(a, b) for a, b in zip(after, known, strict=True))
        recurrent = len(states) > len(after)
        fed_back = layer.spk if recurrent and tau_s > 1.0 else out
        states = [fed_back] * recurrent + after
        theirs = [spikes] * recurrent + known
        if t % 2:
            optimizer.zero_grad()
            out.sum().backward()
            assert all(torch.isfinite(p.grad).all() for p in layer.parameters())
            optimizer.step()
            snntorch.SpikingNeuron.detach(*states)


@NAMES
def test_a_state_of_another_shape(name: str) -> None:
    """The library spreads it over the batch, or starts anew."""
    native, layer = layer_of(name), tssl_adapters.wrap(layer_of(name))
    x, states = drive()[0], [torch.full((5,), 0.4) for _ in STATES[name]]
    for ours, theirs in zip(layer(x, *states), native(x, *states), strict=True):
        assert torch.equal(ours, theirs)


@NAMES
def test_no_states_at_all(name: str) -> None:
    """A layer without hidden states called without states: the library's result, or its error."""
    x = drive()[0]
    found = []
    for layer in (layer_of(name), tssl_adapters.wrap(layer_of(name))):
        try:
            found.append([part.tolist() for part in layer(x)])
        except AttributeError as error:
            found.append([str(error).replace("Wrapped", "")])
    assert found[0] == found[1]


@NAMES
@pytest.mark.parametrize("hidden", [True, False])
def test_checkpoints_go_both_ways(name: str, hidden: bool) -> None:
    """Versions differ in whether a state is saved; wrapped and native layers do not."""
    native, layer = (layer_of(name, learn=True, init_hidden=hidden) for _ in range(2))
    tssl_adapters.wrap(layer)
    x = drive()
    for each in (native, layer):
        (run_hidden if hidden else run_explicit)(each, x, None)
    assert list(native.state_dict()) == list(layer.state_dict())
    for source, target in ((native, layer), (layer, native)):
        target.load_state_dict(source.state_dict())


@NAMES
def test_pickle_where_it_works_natively(name: str) -> None:
    native = layer_of(name, spike_grad=None)
    try:
        pickle.dumps(native)
    except (AttributeError, TypeError, pickle.PicklingError):
        return
    layer = tssl_adapters.wrap(layer_of(name, spike_grad=None))
    again = pickle.loads(pickle.dumps(layer))
    assert type(again) is type(layer)
    for ours, theirs in zip(
        run_explicit(again, drive(), None)[:2], run_explicit(layer, drive(), None)[:2], strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", sorted(set(STATES) - {"RLeaky", "RSynaptic"}))
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_a_float64_threshold_that_float32_rounds(name: str, reset: str) -> None:
    """The library's spikes are float32, and a threshold without dimensions takes their dtype."""
    cls = getattr(snntorch, name)
    beta, alpha = (torch.tensor(value, dtype=torch.float64) for value in (0.7, 0.8))
    settings = {"beta": beta, "reset_mechanism": reset}
    settings |= {"alpha": alpha} if name in ("Synaptic", "Alpha") else {}
    native, layer = (
        cls(threshold=torch.tensor(0.8, dtype=torch.float64), **settings) for _ in range(2)
    )
    tssl_adapters.wrap(layer)
    x = drive(dtype=torch.float64)
    for ours, theirs in zip(
        run_explicit(layer, x, None)[:2], run_explicit(native, x, None)[:2], strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["Leaky", "Synaptic", "RLeaky", "RSynaptic"])
def test_hidden_without_delay_is_refused_where_it_fails(name: str) -> None:
    if len(delays(getattr(snntorch, name))) == 1:
        with pytest.raises(TypeError, match="reset_delay"):
            layer_of(name, reset_delay=False)
        return
    layer = layer_of(name, init_hidden=True, reset_delay=False)
    if runs(layer):
        tssl_adapters.wrap(layer)
        return
    with pytest.raises(UnsupportedConfigError, match="use reset_delay=True"):
        tssl_adapters.wrap(layer)


@NAMES
def test_another_neuron_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that charges otherwise than its adapter thinks goes on alone from the first on."""
    cls = getattr(snntorch, name)
    layer = tssl_adapters.wrap(layer_of(name))
    native = cls.forward

    def spoilt(self: Any, input_: Tensor, *states: Any) -> Any:
        return native(self, 1.01 * input_, *states)

    monkeypatch.setattr(cls, "forward", spoilt)
    with pytest.warns(NativeGradientWarning):
        run_explicit(layer, drive().requires_grad_(), None)


@pytest.mark.parametrize("name", ["Leaky", "RLeaky"])
def test_a_rule_without_a_chain(name: str) -> None:
    """Nothing goes back over time, whatever the states."""
    rule = rules.SurrogateGradient(lambda x: 1.0 / (1.0 + x.abs()) ** 2, chain=False)
    layer = tssl_adapters.wrap(layer_of(name), rule=rule)
    x = drive().requires_grad_()
    run_explicit(layer, x, None).membrane[-1].sum().backward()
    assert not x.grad[:-1].any()
    assert x.grad[-1].any()
