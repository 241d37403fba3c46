"""Neurons with a linear charge and without feedback: ``LIF``, ``LIFBox``, ``IAF``.

The cells compare ``v > v_th``. In ``LIFCell`` and ``LIF`` a synaptic current charges the membrane,
``i' = i + x`` and ``i = i' - dt tau_syn_inv i'``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import norse.torch as norse
import torch
from norse.torch.functional.iaf import IAFFeedForwardState
from norse.torch.functional.lif import LIFFeedForwardState
from norse.torch.module.snn import SNN
from torch import Tensor

from tssl_adapters.adapters import (
    HALF,
    Decided,
    Described,
    Incoming,
    LinearCharge,
    NativeForward,
    Neuron,
    OtherNeuronError,
    Steps,
    Subtract,
    ToValue,
    Traits,
    Value,
    attach,
    computes,
    eager,
    exporting,
    linear_cell,
    operand,
    stepped_with_state,
    synaptic_current,
    trace_of,
    wrapped_classes,
)
from tssl_adapters.adapters.norse.shared import Shared
from tssl_adapters.adapters.norse.values import number, pinned, resting
from tssl_adapters.arithmetic import arithmetic


def _plain_charge(v: Any, current: Any, rate: Any, v_leak: Any) -> Any:
    return rate * ((v_leak - v) + current) + v


def _plain_box_charge(v: Any, drive: Any, rate: Any, v_leak: Any) -> Any:
    return rate * ((drive + v_leak) - v) + v


@computes(_plain_charge)
def _charge(v: Tensor, current: Tensor, rate: Value, v_leak: Value) -> Tensor:
    # In place, reordered, and without adding a zero: the same value, faster.
    return _times(rate, current - v if _zero(v_leak) else (v_leak - v) + current).add_(v)


@computes(_plain_box_charge)
def _box_charge(v: Tensor, drive: Tensor, rate: Value, v_leak: Value) -> Tensor:
    return _times(rate, (drive if _zero(v_leak) else drive + v_leak) - v).add_(v)


@arithmetic
def _sum(v: Tensor, drive: Tensor) -> Tensor:
    return v + drive


def _zero(value: Value) -> bool:
    return isinstance(value, float) and value == 0.0


def _times(rate: Value, increment: Tensor) -> Tensor:
    if isinstance(rate, Tensor):
        return rate * increment
    return increment.mul_(operand(rate, increment))


class _Record(NamedTuple):
    """A layer's neuron and its current."""

    neuron: Neuron
    minus_leak: Value = 0.0
    """k in i = i' + k i', where there is a current."""

    def traits(self, layer: Any, *, current: bool) -> Traits:
        """The traits of the layer that rules consult."""
        return Traits(
            nonlinear=None,
            reset=self.neuron.reset,
            decay=self.neuron.charge.decay,
            threshold=self.neuron.threshold,
            synapse=1.0 + self.minus_leak if current else None,
            sequence=isinstance(layer, SNN),
        )


def neuron_of(charge: LinearCharge, p: Any, *, subtract: bool = False) -> Neuron:
    """The neuron with a charge and a layer's parameters."""
    return Neuron(
        charge=charge,
        reset=Subtract(_subtract) if subtract else ToValue(number(p.v_reset)),
        threshold=number(p.v_th),
        timing="immediate",
        strict=True,
        detached=False,
    )


def leaky_charge(layer: Any, formula: Callable[..., Tensor] = _charge) -> LinearCharge:
    """The charge of a leaky potential."""
    rate, v_leak = number(layer.dt * layer.p.tau_mem_inv), number(layer.p.v_leak)
    return LinearCharge(
        decay=1.0 - rate, gain=rate, offset=rate * v_leak, formula=formula, raw=(rate, v_leak)
    )


@arithmetic
def _subtract(charged: Tensor, due: Tensor, threshold: Value) -> Tensor:
    return (1.0 - due) * charged + due * (charged - threshold)


class Layer(Shared):
    """What layers with a linear charge share. Mixed in before the library's class."""

    # SequentialState looks for "state" in this signature.
    @eager
    def forward(self: Any, input_tensor: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if exporting():
            return self._tssl_emitted(input_tensor, state)  # type: ignore[no-any-return]
        dense = input_tensor.to_dense() if input_tensor.is_sparse else input_tensor
        out, after = self._tssl_run(dense, state, isinstance(self, SNN))
        sparse = input_tensor.is_sparse and self.activation_sparse is not None
        return (out.to_sparse() if sparse else out), after

    def _tssl_as_decided(self: Any, decided: Decided, x: Any, state: Any = None) -> Any:
        fresh = state is None
        if fresh and isinstance(decided, Steps):
            return None
        carried = self._tssl_initial(x) if fresh else self._tssl_carried(state)
        trace = None
        if decided.traced:
            trace = trace_of(self._tssl_settings, state.v, resting(self.p))
        # The same tensors: p is set as a whole, which discards what was decided.
        if carried is None or not decided.fits((x,), carried, decided.pinned, trace):
            return None
        ran = decided.run((x,), carried, trace, fresh)
        return ran.out, self._tssl_state(*ran.states)

    @classmethod
    def _tssl_traits(cls, layer: Any) -> Traits:
        record: _Record = cls._tssl_record(layer)
        return record.traits(layer, current=issubclass(cls, _LIF))

    def _tssl_sequence(self: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """A cell's output for ``x [T, batch, ...]``, and its state after the last step."""
        if not exporting():
            try:
                self._tssl_look()
                ran: tuple[Tensor, Any] = self._tssl_run(x, state, True)
                return ran
            except OtherNeuronError:
                pass  # each step reports and handles it
        return stepped_with_state(self).run(x, state)

    def _tssl_run(self: Any, x: Tensor, given: Any, sequence: bool) -> tuple[Tensor, Any]:
        settings = self._tssl_settings
        loops = sequence and not isinstance(self, SNN)
        state = given
        if given is None:
            state = self.state_fallback(x[0] if loops else x)
        record = self._tssl_known_record()
        behind = isinstance(self, _LIF)
        leak = _rounded(record.minus_leak, x, state.i, sequence) if behind else 0.0
        trace = None
        if settings.tau_s != 1.0:
            trace = trace_of(settings, None if given is None else given.v, resting(self.p))

        def run(x: Tensor, state: Any) -> tuple[Tensor, Tensor]:
            forward = partial(self._tssl_native.forward, self)
            with torch.no_grad():
                spikes, after = (stepped_with_state(forward).run if loops else forward)(x, state)
            return spikes, after.v

        def probe(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            rest = type(state)(*(torch.zeros_like(v) for _ in state))._replace(v=v)
            return (self._tssl_drive(x, rest, record, sequence), *run(x, rest))

        result = attach(
            settings,
            record.neuron,
            x,
            state.v,
            trace,
            NativeForward(x, lambda: run(x, state), probe),
            sequence=sequence,
            keep_states=sequence and getattr(self, "record_states", False),
            fresh=given is None,
            incoming=Incoming(state.i, leak) if behind else None,
            described=None if loops else self._tssl_described(),
        )
        v = result.state if result.states is None else result.states
        return result.out, self._tssl_state(v, result.current)

    def _tssl_described(self: Any) -> Described:
        """Its single step, to be compiled."""
        leak = (lambda: self._tssl_record().minus_leak) if isinstance(self, _LIF) else None
        cell = partial(linear_cell, lambda: self._tssl_record().neuron, leak)
        return Described(cell, pinned(self.p))

    def _tssl_record(self: Any) -> _Record:
        """The record for the current ``p`` and ``dt``."""
        raise NotImplementedError

    def _tssl_known_record(self: Any) -> _Record:
        """The record, rebuilt only if something that it depends on has changed."""
        settings, p = self._tssl_settings, self.p
        numbers = (self.dt, *map(number, p))
        if settings.record is not None:
            of, known, record = settings.record
            if of is p and known == numbers:
                return record  # type: ignore[no-any-return]
        record = self._tssl_record()
        plain = not any(isinstance(value, Tensor) for value in numbers)
        settings.record = (p, numbers, record) if plain else None
        return record  # type: ignore[no-any-return]

    def _tssl_drive(self: Any, x: Tensor, state: Any, record: _Record, sequence: bool) -> Tensor:
        """The drive that charges the membrane."""
        return x

    def _tssl_carried(self, state: Any) -> tuple[Tensor, ...]:
        """The states that a step goes on from, whatever else they come with."""
        return (state.v,)

    def _tssl_initial(self: Any, x: Tensor) -> tuple[float, ...] | None:
        """The states that a sequence starts from if it is given none, if these are known to be
        numbers, the same for all neurons.
        """
        return None

    def _tssl_state(self: Any, v: Tensor, current: Tensor | None = None) -> Any:
        """The library's state, from a potential and, if it has one, a synaptic current."""
        raise NotImplementedError


class _LIF(Layer):
    def _tssl_record(self: Any) -> _Record:
        neuron = neuron_of(leaky_charge(self), self.p)
        return _Record(neuron, number(-self.dt * self.p.tau_syn_inv))

    def _tssl_drive(self: Any, x: Tensor, state: Any, record: _Record, sequence: bool) -> Tensor:
        k = _rounded(record.minus_leak, x, state.i, sequence)
        return synaptic_current(self._tssl_settings, x, state.i, k, sequence=sequence)

    def _tssl_carried(self, state: Any) -> tuple[Tensor, ...]:
        return state.v, state.i

    def _tssl_initial(self: Any, x: Tensor) -> tuple[float, ...] | None:
        start = self.state_fallback
        theirs = getattr(start, "__func__", None) is getattr(norse.LIF, "initial_state", self)
        if not theirs or start.__self__ is not self:
            return None
        # The library's state is float32, and its potential has a gradient, as has then the output.
        if not (x.dtype is torch.float32 and x.requires_grad):
            return None
        return float(self.p.v_leak), 0.0

    def _tssl_state(self: Any, v: Tensor, current: Tensor | None = None) -> Any:
        return LIFFeedForwardState(v, current)


def _rounded(number: Value, x: Tensor, current: Tensor, sequence: bool) -> Value:
    """A parameter's number as torch takes it beside a step's current: rounded to its dtype."""
    if isinstance(number, Tensor) or {x.dtype, current.dtype}.isdisjoint(HALF):
        return number
    dtype = torch.result_type(x[0] if sequence and len(x) else x, current)
    if dtype not in HALF:
        return number
    return torch.tensor(number, dtype=dtype).item()


class _LIFBox(Layer):
    def _tssl_parts(self: Any) -> tuple[Any, ...]:
        return (*super()._tssl_parts(), getattr(self.p, "reset_method", None))

    def _tssl_record(self: Any) -> _Record:
        method = getattr(self.p, "reset_method", None)  # older versions reset to a value
        subtract = method is not None and method is norse.reset_subtract
        return _Record(neuron_of(leaky_charge(self, _box_charge), self.p, subtract=subtract))

    def _tssl_state(self: Any, v: Tensor, current: Tensor | None = None) -> Any:
        return norse.LIFBoxFeedForwardState(v)


class _IAF(Layer):
    def _tssl_record(self: Any) -> _Record:
        return _Record(neuron_of(LinearCharge(1.0, 1.0, 0.0, _sum), self.p))

    def _tssl_state(self: Any, v: Tensor, current: Tensor | None = None) -> Any:
        return IAFFeedForwardState(v)


WRAPPED = wrapped_classes(
    __name__,
    norse,
    {"LIFCell": _LIF, "LIF": _LIF, "LIFBoxCell": _LIFBox, "IAFCell": _IAF, "IAF": _IAF},
)
