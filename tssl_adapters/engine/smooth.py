"""Neurons beyond the linear one: the charge is any smooth function of the potential.

h = F(v, x, w, ...) with v the membrane potential and w any other states of the neuron. The chains
over time go through v, so the decay is F_v = dF/dv, one number per neuron and step; the emitted e
reaches x, w and the parameters through F itself, which autograd differentiates at fixed v. The
adapter computes the other states from the result's ``charged`` and ``fired``, which have gradients
of their own, and autograd adds these up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tssl_adapters.elementwise import derived
from tssl_adapters.engine.attach import Result, attach
from tssl_adapters.engine.call.settings import Settings
from tssl_adapters.engine.call.state import link_at, link_of, position_at, tag, unpacked
from tssl_adapters.engine.probe import NativeForward
from tssl_adapters.engine.step.recursion import trace_after
from tssl_adapters.neuron import LinearCharge, Neuron, Reset, Value

Charge: TypeAlias = Callable[[Tensor], Tensor]
"""Maps the membrane potential ``[batch, ...]`` to h, with a graph to its other dependencies."""


def attach_smooth(
    settings: Settings,
    charge: Charge,
    state: Tensor,
    trace: Tensor | None,
    native: NativeForward,
    *,
    reset: Reset,
    threshold: Value,
    strict: bool,
    detached: bool,
    slope: Value | None = None,
    fresh: bool = False,
    carrier: Tensor | None = None,
) -> Result:
    """Run one step of a layer with an immediate reset.

    Args:
        settings: the layer's path, rule and tau_s.
        charge: F, as a function of the potential alone. The reset is applied to its result.
        state: incoming membrane potential.
        trace: incoming trace, ``None`` for zero.
        native: the library's own step, which computes the values. Its ``probe`` gives h.
        reset: what a spike does to the potential.
        threshold: broadcasts against ``[batch, ...]``; its gradient is the rule's.
        strict: whether the potential must exceed the threshold to spike.
        detached: whether the library cuts the gradient through the reset.
        slope: F_v, if known; otherwise autograd computes it.
        fresh: whether ``state`` was made for this call.
        carrier: the tensor the library passed in, if ``state`` was computed from it.

    Returns:
        The library's values with the rule's gradient, ``charged`` and ``fired`` among them.
    """
    held = state.detach()
    drive = charge(held)
    if slope is None:
        slope = _slope(charge, held.expand(drive.shape)) if torch.is_grad_enabled() else 1.0
    elif isinstance(slope, Tensor):
        slope = slope.detach()  # parameters get their gradient through the charge itself
    if reset.stepwise:
        spikes, after = native.values()
        native = native._replace(values=lambda: (spikes, after))
        reset = reset.at(drive, spikes)
    neuron = Neuron(
        LinearCharge(slope, 1.0, 0.0, _charged), reset, threshold, "immediate", strict, detached
    )
    return attach(
        settings,
        neuron,
        drive,
        state,
        trace,
        native,
        sequence=False,
        fresh=fresh,
        exposed=True,
        carrier=carrier,
    )


def held_back(
    settings: Settings,
    result: Result,
    state: Tensor,
    trace: Tensor | None,
    held: Tensor,
    after: Tensor,
    spike: Tensor,
    *,
    fresh: bool = False,
) -> Result:
    """The result of a step within a refractory period.

    A refractory neuron keeps its potential and sends no spike, whatever its own step computed:
    there h = v, so F_v = 1 and lambda is passed on unchanged.

    Args:
        settings: the layer's path, rule and tau_s.
        result: the neuron's own step.
        state: incoming membrane potential.
        trace: incoming trace of the emitted spikes, ``None`` for zero.
        held: 1 where the neuron is refractory, else 0, with the library's graph.
        after: the potential after the step, with a graph to ``result.state`` and ``state``.
        spike: the emitted spikes, with a graph to ``result.fired``.
        fresh: whether ``state`` was made for this call.
    """
    out = trace_after(trace, spike, settings.tau_s)
    links: tuple[Tensor, ...] = ()
    own = link_at(result.state)
    if own and after.requires_grad:
        before = () if fresh else unpacked(link_of(settings, state, len(own)))
        # Without a link both chains equal the potential's own adjoint, which the second carries.
        before = before or (torch.zeros_like(state), state)
        stays = held.detach()
        moved = (state - result.state).detach()  # links carry only gradients, no values
        links = (
            (1.0 - stays) * own[0],
            (1.0 - stays) * own[1] + stays * (before[0] + before[1]) + held * moved,
        )
    position = position_at(result.state)
    if position is not None and result.fired is not None:
        position = position.sending(result.fired, spike)
    tag(after, links, None if settings.tau_s == 1.0 else out.clone(), position)
    return result._replace(out=out, state=after, trace=None, fired=spike)


def _charged(state: Tensor, drive: Tensor) -> Tensor:
    """The charge whose drive is already h."""
    return drive.clone()


def _slope(charge: Charge, held: Tensor) -> Tensor:
    """F_v, element by element: a neuron's charge depends on its own potential only."""
    with derived():
        leaf = held.clone() if held.is_floating_point() else held.float()
        leaf.requires_grad_()
        (slope,) = torch.autograd.grad(charge(leaf).sum(), leaf)
    return slope


class _Valued(torch.autograd.Function):
    """``(value, like) -> value``, whose gradient goes to ``like``."""

    @staticmethod
    def forward(value: Tensor, like: Tensor) -> Tensor:
        return value.clone()  # not a view: the caller may detach it in place

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.like = inputs[1].dtype, inputs[1].shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        dtype, shape = ctx.like
        return None, grad.sum_to_size(shape).to(dtype)


def valued(value: Tensor, like: Tensor) -> Tensor:
    """The library's value of a state with the graph of ours, which may be rounded differently."""
    if not like.requires_grad:
        return value
    return _Valued.apply(value, like)  # type: ignore[no-any-return, no-untyped-call]
