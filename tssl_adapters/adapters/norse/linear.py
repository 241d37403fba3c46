"""Neurons whose charge is linear and that feed nothing back: ``LIF``, ``LIFBox``, ``IAF``.

The cells compare ``v > v_th``. ``LIFCell`` and ``LIF`` have a synaptic current in front of the
membrane, ``i' = i + x`` and ``i = i' - dt tau_syn_inv i'``; it is linear and stays with autograd,
so that the engine sees ``i'`` as the drive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import norse.torch as norse
import torch
from norse.torch.functional.iaf import IAFFeedForwardState
from norse.torch.functional.lif import LIFFeedForwardState
from norse.torch.module.snn import SNN
from torch import Tensor

from tssl_adapters.adapters.base import Wrapped, eager
from tssl_adapters.adapters.norse.values import number, resting
from tssl_adapters.elementwise import operand
from tssl_adapters.engine.attach import Native, Result, attach
from tssl_adapters.engine.filter import synaptic_current
from tssl_adapters.engine.state import trace_of
from tssl_adapters.neuron import LinearCharge, Neuron, Subtract, ToValue, Traits, Value, computes


def _plain_charge(v: Any, current: Any, rate: Any, v_leak: Any) -> Any:
    return rate * ((v_leak - v) + current) + v


def _plain_box_charge(v: Any, drive: Any, rate: Any, v_leak: Any) -> Any:
    return rate * ((drive + v_leak) - v) + v


def _plain_sum(v: Any, drive: Any) -> Any:
    return v + drive


def _plain_subtract(charged: Any, due: Any, threshold: Any) -> Any:
    return (1.0 - due) * charged + due * (charged - threshold)


@computes(_plain_charge)
def _charge(v: Tensor, current: Tensor, rate: Value, v_leak: Value) -> Tensor:
    # In place, the other way round, and without a zero: the same value for less.
    return _times(rate, current - v if _zero(v_leak) else (v_leak - v) + current).add_(v)


@computes(_plain_box_charge)
def _box_charge(v: Tensor, drive: Tensor, rate: Value, v_leak: Value) -> Tensor:
    return _times(rate, (drive if _zero(v_leak) else drive + v_leak) - v).add_(v)


@computes(_plain_sum)
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
        """What a rule may ask of the layer."""
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


@computes(_plain_subtract)
def _subtract(charged: Tensor, due: Tensor, threshold: Value) -> Tensor:
    return (1 - due) * charged + due * (charged - threshold)


class _Layer(Wrapped):
    """What all wrapped layers share. Mixed in before the library's class."""

    # SequentialState looks for "state" in this signature.
    @eager
    def forward(self: Any, input_tensor: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if self._tssl_runs_native():
            native: tuple[Tensor, Any] = self._tssl_native.forward(self, input_tensor, state)
            return native
        dense = input_tensor.to_dense() if input_tensor.is_sparse else input_tensor
        out, after = self._tssl_run(dense, state)
        sparse = input_tensor.is_sparse and self.activation_sparse is not None
        return (out.to_sparse() if sparse else out), after

    @classmethod
    def _tssl_traits(cls, layer: Any) -> Traits:
        record: _Record = cls._tssl_record(layer)
        return record.traits(layer, current=issubclass(cls, _LIF))

    def _tssl_run(self: Any, x: Tensor, given: Any) -> tuple[Tensor, Any]:
        settings = self._tssl_settings
        sequence = isinstance(self, SNN)
        state = self.state_fallback(x) if given is None else given
        record = self._tssl_known_record()
        drive = self._tssl_drive(x, state, record)

        def run(x: Tensor, state: Any) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                spikes, after = self._tssl_native.forward(self, x, state)
            return spikes, after.v

        def probe(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            rest = type(state)(*(torch.zeros_like(v) for _ in state))._replace(v=v)
            return (self._tssl_drive(x, rest, record), *run(x, rest))

        result = attach(
            settings,
            record.neuron,
            drive,
            state.v,
            trace_of(settings, None if given is None else given.v, resting(self.p)),
            Native(x, lambda: run(x, state), probe),
            sequence=sequence,
            keep_states=sequence and self.record_states,
            fresh=given is None,
        )
        return result.out, self._tssl_state(result, drive, record)

    def _tssl_record(self: Any) -> _Record:
        """What ``p`` and ``dt`` make of the layer now."""
        raise NotImplementedError

    def _tssl_known_record(self: Any) -> _Record:
        """The record, made anew only where something that it is made of has changed."""
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

    def _tssl_drive(self: Any, x: Tensor, state: Any, record: _Record) -> Tensor:
        """What charges the membrane."""
        raise NotImplementedError

    def _tssl_state(self: Any, result: Result, drive: Tensor, record: _Record) -> Any:
        """The library's state after the call."""
        raise NotImplementedError


class _LIF(_Layer):
    def _tssl_record(self: Any) -> _Record:
        neuron = neuron_of(leaky_charge(self), self.p)
        return _Record(neuron, number(-self.dt * self.p.tau_syn_inv))


class WrappedLIFCell(_LIF, norse.LIFCell):  # type: ignore[misc]
    """``LIFCell`` with the gradient of a rule."""

    _tssl_native = norse.LIFCell

    def _tssl_drive(self, x: Tensor, state: Any, record: _Record) -> Tensor:
        # Where the rule has no chain over time, the current's graph ends here too.
        chain = self._tssl_settings.rule.chain
        current: Tensor = state.i if chain else state.i.detach()
        return current + x

    def _tssl_state(self, result: Result, drive: Tensor, record: _Record) -> Any:
        return LIFFeedForwardState(result.state, drive + record.minus_leak * drive)


class WrappedLIF(_LIF, norse.LIF):  # type: ignore[misc]
    """``LIF`` with the gradient of a rule: the whole sequence in one call."""

    _tssl_native = norse.LIF

    def _tssl_drive(self, x: Tensor, state: Any, record: _Record) -> Tensor:
        return synaptic_current(self._tssl_settings, x, state.i, record.minus_leak)

    def _tssl_state(self, result: Result, drive: Tensor, record: _Record) -> Any:
        shown, v = (drive, result.states) if self.record_states else (drive[-1], result.state)
        return LIFFeedForwardState(v, shown + record.minus_leak * shown)


class _LIFBox(_Layer):
    def _tssl_record(self: Any) -> _Record:
        method = getattr(self.p, "reset_method", None)  # older versions reset to a value
        subtract = method is not None and method is norse.reset_subtract
        return _Record(neuron_of(leaky_charge(self, _box_charge), self.p, subtract=subtract))

    def _tssl_drive(self: Any, x: Tensor, state: Any, record: _Record) -> Tensor:
        return x

    def _tssl_state(self: Any, result: Result, drive: Tensor, record: _Record) -> Any:
        return norse.LIFBoxFeedForwardState(result.state)


class _IAF(_Layer):
    def _tssl_record(self: Any) -> _Record:
        return _Record(neuron_of(LinearCharge(1.0, 1.0, 0.0, _sum), self.p))

    def _tssl_drive(self: Any, x: Tensor, state: Any, record: _Record) -> Tensor:
        return x

    def _tssl_state(self: Any, result: Result, drive: Tensor, record: _Record) -> Any:
        return IAFFeedForwardState(result.state if result.states is None else result.states)


# Older versions lack some of these.
if hasattr(norse, "LIFBoxCell"):

    class WrappedLIFBoxCell(_LIFBox, norse.LIFBoxCell):  # type: ignore[misc]
        """``LIFBoxCell`` with the gradient of a rule."""

        _tssl_native = norse.LIFBoxCell


if hasattr(norse, "IAFCell"):

    class WrappedIAFCell(_IAF, norse.IAFCell):  # type: ignore[misc]
        """``IAFCell`` with the gradient of a rule."""

        _tssl_native = norse.IAFCell


if hasattr(norse, "IAF"):

    class WrappedIAF(_IAF, norse.IAF):  # type: ignore[misc]
        """``IAF`` with the gradient of a rule: the whole sequence in one call."""

        _tssl_native = norse.IAF
