"""A recurrent layer's whole sequence in one call, for rules that cut the feedback.

Without a gradient through the input of the recurrent weights, the layer's own spikes are an input
like any other: a sequence that is known once the library has run.
"""

from __future__ import annotations

from typing import Any

import torch
from norse.torch.functional.lif import lif_step
from torch import Tensor
from torch.nn.functional import linear

from tssl_adapters.adapters import (
    Feedback,
    NativeForward,
    attach,
    synaptic_current,
    trace_of,
    valued,
)
from tssl_adapters.adapters.norse.classic import LATE
from tssl_adapters.adapters.norse.linear import leaky_charge, neuron_of
from tssl_adapters.adapters.norse.run import LayerStep, StepInput, through
from tssl_adapters.adapters.norse.values import number, resting


def goes_whole(activation: Any) -> bool:
    """Whether a recurrent layer with this step can run whole sequences in one call."""
    return activation is lif_step and lif_step not in LATE


def whole_sequence(layer: Any, cell: LayerStep, given: StepInput) -> tuple[Tensor, Any]:
    """What the layer emits, ``[T, batch, N]``, and the library's state."""
    settings, p, (x, state, fresh) = cell.settings, cell.p, given
    with torch.no_grad():
        spikes, after = layer._tssl_native.forward(layer, x, state)
    # At T = 1 the library never multiplies its spikes, which may be float32, by half weights.
    sent = torch.cat([state.z.detach().expand_as(spikes[:1]), spikes[:-1].to(state.z)])
    of_input, recurrent = cell.weights
    arriving = linear(x, of_input) + linear(sent, recurrent)
    minus_leak = number(-cell.dt * p.tau_syn_inv)
    drive = synaptic_current(settings, arriving, state.i, minus_leak)
    neuron = neuron_of(leaky_charge(layer), p)
    feedback = None
    if settings.rule.solves_feedback:
        with torch.no_grad():
            brought = synaptic_current(settings, sent, torch.zeros_like(sent[0]), minus_leak)
        feedback = Feedback(recurrent.detach(), brought, neuron.charge.gain)

    @torch.no_grad()
    def probe(arriving: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        still, silent = torch.zeros_like(v), torch.zeros_like(arriving[0])
        at, outs, potentials = state._replace(z=silent, v=v, i=still), [], []
        for step in arriving:
            out, at = cell.activation(step, at, *through(cell, step), p, cell.dt)
            outs.append(out)
            potentials.append(at.v)
        last = torch.stack(potentials) if layer.record_states else potentials[-1]
        return synaptic_current(settings, arriving, still, minus_leak), torch.stack(outs), last

    trace = trace_of(settings, None if fresh else state.v, resting(p))
    result = attach(
        settings,
        neuron,
        drive,
        state.v,
        trace,
        NativeForward(arriving, lambda: (spikes, after.v), probe, steady=False),
        sequence=True,
        keep_states=layer.record_states,
        fresh=fresh,
        feedback=feedback,
    )
    fired = _fired(result.out, trace, settings.tau_s)
    shown, v = (drive, result.states) if layer.record_states else (drive[-1], result.state)
    z = fired if layer.record_states else fired[-1]
    i = valued(after.i, shown + minus_leak * shown)
    return result.out, after._replace(z=valued(after.z, z), v=v, i=i)


def _fired(out: Tensor, trace: Tensor | None, tau_s: float) -> Tensor:
    """The spikes of a PSC, with the graph of the PSC."""
    if tau_s == 1.0:
        return out
    before = torch.zeros_like(out[0]) if trace is None else trace
    return tau_s * out - (tau_s - 1.0) * torch.cat([before.expand_as(out[:1]), out[:-1]])
