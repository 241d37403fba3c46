"""Rules with the ordinary adjoint over time, and by default the library's reset gradient."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from tssl_adapters.arithmetic import arithmetic
from tssl_adapters.rules.base import ChainReset, Rule, Step


class OrdinaryAdjoint(Rule):
    """A slope replaces the spike's derivative; the rest is backpropagation through time."""

    reset_path: Literal["none", "complete"] | None = None
    """Whether the gradient goes through the reset's spike; ``None`` follows the layer."""

    @arithmetic
    def chain_reset(self, step: Step) -> ChainReset | None:
        if not self.resets_membrane(step.detached):
            return None
        return ChainReset(step.removed, 0.0, -1.0)

    @arithmetic
    def membrane_reset(self, step: Step, slope: Tensor) -> Tensor | None:
        return -(slope * step.removed) if self.resets_membrane(step.detached) else None

    def resets_membrane(self, detached: bool) -> bool:
        return self.reset_path == "complete" or (self.reset_path is None and not detached)

    def splits_adjoint(self, detached: bool) -> bool:
        return False
