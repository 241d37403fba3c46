"""The library's own gradient: backpropagation through time with the layer's own surrogate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tssl_adapters.arithmetic import Number, arithmetic
from tssl_adapters.elementwise import derived, ordinary
from tssl_adapters.neuron import Traits
from tssl_adapters.rules.base import Step
from tssl_adapters.rules.ordinary import OrdinaryAdjoint

Function = Callable[[Tensor], Tensor]
"""Maps h - theta to spikes, with a gradient of its own."""


class Surrogate(NamedTuple):
    """A layer's own surrogate: the derivative of its spike.

    Attributes:
        derivative: takes h - theta and the parameters; compiled if it is marked as
            :func:`tssl_adapters.arithmetic.arithmetic`.
        parameters: those that the layer's function was made with.
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
        """The names of its function's parameters that natively get a gradient."""
        (function,) = self.parameters if self.derivative is by_autograd else (None,)
        if not isinstance(function, nn.Module):
            return []
        learning = {name: p for name, p in function.named_parameters() if p.requires_grad}
        if not learning:
            return []
        with torch.enable_grad():
            somewhere = next(iter(learning.values())).device
            spikes = function(torch.zeros(1, requires_grad=True, device=somewhere))
            found = torch.autograd.grad(spikes.sum(), [*learning.values()], allow_unused=True)
        return [name for name, grad in zip(learning, found, strict=True) if grad is not None]


@dataclass(frozen=True)
class Native(OrdinaryAdjoint):
    """The library's own gradient, computed by this package's engines.

    The spike's derivative is that of the layer's own surrogate, with its parameters at the time of
    the call; the adjoint goes back over time as in the library, and through the reset if the
    library lets it. The libraries' own surrogates are compiled; any others, and those that draw
    random numbers, are differentiated by autograd, in torch.

    At ``tau_s > 1`` there is no native gradient: it is the surrogate gradient of the neuron that
    emits its post-synaptic current.

    Args:
        checkpoint: as for :class:`tssl_adapters.rules.TSSLBP`.
        surrogate: the layer's, filled in by ``wrap``.

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
        """Whether the layer's surrogate is one of the libraries' own."""
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
    """The derivative, by autograd, of an elementwise function of h - theta."""
    with derived():
        leaf = distance.detach().requires_grad_()
        spikes = function(leaf)
        if not spikes.requires_grad:
            return torch.zeros_like(leaf)
        (slope,) = torch.autograd.grad(spikes.sum(), leaf, allow_unused=True)
    return torch.zeros_like(leaf) if slope is None else slope


_TRIED = (-7.0, -2.3, -1.0, -0.6, -0.11, -1e-3, 0.0, 1e-3, 0.13, 0.7, 1.0, 1.9, 6.0)
"""Where a formula is compared with the library's function."""


def surrogate_of(function: Function, formulas: Iterable[Surrogate]) -> Surrogate:
    """The formula that matches the derivative of a library's function, whatever its version;
    otherwise autograd's derivative.
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
    except Exception:  # the library's own, which the user will see natively
        return False
    # With float32 spikes the gradient is only that precise.
    rounding = max(16.0 * torch.finfo(spikes.dtype).eps, 1e-12)
    return torch.allclose(ours, theirs.double(), rounding, rounding, equal_nan=True)
