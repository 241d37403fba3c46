"""The library's own gradient: backpropagation through time with the layer's own surrogate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tssl_adapters.arithmetic import Number, arithmetic
from tssl_adapters.elementwise import ordinary
from tssl_adapters.neuron import Traits
from tssl_adapters.rules.base import Step
from tssl_adapters.rules.ordinary import OrdinaryAdjoint

Function = Callable[[Tensor], Tensor]
"""Makes spikes of h - theta, with a gradient of its own."""


class Surrogate(NamedTuple):
    """The derivative of a layer's spike, as the layer has it.

    Attributes:
        derivative: takes h - theta and the parameters; compiled where it is marked as
            :func:`tssl_adapters.arithmetic.arithmetic`.
        parameters: what the layer's function was made with.
    """

    derivative: Callable[..., Number]
    parameters: tuple[Any, ...] = ()

    def __call__(self, distance: Number) -> Number:
        """d spike / d h, from h - theta."""
        return self.derivative(distance, *self.parameters)

    @property
    def arithmetic(self) -> bool:
        """Whether engines compile it."""
        return getattr(self.derivative, "arithmetic", False)

    @property
    def learned(self) -> list[str]:
        """What its function gives a gradient beside h, by name."""
        (function,) = self.parameters if self.derivative is by_autograd else (None,)
        if not isinstance(function, nn.Module):
            return []
        learning = {name: p for name, p in function.named_parameters() if p.requires_grad}
        if not learning:
            return []
        with torch.enable_grad():
            spikes = function(torch.zeros(1, requires_grad=True))
            found = torch.autograd.grad(spikes.sum(), [*learning.values()], allow_unused=True)
        return [name for name, grad in zip(learning, found, strict=True) if grad is not None]


@dataclass(frozen=True)
class Native(OrdinaryAdjoint):
    """The library's own gradient, computed by this package's engines.

    The derivative of a spike is that of the surrogate that the layer has, with its parameters as
    they are at the call; the adjoint goes over time as the library's does, and through the reset
    where the library lets it. A surrogate of the libraries' own is compiled; any other, and those
    that draw random numbers, are asked for their derivative by autograd, in torch.

    At ``tau_s > 1`` nothing is native: it is the surrogate's gradient of the neuron that emits its
    post-synaptic current.

    Args:
        checkpoint: as for :class:`tssl_adapters.rules.TSSLBP`.
        surrogate: that of the layer, which ``wrap`` fills in.

    Raises:
        TypeError: ``checkpoint`` is not a number.
        ValueError: ``checkpoint`` below 1.
    """

    checkpoint: int | None = None
    surrogate: Surrogate | None = field(default=None, repr=False)

    follows = True
    takes_several = True

    def __post_init__(self) -> None:
        self._check_checkpoint()

    def following(self, surrogate: Surrogate | None) -> Native:
        """The same rule for a layer's surrogate, or for none yet."""
        return replace(self, surrogate=surrogate)

    @property
    def compiled(self) -> bool:
        """Where the layer's surrogate is one of the libraries' own."""
        return self.surrogate is not None and self.surrogate.arithmetic and super().compiled

    def problem(self, traits: Traits, tau_s: float) -> str | None:
        learned = [] if self.surrogate is None else self.surrogate.learned
        if not learned:
            return None
        return (
            f"its surrogate learns ({', '.join(learned)}), and natively has a gradient for that, "
            "which rules.Native() does not compute; have it not learn (requires_grad_(False)), or "
            "skip this layer"
        )

    @arithmetic
    def slope(self, step: Step) -> Tensor:
        if self.surrogate is None:
            raise RuntimeError("Native has no surrogate: tssl_adapters.wrap gives it the layer's.")
        slope: Tensor = self.surrogate(step.charged - step.threshold)
        return slope


def by_autograd(distance: Tensor, function: Function) -> Tensor:
    """The derivative that a function of one neuron's h - theta has, as autograd finds it."""

    def keep(tensor: Tensor) -> Tensor:
        return tensor

    # Hooks of the user's, a checkpoint's say, are for what a step keeps, and this is not kept.
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, keep):
        leaf = distance.detach().requires_grad_()
        spikes = function(leaf)
        if not spikes.requires_grad:
            return torch.zeros_like(leaf)
        (slope,) = torch.autograd.grad(spikes.sum(), leaf, allow_unused=True)
    return torch.zeros_like(leaf) if slope is None else slope


_TRIED = (-7.0, -2.3, -1.0, -0.6, -0.11, -1e-3, 0.0, 1e-3, 0.13, 0.7, 1.0, 1.9, 6.0)
"""Where a formula is held against the library's function."""


def surrogate_of(function: Function, formulas: Iterable[Surrogate]) -> Surrogate:
    """The one of these formulas that a library's function has for its derivative, whatever its
    version; else what autograd finds.
    """
    with torch.random.fork_rng(devices=[]), ordinary():
        for formula in formulas:
            if _holds(formula, function):
                return formula
    return Surrogate(by_autograd, (function,))


def _holds(formula: Surrogate, function: Function) -> bool:
    tried = torch.tensor(_TRIED, dtype=torch.float64)
    try:
        ours, theirs = formula(tried), by_autograd(tried, function)
        spikes = function(tried)
    except Exception:  # of the library's, which then meets the user natively
        return False
    # Of spikes that are float32 the gradient is as precise as that.
    rounding = max(16.0 * torch.finfo(spikes.dtype).eps, 1e-12)
    return torch.allclose(ours, theirs.double(), rounding, rounding, equal_nan=True)
