"""Surrogate gradients: the spike's derivative replaced by a smooth function of the potential."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tssl_adapters.arithmetic import arithmetic
from tssl_adapters.rules.base import Step
from tssl_adapters.rules.ordinary import OrdinaryAdjoint


@dataclass(frozen=True)
class SurrogateGradient(OrdinaryAdjoint):
    """Backpropagation through time with a surrogate derivative of the spike.

    With the library's own formula as ``derivative`` this is the library's native gradient: STBP
    (Wu et al., 2018) if the reset is detached, full backpropagation through time if it is not.
    ``chain=False`` is SLTT (Meng et al., 2023): no gradient over time.

    Args:
        derivative: maps h - theta, ``[batch, ...]``, to d spike / d h of the same shape.
        reset_path: ``None`` follows the layer (detached or not), ``"none"`` cuts the gradient
            through the reset's spike, ``"complete"`` keeps it.
        chain: whether the gradient flows from a time step to the one before it.
        checkpoint: as for :class:`tssl_adapters.rules.TSSLBP`.

    Raises:
        TypeError: ``derivative`` is not callable or does not return a tensor, or ``checkpoint`` is
            not a number.
        ValueError: ``derivative`` returns spikes instead, an unknown ``reset_path``, or
            ``checkpoint`` below 1; in the backward pass, ``derivative`` changed the shape.
    """

    derivative: Callable[[Tensor], Tensor]
    reset_path: Literal["none", "complete"] | None = None
    chain: bool = True
    checkpoint: int | None = None

    takes_several = True

    def __post_init__(self) -> None:
        self._check_checkpoint()
        if not callable(self.derivative):
            raise TypeError(
                "SurrogateGradient: derivative must be a function of h - theta, "
                f"not {self.derivative!r}."
            )
        around = torch.tensor([-2.0, -1.0, -0.1, 0.1, 1.0, 2.0])
        slope = self.derivative(around)
        if not isinstance(slope, Tensor):
            raise TypeError(
                f"SurrogateGradient: derivative gave {slope!r}; it takes h - theta and gives "
                "d spike / d h, a tensor of the same shape."
            )
        if torch.equal(slope.detach(), around.gt(0).to(around.dtype)):
            raise ValueError(
                f"SurrogateGradient: {self.derivative!r} makes spikes; pass the derivative that it "
                "stands for, a function of h - theta."
            )
        if self.reset_path not in (None, "none", "complete"):
            raise ValueError(
                "SurrogateGradient: reset_path must be None, 'none' or 'complete', "
                f"not {self.reset_path!r}."
            )

    @property
    def compiled(self) -> bool:
        """Whether ``derivative`` is marked as :func:`tssl_adapters.arithmetic.arithmetic`."""
        return getattr(self.derivative, "arithmetic", False) and super().compiled

    @arithmetic
    def slope(self, step: Step) -> Tensor:
        slope = self.derivative(step.charged - step.threshold)
        if isinstance(slope, Tensor) and slope.shape != step.charged.shape:
            raise ValueError(
                f"SurrogateGradient: derivative gave {tuple(slope.shape)} for "
                f"{tuple(step.charged.shape)}; it has to keep the shape."
            )
        return slope
