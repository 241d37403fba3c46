"""Which versions of the libraries and of torch were tested, and a trial of those that were not."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import nn
from torch.torch_version import TorchVersion

from tssl_adapters.adapters.base import Adapter
from tssl_adapters.adapters.library import libraries, version_of
from tssl_adapters.elementwise import ordinary
from tssl_adapters.engine.call.settings import Settings
from tssl_adapters.errors import LibraryVersionError, UntestedVersionWarning
from tssl_adapters.rules import TSSLBP

_STEPS, _BATCH, _NEURONS = 4, 16, 16
_STRONGEST = 30.0
"""Strong enough for every library's defaults to spike, however it scales its input."""


@cache
def tested(product: str) -> tuple[str, ...]:
    """The versions of a library, or of torch, with which the suite passed, oldest first."""
    if product in libraries():
        return tuple(libraries()[product].tested)
    record = resources.files("tssl_adapters").joinpath("tested_versions.json")
    return tuple(json.loads(record.read_text(encoding="utf-8"))[product])


def newer_torch() -> str | None:
    """The installed torch's version, if it is newer than all that were tested.

    A version between two tested ones counts as tested: there are many, and they differ little.
    """
    version, _, _ = torch.__version__.partition("+")  # the rest is the build
    known = tested("torch")
    return version if known and TorchVersion(version) > known[-1] else None


def check(adapter: Adapter, classes: Iterable[type[nn.Module]]) -> None:
    """Warn about an untested version of the library or of torch, once its classes pass a trial.

    Args:
        adapter: the library.
        classes: those of its supported classes that occur in a model.

    Raises:
        LibraryVersionError: a class does not do what its adapter expects.
    """
    version, newer = version_of(adapter.library), newer_torch()
    if newer is None and version in tested(adapter.library):
        return
    named = f"{adapter.library} {version}"
    advice = f"Versions that were tested: {', '.join(tested(adapter.library))}"
    if newer is not None:
        named += f" with torch {newer}"
        advice += f"; of torch: {', '.join(tested('torch'))}"
    for cls in classes:
        try:
            passed = _same_as_native(adapter, cls)
        except Exception as error:
            raise LibraryVersionError(
                f"{cls.__name__} of {named} cannot be wrapped, and nothing was changed: in a trial "
                f"it failed ({type(error).__name__}: {error}). {advice}."
            ) from error
        if not passed:
            raise LibraryVersionError(
                f"{cls.__name__} of {named} cannot be wrapped, and nothing was changed: in a trial "
                f"its forward pass was not the same once wrapped. {advice}."
            )
    warnings.warn(
        f"{named} was not tested with tssl_adapters; a trial of its layers found nothing wrong. "
        f"{advice}.",
        UntestedVersionWarning,
        stacklevel=4,
    )


def _same_as_native(adapter: Adapter, cls: type[nn.Module]) -> bool:
    """Whether a layer with default settings gives the same values, bit for bit, once wrapped."""
    with torch.random.fork_rng(devices=[]), ordinary():
        torch.default_generator.manual_seed(0)  # a GPU's generator is left alone
        layer: Any = adapter.example(cls, _NEURONS)
        try:
            native = copy.deepcopy(layer)
        except Exception:  # some layers, or their states, cannot be copied: make an identical one
            torch.default_generator.manual_seed(0)
            native = adapter.example(cls, _NEURONS)
        steps = adapter.steps(layer) or _STEPS
        drive = _STRONGEST * torch.rand(steps, _BATCH, _NEURONS) ** 3
        theirs = adapter.run(native, drive)
        kind = adapter.kinds[cls]
        layer.__class__ = kind.wrapped
        layer._tssl_settings = Settings(cls.__name__, TSSLBP(), 1.0, trial=True)
        kind.attach(layer)
        ours = adapter.run(layer, drive.requires_grad_())
        (gradient,) = torch.autograd.grad(ours.sum(), drive)
    return torch.equal(ours, theirs) and bool(gradient.isfinite().all())
