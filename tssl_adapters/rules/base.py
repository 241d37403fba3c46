"""What a rule is: how the gradient of one spike is formed, from one neuron at one time step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from tssl_adapters.neuron import Value


@dataclass(frozen=True)
class Step:
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


ChainReset: TypeAlias = "tuple[Tensor | None, Tensor | None]"


class Rule(ABC):
    """A learning rule, local to the neuron. The engine forms every adjoint from these answers.

    ``None`` stands for zero wherever a tensor is returned, and saves the work.
    """

    chain: bool = True
    """Whether anything flows from a time step to the one before it."""

    @abstractmethod
    def slope(self, step: Step) -> Tensor:
        """phi[t] = d spike / d potential, as the rule has it."""

    @abstractmethod
    def chain_reset(self, step: Step, slope: Tensor) -> ChainReset:
        """What the reset adds to the chain: ``(p, q)`` means ``p lambda[t+1] + q F_v lambda[t+1]``,
        with F_v the derivative of the next step's charge with respect to the potential."""

    @abstractmethod
    def membrane_reset(self, step: Step, slope: Tensor) -> Tensor | None:
        """What the reset adds to du/dh on the way of a loss on the membrane potential."""

    def emit(self, step: Step) -> tuple[Tensor, Tensor] | None:
        """``(f, where)``: where ``where`` holds, G[t] f is emitted instead of lambda[t]."""
        return None

    @abstractmethod
    def resets_membrane(self, detached: bool) -> bool:
        """Whether :meth:`membrane_reset` is ever other than zero."""

    @abstractmethod
    def splits_adjoint(self, detached: bool) -> bool:
        """Whether the spike-time chain differs from the ordinary adjoint of the membrane, so that
        it needs a channel of its own from one call of a layer to the one before."""
