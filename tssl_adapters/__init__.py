"""TSSL-BP and other gradients for your spiking neural network library.

>>> model = tssl_adapters.wrap(model)        # same forward, another gradient
>>> model = tssl_adapters.unwrap(model)      # and back
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tssl_adapters import adapters, arithmetic, errors, losses, rules
    from tssl_adapters._compare import compare
    from tssl_adapters._engines import engines
    from tssl_adapters._wrap import inspect, is_wrapped, supported, unwrap, wrap
    from tssl_adapters.multi_step import multi_step_forward
    from tssl_adapters.registry import register

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "adapters",
    "arithmetic",
    "compare",
    "engines",
    "errors",
    "inspect",
    "is_wrapped",
    "losses",
    "multi_step_forward",
    "register",
    "rules",
    "supported",
    "unwrap",
    "wrap",
]

_MODULES = ("adapters", "arithmetic", "errors", "losses", "rules")
_HOMES = {
    "compare": "_compare",
    "engines": "_engines",
    "inspect": "_wrap",
    "is_wrapped": "_wrap",
    "multi_step_forward": "multi_step",
    "register": "registry",
    "supported": "_wrap",
    "unwrap": "_wrap",
    "wrap": "_wrap",
}


def __getattr__(name: str) -> Any:
    """Import names on first use: all together they take some tenths of a second."""
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
