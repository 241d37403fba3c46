"""How a loop is compiled, and where the result is kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


@cache
def _sources() -> str:
    """What every loop is made of."""
    folder = Path(__file__).parent
    files = [folder / "kernels.py", *sorted(folder.glob("numba_*.py"))]
    return "".join(file.read_text(encoding="utf-8") for file in files)


def compiled(*variant: Any) -> Callable[[F], F]:
    """Compile a loop, and keep the result on disk in a file for this variant and these sources.

    numba numbers the variants of a function within one file, by the file that defines it: two
    processes that compile two of them at a time may each find the other's under its number.
    """

    def compile_(loop: F) -> F:
        name = f"{loop.__module__}.{variant!r}.{_sources()}"
        loop.__name__ = f"loop_{sha256(name.encode()).hexdigest()[:24]}"
        loop.__qualname__ = loop.__name__
        return njit(nogil=True, error_model="numpy", cache=True)(loop)

    return compile_
