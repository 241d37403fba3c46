"""Changes that a user may make to a layer between two steps."""

from __future__ import annotations

from typing import Any

import torch


def beta_written_past_torch(layer: Any) -> None:
    layer.beta.data.fill_(0.4)


def another_beta(layer: Any) -> None:
    layer._buffers["beta"] = torch.tensor(0.4)


def lower_threshold(layer: Any) -> None:
    layer.threshold = torch.tensor(0.3)


def scaled_spikes(layer: Any) -> None:
    layer.graded_spikes_factor = torch.tensor(2.0)


def spaced(kept: torch.Tensor) -> torch.Tensor:
    """What a user's hook may make of a saved tensor: the same values, further apart in memory."""
    return kept.repeat_interleave(2, -1)[..., ::2] if kept.ndim else kept
