"""What rules that look at more than one time step are told about the others.

A window is a call and the calls linked to it. In a user's time loop its end is known only when the
backward pass begins, so all its calls share one :class:`Stretch`, which is attached to the state
tensor with the link and read in the backward pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tssl_adapters.engine.call.state import Settings, above_us, position_of
from tssl_adapters.errors import RuleWarning
from tssl_adapters.neuron import Neuron
from tssl_adapters.rules import Rule, Window


@dataclass(eq=False)
class Stretch:
    """A window up to where the forward pass has come: its steps, and each neuron's spikes.

    ``told``: whether a non-zero gradient has arrived; ``known``: the window made from the counts.
    """

    settings: Settings
    steps: int = 0
    told: bool = False
    counts: Tensor | None = None
    known: tuple[Tensor, Window] | None = None


class Position(NamedTuple):
    """A state's position in its window: the steps and spikes before it.

    It is immutable, so that a recomputed step, e.g. under checkpointing, counts once.
    """

    stretch: Stretch
    steps: int = 0
    counts: Tensor | None = None

    def after(self, more: int, spikes: Tensor | None) -> Position:
        """The position after a call of ``more`` steps with ``spikes`` ``[T, batch, ...]``, which
        are counted for rules that ask for windows.
        """
        counts = self.counts
        if spikes is not None:
            spikes = spikes.detach()
            found = spikes.sum(0, dtype=torch.promote_types(spikes.dtype, torch.float32))
            counts = found if counts is None else counts + found
        steps = self.steps + more
        if steps >= self.stretch.steps:
            self.stretch.steps, self.stretch.counts = steps, counts
        return Position(self.stretch, steps, counts)

    def sending(self, fired: Tensor, sent: Tensor) -> Position:
        """The position after a one-step call whose layer emitted ``sent`` instead of ``fired``."""
        if self.counts is None:
            return self
        counts = self.counts + (sent.detach() - fired.detach())
        if self.steps >= self.stretch.steps:
            self.stretch.counts = counts
        return self._replace(counts=counts)

    def window(self, rule: Rule, neuron: Neuron, dtype: torch.dtype) -> Window:
        """The window of a call that starts here, made once for all of its calls."""
        stretch = self.stretch
        known = stretch.known
        if known is None or known[0] is not stretch.counts or known[1].counts.dtype != dtype:
            assert stretch.counts is not None
            known = stretch.counts, _made(rule, stretch.counts.to(dtype), stretch.steps, neuron)
            stretch.known = known
        return known[1]


def _made(rule: Rule, counts: Tensor, steps: int, neuron: Neuron) -> Window:
    active = counts.clamp(max=1.0)
    window = Window(counts, active, steps, neuron.charge.decay, neuron.reset.drop(neuron.threshold))
    return window._replace(factor=rule.factor(window))


def time_of(settings: Settings, state: Tensor) -> Position | None:
    """Where in time a call without a link starts. A state that the model computed, e.g. by a mask,
    counts as following the layer's last call; ``None`` if there was none.
    """
    if state.grad_fn is None:
        return Position(Stretch(settings))
    return position_of(state) or settings.last


def ends(position: Position | None, t: int) -> bool:
    """Whether step ``t`` of a call from this position is its window's last one."""
    return position is not None and position.steps + t + 1 == position.stretch.steps


def last(position: Position | None, t: int) -> float | None:
    """:func:`ends` in the form that rules take: 1 or ``None``."""
    return 1.0 if ends(position, t) else None


def reshaped(
    position: Position,
    window: Window,
    grads: Sequence[Tensor],
    spikes: Sequence[Tensor],
    later: Tensor | None,
) -> Sequence[Tensor]:
    """The rule's replacement for G.

    Args:
        position: where the call starts.
        window: what it belongs to.
        grads: G of each of the call's steps.
        spikes: s of each of them.
        later: G of the step after the call.
    """
    settings = position.stretch.settings
    if later is None and not ends(position, len(grads) - 1):
        later = torch.zeros_like(grads[-1])  # the loss does not depend on what follows
    if not settings.watched:
        (watch_times if settings.rule.looks_ahead else _watch)(position, grads, later)
    return settings.rule.cotangent(grads, spikes, window, later)


def _watch(position: Position, grads: Sequence[Tensor], later: Tensor | None) -> None:
    """Let the rule check the loss, once per layer, by the first non-zero gradient."""
    settings = position.stretch.settings
    if grads[-1].any():
        settings.watched = True
        _warn(settings, settings.rule.doubt(grads[-1]))


def watch_times(position: Position, grads: Sequence[Tensor], later: Tensor | None) -> None:
    """Warn once per layer if a spike-time rule gets the same gradient at every step of a window.

    Args:
        position: where the call starts.
        grads: G of each of its steps.
        later: G of the step after the call, if any.
    """
    stretch, settings = position.stretch, position.stretch.settings
    following = [*grads[1:], *([] if later is None else [later])]
    settings.watched = not all(map(torch.equal, grads, following))
    stretch.told = stretch.told or any(bool(grad.any()) for grad in grads)
    if position.steps == 0 and stretch.told and not settings.watched:
        settings.watched = True
        _warn(
            settings,
            "is the same at every time step, as that of a loss on spike counts is, and "
            f"{settings.rule} learns from spike times alone: nothing will be learned. Take a loss "
            "that reads times, such as cross-entropy of "
            "-tssl_adapters.losses.first_spike_time(spikes)",
        )


def watch_potential(position: Position, grad: Tensor, spikes: Tensor) -> None:
    """Warn once per layer, in its first window, if there is a loss on the potential of spiking
    neurons, and the rule needs but does not get its gradient before and after a spike.

    Args:
        position: where the call starts.
        grad: gradient of the potential after it ``[batch, ...]``.
        spikes: s of the step before ``grad``.
    """
    settings = position.stretch.settings
    settings.seen_around = position.steps == 0
    if (grad * spikes).any():
        settings.seen_around = True
        _warn(
            settings,
            "reaches the potential of neurons that spike, step by step, and "
            f"{settings.rule} knows what a loss on it jumps by at a spike only where the whole "
            "sequence is one call. Step by step that is left out: the gradient is exact only "
            "where the loss reads the potential of neurons that do not spike, such as a read-out's",
        )


def _warn(settings: Settings, why: str | None) -> None:
    if why is not None:
        message = f"tssl_adapters: the gradient of layer '{settings.path}' {why}."
        warnings.warn(message, RuleWarning, stacklevel=above_us())
