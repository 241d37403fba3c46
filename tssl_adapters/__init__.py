"""TSSL-BP and other gradients for the spiking neural network library that you have.

>>> model = tssl_adapters.wrap(model)        # same forward, another gradient
>>> model = tssl_adapters.unwrap(model)      # and back
"""

from tssl_adapters import errors, losses, rules
from tssl_adapters._compare import compare
from tssl_adapters._engines import engines
from tssl_adapters._wrap import inspect, is_wrapped, supported, unwrap, wrap
from tssl_adapters.multi_step import multi_step_forward
from tssl_adapters.registry import register

__version__ = "0.1.0"

__all__ = [
    "__version__",
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
