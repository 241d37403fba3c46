"""The layers whose neurons are described in :mod:`tssl_adapters.adapters.norse.neurons`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import norse.torch as norse
import torch
from norse.torch.module import snn
from norse.torch.module.snn import SNN, SNNRecurrent, SNNRecurrentCell
from torch import Tensor

from tssl_adapters.adapters import (
    CellSteps,
    Surrogate,
    ToValue,
    Traits,
    Wrapped,
    eager,
    exporting,
)
from tssl_adapters.adapters.norse import neurons, surrogates
from tssl_adapters.adapters.norse.run import (
    REFRACTORY,
    Cell,
    Incoming,
    short_step,
    step,
    trace_before,
)
from tssl_adapters.adapters.norse.values import emitting, number, spikes
from tssl_adapters.adapters.norse.whole import goes_whole, whole_sequence


class _Layer(Wrapped):
    """What the wrapped layers share. Mixed in before the library's class."""

    _tssl_neuron: ClassVar[type[neurons.LIF]]

    @classmethod
    def _tssl_traits(cls, layer: Any) -> Traits:
        p, dt = layer.p, layer.dt
        around = REFRACTORY.get(layer.activation)
        p = p if around is None else getattr(p, around.name)
        if cls._tssl_neuron.nonlinear is not None:
            why = cls._tssl_neuron.nonlinear
            return Traits(nonlinear=why, reset=ToValue(), written=around is None)
        return Traits(
            nonlinear=None,
            reset=ToValue(number(p.v_reset)),
            decay=1.0 - number(dt * p.tau_mem_inv),
            threshold=number(p.v_th),
            synapse=1.0 - number(dt * p.tau_syn_inv),
            refractory=around is not None,
            recurrent=isinstance(layer, SNNRecurrent | SNNRecurrentCell),
            sequence=_whole(layer),
        )

    @classmethod
    def _tssl_spikes(cls, layer: Any) -> Callable[[Tensor], Tensor]:
        return spikes(layer)

    def _tssl_parts(self: Any) -> tuple[Any, ...]:
        return self.activation, getattr(self.p, "method", None)

    def _tssl_emitted(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return emitting(self, x, state)

    @classmethod
    def _tssl_own(cls, layer: Any) -> tuple[Any, ...]:
        return surrogates.own(layer)

    @classmethod
    def _tssl_surrogate(cls, layer: Any) -> Surrogate:
        return surrogates.surrogate(layer)

    # SequentialState looks for "state" in this signature.
    @eager
    def forward(self: Any, input_tensor: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if exporting():
            return self._tssl_emitted(input_tensor, state)  # type: ignore[no-any-return]
        fresh = state is None
        state = self.state_fallback(input_tensor) if fresh else state
        cell = self._tssl_cell(input_tensor)
        if self._tssl_settings.rule.cuts_feedback and _whole(self) and not input_tensor.is_sparse:
            return whole_sequence(self, cell, Incoming(input_tensor, state, fresh))
        if not isinstance(self, SNN | SNNRecurrent):
            return step(cell, Incoming(input_tensor, state, fresh))
        outs, states, record = [], [], getattr(self, "record_states", False)
        for t in range(input_tensor.shape[0]):
            out, state = step(cell, Incoming(input_tensor[t], state, fresh and t == 0))
            outs.append(out)
            if record:
                states.append(state)
        return torch.stack(outs), snn._merge_states(states) if record else state

    def _tssl_thinly(self: Any, thin: CellSteps, x: Any, state: Any = None) -> Any:
        if state is None or isinstance(self, SNN | SNNRecurrent) or x.is_sparse:
            return None
        if self.activation in REFRACTORY:
            return None
        cell, given = self._tssl_cell(x), Incoming(x, state, False)
        return short_step(cell, given, trace_before(cell, given))

    def _tssl_cell(self: Any, x: Tensor) -> Cell:
        sparse = x.is_sparse and self.activation_sparse is not None
        recurrent = isinstance(self, SNNRecurrent | SNNRecurrentCell)
        behaviour = getattr(self, "spiking_method", None)  # Izhikevich's
        return Cell(
            self._tssl_settings,
            self._tssl_neuron,
            self.activation_sparse if sparse else self.activation,
            self.p,
            self.dt,
            (self.input_weights, self.recurrent_weights) if recurrent else (),
            () if behaviour is None else (behaviour.s.v.detach(),),
            sparse,
        )


def _whole(layer: Any) -> bool:
    """Whether a sequence can run in one call under a rule that cuts the feedback."""
    return isinstance(layer, SNNRecurrent) and goes_whole(layer.activation)


class WrappedLIFCell(_Layer, norse.LIFCell):  # type: ignore[misc]
    """``LIFCell`` of older versions, whose membrane sees the current before the input is added."""

    _tssl_native = norse.LIFCell
    _tssl_neuron = neurons.LIF


class WrappedLIF(_Layer, norse.LIF):  # type: ignore[misc]
    """``LIF`` of older versions, whose membrane sees the current before the input is added."""

    _tssl_native = norse.LIF
    _tssl_neuron = neurons.LIF


class WrappedLIFRecurrentCell(_Layer, norse.LIFRecurrentCell):  # type: ignore[misc]
    """``LIFRecurrentCell`` with the gradient of a rule."""

    _tssl_native = norse.LIFRecurrentCell
    _tssl_neuron = neurons.LIF


class WrappedLIFRecurrent(_Layer, norse.LIFRecurrent):  # type: ignore[misc]
    """``LIFRecurrent`` with the gradient of a rule."""

    _tssl_native = norse.LIFRecurrent
    _tssl_neuron = neurons.LIF


class WrappedLIFExCell(_Layer, norse.LIFExCell):  # type: ignore[misc]
    """``LIFExCell`` with the gradient of a rule."""

    _tssl_native = norse.LIFExCell
    _tssl_neuron = neurons.LIFEx


class WrappedLIFEx(_Layer, norse.LIFEx):  # type: ignore[misc]
    """``LIFEx`` with the gradient of a rule."""

    _tssl_native = norse.LIFEx
    _tssl_neuron = neurons.LIFEx


class WrappedLIFExRecurrentCell(_Layer, norse.LIFExRecurrentCell):  # type: ignore[misc]
    """``LIFExRecurrentCell`` with the gradient of a rule."""

    _tssl_native = norse.LIFExRecurrentCell
    _tssl_neuron = neurons.LIFEx


class WrappedLIFExRecurrent(_Layer, norse.LIFExRecurrent):  # type: ignore[misc]
    """``LIFExRecurrent`` with the gradient of a rule."""

    _tssl_native = norse.LIFExRecurrent
    _tssl_neuron = neurons.LIFEx


class WrappedLIFAdExCell(_Layer, norse.LIFAdExCell):  # type: ignore[misc]
    """``LIFAdExCell`` with the gradient of a rule."""

    _tssl_native = norse.LIFAdExCell
    _tssl_neuron = neurons.LIFAdEx


class WrappedLIFAdEx(_Layer, norse.LIFAdEx):  # type: ignore[misc]
    """``LIFAdEx`` with the gradient of a rule."""

    _tssl_native = norse.LIFAdEx
    _tssl_neuron = neurons.LIFAdEx


class WrappedLIFAdExRecurrentCell(_Layer, norse.LIFAdExRecurrentCell):  # type: ignore[misc]
    """``LIFAdExRecurrentCell`` with the gradient of a rule."""

    _tssl_native = norse.LIFAdExRecurrentCell
    _tssl_neuron = neurons.LIFAdEx


class WrappedLIFAdExRecurrent(_Layer, norse.LIFAdExRecurrent):  # type: ignore[misc]
    """``LIFAdExRecurrent`` with the gradient of a rule."""

    _tssl_native = norse.LIFAdExRecurrent
    _tssl_neuron = neurons.LIFAdEx


class WrappedLSNNCell(_Layer, norse.LSNNCell):  # type: ignore[misc]
    """``LSNNCell`` with the gradient of a rule."""

    _tssl_native = norse.LSNNCell
    _tssl_neuron = neurons.LSNN


class WrappedLSNN(_Layer, norse.LSNN):  # type: ignore[misc]
    """``LSNN`` with the gradient of a rule."""

    _tssl_native = norse.LSNN
    _tssl_neuron = neurons.LSNN


class WrappedLSNNRecurrentCell(_Layer, norse.LSNNRecurrentCell):  # type: ignore[misc]
    """``LSNNRecurrentCell`` with the gradient of a rule."""

    _tssl_native = norse.LSNNRecurrentCell
    _tssl_neuron = neurons.LSNN


class WrappedLSNNRecurrent(_Layer, norse.LSNNRecurrent):  # type: ignore[misc]
    """``LSNNRecurrent`` with the gradient of a rule."""

    _tssl_native = norse.LSNNRecurrent
    _tssl_neuron = neurons.LSNN


class WrappedIzhikevichCell(_Layer, norse.IzhikevichCell):  # type: ignore[misc]
    """``IzhikevichCell`` with the gradient of a rule."""

    _tssl_native = norse.IzhikevichCell
    _tssl_neuron = neurons.Izhikevich


class WrappedIzhikevich(_Layer, norse.Izhikevich):  # type: ignore[misc]
    """``Izhikevich`` with the gradient of a rule."""

    _tssl_native = norse.Izhikevich
    _tssl_neuron = neurons.Izhikevich


class WrappedIzhikevichRecurrentCell(_Layer, norse.IzhikevichRecurrentCell):  # type: ignore[misc]
    """``IzhikevichRecurrentCell`` with the gradient of a rule."""

    _tssl_native = norse.IzhikevichRecurrentCell
    _tssl_neuron = neurons.Izhikevich


class WrappedIzhikevichRecurrent(_Layer, norse.IzhikevichRecurrent):  # type: ignore[misc]
    """``IzhikevichRecurrent`` with the gradient of a rule."""

    _tssl_native = norse.IzhikevichRecurrent
    _tssl_neuron = neurons.Izhikevich


class WrappedLIFRefracCell(_Layer, norse.LIFRefracCell):  # type: ignore[misc]
    """``LIFRefracCell`` with the gradient of a rule."""

    _tssl_native = norse.LIFRefracCell
    _tssl_neuron = neurons.LIF


class WrappedLIFRefracRecurrentCell(_Layer, norse.LIFRefracRecurrentCell):  # type: ignore[misc]
    """``LIFRefracRecurrentCell`` with the gradient of a rule."""

    _tssl_native = norse.LIFRefracRecurrentCell
    _tssl_neuron = neurons.LIF


# Older versions lack these.
if hasattr(norse, "LIFRefracRecurrent"):

    class WrappedLIFRefracRecurrent(_Layer, norse.LIFRefracRecurrent):  # type: ignore[misc]
        """``LIFRefracRecurrent`` with the gradient of a rule."""

        _tssl_native = norse.LIFRefracRecurrent
        _tssl_neuron = neurons.LIF


if hasattr(norse, "LIFAdExRefracCell"):

    class WrappedLIFAdExRefracCell(_Layer, norse.LIFAdExRefracCell):  # type: ignore[misc]
        """``LIFAdExRefracCell`` with the gradient of a rule."""

        _tssl_native = norse.LIFAdExRefracCell
        _tssl_neuron = neurons.LIFAdEx


if hasattr(norse, "LIFAdExRefracRecurrentCell"):

    class WrappedLIFAdExRefracRecurrentCell(_Layer, norse.LIFAdExRefracRecurrentCell):  # type: ignore[misc]
        """``LIFAdExRefracRecurrentCell`` with the gradient of a rule."""

        _tssl_native = norse.LIFAdExRefracRecurrentCell
        _tssl_neuron = neurons.LIFAdEx


if hasattr(norse, "LIFAdExRefracRecurrent"):

    class WrappedLIFAdExRefracRecurrent(_Layer, norse.LIFAdExRefracRecurrent):  # type: ignore[misc]
        """``LIFAdExRefracRecurrent`` with the gradient of a rule."""

        _tssl_native = norse.LIFAdExRefracRecurrent
        _tssl_neuron = neurons.LIFAdEx
