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

from tssl_adapters.adapters import Cell as CompiledCell
from tssl_adapters.adapters import (
    Native,
    Ran,
    Result,
    Settings,
    Tensors,
    ToValue,
    Value,
    attach_smooth,
    compiled_steps,
    held_back,
    may_compile,
    trace_of,
    valued,
)
from tssl_adapters.adapters.norse.classic import UNCUT, as_computed
from tssl_adapters.adapters.norse.neurons import LIF
from tssl_adapters.adapters.norse.values import number, resting

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


class Cell(NamedTuple):
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


class Incoming(NamedTuple):
    """What a step is given: input, state, and whether the state was made for this call."""

    x: Tensor
    state: Any
    fresh: bool

    def without_chain(self) -> Any:
        """The state without its graph."""
        return _cut(self.state)


def step(cell: Cell, given: Incoming) -> tuple[Tensor, Any]:
    """What the layer emits, and the library's state after the step."""
    refractory = REFRACTORY.get(cell.activation)
    if refractory is not None:
        return _refractory_step(cell, given, refractory)
    trace = trace_before(cell, given)
    found = short_step(cell, given, trace)
    if found is not None:
        return found
    result, after = _step(cell, given, trace)
    return result.out.to_sparse() if cell.sparse else result.out, after


def short_step(cell: Cell, given: Incoming, trace: Tensor | None) -> tuple[Tensor, Any] | None:
    """:func:`step` where it is compiled, else ``None``."""
    x, state, fresh = given
    if x.is_sparse or not isinstance(state.v, Tensor) or not may_compile(cell.settings, x):
        return None
    inputs = _arriving(cell, x, state)
    states, numbers = _states(state, inputs[0].shape), pinned(cell.p)
    steps = compiled_steps(
        cell.settings,
        partial(_described, cell, state),
        inputs,
        states,
        trace,
        numbers,
        partial(_long_way, cell, state),
    )
    if steps is None:
        return None
    ran = steps.run(inputs, states, trace, fresh)
    changed = dict(zip(_names(state), ran.states, strict=True))
    if "z" in state._fields:
        changed["z"] = ran.out if ran.spike is None else ran.spike
    return ran.out, state._replace(**changed)


def _names(state: Any) -> tuple[str, ...]:
    """The fields of a state, the potential first, without the spikes."""
    return ("v", *(name for name in state._fields if name not in ("v", "z")))


def _states(state: Any, shape: torch.Size) -> tuple[Tensor, ...]:
    """A state's tensors; a 0-dimensional one, as in a new state, is expanded to the shape. One that
    has it stays the tensor that carries the link.
    """
    found = (getattr(state, name) for name in _names(state))
    return tuple(t if t.ndim or not shape else t.expand(shape).contiguous() for t in found)


def pinned(p: Any) -> tuple[Tensor, ...]:
    """The tensors that hold a step's numbers."""
    return tuple(value for value in p if isinstance(value, Tensor))


def _described(cell: Cell, like: Any) -> CompiledCell:
    """The cell in the form that engines compile."""
    kind, detached = as_computed(cell.neuron, cell.activation), cell.activation in DETACHED
    names = _names(like)

    def at(inputs: Tensors, states: Tensors) -> LIF:
        state = like._replace(**dict(zip(names, states, strict=True)))
        return kind(cell.p, cell.dt, state, tuple(inputs), detached)

    def others(inputs: Tensors, states: Tensors, spike: Tensor) -> Tensors:
        changed = at(inputs, states).others(spike)
        return [changed[name] for name in names[1:]]

    return CompiledCell(
        lambda inputs, states: at(inputs, states).charge(states[0]),
        others,
        lambda states: at((), states).threshold,
        ToValue(at((), _states(like, torch.Size())).reset),
        timing="immediate",
        strict=True,
        detached=detached,
        inputs=2 if cell.weights else 1,
        states=len(names),
        sends="z" in like._fields,
    )


def _long_way(
    cell: Cell,
    like: Any,
    settings: Settings,
    inputs: Tensors,
    states: Tensors,
    trace: Tensor | None,
) -> Ran:
    """A step in torch, with the given settings and identity weights."""
    state = like._replace(**dict(zip(_names(like), states, strict=True)))
    if cell.weights:
        eye = torch.eye(inputs[0].shape[-1], dtype=inputs[0].dtype, device=inputs[0].device)
        cell, state = cell._replace(weights=(eye, eye)), state._replace(z=inputs[1])
    again = Incoming(inputs[0], state, False)
    result, after = _step(cell._replace(settings=settings), again, trace)
    sent = after.z if "z" in after._fields and settings.tau_s != 1.0 else None
    return Ran(result.out, _states(after, result.out.shape), result.trace, sent)


def _refractory_step(cell: Cell, given: Incoming, around: _Refractory) -> tuple[Tensor, Any]:
    """The inner step, then the library's own refractory update, which autograd records."""
    inner = cell._replace(activation=around.inner, p=getattr(cell.p, around.name))
    before = getattr(given.state, around.name)
    within = Incoming(given.x, before, given.fresh)
    trace = trace_before(inner, within)
    result, after = _step(inner, within, None if trace is None else trace.detach())
    seen = given.state if cell.settings.rule.chain else given.without_chain()
    fired = getattr(after, "z", result.fired)
    v, z, rho = around.update(seen, fired, result.state, cell.p)
    held = threshold(seen.rho, inner.p.method, inner.p.alpha)
    result = held_back(cell.settings, result, before.v, trace, held, v, z, fresh=given.fresh)
    after = after._replace(v=result.state)
    if "z" in after._fields:
        after = after._replace(z=z)
    return result.out, given.state._replace(**{around.name: after}, rho=rho)


def _step(cell: Cell, given: Incoming, trace: Tensor | None) -> tuple[Result, Any]:
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
        Native(arriving, lambda: (_dense(spikes), after.v), probe),
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


def trace_before(cell: Cell, given: Incoming) -> Tensor | None:
    """The PSC before a step."""
    v = None if given.fresh else given.state.v
    return trace_of(cell.settings, v, (*resting(cell.p), *cell.rest))


def _arriving(cell: Cell, x: Tensor, state: Any) -> tuple[Tensor, ...]:
    """The synaptic input, term by term."""
    if not cell.weights:
        return (_dense(x),)
    of_input, recurrent = cell.weights
    sent = _dense(state.z)
    sent = sent.detach() if cell.settings.rule.cuts_feedback else sent
    return linear(_dense(x), of_input), linear(sent, recurrent)


def through(cell: Cell, arriving: Tensor) -> tuple[Tensor, ...]:
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
