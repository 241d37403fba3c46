"""Models on the meta device: wrapped before they have numbers, or refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch
import torch
from compat_snntorch import start
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters.errors import NativeGradientWarning, UnsupportedConfigError

LAYERS: dict[str, Callable[[], Any]] = {
    "snntorch-subtract": lambda: snntorch.Leaky(0.8, learn_threshold=True),
    "snntorch-nodelay": lambda: snntorch.Synaptic(0.6, 0.8, reset_delay=False),
    "snntorch-Lapicque": lambda: snntorch.Lapicque(0.8),
    "spikingjelly-LIF": neuron.LIFNode,
    "spikingjelly-PLIF": neuron.ParametricLIFNode,
    "spikingjelly-KLIF": neuron.KLIFNode,
    "norse-LIFBoxCell": norse.LIFBoxCell,
    "norse-LSNNCell": norse.LSNNCell,
}


def made(name: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), LAYERS[name]())


def numbers(model: nn.Sequential, tau_s: float) -> list[Tensor]:
    """Spikes, or the PSC, of four steps, and the gradients."""
    linear, layer = model
    state: Any = None
    if isinstance(layer, snntorch.SpikingNeuron):
        state = start(layer)
    elif isinstance(layer, neuron.BaseNode):
        functional.reset_net(layer)
    outs = []
    for step in 8.0 * torch.rand(4, 3, 6, generator=torch.Generator().manual_seed(1)):
        x = linear(step) * (1.0 if "norse" not in type(layer).__module__ else 40.0)
        if isinstance(layer, snntorch.SpikingNeuron):
            out, *state = layer(x, *state)
        elif isinstance(layer, neuron.BaseNode):
            out = layer(x)
        else:
            out, state = layer(x, state)
        outs.append(out)
    out = torch.stack(outs)
    wanted = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(out.square().sum(), wanted, allow_unused=True)
    return [out, *(grad for grad in grads if grad is not None)]


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("name", LAYERS)
def test_numbers_come_later(name: str, tau_s: float) -> None:
    """With ``to_empty`` and ``load_state_dict`` after ``wrap``: as if it had had them all along."""
    source = made(name)
    model = made(name).to("meta")
    assert [r.status for r in tssl_adapters.inspect(model, tau_s=tau_s)] == ["wrap"]
    tssl_adapters.wrap(model, tau_s=tau_s)
    model.to_empty(device="cpu").load_state_dict(source.state_dict())
    expected = numbers(tssl_adapters.wrap(source, tau_s=tau_s), tau_s)
    assert float(expected[0].detach().mean()) > 0
    assert float(expected[1].abs().max()) > 0
    for ours, theirs in zip(numbers(model, tau_s), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_beta_that_turns_out_to_be_0() -> None:
    """What ``wrap`` could not see is seen in the first call."""
    model = tssl_adapters.wrap(snntorch.Leaky(0.8).to("meta")).to_empty(device="cpu")
    model.load_state_dict(snntorch.Leaky(0.0).state_dict())
    states = start(model)
    with pytest.warns(NativeGradientWarning, match="'Leaky': beta is 0"):
        out, _ = model(torch.ones(2, 3), *states)
    assert torch.equal(out, snntorch.Leaky(0.0)(torch.ones(2, 3))[0])
    assert model._tssl_settings.unseen
    model.beta.fill_(0.5)
    model(torch.ones(2, 3), *states)
    assert not model._tssl_settings.unseen


@pytest.mark.parametrize("name", ["snntorch-subtract", "spikingjelly-PLIF"])
def test_a_rule_that_depends_on_numbers(name: str) -> None:
    """Nothing was changed, and with numbers it is wrapped or refused for what it is."""
    model = made(name).to("meta")
    before = [type(module) for module in model]
    (report,) = tssl_adapters.inspect(model, rule="stdbp")
    assert report.status == "refused"
    assert "on the meta device" in report.detail
    with pytest.raises(UnsupportedConfigError, match=r"meta device.*to_empty, load_state_dict"):
        tssl_adapters.wrap(model, rule="stdbp")
    assert [type(module) for module in model] == before


def test_parameters_of_norse_are_no_parameters() -> None:
    """Nothing moves them to a device; a layer made on the meta device can be looked at."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 5), norse.LIF(), norse.LIFCell())
    tssl_adapters.wrap(model)
    assert [r.status for r in tssl_adapters.inspect(model)] == ["wrapped", "wrapped"]


@pytest.mark.parametrize("mode", ["s", "m"])
def test_shapes(mode: str) -> None:
    """A call on the meta device gives shapes, and gradients of no values."""
    node = tssl_adapters.wrap(neuron.LIFNode(step_mode=mode))
    x = torch.ones(4, 3, 5, device="meta", requires_grad=True)
    out = node(x)
    out.sum().backward()
    assert out.is_meta
    assert out.shape == x.shape
    assert x.grad is not None
    assert x.grad.shape == x.shape
