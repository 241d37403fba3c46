"""Wrapped nonlinear and adaptive layers against the oracle of tests/support/oracle_neurons.py."""

from __future__ import annotations

from typing import Any

import pytest
from described_layers import LAYERS, Described, disagreements

import tssl_adapters
from tssl_adapters import rules

SUPPORTED = {entry.layer for entry in tssl_adapters.supported()}
WRAPPABLE = [layer for layer in LAYERS if layer.layer in SUPPORTED]
OPTIONS: dict[str, dict[str, Any]] = {
    "reference": {},
    "complete": {"reset_path": "complete"},
    "none": {"reset_path": "none"},
    "no-fallback": {"fallback": False, "reset_path": "complete"},
    "narrow": {"max_slope": 2.0, "fallback_width": 0.7},
}


def test_every_class_of_the_table_is_supported() -> None:
    """So that nothing below is left out without a word."""
    assert {layer.layer for layer in LAYERS} <= SUPPORTED


@pytest.mark.parametrize("losses", ["out", "states", "all"])
@pytest.mark.parametrize("described", LAYERS, ids=str)
def test_the_oracle_describes_the_native_layer(described: Described, losses: str) -> None:
    """With the library's surrogate as the rule the oracle has the native values and gradients."""
    found, rate = disagreements(
        described,
        described.make(),
        tau_s=1.0,
        incoming=True,
        losses=losses,
        derivative=described.derivative,
        reset_path=described.native_path,
    )
    assert found == []
    assert 0.05 < rate < 0.95


def check(described: Described, options: str, tau_s: float, losses: str) -> None:
    """From an incoming state at tau_s = 1, from the library's own start above."""
    rule = OPTIONS[options]
    layer = tssl_adapters.wrap(described.make(), rule=rules.TSSLBP(**rule), tau_s=tau_s)
    found, _ = disagreements(
        described, layer, tau_s=tau_s, incoming=tau_s == 1.0, losses=losses, **rule
    )
    assert found == []


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("described", WRAPPABLE, ids=str)
def test_gradients(described: Described, options: str, tau_s: float) -> None:
    """Of losses on the output and on every state together."""
    check(described, options, tau_s, "all")


@pytest.mark.parametrize("losses", ["out", "states"])
@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("described", WRAPPABLE, ids=str)
def test_gradients_of_single_losses(described: Described, tau_s: float, losses: str) -> None:
    """They add up, but a layer may take another way where something has no gradient."""
    check(described, "reference", tau_s, losses)
