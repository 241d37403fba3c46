"""The interface of a rule: how the gradient of one neuron's spike at one time step is formed."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from tssl_adapters.arithmetic import Number, arithmetic
from tssl_adapters.neuron import Traits, Value


class Feedback(NamedTuple):
    """How a recurrent layer's spikes feed back to it.

    Attributes:
        weight: R, ``[N, N]``, from the second index to the first.
        arriving: what each spike train would add to a potential through a weight of 1,
            ``[T, batch, N]``.
        gain: the factor of that in the potential.
    """

    weight: Tensor
    arriving: Tensor
    gain: Value


class Window(NamedTuple):
    """The time steps that belong together: one call's, and those of the calls linked to it.

    Attributes:
        counts: o, how often each neuron fired in it, ``[batch, ...]``.
        active: 1 where a neuron fired, else 0, of the same shape.
        steps: T, its number of time steps.
        decay: the decay of the potential per step.
        drop: what a spike takes from a potential that is at the threshold.
        feedback: of a recurrent layer, if its whole sequence is available.
        factor: the rule's :meth:`Rule.factor` of the window.
    """

    counts: Tensor
    active: Tensor
    steps: int
    decay: Value
    drop: Value
    feedback: Feedback | None = None
    factor: Tensor | None = None


class Step(NamedTuple):
    """One time step of a layer as a rule sees it. Tensors are ``[batch, ...]``.

    Attributes:
        spike: s[t], 0 or 1.
        charged: h[t], the membrane potential before the spike test.
        increment: d[t] = h[t] - u[t-1].
        active: 1 where the post-synaptic current a[t] is at least :meth:`Rule.active_from`, else
            0; ``None`` if the rule has none, and at ``tau_s == 1``, where a[t] is the spike.
        removed: R[t], what a spike takes from the potential.
        threshold: theta.
        tau_s: synaptic time constant in steps, at least 1.
        detached: whether the library cuts the gradient through the reset.
        drop: what a spike takes from a potential that is at the threshold.
        fired: 1 where the neuron fires in the step's window, else 0, for ``windowed`` rules.
        last: 1 in the window's last step, else 0; ``None`` is 0.
        decay: F_v, the decay of the potential per step.
        steps: the window's number of steps, for rules that ask for it (``timed``); infinite if it
            is unknown because the layer's first state already had a graph.
        later: G[t+1], for rules that look ahead without a window; G[t] itself if there is no later
            step's.
        around: the mean of the gradients of a loss on the potential just before and just after
            the step's reset, for rules that look around; ``None`` if there is none or it is
            unknown.
    """

    spike: Tensor
    charged: Tensor
    increment: Tensor
    active: Tensor | None
    removed: Value
    threshold: Value
    tau_s: float
    detached: bool
    drop: Value = 1.0
    fired: Tensor | None = None
    last: Number | None = None
    decay: Value = 1.0
    steps: float = math.inf
    later: Tensor | None = None
    around: Tensor | None = None


class ChainReset(NamedTuple):
    """``slope * amount * (plain * lambda[t+1] + decayed * F_v lambda[t+1])``."""

    amount: Value
    plain: float
    decayed: float


class Fallback(NamedTuple):
    """Emit ``gradient`` instead of lambda[t] where ``active`` is 0 rather than 1."""

    gradient: Tensor
    active: Tensor


def without_addresses(text: str) -> str:
    """A ``repr`` without memory addresses, the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


_SPLITTING = ("chain_reset", "membrane_reset", "emit")
"""Answers by which the chain may come to differ from the membrane's ordinary adjoint."""


def _known(rule: Rule) -> bool:
    """Whether a rule that equals another one surely answers the same, now and later."""
    parameters = getattr(rule, "__dataclass_params__", None)
    if parameters is None or not (parameters.frozen and parameters.eq):
        return False
    compared = {field.name for field in fields(rule) if field.compare}  # type: ignore[arg-type]
    return {field.name for field in fields(rule)} | set(vars(rule)) <= compared  # type: ignore[arg-type]


class Rule(ABC):
    """A learning rule, local to the neuron. The engine forms every adjoint from these answers.

    ``None`` stands for zero wherever a tensor is returned, and saves the computation.
    """

    chain: bool = True
    """Whether anything flows from a time step to the one before it."""

    checkpoint: int | None = None
    """How many steps of a sequence the backward pass recomputes at a time; ``None`` for all."""

    spike_chain: bool = True
    """Whether lambda flows over time; gradients of potential losses and currents do anyway."""

    windowed: bool = False
    """Whether the rule has a :meth:`cotangent`, or asks for ``Step.fired`` and ``Step.last``."""

    looks_ahead: bool = False
    """Whether the rule wants G of the next step: in :meth:`cotangent` if it is ``windowed``, else
    as ``Step.later``.
    """

    looks_around: bool = False
    """Whether the rule wants ``Step.around``, known only if the whole sequence is one call."""

    whole: bool = False
    """Whether :meth:`cotangent` needs a whole window in one call."""

    ends_at_spikes: bool = False
    """Whether lambda ends at a spike, whatever the reset leaves of the potential."""

    continuous: bool = False
    """Whether the potential after a spike moves with the one before, as in continuous time, where
    the reset moves along: lambda and mu pass a spike undiminished, and what passes is the
    threshold's gradient.
    """

    cuts_feedback: bool = False
    """Whether the gradient through a layer's own recurrent weights is cut."""

    solves_feedback: bool = False
    """Whether :meth:`cotangent` wants :class:`Feedback`, if the whole sequence is available."""

    counts_reset: bool = False
    """Whether :meth:`crossing` covers all effects of the threshold, including the reset's."""

    timed: bool = False
    """Whether the engine counts steps: the rule wants ``Step.steps``, or looks ahead without a
    window, so that the engine can warn of a loss that does not depend on times.
    """

    takes_several: bool = False
    """Whether a neuron may emit several spikes per step: of a step's values, only h - theta is then
    still valid.
    """

    follows: bool = False
    """Whether each layer gets its own rule for its surrogate, by :meth:`following`."""

    @property
    def compiled(self) -> bool:
        """Whether engines compile the rule: all of its methods for a step must be marked as
        :func:`tssl_adapters.arithmetic.arithmetic`, and it must be a frozen dataclass that holds
        nothing but fields to compare, as equal rules share what is compiled. Otherwise torch
        computes it.
        """
        answers = (
            *(self.slope, self.signal, self.emit, self.crossing),
            *(self.chain_reset, self.membrane_reset),
        )
        return all(getattr(answer, "arithmetic", False) for answer in answers) and _known(self)

    @property
    def takes_later(self) -> bool:
        """Whether the rule asks for ``Step.later``."""
        return self.looks_ahead and not self.windowed

    def following(self, surrogate: Any) -> Rule:
        """The rule for a layer with this ``rules.native.Surrogate``, if it ``follows`` it."""
        return self

    def _check_checkpoint(self) -> None:
        """Raise if ``checkpoint`` is not a valid number of steps."""
        every, name = self.checkpoint, type(self).__name__
        if every is None:
            return
        if not isinstance(every, int) or isinstance(every, bool):
            raise TypeError(f"{name}: checkpoint must be None or a number of steps, not {every!r}.")
        if every < 1:
            raise ValueError(f"{name}: checkpoint must be 1 step or more, not {every!r}.")

    def __str__(self) -> str:
        """The rule with its options that differ from the defaults; functions by name."""
        options: tuple[Field[Any], ...] = fields(self) if is_dataclass(self) else ()
        said = [
            f"{option.name}={value!r}"
            for option in options
            if option.repr and (value := getattr(self, option.name)) != option.default
        ]
        return without_addresses(f"{type(self).__name__}({', '.join(said)})")

    @abstractmethod
    def slope(self, step: Step) -> Tensor:
        """phi[t] = d spike / d potential, as the rule defines it."""

    @arithmetic
    def chain_reset(self, step: Step) -> ChainReset | None:
        """What the spike adds to the spike-time chain through its reset.

        F_v is the derivative of the next step's charge with respect to the potential.
        """
        return None

    @arithmetic
    def membrane_reset(self, step: Step, slope: Tensor) -> Tensor | None:
        """What the reset adds to du/dh in the adjoint of a loss on the membrane potential."""
        return None

    def active_from(self, tau_s: float) -> float | None:
        """The post-synaptic current from which on a neuron counts as active, at ``tau_s > 1``.

        ``Step.active`` is all that a rule learns about a[t], so that a single step need keep only
        one bit per neuron of it. ``None``: the rule does not ask.
        """
        return None

    @arithmetic
    def signal(self, step: Step, grad_spike: Tensor) -> Tensor:
        """The replacement for G[t], which is ``grad_spike``, in all other methods."""
        return grad_spike

    @arithmetic
    def emit(self, step: Step, grad_spike: Tensor) -> Fallback | None:
        """What to emit instead of lambda[t], and where; ``grad_spike`` is :meth:`signal`."""
        return None

    def factor(self, window: Window) -> Tensor | None:
        """What :meth:`cotangent` needs of a window, ``[batch, ...]``, computed once per window."""
        return None

    def cotangent(
        self,
        grads: Sequence[Tensor],
        spikes: Sequence[Tensor],
        window: Window,
        later: Tensor | None,
    ) -> Sequence[Tensor]:
        """The replacement for G[t] in all other methods, for ``windowed`` rules. In every engine it
        is computed by torch, on all steps of a call.

        Args:
            grads: G of each time step, ``[batch, ...]``; one step in a step-by-step call.
            spikes: s of each of these steps.
            window: the window of these steps; it may be longer.
            later: G of the step after them, if the rule ``looks_ahead`` and there is one.

        Returns:
            As many tensors.
        """
        return grads

    @arithmetic
    def crossing(self, step: Step, firing: Tensor) -> Tensor:
        """The part of ``firing``, the gradient of the potential through the spike, that also
        reaches the threshold.
        """
        return firing

    def problem(self, traits: Traits, tau_s: float) -> str | None:
        """Why this rule does not work for a layer, and what to do; ``None`` if it does."""
        return None

    def remarks(
        self, modules: Mapping[str, nn.Module], taken: Mapping[str, Traits], tau_s: float
    ) -> list[str]:
        """What in a model would break this rule without an error.

        Args:
            modules: the model's modules by dotted name.
            taken: the layers that get this rule, by dotted name.
            tau_s: synaptic time constant of these layers.
        """
        return []

    def doubt(self, grad_spike: Tensor) -> str | None:
        """What is wrong with the loss, given a layer's first G of one step, ``[batch, ...]``."""
        return None

    def resets_membrane(self, detached: bool) -> bool:
        """Whether :meth:`membrane_reset` is ever non-zero."""
        return type(self).membrane_reset is not Rule.membrane_reset

    def splits_adjoint(self, detached: bool) -> bool:
        """Whether the spike-time chain differs from the membrane's ordinary adjoint, so that it
        needs a channel of its own from one call of a layer back to the previous one. Where it does
        not, False saves that channel.
        """
        own = (getattr(type(self), name) is not getattr(Rule, name) for name in _SPLITTING)
        return self.ends_at_spikes or self.continuous or any(own)
