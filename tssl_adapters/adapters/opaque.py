"""Layers whose call on a whole sequence may be one operation in torch.compile's graph:
:mod:`tssl_adapters.adapters.operation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4
from weakref import WeakValueDictionary

from torch import Tensor

LAYERS: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""Layers of compiled models, by the names in their settings."""


class Opaque:
    """Mixed into a layer's class whose calls on whole sequences may stay in the graph."""

    def _tssl_is_opaque(self) -> bool:
        """Whether the result of a call follows from its input, its parameters, and attributes that
        are set as attributes of the layer.
        """
        raise NotImplementedError

    def _tssl_replayed(
        self, x: Tensor, start: Sequence[float], learned: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The output over ``x`` ``[T, batch, ...]``, then the states after the last step. The layer
        stays as it is.

        Args:
            x: the input.
            start: the states before the first step.
            learned: tensors to use in place of the parameters.
        """
        raise NotImplementedError

    def _tssl_outlined(
        self, x: Tensor, start: Sequence[float], learned: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The same for tensors that have a shape and a dtype but no values."""
        raise NotImplementedError

    def _tssl_operation(self: Any, x: Tensor, start: list[float]) -> list[Tensor] | None:
        """What :meth:`_tssl_replayed` gives with the layer's own parameters, where torch.compile
        traces; ``None`` if the graph has to break.
        """
        from tssl_adapters.adapters.operation import sequence  # imported where torch.compile is

        name = self._tssl_enlisted()
        # The graph is for this layer until one of its attributes is set. That may be earlier in the
        # graph itself, where only the code that is traced sees it.
        if not name or self._tssl_settings.name != name:
            return None
        learned = [value for value in self._parameters.values() if value is not None]
        found: list[Tensor] = sequence(name, x, start, learned)
        return found

    def _tssl_enlisted(self: Any) -> str:
        """The name by which the operation finds the layer; empty if a call cannot be one."""
        settings = self._tssl_settings
        if settings.rule.follows or not self._tssl_is_opaque() or _has_other_graphs(self):
            return ""
        settings.name = settings.name or uuid4().hex  # no other process's: torch keeps graphs
        LAYERS[settings.name] = self
        name: str = settings.name
        return name


def _has_other_graphs(layer: Any) -> bool:
    """Whether a layer computes with tensors that get gradients and are not its own parameters."""
    own = {id(value) for value in layer._parameters.values()}
    held = [*vars(layer).values(), *layer.buffers(), *layer.parameters()]
    return any(isinstance(t, Tensor) and t.requires_grad and id(t) not in own for t in held)
