"""The kernels' computations in torch: the reference they are tested against and the fallback.

It reads and writes the same memory, but takes a neuron's numbers from its record rather than from
the memory that kernels read.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tssl_adapters.elementwise import at_least
from tssl_adapters.engine.call.plan import Plan, in_working_dtype, working_dtype
from tssl_adapters.engine.compiled.kernels import Adjoints, Given, Variant
from tssl_adapters.engine.step.recursion import (
    Backward,
    Carried,
    Moment,
    charge,
    current_after,
    fires,
    state_after,
    state_from,
    through_current,
    trace_after,
)
from tssl_adapters.engine.step.spec import LEARNED, RESET_VALUE, Spec, looks_around
from tssl_adapters.engine.torch.sequence import Kept, activity, around, arriving, grad_of_state
from tssl_adapters.neuron import Neuron, Value
from tssl_adapters.rules import Rule


class Reference:
    """The passes of one plan, compiling nothing."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def forward(
        self,
        spec: Spec,
        given: Given,
        out: Tensor,
        after: Tensor,
        charged: Tensor | None,
        due: Tensor | None,
        keep: bool,
        again: bool,
    ) -> Tensor | None:
        """As in the protocol; it keeps only the bits of a step with a trace."""
        given = charging(given)
        neuron = for_neurons(self.plan.neuron, given, False)
        outs, afters = out.view(given.steps, -1), after.view(-1, given.neurons)
        state, trace = given.state.view(-1), _flat(given.trace)
        for t, x in enumerate(given.drive.view(given.steps, -1)):
            before, h = charge(neuron, state, x)
            spike = fires(neuron, h)
            state = state_after(neuron, h, spike, before)
            trace = trace_after(trace, spike, given.tau_s)
            outs[t] = trace
            afters[t if keep else 0] = state
            if charged is not None:
                charged.view(given.steps, -1)[t] = h
            if due is not None and before is not None:
                due.view(-1).copy_(before)
        if charged is None or given.gate is None or not spec.form.psc:
            return None
        return _bits(at_least(outs[0].to(working_dtype(out)), given.gate))

    def backward(
        self,
        variant: Variant,
        given: Given,
        kept: Tensor | None,
        adjoints: Adjoints,
    ) -> None:
        spec, back = variant.spec, variant.back
        given, synapse = charging(given), given.synapse
        rule, tau_s = back.rule, given.tau_s
        neuron = for_neurons(self.plan.neuron, given, back.learns)
        dtype = working_dtype(given.drive)
        needs = [back.learns and isinstance(value, Tensor) for value in neuron.values()[:LEARNED]]
        link = () if adjoints.link is None else adjoints.link.view(-1, given.neurons).unbind()
        carried = Carried(*(part.clone() for part in link))
        fired = _flat(given.fired)
        found = Backward(neuron, rule, tau_s, needs, carried, fired, given.window)
        grad_out = adjoints.out
        if grad_out is not None:
            grad_out = grad_out.view(-1, given.neurons).expand(given.steps, -1)
        after = adjoints.after
        if after is not None:
            after = after.view(-1, given.neurons) if adjoints.stride else after.view(-1)
        like = given.state.view(-1)
        t, each = given.steps, adjoints.stride > 0
        alone = adjoints.link is None and adjoints.chain is None
        looks = looks_around(rule, each, given.steps > 1, alone)
        grads = arriving(grad_out, given.steps, like, tau_s, dtype)
        moments = _moments(neuron, rule, spec, given, kept)
        for (moment, active), arrived in zip(moments, grads, strict=True):
            t, (grad_trace, grad_spike) = t - 1, arrived
            grad_state = grad_of_state(after, t, given.steps, each, dtype)
            mean = around(after, t, neuron, dtype) if looks else None
            moment = in_working_dtype(moment, neuron)
            last = 1.0 if back.ends and t == given.steps - 1 else None
            grad = found.step(moment, active, grad_spike, grad_state, last=last, around=mean)
            adjoints.drive.view(given.steps, -1)[t] = grad
        if synapse is not None:
            grads_of_charge = adjoints.drive.view(given.steps, -1)
            if adjoints.leaked is not None:
                leaked = adjoints.leaked.view(-1)
                grads_of_charge[-1] = through_current(grads_of_charge[-1], leaked, synapse.k)
            grads_of_charge.copy_(current_back(grads_of_charge, synapse.k))
        if adjoints.chain is not None:
            rows = adjoints.chain.view(-1, given.neurons)
            _write(rows[0], found.carried.chain)
            _write(rows[1], found.carried.decayed_chain)
            if rule.looks_ahead:
                _write(rows[3], found.carried.grad_spike)
        _write(_flat(adjoints.through), found.carried.decayed_membrane)
        _write(_flat(adjoints.entering), found.entering(moment, linked=False))
        _write(_flat(adjoints.trace), grad_trace)
        if adjoints.sums is not None:
            for row, total in zip(adjoints.sums.view(LEARNED, -1), found.sums, strict=True):
                _write(row, total)


def for_neurons(neuron: Neuron, given: Given, learns: bool, chosen: Tensor | None = None) -> Neuron:
    """A neuron whose numbers broadcast against ``[N]``, or only against the ``chosen`` neurons.

    Learned numbers are expanded to one per neuron, so that no sum is taken over neurons.
    """
    like, learned = given.state, LEARNED if neuron.reset.numbered else RESET_VALUE

    def flat(k: int, value: Value) -> Value:
        wanted = learns and k < learned
        if not isinstance(value, Tensor):
            return like.new_full((given.neurons,), value) if wanted else value
        value = value.detach()
        if value.numel() == 1 and not wanted:
            return value.reshape(())
        value = value.to(like.dtype).expand(like.shape).reshape(-1)
        return value if chosen is None else value[chosen]

    return neuron.with_values([flat(k, value) for k, value in enumerate(neuron.values())])


def charging(given: Given) -> Given:
    """A call whose drive charges the membrane; the outgoing current is written."""
    if given.synapse is None:
        return given
    start, k, leaked = given.synapse
    charged = current(given.drive.view(given.steps, -1), start.view(-1), k)
    leaked.view(-1).copy_(current_after(charged[-1], k))
    return given._replace(drive=charged, synapse=None)


def current(drive: Tensor, start: Tensor, k: Value) -> Tensor:
    """:meth:`tssl_adapters.engine.compiled.kernels.Backend.current`."""
    charged = []
    for x in drive.unbind(0):
        charged.append(start + x)
        start = current_after(charged[-1], k)
    return torch.stack(charged)


def current_back(grad_out: Tensor, k: Value) -> Tensor:
    """:meth:`tssl_adapters.engine.compiled.kernels.Backend.current_back`."""
    grads = list(grad_out.unbind(0))
    for t in reversed(range(len(grads) - 1)):
        grads[t] = through_current(grads[t], grads[t + 1], k)
    return torch.stack(grads)


def _moments(
    neuron: Neuron, rule: Rule, spec: Spec, given: Given, kept: Tensor | None
) -> Iterator[tuple[Moment, Tensor | None]]:
    """Every step from the last to the first, and where the rule counts a neuron as active."""
    state, drive = given.state.view(-1), given.drive.view(given.steps, -1)
    if given.earlier:
        state = state_from(neuron, state)
    dtype = working_dtype(drive)
    if spec.form.given_h:
        before = None if neuron.timing == "immediate" else fires(neuron, state)
        active = None if kept is None else _flags(kept, given.neurons).to(dtype)
        yield Moment(state, drive[0], before, drive[0], fires(neuron, drive[0])), active
        return
    steps = Kept(neuron, drive, state, _flat(given.trace), None, given.tau_s)
    for moment, trace in steps.backwards(rule.checkpoint):
        yield moment, activity(rule, trace.to(dtype), given.tau_s)


def _bits(flags: Tensor) -> Tensor:
    """Flags of neighbouring neurons, 0 or 1, eight to a byte, in the kernels' layout."""
    padded = torch.nn.functional.pad(flags, (0, -len(flags) % 8)).to(torch.int32).view(-1, 8)
    return (padded << torch.arange(8, device=flags.device)).sum(1).to(torch.uint8)


def _flags(bits: Tensor, count: int) -> Tensor:
    """Undo :func:`_bits`."""
    shifts = torch.arange(8, device=bits.device)
    return ((bits.to(torch.int32).unsqueeze(1) >> shifts) & 1).view(-1)[:count]


def _flat(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.view(-1)


def _write(room: Tensor | None, found: Tensor | None) -> None:
    """Write a result, or zero if there is none, into a buffer if there is one."""
    if room is not None and found is None:
        room.zero_()
    elif room is not None and found is not None:
        room.copy_(found)
