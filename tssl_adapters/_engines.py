"""What can compute a gradient, and which one ``wrap`` is to use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from tssl_adapters.errors import EngineNotAvailableError
from tssl_adapters.report import Report

VARIABLE = "TSSL_ADAPTERS_ENGINE"
PURPOSES = {
    "torch": "every layer, rule, dtype and device",
    "numba": "linear neurons under TSSLBP, float32 and float64 on the CPU; all else by torch",
    "triton": "linear neurons under TSSLBP on a GPU; all else by torch",
}
"""Every engine, and what it is for."""


@dataclass(frozen=True)
class EngineReport:
    """One engine.

    Attributes:
        name: what ``wrap(model, engine=...)`` takes.
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
    """The engine that is asked for, by argument or by environment, else the best there is.

    Raises:
        ValueError: an unknown one.
        EngineNotAvailableError: what it needs is not there.
    """
    name = default() if engine is None else engine
    if name not in PURPOSES:
        where = f"{VARIABLE}=" if engine is None else "engine="
        known = ", ".join(map(repr, PURPOSES))
        raise ValueError(f"Unknown {where}{name!r}; known engines: {known}.")
    if (reason := _why_not(name)) is not None:
        raise EngineNotAvailableError(f"engine {name!r}: {reason}.")
    return name


def default() -> str:
    """What a call gets that names none: the environment's, unchecked, else the best there is.

    Not Triton: no GPU has run its kernels yet.
    """
    return os.environ.get(VARIABLE) or ("torch" if _why_not("numba") else "numba")


def _why_not(name: str) -> str | None:
    """Why an engine cannot be used, and what to do."""
    if name == "numba" and find_spec("numba") is None:
        return "numba is not installed; pip install 'tssl_adapters[fast]'"
    if name == "triton" and find_spec("triton") is None:
        return "triton is not installed; it comes with torch's CUDA builds for Linux"
    if name == "triton" and not torch.cuda.is_available() and not _interpreted():
        return "torch finds no CUDA device; use engine='numba' or 'torch' on the CPU"
    return None


def _interpreted() -> bool:
    """Whether Triton was told to run its kernels on the CPU, which is for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"
