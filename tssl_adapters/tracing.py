"""What torch's tracers are to see of a layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.compiler import disable

F = TypeVar("F", bound=Callable[..., Any])

_REASON = (
    "a layer wrapped by tssl_adapters computes its gradient itself and runs as it is, between "
    "compiled graphs; under torch.no_grad() at tau_s=1 it compiles as the library's layer does"
)


def untraced(function: F) -> F:
    """Break torch.compile's graph at a function: what is around it compiles, it runs as it is."""
    told = "reason" in inspect.signature(disable).parameters
    how = {"reason": _REASON} if told else {}
    return disable(function, **how)  # type: ignore[no-any-return, no-untyped-call]


def among_graphs(forward: F) -> F:
    """:func:`untraced`, for a layer of a model that is compiled: what it emits says to the graph
    behind it that the neurons' own dimensions do not change from call to call.

    They do from layer to layer, and layers that share a ``forward`` share its compiled graph, which
    torch would make for all sizes at once. Inductor fails on some of those, on a convolution over
    ``[T * batch, ...]`` on the CPU, say.
    """

    @wraps(forward)
    def marked(*args: Any, **kwargs: Any) -> Any:
        result = forward(*args, **kwargs)
        out = result[0] if isinstance(result, tuple) else result
        if isinstance(out, Tensor) and hasattr(torch._dynamo, "mark_static"):
            torch._dynamo.mark_static(out, list(range(2, out.ndim)))
        return result

    return untraced(marked)  # type: ignore[return-value]


def tracing() -> bool:
    """Whether torch.compile or torch.export is looking."""
    return _compiling() or _exporting()


def compiling() -> bool:
    """Whether torch.compile is looking."""
    return _compiling() and not _exporting()


def watched() -> bool:
    """Whether torch.compile takes up the functions that are called here."""
    return _callback() is not None


def exporting() -> bool:
    """Whether torch.export is at work, which sees shapes and no values, and keeps no gradient."""
    return _exporting()


def _old_exporting() -> bool:
    """Of versions that tell torch.compile from torch.export by where it is asked."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


_callback = torch._C._dynamo.eval_frame.get_eval_frame_callback
_compiling = torch.compiler.is_compiling
_exporting = getattr(torch.compiler, "is_exporting", _old_exporting)
