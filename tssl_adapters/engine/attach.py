"""Attach a rule's gradient to values that the library computed: the one door into the engine."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tssl_adapters.engine.plan import Plan
from tssl_adapters.engine.sequence import SequenceFunction, Values
from tssl_adapters.engine.state import Settings, link_of, tag
from tssl_adapters.engine.step import StepFunction
from tssl_adapters.neuron import Neuron, Value


class Result(NamedTuple):
    """What a call gives back.

    Attributes:
        out: PSC, or spikes at ``tau_s == 1``, ``[batch, ...]`` or ``[T, batch, ...]``.
        state: membrane potential after the last step ``[batch, ...]``; carries the link.
        states: after every step ``[T, batch, ...]`` where asked for, else ``None``.
        trace: a[T-1] ``[batch, ...]`` at ``tau_s > 1``, else ``None``.
    """

    out: Tensor
    state: Tensor
    states: Tensor | None
    trace: Tensor | None


def attach(
    settings: Settings,
    neuron: Neuron,
    drive: Tensor,
    state: Tensor,
    trace: Tensor | None,
    values: Values | None,
    *,
    sequence: bool,
    keep_states: bool = False,
) -> Result:
    """Run one call of a layer.

    Args:
        settings: the layer's path, rule and tau_s.
        neuron: the layer's record.
        drive: ``[batch, ...]``, or ``[T, batch, ...]`` for a sequence.
        state: incoming membrane potential, broadcasts against ``[batch, ...]``.
        trace: incoming trace, ``None`` for zero.
        values: computes the library's own spikes and membrane potential, without recording;
            ``None`` has the engine compute them from the record.
        sequence: whether the first dimension is time.
        keep_states: for a sequence, whether ``values`` gives the potential after every step.

    Returns:
        The library's values with the rule's gradient.
    """
    plan = Plan(neuron, settings.rule, settings.tau_s, keep_membrane=keep_states)
    link = link_of(settings, state) if plan.links else ()
    if link:
        plan = Plan(neuron, settings.rule, settings.tau_s, True, keep_states)
    slots: tuple[Value | None, ...] = link or (None,) * plan.links
    function = SequenceFunction if sequence else StepFunction
    # Under torch.func the library would see tensors of another level through its own attributes,
    # so there the engine computes the values itself, from what autograd hands it.
    compute = None if torch._C._are_functorch_transforms_active() else values
    out, membrane, *new_link = function.apply(  # type: ignore[no-untyped-call]
        plan, compute, drive, state, trace, *slots, *plan.inputs()
    )
    # Clones, because detach_() refuses views and the caller may write to the output in place.
    last = membrane[-1].clone() if keep_states else membrane
    new_trace = None
    if settings.tau_s != 1.0:
        new_trace = (out[-1] if sequence else out).clone()
    tag(last, tuple(new_link) if last.requires_grad else (), new_trace)
    return Result(out, last, membrane if keep_states else None, new_trace)
