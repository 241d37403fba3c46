"""What every wrapped layer of Norse has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tssl_adapters.adapters import Surrogate, Wrapped
from tssl_adapters.adapters.norse import surrogates
from tssl_adapters.adapters.norse.values import emitting, spikes


class Shared(Wrapped):
    """The library's step, its output and its surrogate. Mixed in before the library's class."""

    @classmethod
    def _tssl_spikes(cls, layer: Any) -> Callable[[Tensor], Tensor]:
        return spikes(layer)

    def _tssl_parts(self: Any) -> tuple[Any, ...]:
        return self.activation, getattr(self.p, "method", None)

    def _tssl_emitted(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return emitting(self, x, state)

    @classmethod
    def _tssl_own(cls, layer: Any) -> tuple[Any, ...]:
        return surrogates.own(layer)

    @classmethod
    def _tssl_surrogate(cls, layer: Any) -> Surrogate:
        return surrogates.surrogate(layer)
