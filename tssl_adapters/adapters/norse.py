"""Norse: ``LIFCell``, ``LIF`` and ``LIFBoxCell``.

The cells compare ``v > v_th``. ``LIFCell`` and ``LIF`` have a synaptic current in front of the
membrane, ``i' = i + x`` and ``i = i' - dt tau_syn_inv i'``; it is linear and stays with autograd,
so that the engine sees ``i'`` as the drive.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import norse.torch as norse
import torch
from norse.torch.functional.lif import LIFFeedForwardState
from norse.torch.functional.lif_box import LIFBoxFeedForwardState
from norse.torch.functional.reset import reset_subtract, reset_value
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
from torch import Tensor, nn

from tssl_adapters.adapters.base import Adapter, Kind, Wrapped, defined_by, eager
from tssl_adapters.elementwise import operand
from tssl_adapters.engine.attach import Native, Result, attach
from tssl_adapters.engine.filter import SynapticCurrent
from tssl_adapters.engine.state import trace_of
from tssl_adapters.neuron import LinearCharge, Neuron, Subtract, ToValue, Value


def _charge(v: Tensor, current: Tensor, rate: Value, v_leak: Value) -> Tensor:
    # In place, the other way round, and without a zero: the same value for less.
    return _times(rate, current - v if _zero(v_leak) else (v_leak - v) + current).add_(v)


def _box_charge(v: Tensor, drive: Tensor, rate: Value, v_leak: Value) -> Tensor:
    return _times(rate, (drive if _zero(v_leak) else drive + v_leak) - v).add_(v)


def _zero(value: Value) -> bool:
    return isinstance(value, float) and value == 0.0


def _times(rate: Value, increment: Tensor) -> Tensor:
    if isinstance(rate, Tensor):
        return rate * increment
    return increment.mul_(operand(rate, increment))


class _Record(NamedTuple):
    """What ``p`` and ``dt`` make of a layer."""

    neuron: Neuron
    minus_leak: Value
    """k in i = i' + k i'."""


def _record(layer: Any) -> _Record:
    p, box = layer.p, isinstance(layer, norse.LIFBoxCell)
    rate, v_leak = _number(layer.dt * p.tau_mem_inv), _number(p.v_leak)
    subtract = box and p.reset_method is reset_subtract
    neuron = Neuron(
        charge=LinearCharge(
            decay=1.0 - rate,
            gain=rate,
            offset=rate * v_leak,
            formula=_box_charge if box else _charge,
            raw=(rate, v_leak),
        ),
        reset=Subtract(_subtract) if subtract else ToValue(_number(p.v_reset)),
        threshold=_number(p.v_th),
        timing="immediate",
        strict=True,
        detached=False,
    )
    return _Record(neuron, 0.0 if box else _number(-layer.dt * p.tau_syn_inv))


def _subtract(charged: Tensor, due: Tensor, threshold: Value) -> Tensor:
    return (1 - due) * charged + due * (charged - threshold)


def _number(value: Value) -> Value:
    """A scalar at hand that does not learn as a plain number, which torch handles faster."""
    if not isinstance(value, Tensor) or value.ndim or value.requires_grad or value.is_cuda:
        return value
    return float(value)


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
        return (out.to_sparse() if input_tensor.is_sparse else out), after

    def _tssl_run(self: Any, x: Tensor, given: Any) -> tuple[Tensor, Any]:
        p, settings = self.p, self._tssl_settings
        sequence = isinstance(self, SNN)
        state = self.state_fallback(x) if given is None else given
        record = _record(self)
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
            trace_of(settings, None if given is None else given.v, (0.0, p.v_reset, p.v_leak)),
            Native(x, lambda: run(x, state), probe),
            sequence=sequence,
            keep_states=sequence and self.record_states,
            fresh=given is None,
        )
        return result.out, self._tssl_state(result, drive, record)

    def _tssl_drive(self: Any, x: Tensor, state: Any, record: _Record) -> Tensor:
        """What charges the membrane."""
        raise NotImplementedError

    def _tssl_state(self: Any, result: Result, drive: Tensor, record: _Record) -> Any:
        """The library's state after the call."""
        raise NotImplementedError


class WrappedLIFCell(_Layer, norse.LIFCell):  # type: ignore[misc]
    """``LIFCell`` with the gradient of a rule."""

    _tssl_native = norse.LIFCell

    def _tssl_drive(self, x: Tensor, state: Any, record: _Record) -> Tensor:
        # Where the rule has no chain over time, the current's graph ends here too.
        chain = self._tssl_settings.rule.chain
        current: Tensor = state.i if chain else state.i.detach()
        return current + x

    def _tssl_state(self, result: Result, drive: Tensor, record: _Record) -> Any:
        return LIFFeedForwardState(result.state, drive + record.minus_leak * drive)


class WrappedLIF(_Layer, norse.LIF):  # type: ignore[misc]
    """``LIF`` with the gradient of a rule: the whole sequence in one call."""

    _tssl_native = norse.LIF

    def _tssl_drive(self, x: Tensor, state: Any, record: _Record) -> Tensor:
        chain = self._tssl_settings.rule.chain
        drive: Tensor = SynapticCurrent.apply(x, state.i, record.minus_leak, chain)  # type: ignore[no-untyped-call]
        return drive

    def _tssl_state(self, result: Result, drive: Tensor, record: _Record) -> Any:
        shown, v = (drive, result.states) if self.record_states else (drive[-1], result.state)
        return LIFFeedForwardState(v, shown + record.minus_leak * shown)


class WrappedLIFBoxCell(_Layer, norse.LIFBoxCell):  # type: ignore[misc]
    """``LIFBoxCell`` with the gradient of a rule."""

    _tssl_native = norse.LIFBoxCell

    def _tssl_drive(self, x: Tensor, state: Any, record: _Record) -> Tensor:
        return x

    def _tssl_state(self, result: Result, drive: Tensor, record: _Record) -> Any:
        return LIFBoxFeedForwardState(result.state)


def _problem(layer: Any) -> str | None:
    if layer.p.method == "adjoint":
        return "method='adjoint' is a learning rule of its own; use another method"
    if getattr(layer.p, "reset_method", reset_value) not in (reset_value, reset_subtract):
        return (
            "its reset_method is a function of your own; use norse.torch.functional.reset's "
            "reset_value or reset_subtract"
        )
    return None


def _defined_in(module: nn.Module) -> set[str]:
    prefix = "norse.torch.module."
    return {
        cls.__module__.removeprefix(prefix)
        for cls in type(module).__mro__
        if cls.__module__.startswith(prefix)
    }


def _leaks_only(module: nn.Module) -> bool:
    return bool(_defined_in(module) & {"leaky_integrator", "leaky_integrator_box"})


def _spiking(module: nn.Module) -> bool:
    if _leaks_only(module):
        return False
    if isinstance(module, SNN | SNNCell | SNNRecurrent | SNNRecurrentCell):
        return True
    return any(
        name.startswith(("coba_lif", "iaf", "izhikevich", "lif", "lsnn")) and name != "lift"
        for name in _defined_in(module)
    )


ADAPTER = Adapter(
    library="norse",
    kinds={
        cls._tssl_native: Kind(cls, _problem)
        for cls in (WrappedLIFCell, WrappedLIF, WrappedLIFBoxCell)
    },
    spiking=_spiking,
    native=lambda module: defined_by("norse", module),
    mode=lambda layer: "sequence" if isinstance(layer, SNN) else "step",
)
