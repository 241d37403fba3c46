"""What rules that look at more than one time step are told of the others.

A window is a call and the calls linked to it. In a user's time loop its end is only known once the
backward pass begins: so every call shares one :class:`Stretch`, which travels beside the link on
the state tensor and is read in the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tssl_adapters.engine.recursion import dropped
from tssl_adapters.neuron import Neuron
from tssl_adapters.rules import Rule, Window


@dataclass(eq=False)
class Stretch:
    """A window as far as the forward pass has come: its steps, and each neuron's spikes."""

    steps: int = 0
    counts: Tensor | None = None


class Position(NamedTuple):
    """Where in a window a state lies: the steps and spikes before it.

    It is a value, so that a step that is computed again, by checkpointing say, counts once.
    """

    stretch: Stretch
    steps: int = 0
    counts: Tensor | None = None

    def after(self, spikes: Tensor) -> Position:
        """The position after a call that fired ``spikes``, ``[T, batch, ...]``."""
        spikes = spikes.detach()
        found = spikes.sum(0, dtype=torch.promote_types(spikes.dtype, torch.float32))
        counts = found if self.counts is None else self.counts + found
        steps = self.steps + len(spikes)
        if steps >= self.stretch.steps:
            self.stretch.steps, self.stretch.counts = steps, counts
        return Position(self.stretch, steps, counts)

    def sending(self, fired: Tensor, sent: Tensor) -> Position:
        """The position after a call of one step whose layer ``sent`` other spikes on."""
        assert self.counts is not None
        counts = self.counts + (sent.detach() - fired.detach())
        if self.steps >= self.stretch.steps:
            self.stretch.counts = counts
        return self._replace(counts=counts)

    def window(self, neuron: Neuron, dtype: torch.dtype) -> Window:
        """The window, for a call that starts here."""
        counts = self.stretch.counts
        assert counts is not None
        counts = counts.to(dtype)
        active = counts.clamp(max=1.0)
        return Window(counts, active, self.stretch.steps, neuron.charge.decay, dropped(neuron))


def ends(position: Position | None, t: int) -> bool:
    """Whether step ``t`` of a call from that position is its window's last one."""
    return position is not None and position.steps + t + 1 == position.stretch.steps


def reshaped(
    rule: Rule,
    window: Window,
    grads: Sequence[Tensor],
    spikes: Sequence[Tensor],
    later: Tensor | None,
) -> tuple[Tensor, ...]:
    """What the rule makes of G.

    Args:
        rule: one that is ``windowed``.
        window: what the call belongs to.
        grads: G of each of the call's steps.
        spikes: s of each of them.
        later: G of the step after the call.
    """
    made = rule.cotangent(torch.stack([*grads]), torch.stack([*spikes]), window, later)
    return made.unbind(0)
