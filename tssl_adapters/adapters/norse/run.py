"""Run one step of any neuron, feed-forward or recurrent, refractory or not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from norse.torch.functional import lif_refrac
from norse.torch.functional.lif import lif_feed_forward_step, lif_step, lif_step_sparse
from norse.torch.functional.lif_adex import lif_adex_feed_forward_step, lif_adex_step
from norse.torch.functional.lsnn import lsnn_step
from norse.torch.functional.threshold import threshold
from torch import Tensor
from torch.nn.functional import linear

from tssl_adapters.adapters import (
    CannotWriteError,
    Cell,
    Described,
    Hold,
    NativeForward,
    Result,
    Settings,
    Stepped,
    Steps,
    Tensors,
    ToValue,
    Value,
    attach_smooth,
    compiled_step,
    held_back,
    known_trace,
    may_compile,
    trace_of,
    valued,
)
from tssl_adapters.adapters.norse.classic import UNCUT, as_computed
from tssl_adapters.adapters.norse.layout import known_layout, layout
from tssl_adapters.adapters.norse.neurons import LIF
from tssl_adapters.adapters.norse.surrogates import surrogate
from tssl_adapters.adapters.norse.values import number, pinned, resting

Activation: TypeAlias = Callable[..., "tuple[Tensor, Any]"]

DETACHED = {lif_step, lsnn_step} - UNCUT
"""The steps that cut the gradient through the reset; lif_step_sparse does not."""


class _Refractory(NamedTuple):
    """A step around another neuron's step, with that neuron's parameters and state in ``name``."""

    name: str
    inner: Activation
    update: Callable[..., tuple[Tensor, Tensor, Tensor]]


_LIF = lif_refrac.compute_refractory_update
REFRACTORY: dict[Activation, _Refractory] = {
    lif_refrac.lif_refrac_feed_forward_step: _Refractory("lif", lif_feed_forward_step, _LIF),
    lif_refrac.lif_refrac_step: _Refractory("lif", lif_step, _LIF),
}
# Older versions lack some of these.
if hasattr(lif_refrac, "lif_refrac_step_sparse"):
    REFRACTORY[lif_refrac.lif_refrac_step_sparse] = _Refractory("lif", lif_step_sparse, _LIF)
with suppress(ImportError):
    from norse.torch.functional import lif_adex_refrac

    _ADEX = lif_adex_refrac.compute_refractory_update
    REFRACTORY |= {
        lif_adex_refrac.lif_adex_refrac_feed_forward_step: _Refractory(
            "lif_adex", lif_adex_feed_forward_step, _ADEX
        ),
        lif_adex_refrac.lif_adex_refrac_step: _Refractory("lif_adex", lif_adex_step, _ADEX),
    }


class LayerStep(NamedTuple):
    """What a step needs of a layer.

    Attributes:
        settings: the layer's path, rule and tau_s.
        neuron: describes the neuron.
        activation: the library's step.
        p: its parameters.
        dt: time step.
        weights: of input and recurrence, empty where the layer is not recurrent.
        rest: its resting potentials besides those in ``p``.
        sparse: whether it emits sparse spikes.
    """

    settings: Settings
    neuron: type[LIF]
    activation: Activation
    p: Any
    dt: float
    weights: tuple[Tensor, ...]
    rest: tuple[Value, ...]
    sparse: bool


class StepInput(NamedTuple):
    """What a step is given: input, state, and whether the state was made for this call."""

    x: Tensor
    state: Any
    fresh: bool

    def without_chain(self) -> Any:
        """The state without its graph."""
        return _cut(self.state)


def step(cell: LayerStep, given: StepInput) -> tuple[Tensor, Any]:
    """What the layer emits, and the library's state after the step."""
    trace = trace_before(cell, given)
    found = short_step(cell, given, trace)
    if found is not None:
        return found
    result, after = _any_step(cell, given, trace)
    sparse = cell.sparse and cell.activation not in REFRACTORY
    return result.out.to_sparse() if sparse else result.out, after


def short_step(
    cell: LayerStep, given: StepInput, trace: Tensor | None
) -> tuple[Tensor, Any] | None:
    """:func:`step` where it is compiled, else ``None``."""
    within, inner = _within(cell, given)
    x, state, fresh = inner
    if x.is_sparse or not isinstance(state.v, Tensor) or not may_compile(cell.settings, x):
        return None
    inputs, states = _arriving(cell, x, state), layout(given.state).tensors(given.state)
    compiled = partial(_compiled, within, state, cell)
    described = Described(compiled, pinned(cell.p), partial(_in_torch, cell, given.state))
    ran = compiled_step(cell.settings, described, inputs, states, trace, fresh)
    return None if ran is None else _emitted(given.state, ran)


def decided_step(layer: Any, steps: Steps, given: StepInput) -> tuple[Tensor, Any] | None:
    """:func:`step` of a layer for which what was decided holds, else ``None``."""
    x, state, _ = given
    known = known_layout(state)
    if known is None:  # it is another layer's, or none
        return None
    tensors, count = known.tensors(state), steps.form.inputs
    inputs: Tensors = (x,) * count
    trace = trace_before(layer._tssl_cell(x), given) if steps.traced else None
    # The same tensors: p is set as a whole, which discards what was decided.
    if not steps.fits(inputs, tensors, steps.pinned, trace):
        return None
    if count > 1:
        weights = layer.input_weights, layer.recurrent_weights
        cuts = layer._tssl_settings.rule.cuts_feedback
        inputs = _weighted(weights, x, known.inner(state).z, cuts)
        if not steps.fits(inputs, tensors, steps.pinned, trace):
            return None
    return _emitted(state, steps.run(inputs, tensors, trace))


def _emitted(state: Any, ran: Stepped) -> tuple[Tensor, Any]:
    """What the layer emits, and the state after the step."""
    sent = ran.out if ran.spike is None else ran.spike
    return ran.out, layout(state).changed(state, ran.states, sent)


def _within(cell: LayerStep, given: StepInput) -> tuple[LayerStep, StepInput]:
    """A refractory neuron's own cell, and what it is given; any other one's are these."""
    around = REFRACTORY.get(cell.activation)
    if around is None:
        return cell, given
    inner = cell._replace(activation=around.inner, p=getattr(cell.p, around.name))
    return inner, given._replace(state=getattr(given.state, around.name))


def _hold(cell: LayerStep) -> Hold | None:
    """What holds a refractory neuron back."""
    if cell.activation not in REFRACTORY:
        return None
    slope = surrogate(cell)
    if not slope.arithmetic:
        raise CannotWriteError("a refractory period with a gradient of its own")

    def counter(states: Tensors, held: Tensor, sent: Tensor) -> Tensors:
        left = torch.relu(states[-1] - held)
        return [(1 - sent) * left + sent * cell.p.rho_reset]

    return Hold(lambda states: states[-1], slope.__call__, counter)


def _compiled(cell: LayerStep, like: Any, around: LayerStep) -> Cell:
    """The cell in the form that engines compile. ``around``: the layer's, if it is refractory."""
    kind, detached = as_computed(cell.neuron, cell.activation), cell.activation in DETACHED
    known, hold = layout(like), _hold(around)
    names = known.names

    def at(inputs: Tensors, states: Tensors) -> LIF:
        state = like._replace(**dict(zip(names, states, strict=False)))
        return kind(cell.p, cell.dt, state, tuple(inputs), detached)

    def others(inputs: Tensors, states: Tensors, spike: Tensor) -> Tensors:
        changed = at(inputs, states).others(spike)
        return [changed[name] for name in names[1:]]

    return Cell(
        lambda inputs, states: at(inputs, states).charge(states[0]),
        others,
        lambda inputs, states: at(inputs, states).threshold,
        ToValue(at((), known.tensors(like)).reset),
        timing="immediate",
        strict=True,
        detached=detached,
        inputs=2 if cell.weights else 1,
        states=len(names) + (hold is not None),
        sends="z" in like._fields,
        hold=hold,
    )


def _in_torch(
    cell: LayerStep,
    like: Any,
    settings: Settings,
    inputs: Tensors,
    states: Tensors,
    trace: Tensor | None,
) -> Stepped:
    """A step in torch, with the given settings and identity weights."""
    sent = None
    if cell.weights:
        eye = torch.eye(inputs[0].shape[-1], dtype=inputs[0].dtype, device=inputs[0].device)
        cell, sent = cell._replace(weights=(eye, eye)), inputs[1]
    known = layout(like)
    again = StepInput(inputs[0], known.changed(like, states, sent), False)
    cell = cell._replace(settings=settings)
    result, after = _any_step(cell, again, trace)
    _, (_, inner, _) = _within(cell, again._replace(state=after))
    sent = inner.z if sent is not None and settings.tau_s != 1.0 else None
    return Stepped(result.out, known.tensors(after), known_trace(inner.v), sent)


def _any_step(cell: LayerStep, given: StepInput, trace: Tensor | None) -> tuple[Result, Any]:
    """A step in torch, and the library's state after it."""
    around = REFRACTORY.get(cell.activation)
    return _step(cell, given, trace) if around is None else _held_step(cell, given, trace, around)


def _held_step(
    cell: LayerStep, given: StepInput, trace: Tensor | None, around: _Refractory
) -> tuple[Result, Any]:
    """The inner step, then the library's own refractory update, which autograd records."""
    inner, within = _within(cell, given)
    before = within.state
    result, after = _step(inner, within, None if trace is None else trace.detach())
    seen = given.state if cell.settings.rule.chain else given.without_chain()
    fired = getattr(after, "z", result.fired)
    v, z, rho = around.update(seen, fired, result.state, cell.p)
    held = threshold(seen.rho, inner.p.method, inner.p.alpha)
    result = held_back(cell.settings, result, before.v, trace, held, v, z, fresh=given.fresh)
    after = after._replace(v=result.state)
    if "z" in after._fields:
        after = after._replace(z=z)
    return result, given.state._replace(**{around.name: after}, rho=rho)


def _step(cell: LayerStep, given: StepInput, trace: Tensor | None) -> tuple[Result, Any]:
    x, state, fresh = given
    settings, (activation, p, dt) = cell.settings, cell[2:5]
    seen = state if settings.rule.chain else given.without_chain()
    kind, detached = as_computed(cell.neuron, activation), activation in DETACHED
    arriving, *more = _arriving(cell, x, seen)
    for other in more:
        arriving = arriving + other
    neuron = kind(p, dt, seen, (arriving,), detached)
    charging = neuron
    if not settings.rule.chain:
        # This is one step's input, whose gradient must not be lost: it is cut where the next joins.
        late = {name: getattr(state, name) for name in neuron.late}
        charging = replace(neuron, state=seen._replace(**late))
    with torch.no_grad():
        spikes, after = activation(x, state, *cell.weights, p, dt)
        slope = number(neuron.slope(state.v.detach()))

    def probe(given: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at = state._replace(v=v)
        sent = given.to_sparse() if x.is_sparse else given
        out, later = activation(sent, at, *through(cell, given), p, dt)
        return kind(p, dt, at, (given,), detached).charge(v), _dense(out), later.v

    result = attach_smooth(
        settings,
        charging.charge,
        state.v,
        trace,
        NativeForward(arriving, lambda: (_dense(spikes), after.v), probe),
        reset=ToValue(number(neuron.reset)),
        threshold=number(neuron.threshold),
        strict=True,
        detached=neuron.detached,
        slope=slope,
        fresh=fresh,
    )
    assert result.fired is not None
    others = neuron.others(result.fired).items()
    changed = {name: valued(getattr(after, name), like) for name, like in others}
    if "z" in after._fields:
        changed["z"] = _like(after.z, result.fired)
    return result, after._replace(v=result.state, **changed)


def trace_before(cell: LayerStep, given: StepInput) -> Tensor | None:
    """The PSC before a step."""
    inner, within = _within(cell, given)
    v = None if given.fresh else within.state.v
    return trace_of(cell.settings, v, (*resting(inner.p), *cell.rest))


def _arriving(cell: LayerStep, x: Tensor, state: Any) -> tuple[Tensor, ...]:
    """The synaptic input, term by term."""
    if not cell.weights:
        return (_dense(x),)
    return _weighted(cell.weights, x, state.z, cell.settings.rule.cuts_feedback)


def _weighted(
    weights: tuple[Tensor, ...], x: Tensor, sent: Tensor, cuts: bool
) -> tuple[Tensor, ...]:
    """The weighted input and recurrent spikes. ``cuts``: without a gradient to these."""
    of_input, recurrent = weights
    sent = _dense(sent)
    return linear(_dense(x), of_input), linear(sent.detach() if cuts else sent, recurrent)


def through(cell: LayerStep, arriving: Tensor) -> tuple[Tensor, ...]:
    """Weights that pass the input on unchanged, without recurrence."""
    if not cell.weights:
        return ()
    eye = torch.eye(arriving.shape[-1], dtype=arriving.dtype, device=arriving.device)
    return eye, torch.zeros_like(cell.weights[1])


def _dense(tensor: Tensor) -> Tensor:
    return tensor.to_dense() if tensor.is_sparse else tensor


def _like(theirs: Tensor, ours: Tensor) -> Tensor:
    return ours.to_sparse() if theirs.is_sparse else ours


def _cut(state: Any) -> Any:
    """A state without its graph, nested tuples included."""
    if isinstance(state, Tensor):
        return state.detach()
    return type(state)(*map(_cut, state)) if isinstance(state, tuple) else state
