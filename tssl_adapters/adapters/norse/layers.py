"""The layers whose neurons are described in :mod:`tssl_adapters.adapters.norse.neurons`."""

from __future__ import annotations

from typing import Any, ClassVar

import norse.torch as norse
import torch
from norse.torch.module import snn
from norse.torch.module.snn import SNN, SNNRecurrent, SNNRecurrentCell
from torch import Tensor

from tssl_adapters.adapters import (
    Steps,
    ToValue,
    Traits,
    eager,
    exporting,
    wrapped_classes,
)
from tssl_adapters.adapters.norse import neurons
from tssl_adapters.adapters.norse.run import (
    REFRACTORY,
    LayerStep,
    StepInput,
    decided_step,
    step,
)
from tssl_adapters.adapters.norse.shared import Shared
from tssl_adapters.adapters.norse.values import number
from tssl_adapters.adapters.norse.whole import goes_whole, whole_sequence

_SEQUENCES = (SNN, SNNRecurrent)


class _Layer(Shared):
    """What layers share whose step torch computes. Mixed in before the library's class."""

    _tssl_neuron: ClassVar[type[neurons.LIF]]

    @classmethod
    def _tssl_traits(cls, layer: Any) -> Traits:
        p, dt = layer.p, layer.dt
        around = REFRACTORY.get(layer.activation)
        p = p if around is None else getattr(p, around.name)
        if cls._tssl_neuron.nonlinear is not None:
            why = cls._tssl_neuron.nonlinear
            return Traits(nonlinear=why, reset=ToValue(), written=True)
        return Traits(
            nonlinear=None,
            reset=ToValue(number(p.v_reset)),
            decay=1.0 - number(dt * p.tau_mem_inv),
            threshold=number(p.v_th),
            synapse=1.0 - number(dt * p.tau_syn_inv),
            refractory=around is not None,
            written=around is not None,
            recurrent=isinstance(layer, SNNRecurrent | SNNRecurrentCell),
            sequence=_whole(layer),
        )

    # SequentialState looks for "state" in this signature.
    @eager
    def forward(self: Any, input_tensor: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if exporting():
            return self._tssl_emitted(input_tensor, state)  # type: ignore[no-any-return]
        fresh = state is None
        state = self.state_fallback(input_tensor) if fresh else state
        cell = self._tssl_cell(input_tensor)
        if self._tssl_settings.rule.cuts_feedback and _whole(self) and not input_tensor.is_sparse:
            return whole_sequence(self, cell, StepInput(input_tensor, state, fresh))
        if not isinstance(self, _SEQUENCES):
            return step(cell, StepInput(input_tensor, state, fresh))
        outs, states, record = [], [], getattr(self, "record_states", False)
        for t in range(input_tensor.shape[0]):
            out, state = self._tssl_next(cell, StepInput(input_tensor[t], state, fresh and t == 0))
            outs.append(out)
            if record:
                states.append(state)
        return torch.stack(outs), snn._merge_states(states) if record else state

    def _tssl_as_decided(self: Any, steps: Steps, x: Any, state: Any = None) -> Any:
        if state is None or isinstance(self, _SEQUENCES) or x.is_sparse:
            return None
        return decided_step(self, steps, StepInput(x, state, False))

    def _tssl_next(self: Any, cell: LayerStep, given: StepInput) -> tuple[Tensor, Any]:
        """The output and state of one step of a sequence."""
        steps = self._tssl_settings.decided
        if steps is not None and not given.fresh and not given.x.is_sparse:
            found = decided_step(self, steps, given)
            if found is not None:
                return found
        return step(cell, given)

    def _tssl_cell(self: Any, x: Tensor) -> LayerStep:
        sparse = x.is_sparse and self.activation_sparse is not None
        recurrent = isinstance(self, SNNRecurrent | SNNRecurrentCell)
        behaviour = getattr(self, "spiking_method", None)  # Izhikevich's
        return LayerStep(
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


class _LIF(_Layer):
    _tssl_neuron = neurons.LIF


class _LIFEx(_Layer):
    _tssl_neuron = neurons.LIFEx


class _LIFAdEx(_Layer):
    _tssl_neuron = neurons.LIFAdEx


class _LSNN(_Layer):
    _tssl_neuron = neurons.LSNN


class _Izhikevich(_Layer):
    _tssl_neuron = neurons.Izhikevich


_FORMS = ("Cell", "", "RecurrentCell", "Recurrent")
_WHOSE = {
    "LIF": _LIF,  # its feed-forward forms in older versions, see LATE
    "LIFEx": _LIFEx,
    "LIFAdEx": _LIFAdEx,
    "LSNN": _LSNN,
    "Izhikevich": _Izhikevich,
    "LIFRefrac": _LIF,
    "LIFAdExRefrac": _LIFAdEx,
}

WRAPPED = wrapped_classes(
    __name__, norse, {name + form: mixin for name, mixin in _WHOSE.items() for form in _FORMS}
)
