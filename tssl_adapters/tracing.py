"""What torch's tracers see of a layer.

Torch's compiler takes a second to import; nothing here does so before something is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def untraced(function: F) -> F:
    """Break torch.compile's graph at a function: it runs uncompiled; the code around compiles."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if tracing() or watched():
            from tssl_adapters.uncompiled import call_eagerly  # imported where torch.compile is

            return call_eagerly(function, *args, **kwargs)
        return function(*args, **kwargs)

    return run  # type: ignore[return-value]


def among_graphs(forward: F) -> F:
    """For a layer of a compiled model: mark the output's neuron dimensions as static for the graph
    that follows.

    They differ from layer to layer, and layers that share a ``forward`` share its compiled graph,
    which torch would otherwise make for dynamic sizes. Inductor fails on some of those, e.g. on a
    convolution over ``[T * batch, ...]`` on the CPU.
    """

    @wraps(forward)
    def marked(*args: Any, **kwargs: Any) -> Any:
        result = forward(*args, **kwargs)
        out = result[0] if isinstance(result, tuple) else result
        if isinstance(out, Tensor) and hasattr(torch._dynamo, "mark_static"):
            torch._dynamo.mark_static(out, list(range(2, out.ndim)))
        return result

    return marked  # type: ignore[return-value]


def tracing() -> bool:
    """Whether torch.compile or torch.export is tracing."""
    return _compiling() or _exporting()


def compiling() -> bool:
    """Whether torch.compile is tracing."""
    return _compiling() and not _exporting()


def watched() -> bool:
    """Whether torch.compile would compile functions called here."""
    return _callback() is not None


def exporting() -> bool:
    """Whether torch.export is tracing, which sees shapes but no values, and keeps no gradient."""
    return _exporting()


def _old_exporting() -> bool:
    """:func:`exporting` for older versions of torch, which lack ``is_exporting``."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


_callback = torch._C._dynamo.eval_frame.get_eval_frame_callback
_compiling = torch.compiler.is_compiling
_exporting = getattr(torch.compiler, "is_exporting", _old_exporting)
