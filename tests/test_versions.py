"""What holds for any version of a library: run by `nox -s versions` against the older ones."""

from __future__ import annotations

import pytest
import torch
from models import MODELS, SPIKING, anatomy, equal, numbers

import tssl_adapters

LIBRARIES = ["snntorch", "spikingjelly", "norse"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_model_wraps_trains_and_unwraps(library: str) -> None:
    """Same forward, another gradient, and the native one back."""
    torch.manual_seed(0)
    model = MODELS[library]().eval()
    native = numbers(model)
    before = anatomy(model)
    tssl_adapters.wrap(model)
    ours = numbers(model)
    outs = len(native) - len([*model.parameters()]) - 1
    assert equal(ours[:outs], native[:outs])
    assert not equal(ours[outs:], native[outs:])
    assert all(torch.isfinite(part).all() for part in ours)
    tssl_adapters.unwrap(model)
    assert equal(numbers(model), native)
    assert list(anatomy(model)) == list(before)


@pytest.mark.parametrize("library", LIBRARIES)
def test_inspect_names_the_version(library: str) -> None:
    report = tssl_adapters.inspect(MODELS[library]())
    rows = {row.path: row for row in report if row.status == "wrap"}
    assert list(rows) == SPIKING[library]
    assert {row.version for row in rows.values()} == {tssl_adapters.adapters.version_of(library)}
