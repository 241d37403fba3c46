"""What can compute a gradient, and which one ``wrap`` is to use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec

from tssl_adapters.errors import EngineNotAvailableError
from tssl_adapters.report import Report

VARIABLE = "TSSL_ADAPTERS_ENGINE"
NEEDS: dict[str, str | None] = {"torch": None, "numba": "numba"}
"""Every engine, and the package that it needs beside torch."""


@dataclass(frozen=True)
class EngineReport:
    """One engine.

    Attributes:
        name: what ``wrap(model, engine=...)`` takes.
        available: whether it can be used.
        detail: what it is for, or what to install.
    """

    name: str
    available: bool
    detail: str

    def cells(self) -> tuple[str, ...]:
        return self.name, "yes" if self.available else "no", self.detail


def engines() -> Report[EngineReport]:
    """The engines, and why one is not available."""
    rows = [EngineReport(name, _missing(name) is None, _detail(name)) for name in NEEDS]
    return Report(("engine", "available", "for"), rows, "")


def checked(engine: str | None) -> str:
    """The engine that is asked for, by argument or by environment.

    Raises:
        ValueError: an unknown one.
        EngineNotAvailableError: what it needs is not installed.
    """
    name = os.environ.get(VARIABLE) or "torch" if engine is None else engine
    if name not in NEEDS:
        where = f"{VARIABLE}=" if engine is None else "engine="
        known = ", ".join(map(repr, NEEDS))
        raise ValueError(f"Unknown {where}{name!r}; known engines: {known}.")
    if _missing(name) is not None:
        raise EngineNotAvailableError(f"engine {name!r}: {_detail(name)}.")
    return name


def _missing(name: str) -> str | None:
    package = NEEDS[name]
    return package if package is not None and find_spec(package) is None else None


def _detail(name: str) -> str:
    missing = _missing(name)
    if missing is not None:
        return f"{missing} is not installed; pip install 'tssl_adapters[fast]'"
    if name == "torch":
        return "every layer, rule, dtype and device"
    return "linear neurons under TSSLBP, float32 and float64 on the CPU; all else by torch"
