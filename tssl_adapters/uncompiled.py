"""A call that torch.compile leaves as it is. Importing this imports torch's compiler."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch.compiler import disable

T = TypeVar("T")

_REASON = (
    "a layer wrapped by tssl_adapters computes its gradient itself and runs as it is, between "
    "compiled graphs; under torch.no_grad() at tau_s=1 it compiles as the library's layer does"
)
_TOLD = {"reason": _REASON} if "reason" in inspect.signature(disable).parameters else {}


@disable(**_TOLD)  # type: ignore[no-untyped-call,untyped-decorator]
def call_eagerly(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function uncompiled, with all that it calls."""
    return function(*args, **kwargs)
