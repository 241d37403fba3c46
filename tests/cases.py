"""What a layer under test is, and the libraries' surrogate derivatives.

A :class:`Case` makes a layer and runs it over ``[T, batch, neurons]`` the way a user's loop would,
so that one suite serves all three libraries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

BATCH, NEURONS = 3, 5


class Run(NamedTuple):
    """What a run gives: outputs, membrane potentials ``[T, ...]``, other states."""

    out: Tensor
    membrane: Tensor
    others: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Case:
    """A layer with its settings."""

    name: str
    make: Callable[[torch.dtype], nn.Module]
    run: Callable[[nn.Module, Tensor, Tensor | None], Run]
    derivative: Callable[[Tensor], Tensor]
    params: Callable[[nn.Module], list[Tensor]] = field(
        default=lambda layer: list(layer.parameters())
    )
    rest: float = 0.0
    float64: bool = True
    psc: bool = True
    """Whether the layer can be wrapped at ``tau_s > 1``."""

    def __str__(self) -> str:
        return self.name


def atan(x: Tensor) -> Tensor:
    """snnTorch's default surrogate, alpha = 2."""
    return 1.0 / (1.0 + (math.pi * x) ** 2)


def sigmoid(x: Tensor) -> Tensor:
    """SpikingJelly's default surrogate, alpha = 4."""
    s = torch.sigmoid(4.0 * x)
    return (1.0 - s) * s * 4.0
