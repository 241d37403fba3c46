"""What torch's tracers are to see of a layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING or hasattr(torch, "compiler"):
    from torch.compiler import disable
else:
    from torch._dynamo import disable  # torch 2.0

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


def exporting() -> bool:
    """Whether torch.export is at work, which sees shapes and no values, and keeps no gradient."""
    return _exporting()


def _old_exporting() -> bool:
    """Of versions that tell torch.compile from torch.export by where it is asked."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


_compiler = getattr(torch, "compiler", None)
if hasattr(_compiler, "is_exporting"):
    _exporting = torch.compiler.is_exporting
elif hasattr(_compiler, "is_dynamo_compiling"):
    _exporting = _old_exporting
else:

    def _exporting() -> bool:
        return False
