"""What rules that look at more than one time step are told about the others."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tssl_adapters.engine.call.settings import Position, Settings, Stretch, above_us
from tssl_adapters.engine.call.state import (
    linked_tag,
    position_at,
    position_left_at,
    recomputed,
)
from tssl_adapters.errors import LostLinkWarning, RuleWarning, UnsupportedConfigError
from tssl_adapters.rules import Window

_ANEW = (
    "tssl_adapters: layer '{}' is recomputed, in a checkpoint with use_reentrant=True, from a "
    "state that says nothing of the steps before it, so that {} takes the steps of each "
    "checkpoint for a sequence of its own. Pass use_reentrant=False."
)
NEAR = 64
"""How many operations behind a state are looked at for the layer's own."""


def going_on(
    settings: Settings, state: Tensor, links: int, fresh: bool = False
) -> tuple[tuple[Tensor, ...], Position | None]:
    """The link of the state that a call goes on from, and its position in its window.

    Args:
        settings: the layer's.
        state: the incoming state that carries them.
        links: how many parts the link has; where the rule needs none there is none to be lost.
        fresh: whether the state was made for this call.

    Raises:
        UnsupportedConfigError: the rule needs the whole sequence, and this call continues another.
    """
    rule = settings.rule
    asks = (links or rule.windowed) and not fresh
    found = linked_tag(settings, state, links) if asks else None
    position = None if found is None else found.position
    if rule.windowed:
        position = _in_window(settings, position)
    elif rule.timed and position is None:  # that of an untimed rule's state is
        position = standing(settings, state, fresh)
    return () if found is None else found.link, position


def standing(settings: Settings, state: Tensor, fresh: bool) -> Position:
    """The position that a call of a ``timed`` rule goes on from; arguments as of
    :func:`going_on`.
    """
    known = None if fresh else _known(settings, state)
    if known is None and not fresh and recomputed(state) and not settings.warned:
        settings.warned = True
        why = _ANEW.format(settings.path, settings.rule)
        warnings.warn(why, LostLinkWarning, stacklevel=above_us())
    return known or Position(Stretch(settings))


def _in_window(settings: Settings, position: Position | None) -> Position:
    if position is None:
        return Position(Stretch(settings))
    if settings.rule.whole:
        raise UnsupportedConfigError(
            f"Layer '{settings.path}': {settings.rule} needs a sequence in one call, and this call "
            "goes on from another one's state. Detach the state to start anew, or use "
            "credit='spike'."
        )
    return position


def _known(settings: Settings, state: Tensor) -> Position | None:
    """The position of a state that the layer returned, or of the one that the model computed this
    from, e.g. by a mask; ``None`` if there is none nearby in its graph, as behind a learned start.
    """
    if state.grad_fn is None:
        return position_at(state)
    nodes: list[Any] = [state.grad_fn]
    for node in nodes:  # which more are added to as it goes, the nearest first
        position = position_left_at(node)
        if position is not None and position.stretch.settings is settings:
            return position
        if len(nodes) < NEAR:
            nodes += [before for before, _ in node.next_functions if before is not None]
    return None


def length(position: Position | None) -> float:
    """The window's number of time steps, known once the backward pass begins; infinite if the rule
    does not ask for it.
    """
    return math.inf if position is None else position.stretch.steps


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
    stretch.any_gradient = stretch.any_gradient or any(bool(grad.any()) for grad in grads)
    if position.steps == 0 and stretch.any_gradient and not settings.watched:
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
