"""Reading the layers' parameters, whatever form they have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from norse.torch.functional.threshold import threshold
from norse.torch.module.snn import SNN, SNNRecurrent
from torch import Tensor

from tssl_adapters.adapters import Value, emitted


def number(value: Value) -> Value:
    """A scalar on the CPU that does not learn, as a plain number, which torch handles faster."""
    if not isinstance(value, Tensor) or value.ndim or value.requires_grad:
        return value
    if not value.is_cpu:  # reading it would wait, and a meta tensor has no value
        return value
    return float(value)


def resting(p: Any) -> tuple[Value, ...]:
    """A neuron's resting potentials; a state at one of them everywhere counts as a new start."""
    named = (getattr(p, name, None) for name in ("v_reset", "v_leak", "c"))
    return (0.0, *(value for value in named if value is not None))


def pinned(p: Any) -> tuple[Tensor, ...]:
    """The tensors that hold a step's numbers, those of nested parameters too."""
    found: list[Tensor] = []
    for value in p:
        if isinstance(value, tuple):
            found += pinned(value)
        elif isinstance(value, Tensor):
            found.append(value)
    return tuple(found)


def spiking(p: Any) -> Any:
    """The parameters of the neuron that spikes, which may be nested in others."""
    for nested in ("lif", "lif_adex"):
        p = getattr(p, nested, p)
    return p


def spikes(layer: Any) -> Callable[[Tensor], Tensor]:
    """A layer's spikes as a function of v - v_th, with the library's gradient."""
    p = spiking(layer.p)
    return lambda distance: threshold(distance, p.method, p.alpha)


def emitting(layer: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """The PSC of the library's spikes, and its state."""
    spikes, after = layer._tssl_native.forward(layer, x, state)
    before = None if state is None else potential(state)
    sequence = isinstance(layer, SNN | SNNRecurrent)
    settings = layer._tssl_settings
    rest = resting(layer.p)
    return emitted(settings, spikes, before, potential(after), rest, sequence=sequence), after


def potential(state: Any) -> Tensor:
    """The membrane potential of a state, which may be in a state nested in it."""
    for nested in ("lif", "lif_adex"):
        state = getattr(state, nested, state)
    v: Tensor = state.v
    return v
