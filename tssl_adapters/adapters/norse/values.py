"""What the layers' parameters say, whatever form they have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from norse.torch.functional.threshold import threshold
from torch import Tensor

from tssl_adapters.neuron import Value


def number(value: Value) -> Value:
    """A scalar at hand that does not learn as a plain number, which torch handles faster."""
    if not isinstance(value, Tensor) or value.ndim or value.requires_grad or value.is_cuda:
        return value
    return float(value)


def resting(p: Any) -> tuple[Value, ...]:
    """Potentials at which a neuron rests: a state that is at one everywhere is a new start."""
    named = (getattr(p, name, None) for name in ("v_reset", "v_leak", "c"))
    return (0.0, *(value for value in named if value is not None))


def spikes(layer: Any) -> Callable[[Tensor], Tensor]:
    """A layer's spike of v - v_th, with the library's gradient."""
    p = layer.p
    for nested in ("lif", "lif_adex"):
        p = getattr(p, nested, p)
    return lambda distance: threshold(distance, p.method, p.alpha)
