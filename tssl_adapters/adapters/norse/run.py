"""Run one step of any neuron, feed-forward or recurrent, refractory or not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
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
    Native,
    Result,
    Settings,
    ToValue,
    Value,
    attach_smooth,
    held_back,
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
    """A step around another neuron's, whose parameters and state it keeps under ``name``."""

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
    """What of a layer a step needs.

    Attributes:
        settings: the layer's path, rule and tau_s.
        neuron: describes the neuron.
        activation: the library's step.
        p: its parameters.
        dt: time step.
        weights: of input and recurrence, empty where the layer is not recurrent.
        rest: where else than ``p`` says its potential rests.
        sparse: whether it emits its spikes sparse.
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
    result, state = _step(cell, given, _trace(cell, given))
    return result.out.to_sparse() if cell.sparse else result.out, state


def _refractory_step(cell: Cell, given: Incoming, around: _Refractory) -> tuple[Tensor, Any]:
    """The library's own update follows the inner step, and autograd follows the update."""
    inner = cell._replace(activation=around.inner, p=getattr(cell.p, around.name))
    before = getattr(given.state, around.name)
    within = Incoming(given.x, before, given.fresh)
    trace = _trace(inner, within)
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
    neuron = kind(p, dt, seen, _arriving(cell, x, seen), detached)
    charging = neuron
    if not settings.rule.chain:
        # The input of one step, which must not be lost: it is cut where it joins the next one's.
        late = {name: getattr(state, name) for name in neuron.late}
        charging = replace(neuron, state=seen._replace(**late))
    with torch.no_grad():
        spikes, after = activation(x, state, *cell.weights, p, dt)
        slope = number(neuron.slope(state.v.detach()))

    def probe(arriving: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at = state._replace(v=v)
        sent = arriving.to_sparse() if x.is_sparse else arriving
        out, later = activation(sent, at, *through(cell, arriving), p, dt)
        return kind(p, dt, at, arriving, detached).charge(v), _dense(out), later.v

    result = attach_smooth(
        settings,
        charging.charge,
        state.v,
        trace,
        Native(neuron.arriving, lambda: (_dense(spikes), after.v), probe),
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


def _trace(cell: Cell, given: Incoming) -> Tensor | None:
    v = None if given.fresh else given.state.v
    return trace_of(cell.settings, v, (*resting(cell.p), *cell.rest))


def _arriving(cell: Cell, x: Tensor, state: Any) -> Tensor:
    if not cell.weights:
        return _dense(x)
    of_input, recurrent = cell.weights
    sent = _dense(state.z)
    sent = sent.detach() if cell.settings.rule.cuts_feedback else sent
    return linear(_dense(x), of_input) + linear(sent, recurrent)


def through(cell: Cell, arriving: Tensor) -> tuple[Tensor, ...]:
    """Weights that hand the input on as it is, without recurrence."""
    if not cell.weights:
        return ()
    eye = torch.eye(arriving.shape[-1], dtype=arriving.dtype, device=arriving.device)
    return eye, torch.zeros_like(cell.weights[1])


def _dense(tensor: Tensor) -> Tensor:
    return tensor.to_dense() if tensor.is_sparse else tensor


def _like(theirs: Tensor, ours: Tensor) -> Tensor:
    return ours.to_sparse() if theirs.is_sparse else ours


def _cut(state: Any) -> Any:
    """A state, tuples within it too, without its graph."""
    if isinstance(state, Tensor):
        return state.detach()
    return type(state)(*map(_cut, state)) if isinstance(state, tuple) else state
