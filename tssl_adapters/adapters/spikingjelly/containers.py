"""The recurrent containers, for rules that cut the feedback.

A container feeds its module's output back to its input a step later. The layer inside sees the
sum and cannot tell input from feedback, so the container has to cut the feedback.
"""

from __future__ import annotations

from typing import Any

from spikingjelly.activation_based import layer
from torch import Tensor

from tssl_adapters.adapters import (
    Kind,
    ToValue,
    Traits,
    Wrapped,
    wrapped_classes,
)


class _Container(Wrapped):
    """Mixed in before the library's class."""

    @classmethod
    def _tssl_traits(cls, layer: Any) -> Traits:
        return Traits(nonlinear=None, reset=ToValue(), recurrent=True)

    def single_step_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(self.y, Tensor):
            self.y = self.y.detach()
        return self._tssl_native.single_step_forward(self, x, *args, **kwargs)  # type: ignore[no-any-return]

    def single_step_functional_forward(
        self: Any, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> Any:
        """What newer versions call, for sequences too."""
        cut = tuple(s.detach() if isinstance(s, Tensor) else s for s in states)
        return self._tssl_native.single_step_functional_forward(self, inputs, cut, **kwargs)


_CONTAINERS = wrapped_classes(
    __name__,
    layer,
    dict.fromkeys(("LinearRecurrentContainer", "ElementWiseRecurrentContainer"), _Container),
)

LOOPS = {native: Kind(cls) for native, cls in _CONTAINERS.items()}
