"""What a rule is: how the gradient of one spike is formed, from one neuron at one time step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import Field, fields, is_dataclass
from typing import Any, NamedTuple

from torch import Tensor

from tssl_adapters.neuron import Value


class Step(NamedTuple):
    """One time step of a layer, as a rule sees it. Tensors are ``[batch, ...]``.

    Attributes:
        spike: s[t], 0 or 1.
        charged: h[t], the membrane potential before the spike test.
        increment: d[t] = h[t] - u[t-1].
        trace: a[t], the post-synaptic current (the spike itself at ``tau_s == 1``).
        removed: R[t], what a spike takes from the potential.
        threshold: theta.
        tau_s: synaptic time constant in steps, at least 1.
        detached: whether the library cuts the gradient through the reset.
    """

    spike: Tensor
    charged: Tensor
    increment: Tensor
    trace: Tensor
    removed: Value
    threshold: Value
    tau_s: float
    detached: bool


class ChainReset(NamedTuple):
    """``slope * amount * (plain * lambda[t+1] + decayed * F_v lambda[t+1])``."""

    amount: Value
    plain: float
    decayed: float


class Fallback(NamedTuple):
    """Emit ``gradient`` instead of lambda[t] where ``active`` is 0 rather than 1."""

    gradient: Tensor
    active: Tensor


class Rule(ABC):
    """A learning rule, local to the neuron. The engine forms every adjoint from these answers.

    ``None`` stands for zero wherever a tensor is returned, and saves the work.
    """

    chain: bool = True
    """Whether anything flows from a time step to the one before it."""

    def __str__(self) -> str:
        """The rule with those of its options that are not the defaults."""
        options: tuple[Field[Any], ...] = fields(self) if is_dataclass(self) else ()
        said = [
            f"{option.name}={value!r}"
            for option in options
            if (value := getattr(self, option.name)) != option.default
        ]
        return f"{type(self).__name__}({', '.join(said)})"

    @abstractmethod
    def slope(self, step: Step) -> Tensor:
        """phi[t] = d spike / d potential, as the rule has it."""

    @abstractmethod
    def chain_reset(self, step: Step) -> ChainReset | None:
        """What the spike, through the reset it causes, adds to the spike-time chain.

        F_v is the derivative of the next step's charge with respect to the potential.
        """

    @abstractmethod
    def membrane_reset(self, step: Step, slope: Tensor) -> Tensor | None:
        """What the reset adds to du/dh on the way of a loss on the membrane potential."""

    def emit(self, step: Step, grad_spike: Tensor) -> Fallback | None:
        """What to emit instead of lambda[t], and where; ``grad_spike`` is G[t]."""
        return None

    @abstractmethod
    def resets_membrane(self, detached: bool) -> bool:
        """Whether :meth:`membrane_reset` is ever other than zero."""

    @abstractmethod
    def splits_adjoint(self, detached: bool) -> bool:
        """Whether the spike-time chain differs from the ordinary adjoint of the membrane, so that
        it needs a channel of its own from one call of a layer to the one before.
        """
