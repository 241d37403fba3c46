"""The engines that compute gradients, and the choice of one for ``wrap``."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch

from tssl_adapters.engine.call.settings import above_us
from tssl_adapters.engine.compiled.kernels import COMPILERS
from tssl_adapters.errors import EngineNotAvailableError, EngineWarning
from tssl_adapters.report import Report

VARIABLE = "TSSL_ADAPTERS_ENGINE"
PURPOSES = {
    "torch": "every layer, rule, dtype and device",
    "cpu": "neurons on the CPU in float32 and float64, under rules that compile",
    "triton": "neurons on a GPU, under rules that compile",
}
"""Every engine, and what it is for; torch computes everything else."""
RENAMED = {"numba": "cpu"}
"""Engines by their former names."""


_MISSING = {
    "cpu": "llvmlite is not installed; python -m pip install llvmlite",
    "triton": "triton is not installed; it comes with torch's CUDA builds for Linux",
}


@dataclass(frozen=True)
class EngineReport:
    """One engine.

    Attributes:
        name: its name in ``wrap(model, engine=...)``.
        available: whether it can be used.
        detail: what it is for, or why it cannot be used.
    """

    name: str
    available: bool
    detail: str

    def cells(self) -> tuple[str, ...]:
        return self.name, "yes" if self.available else "no", self.detail


def engines() -> Report[EngineReport]:
    """The engines, and why one is not available."""
    rows = []
    for name, purpose in PURPOSES.items():
        reason = _why_not(name)
        rows.append(EngineReport(name, reason is None, reason or purpose))
    return Report(("engine", "available", "for"), rows, "")


def checked(engine: str | None) -> str:
    """The requested engine, by argument or environment, else the best available one.

    Raises:
        ValueError: an unknown engine.
        EngineNotAvailableError: what it needs is missing.
    """
    name = default() if engine is None else engine
    if engine is None and VARIABLE not in os.environ and name == "torch":
        _say_what_is_missing()
    if name in RENAMED:
        warnings.warn(
            f"engine {name!r} is now called {RENAMED[name]!r}; the old name will go.",
            DeprecationWarning,
            stacklevel=above_us(),
        )
        name = RENAMED[name]
    if name not in PURPOSES:
        where = f"{VARIABLE}=" if engine is None else "engine="
        known = ", ".join(map(repr, PURPOSES))
        raise ValueError(f"Unknown {where}{name!r}; known engines: {known}.")
    if (reason := _why_not(name)) is not None:
        raise EngineNotAvailableError(f"engine {name!r}: {reason}.")
    return name


def default() -> str:
    """The engine of a call that names none: the environment's, unchecked, else the best available.

    Not Triton: no GPU has run its kernels yet.
    """
    return os.environ.get(VARIABLE) or ("torch" if _why_not("cpu") else "cpu")


@cache
def _say_what_is_missing() -> None:
    """Warn once per process if there are no compiled loops and no GPU."""
    if not torch.cuda.is_available():
        warnings.warn(
            f"tssl_adapters: {_why_not('cpu')}. Until then plain torch computes the gradient, "
            "which takes several times as long; engine='torch' does so without this warning.",
            EngineWarning,
            stacklevel=above_us(),
        )


def _why_not(name: str) -> str | None:
    """Why an engine cannot be used, and what to do."""
    if name in COMPILERS and find_spec(COMPILERS[name]) is None:
        return _MISSING[name]
    if name == "triton" and not torch.cuda.is_available() and not _interpreted():
        return "torch finds no CUDA device; use engine='cpu' or 'torch' on the CPU"
    return None


def _interpreted() -> bool:
    """Whether Triton is set to run its kernels on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"
