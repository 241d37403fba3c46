"""Which layers the three further rules take, and that they refuse the others before a call."""

from __future__ import annotations

from typing import Any

import norse.torch as norse
import pytest
import snntorch
import torch
from compat_spikingjelly import has, neuron, node, sequences
from norse.torch.functional.lif import LIFParameters
from torch import nn

import tssl_adapters
from tssl_adapters import adapters, rules
from tssl_adapters.errors import UnsupportedConfigError, UnsupportedLayerError

NONLINEAR = {
    "Alpha": "its potential is the sum of two currents, and a spike resets these",
    "QIFNode": "its charge is quadratic in the potential",
    "EIFNode": "its charge is exponential in the potential",
    "IzhikevichNode": "its charge is quadratic in the potential, and it adapts",
    "KLIFNode": "its charge is rectified",
    "RAFNode": "its potential resonates with a second state",
    "ComplementaryLIFNode": "what its spikes take depends on those before",
    "GatedLIFNode": "its gates change the charge from step to step",
    "LIFEx": "its charge is exponential in the potential",
    "LIFAdEx": "its charge is exponential in the potential, and it adapts",
    "LIFAdExRefrac": "its charge is exponential in the potential, and it adapts",
    "LSNN": "its threshold adapts",
    "Izhikevich": "its charge is quadratic in the potential, and it adapts",
}
"""Neurons that no rule but TSSL-BP and the surrogates take."""

RULES = [
    rules.Lee(),
    rules.Lee(gate="active"),
    rules.STDBP(strict=False),
    rules.STDBP(),
    rules.STRSBP(credit="spike"),
    rules.STRSBP(),
    rules.EventProp(),
]


def reason(rule: rules.Rule, layer: nn.Module) -> str | None:
    """Why a rule refuses a layer with its default settings."""
    name = base_of(type(layer))
    if name in NONLINEAR:
        return (
            f"{type(rule).__name__} takes linear integrate-and-fire neurons, and {NONLINEAR[name]}"
        )
    if isinstance(rule, rules.STDBP | rules.EventProp | rules.STRSBP) and name == "LIFRefrac":
        return "its refractory period hides spikes"
    if isinstance(rule, rules.STDBP) and rule.strict and name not in INTEGRATORS:
        return "its potential leaks"
    if rule == rules.STRSBP() and (type(layer).__name__ not in SEQUENCES or steps(layer)):
        return "it goes step by step, and STRSBP's credit='train' needs whole sequences"
    return None


SEQUENCES = {"LIFNode", "IFNode", "ParametricLIFNode", "HalfThresholdIFNode"}
SEQUENCES |= {"LIF", "IAF", "LIFRecurrent"}
SEQUENCES |= {f"MultiStep{name}" for name in SEQUENCES}
"""Classes of which the engine gets whole sequences."""


def steps(layer: nn.Module) -> bool:
    """Whether a SpikingJelly node is in single-step mode, as it is by default."""
    return hasattr(layer, "v_threshold") and not sequences(layer)


INTEGRATORS = {"IFNode", "HalfThresholdIFNode", "SimpleIFNode", "IAF"}


def examples() -> list[Any]:
    found = []
    for adapter in adapters.loaded():
        for cls in adapter.kinds:
            found.append(pytest.param(adapter, cls, id=f"{adapter.library}-{cls.__name__}"))
    return found


def base_of(cls: type) -> str:
    """A class's neuron: its name without its form."""
    return cls.__name__.removeprefix("MultiStep").removesuffix("Cell").removesuffix("Recurrent")


@pytest.mark.parametrize(("adapter", "cls"), examples())
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_layer_is_taken_or_refused(adapter: Any, cls: Any, rule: rules.Rule) -> None:
    layer = adapter.example(cls, 3)
    why = reason(rule, layer)
    (report,) = [
        r for r in tssl_adapters.inspect(nn.ModuleList([layer]), rule=rule) if r.path == "0"
    ]
    if why is None:
        assert report.status == "wrap"
        tssl_adapters.wrap(layer, rule=rule)
        x = torch.rand(5, 2, 3, requires_grad=True)
        weight = torch.arange(30.0).reshape(5, 2, 3)
        (adapter.run(layer, x) * weight).sum().backward()
        assert x.grad is not None
        assert bool(x.grad.isfinite().all())
    else:
        assert report.status == "refused"
        with pytest.raises(UnsupportedConfigError) as caught:
            tssl_adapters.wrap(layer, rule=rule)
        assert why in str(caught.value)
        assert type(layer) is cls


def test_refusals_do_not_hide_each_other() -> None:
    """A rule's refusal and a class's are in one message, and nothing was changed."""
    model = nn.ModuleList([snntorch.Leaky(beta=0.5), snntorch.Alpha(alpha=0.6, beta=0.5)])
    model.append(snntorch.SLSTM(3, 3))
    with pytest.raises(UnsupportedLayerError) as caught:
        tssl_adapters.wrap(model, rule="lee")
    assert not isinstance(caught.value, UnsupportedConfigError)
    assert "2 spiking layer(s)" in str(caught.value)
    assert "Lee takes linear integrate-and-fire neurons, and its potential" in str(caught.value)
    assert type(model[0]) is snntorch.Leaky


def test_lee_needs_spikes_and_a_reset() -> None:
    with pytest.raises(UnsupportedConfigError, match="use tau_s=1, or STRSBP or TSSLBP"):
        tssl_adapters.wrap(snntorch.Leaky(beta=0.5), rule="lee", tau_s=2.0)
    layer = snntorch.Leaky(beta=0.5, reset_mechanism="none")
    with pytest.raises(UnsupportedConfigError, match="nothing resets this neuron"):
        tssl_adapters.wrap(layer, rule=rules.Lee())
    assert tssl_adapters.inspect(layer, rule="tsslbp")[0].status == "wrap"


@pytest.mark.parametrize("rule", [rules.Lee(), rules.STRSBP()])
def test_a_reset_out_of_reach_would_leave_no_gradient(rule: rules.Rule) -> None:
    once = node("IFNode", step_mode="m", v_reset=-1e9)
    with pytest.raises(UnsupportedConfigError, match=r"a reset to -1e\+09 would leave no gradient"):
        tssl_adapters.wrap(once, rule=rule)
    tssl_adapters.wrap(node("IFNode", step_mode="m", v_reset=-70.0, v_threshold=-50.0), rule=rule)


@pytest.mark.parametrize("rule", [rules.Lee(), rules.STRSBP()])
def test_a_spike_that_takes_nothing_cannot_be_divided_by(rule: rules.Rule) -> None:
    for threshold, v_reset in ((-1.0, -1.0), (0.0, None), (0.5, 1.0)):
        layer = node("IFNode", step_mode="m", v_threshold=threshold, v_reset=v_reset)
        with pytest.raises(UnsupportedConfigError, match="potential, and that is not above 0"):
            tssl_adapters.wrap(layer, rule=rule)
    tssl_adapters.wrap(node("IFNode", step_mode="m", v_threshold=-1.0, v_reset=-2.0), rule=rule)


def test_stdbp_needs_a_positive_threshold_or_a_bound() -> None:
    layer = node("IFNode", step_mode="m", v_threshold=0.0, v_reset=-1.0)
    with pytest.raises(UnsupportedConfigError, match=r"not above 0; set STDBP\(max_slope="):
        tssl_adapters.wrap(layer, rule="stdbp")
    tssl_adapters.wrap(layer, rule=rules.STDBP(max_slope=4.0))


@pytest.mark.skipif(not has("SimpleIFNode"), reason="this version has no SimpleIFNode")
def test_a_charge_of_the_users_own_is_refused() -> None:
    class Mine(neuron.SimpleLIFNode):  # type: ignore[misc, name-defined]
        def neuronal_charge(self, x: torch.Tensor) -> None:
            self.v = self.v * self.v + x

    tssl_adapters.register(Mine, like=neuron.SimpleLIFNode)
    layer = Mine(tau=2.0, decay_input=True)
    with pytest.raises(UnsupportedConfigError, match="its neuronal_charge is a function of your"):
        tssl_adapters.wrap(layer, rule="lee")


def test_stdbp_needs_integrators() -> None:
    """Without leak it takes snnTorch's Synaptic; a leaking current is refused, and why is said."""
    whole = snntorch.Synaptic(alpha=1.0, beta=1.0)
    assert tssl_adapters.inspect(whole, rule="stdbp")[0].status == "wrap"
    for alpha, beta, what in ((0.9, 1.0, "synaptic current"), (1.0, 0.9, "potential")):
        layer = snntorch.Synaptic(alpha=alpha, beta=beta)
        with pytest.raises(UnsupportedConfigError, match=f"its {what} leaks.*strict=False"):
            tssl_adapters.wrap(layer, rule="stdbp")
        assert type(layer) is snntorch.Synaptic
        assert tssl_adapters.inspect(layer, rule=rules.STDBP(strict=False))[0].status == "wrap"
    p = LIFParameters(tau_mem_inv=torch.tensor(1e-5))  # the potential alone does not leak
    with pytest.raises(UnsupportedConfigError, match="its synaptic current leaks"):
        tssl_adapters.wrap(norse.LIF(p), rule="stdbp")


def test_stdbp_needs_spikes_and_a_reset() -> None:
    with pytest.raises(UnsupportedConfigError, match="STDBP is made for layers that emit spikes"):
        tssl_adapters.wrap(norse.IAFCell(), rule="stdbp", tau_s=2.0)
    layer = snntorch.Synaptic(alpha=1.0, beta=1.0, reset_mechanism="none")
    with pytest.raises(UnsupportedConfigError, match="it goes on firing; give it a reset"):
        tssl_adapters.wrap(layer, rule="stdbp")


def test_strsbp_counts_spikes() -> None:
    with pytest.raises(UnsupportedConfigError, match="use graded_spikes_factor=1"):
        tssl_adapters.wrap(snntorch.Leaky(beta=0.5, graded_spikes_factor=2.0), rule="strsbp")
    with pytest.raises(UnsupportedConfigError, match="nothing resets this one"):
        tssl_adapters.wrap(snntorch.Leaky(beta=0.5, reset_mechanism="none"), rule="strsbp")


def test_strsbp_names_what_a_time_loop_can_have() -> None:
    with pytest.raises(UnsupportedConfigError, match=r"use STRSBP\(credit='spike'\)"):
        tssl_adapters.wrap(node("LIFNode"), rule="strsbp")
    tssl_adapters.wrap(node("LIFNode", step_mode="m"), rule="strsbp")
    layer = snntorch.RLeaky(beta=0.5, linear_features=3)
    with pytest.raises(UnsupportedConfigError, match="as Norse's LIFRecurrent has them"):
        tssl_adapters.wrap(layer, rule=rules.STRSBP(recurrent="full", credit="spike"))
