"""What the further rules say of models and losses that break them without an error."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import snntorch
import torch
import torch.nn.functional as F
from compat_spikingjelly import dropout, node
from torch import nn

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.errors import RuleWarning


def network(*between: nn.Module) -> nn.Sequential:
    first, last = (node("IFNode", step_mode="m", v_reset=None) for _ in range(2))
    return nn.Sequential(nn.Linear(4, 6), first, *between, nn.Linear(6, 5), last)


def remarks(model: nn.Module, rule: rules.Rule) -> list[str]:
    """What ``inspect`` prints above what to do next, and ``wrap`` warns of as well."""
    _, *middle, _ = str(tssl_adapters.inspect(model, rule=rule)).split("\n\n")
    printed = [text for text in middle if not text.startswith("library: ")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tssl_adapters.wrap(model, rule=rule)
    assert all(w.category is RuleWarning and w.filename == __file__ for w in caught)
    found = [str(w.message).removeprefix("tssl_adapters: ") for w in caught]
    assert [" ".join(text.split()) for text in printed] == found
    return found


@pytest.mark.parametrize("module", [nn.MaxPool1d(1), nn.AdaptiveMaxPool1d(6), nn.Dropout(0.5)])
def test_stdbp_names_modules_that_lose_its_gradient(module: nn.Module) -> None:
    (remark,) = remarks(network(module), rules.STDBP())
    assert remark.startswith(f"'2' ({type(module).__name__}) ")
    assert "STDBP needs the gradient one step after a spike, which is lost there" in remark


@pytest.mark.parametrize("module", [nn.AvgPool1d(1), nn.BatchNorm1d(6), dropout(0.5)], ids=repr)
def test_stdbp_says_nothing_of_others(module: nn.Module) -> None:
    assert remarks(network(module), rules.STDBP()) == []
    assert remarks(network(nn.MaxPool1d(1)), rules.Lee()) == []


def test_lee_names_a_gated_output() -> None:
    (remark,) = remarks(network(), rules.Lee(gate="active"))
    assert remark.startswith("Lee(gate='active') gates '3', the model's last layer.")
    assert remark.endswith("wrap that layer with Lee() first, then the model with skip=['3'].")
    assert remarks(network(), rules.Lee()) == []
    assert remarks(network().append(nn.Linear(5, 2)), rules.Lee(gate="active")) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = network()
        tssl_adapters.wrap(model[3], rule=rules.Lee())
        tssl_adapters.wrap(model, rule=rules.Lee(gate="active"), skip=["3"])
        tssl_adapters.wrap(node("IFNode"), rule=rules.Lee(gate="active"))  # a layer of a model


def losses(kind: str, out: torch.Tensor) -> torch.Tensor:
    counts = out.sum(0)
    if kind == "cross-entropy":
        return F.cross_entropy(counts, torch.tensor([0, 1, 2]))
    return (counts - torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0])).square().sum()


@pytest.mark.parametrize("kind", ["cross-entropy", "squared"])
@pytest.mark.parametrize("mode", ["m", "s"])
def test_strsbp_doubts_cross_entropy_on_counts(kind: str, mode: Any) -> None:
    layer = node("IFNode", step_mode=mode)
    rule = rules.STRSBP(credit="train" if mode == "m" else "spike")
    tssl_adapters.wrap(layer, rule=rule)
    for once in (True, False):
        layer.reset()
        x = torch.rand(6, 3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
        out = layer(x) if mode == "m" else torch.stack([layer(step) for step in x])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            losses(kind, out).backward()
        assert len(caught) == (once and kind == "cross-entropy")
        for warning in caught:
            assert "looks like that of a cross-entropy" in str(warning.message)
            assert warning.category is RuleWarning


# --- a chain that grows over time ---------------------------------------------------------------


def chained(**layers: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(layers)


@pytest.mark.parametrize(
    ("layer", "carry"),
    [
        # decay + (1 - decay) R max_slope; with delay R = theta / decay
        (lambda: snntorch.Leaky(beta=0.9), 0.9 + 0.1 / 0.9 * 8.0),
        (lambda: snntorch.Leaky(beta=0.9, reset_delay=False), 0.9 + 0.1 * 8.0),
        (lambda: node("LIFNode", tau=4.0, v_threshold=0.5, v_reset=None), 0.75 + 0.25 * 0.5 * 8.0),
    ],
)
def test_a_chain_that_grows_by_subtraction(layer: Any, carry: float) -> None:
    model = chained(grows=layer(), hard=node("LIFNode"), kept=node("IFNode", v_reset=None))
    (remark,) = remarks(model, rules.TSSLBP())
    assert f"'grows' ({carry:.2g})" in remark
    assert "'hard'" not in remark
    assert "'kept'" not in remark
    assert "rules.SmoothTSSLBP()" in remark


@pytest.mark.parametrize(
    "rule",
    [
        rules.TSSLBP(reset_path="none"),
        rules.TSSLBP(reset_path="complete"),
        rules.TSSLBP(max_slope=0.8),
        rules.SmoothTSSLBP(),
    ],
)
def test_chains_that_do_not_grow(rule: rules.Rule) -> None:
    assert remarks(chained(a=snntorch.Leaky(beta=0.9), b=node("LIFNode", v_reset=None)), rule) == []


def test_layers_without_numbers_are_not_remarked_on() -> None:
    """On the meta device nobody knows whether a chain grows; the layers are wrapped."""
    model = chained(a=snntorch.Leaky(beta=0.9)).to("meta")
    assert remarks(model, rules.TSSLBP()) == []
    assert tssl_adapters.is_wrapped(model)


# --- a reset out of reach -----------------------------------------------------------------------


def test_the_default_names_resets_out_of_reach() -> None:
    """Its slope is next to nothing there; what is named as a remedy has one."""

    def model() -> nn.ModuleDict:
        layers = {"once": {"v_reset": -1e9}, "far": {"v_reset": -70.0, "v_threshold": -50.0}}
        return chained(**{name: node("IFNode", step_mode="m", **o) for name, o in layers.items()})

    def gradient(rule: rules.Rule) -> float:
        layer = tssl_adapters.wrap(model(), rule=rule, skip=["far"])["once"]
        layer.v = 0.0  # at first it is at v_reset
        x = torch.full((6, 2, 3), 0.3, requires_grad=True)
        (layer(x) * torch.arange(6.0)[:, None, None]).sum().backward()
        assert x.grad is not None
        return float(x.grad.abs().max())

    (remark,) = remarks(model(), rules.SmoothTSSLBP())
    assert "out of reach: 'once' (v_reset=-1e+09)." in remark
    assert remarks(model(), rules.TSSLBP()) == []
    surrogate = rules.SurrogateGradient(lambda z: 1 / (1 + z.abs()) ** 2, reset_path="none")
    assert remarks(model(), surrogate) == []
    with pytest.warns(RuleWarning, match="out of reach"):
        assert gradient(rules.SmoothTSSLBP()) < 1e-8
    assert gradient(surrogate) > 0.1
    assert gradient(rules.STDBP()) > 0.1
