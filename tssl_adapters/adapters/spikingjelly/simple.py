"""``SimpleBaseNode`` and the user's subclasses, whose charge is their ``neuronal_charge``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor

from tssl_adapters.adapters import (
    Traits,
    Value,
)
from tssl_adapters.adapters.spikingjelly.node import Ran
from tssl_adapters.adapters.spikingjelly.smooth import Recorder, SmoothNode, States, shadow

STEP = ("neuronal_fire", "neuronal_reset", "single_step_forward", "multi_step_forward", "forward")
"""Methods that a class must not override: only ``neuronal_charge`` may differ."""


def _charges_as_the_library(node: Any) -> bool:
    return bool(type(node).neuronal_charge.__module__.startswith("spikingjelly."))


class SimpleNode(SmoothNode):
    """For any class that fires and resets as ``SimpleBaseNode`` does, whatever its charge."""

    @classmethod
    def _tssl_traits(cls, layer: Any) -> Traits:
        traits = super()._tssl_traits(layer)
        if not _charges_as_the_library(layer):
            return replace(traits, nonlinear="its neuronal_charge is a function of your own")
        return replace(traits, decay=cls._tssl_decay(layer))

    @classmethod
    def _tssl_decay(cls, node: Any) -> Value:
        """What multiplies the potential in the library's own charge."""
        return 1.0

    @classmethod
    def _tssl_written(cls, layer: Any) -> bool:
        return _charges_as_the_library(layer)  # the user's may do anything

    def _tssl_step(self: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        kept = self.__dict__["_memories"]
        self.__dict__["_memories"] = dict(zip(kept, states, strict=False))
        try:
            spike = self.single_step_forward(x)
            return spike, tuple(self._memories.values())
        finally:
            self.__dict__["_memories"] = kept

    def _tssl_charged(self: Any, x: Tensor, v: Tensor, others: list[Any]) -> Tensor:
        twin = shadow(self, Recorder())
        twin.__dict__["_memories"].update(zip(self._memories, (v, *others), strict=False))
        twin.neuronal_charge(x)
        charged: Tensor = twin.v
        return charged

    def _tssl_materialized(self: Any, x: Tensor, states: States) -> States:
        v, *others = states
        if isinstance(v, Tensor):
            return states
        recorder = Recorder()
        first = x[0] if self.step_mode == "m" else x
        with torch.no_grad():
            shadow(self, recorder)._tssl_step(first, states)
        return (torch.full_like(recorder.distance, v), *others)

    def _tssl_native_functional(
        self: Any, inputs: tuple[Tensor, ...], states: States, **kwargs: Any
    ) -> Any:
        native = partial(self._tssl_native.forward, self)
        return base.to_functional_forward(self, native)(inputs, states, **kwargs)

    def _tssl_keeps(self) -> bool:
        return False

    def _tssl_store(self, ran: Ran) -> None:
        """These nodes keep no sequence of states."""


class SimpleLIF(SimpleNode):
    """With the charge of ``SimpleLIFNode``, unless the user's class has its own."""

    @classmethod
    def _tssl_decay(cls, node: Any) -> Value:
        return 1.0 - 1.0 / float(node.tau)
