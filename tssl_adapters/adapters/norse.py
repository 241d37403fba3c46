"""Norse: ``LIFCell``, ``LIF`` and ``LIFBoxCell``.

The cells compare ``v > v_th``. ``LIFCell`` and ``LIF`` have a synaptic current in front of the
membrane, ``i' = i + x`` and ``i = i' - dt tau_syn_inv i'``; it is linear and stays with autograd,
so that the engine sees ``i'`` as the drive.
"""

from __future__ import annotations

from typing import Any

import norse.torch as norse
import torch
from norse.torch.functional.lif import LIFFeedForwardState
from norse.torch.functional.lif_box import LIFBoxFeedForwardState
from norse.torch.functional.reset import reset_subtract, reset_value
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
from torch import Tensor, nn

from tssl_adapters.adapters.base import Adapter, Kind, Wrapped, defined_by
from tssl_adapters.engine.attach import Result, attach
from tssl_adapters.engine.filter import SynapticCurrent
from tssl_adapters.engine.state import trace_of
from tssl_adapters.neuron import LinearCharge, Neuron, Reset, Subtract, ToValue, Value


def _charge(v: Tensor, current: Tensor, rate: Value, v_leak: Value) -> Tensor:
    return v + rate * ((v_leak - v) + current)


def _box_charge(v: Tensor, drive: Tensor, rate: Value, v_leak: Value) -> Tensor:
    return v + rate * (drive + v_leak - v)


def _neuron(layer: Any, formula: Any, reset: Reset) -> Neuron:
    p = layer.p
    rate = layer.dt * p.tau_mem_inv
    return Neuron(
        charge=LinearCharge(1.0 - rate, rate, rate * p.v_leak, formula, (rate, p.v_leak)),
        reset=reset,
        threshold=p.v_th,
        timing="immediate",
        strict=True,
        detached=False,
    )


class _Layer(Wrapped):
    """What all wrapped layers share. Mixed in before the library's class."""

    _tssl_native: Any

    # SequentialState looks for "state" in this signature.
    def forward(self: Any, input_tensor: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if self._tssl_runs_native():
            native: tuple[Tensor, Any] = self._tssl_native.forward(self, input_tensor, state)
            return native
        dense = input_tensor.to_dense() if input_tensor.is_sparse else input_tensor
        out, after = self._tssl_run(dense, state)
        return (out.to_sparse() if input_tensor.is_sparse else out), after

    def _tssl_run(self: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        raise NotImplementedError

    def _tssl_attach(
        self: Any, neuron: Neuron, x: Tensor, drive: Tensor, given: Any, state: Any
    ) -> Result:
        """``x`` is the layer's input, ``drive`` the membrane's, ``state`` what ``given`` became."""
        p, settings = self.p, self._tssl_settings
        v = None if given is None else given.v
        sequence = isinstance(self, SNN)

        def values() -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                spikes, after = self._tssl_native.forward(self, x, state)
            return spikes, after.v

        return attach(
            settings,
            neuron,
            drive,
            state.v,
            trace_of(settings, v, (0.0, p.v_reset, p.v_leak)),
            values,
            sequence=sequence,
            keep_states=sequence and self.record_states,
        )


class WrappedLIFCell(_Layer, norse.LIFCell):  # type: ignore[misc]
    """``LIFCell`` with the gradient of a rule."""

    _tssl_native = norse.LIFCell

    def _tssl_run(self, x: Tensor, given: Any) -> tuple[Tensor, Any]:
        state = self.state_fallback(x) if given is None else given
        charged = _incoming(self, state.i) + x
        after = charged + _minus_leak(self) * charged
        result = self._tssl_attach(_neuron(self, _charge, ToValue(self.p.v_reset)), x, charged, given, state)
        return result.out, LIFFeedForwardState(v=result.state, i=after)


class WrappedLIF(_Layer, norse.LIF):  # type: ignore[misc]
    """``LIF`` with the gradient of a rule: the whole sequence in one call."""

    _tssl_native = norse.LIF

    def _tssl_run(self, x: Tensor, given: Any) -> tuple[Tensor, Any]:
        state = self.state_fallback(x) if given is None else given
        k = _minus_leak(self)
        chain = self._tssl_settings.rule.chain
        charged = SynapticCurrent.apply(x, state.i, k, chain)  # type: ignore[no-untyped-call]
        result = self._tssl_attach(_neuron(self, _charge, ToValue(self.p.v_reset)), x, charged, given, state)
        shown = charged if self.record_states else charged[-1]
        v = result.states if self.record_states else result.state
        return result.out, LIFFeedForwardState(v=v, i=shown + k * shown)


class WrappedLIFBoxCell(_Layer, norse.LIFBoxCell):  # type: ignore[misc]
    """``LIFBoxCell`` with the gradient of a rule."""

    _tssl_native = norse.LIFBoxCell

    def _tssl_run(self, x: Tensor, given: Any) -> tuple[Tensor, Any]:
        state = self.state_fallback(x) if given is None else given
        reset = Subtract() if self.p.reset_method is reset_subtract else ToValue(self.p.v_reset)
        result = self._tssl_attach(_neuron(self, _box_charge, reset), x, x, given, state)
        return result.out, LIFBoxFeedForwardState(v=result.state)


def _incoming(layer: Any, current: Tensor) -> Tensor:
    """Where the rule has no chain over time, the current's graph ends here too."""
    return current if layer._tssl_settings.rule.chain else current.detach()


def _minus_leak(layer: Any) -> Tensor:
    leak: Tensor = -layer.dt * layer.p.tau_syn_inv
    return leak


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
