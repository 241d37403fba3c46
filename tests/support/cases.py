"""The libraries' surrogate derivatives, and the layers under test of the shared suite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tssl_adapters.testing import BATCH, NEURONS, Case, Run

__all__ = ["BATCH", "NEURONS", "Case", "Run", "atan", "sigmoid"]


def atan(x: Tensor) -> Tensor:
    """snnTorch's default surrogate, alpha = 2."""
    return 1.0 / (1.0 + (math.pi * x) ** 2)


def sigmoid(x: Tensor) -> Tensor:
    """SpikingJelly's default surrogate, alpha = 4."""
    s = torch.sigmoid(4.0 * x)
    return (1.0 - s) * s * 4.0
