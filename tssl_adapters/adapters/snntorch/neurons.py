"""The mixins of the wrapped layers: the states and the charge of each neuron.

Synaptic currents and recurrent input come before the potential and depend on it only through the
reset, whose spike the library detaches. So they are left to autograd, and the engine sees what
reaches the potential as the drive.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tssl_adapters.adapters import (
    LinearCharge,
    Never,
    Tensors,
    Traits,
    Value,
    eager,
)
from tssl_adapters.adapters.snntorch.compiled import Compiled
from tssl_adapters.adapters.snntorch.layer import (
    RESET_CODES,
    RESETS,
    Layer,
    States,
    at_hand,
    bound_reset,
    held,
)
from tssl_adapters.arithmetic import arithmetic


@arithmetic
def _leaky_charge(mem: Tensor, drive: Tensor, beta: Tensor) -> Tensor:
    return beta * mem + drive


def _lapicque_charge(mem: Tensor, drive: Tensor, R: Tensor, C: Tensor, time_step: Tensor) -> Tensor:
    return drive * R * (1 / (R * C)) * time_step + (1 - (time_step / (R * C))) * mem


def _alpha_charge(mem: Tensor, drive: Tensor) -> Tensor:
    return drive.clone()


def _joined(current: Tensor, inputs: Tensors) -> Tensor:
    """A current plus its inputs, added in the library's order."""
    for arriving in inputs:
        current = current + arriving
    return current


class _Leaking(Layer):
    """``beta * mem`` plus the drive."""

    @classmethod
    def _tssl_charge(cls, layer: Any) -> LinearCharge:
        beta = held(layer, "beta")
        # An operation a step saved, where looking costs nothing.
        if beta.requires_grad or not at_hand(beta) or not 0.0 <= beta.item() <= 1.0:
            beta = beta.clamp(0, 1)
        return LinearCharge(beta, 1.0, 0.0, _leaky_charge, (beta,))


class _Recurrent(Compiled):
    """A layer whose own spikes are fed back to it."""

    _tssl_recurs = True

    def _tssl_inputs(self: Any, x: Tensor, states: States) -> tuple[Tensor, ...]:
        # Computed once per call: the library's own pass would not record it, and a normalisation of
        # its weights would be updated twice.
        sent = states["spk"]
        if self._tssl_settings.rule.cuts_feedback:
            sent = sent.detach()
        return x, self._modules["recurrent"](sent)

    def _tssl_by_torch(
        self: Any, inputs: Tensors, states: States, trace: Tensor | None, fresh: bool
    ) -> Any:
        recurrent = self._modules["recurrent"]
        self._modules["recurrent"] = lambda spikes: inputs[1]
        try:
            return super()._tssl_by_torch(inputs, states, trace, fresh)
        finally:
            self._modules["recurrent"] = recurrent


class _Synapse(Compiled, _Leaking):
    """The same, driven by a synaptic current."""

    _tssl_numbers = ("alpha", "beta")

    def _tssl_current(self: Any, inputs: Tensors, states: Tensors) -> Tensor:
        return _joined(self.alpha.clamp(0, 1) * states[1], inputs)

    def _tssl_charged(self: Any, inputs: Tensors, states: Tensors) -> Tensor:
        current = self._tssl_current(inputs, states)
        charged: Tensor = self.beta.clamp(0, 1) * states[0] + current
        return charged

    def _tssl_others(self: Any, inputs: Tensors, states: Tensors) -> Tensors:
        return [self._tssl_current(inputs, states)]

    @classmethod
    def _tssl_synapse(cls, layer: Any) -> Value | None:
        alpha: Value = layer.alpha.clamp(0, 1)
        return alpha


class Leaky(Compiled, _Leaking):
    """``snntorch.Leaky``."""

    _tssl_numbers = ("beta",)

    def _tssl_clears(self) -> bool:
        return False

    def _tssl_charged(self: Any, inputs: Tensors, states: Tensors) -> Tensor:
        charged: Tensor = self.beta.clamp(0, 1) * states[0] + inputs[0]
        return charged

    def _tssl_foreseen(self) -> bool:
        return True

    @eager
    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        return self._tssl_call(input_, mem)


class Lapicque(Compiled):
    """``snntorch.Lapicque``."""

    _tssl_zero_decay = (
        "R*C is the time_step, so that the potential decays by 1 - time_step/(R*C) = 0, and with "
        "reset_mechanism='subtract' what a spike removes is the threshold over that; use another "
        "beta, R or C, or reset_mechanism='zero'"
    )

    @eager
    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        return self._tssl_call(input_, mem)

    _tssl_numbers = ("R", "C", "time_step")

    def _tssl_charged(self: Any, inputs: Tensors, states: Tensors) -> Tensor:
        return _lapicque_charge(states[0], inputs[0], self.R, self.C, self.time_step)

    @classmethod
    def _tssl_charge(cls, layer: Any) -> LinearCharge:
        R, C, time_step = layer.R, layer.C, layer.time_step
        rate = 1 / (R * C)
        decay, gain = 1 - time_step * rate, R * rate * time_step
        return LinearCharge(decay, gain, 0.0, _lapicque_charge, (R, C, time_step))

    def _tssl_foreseen(self) -> bool:
        return bound_reset(self) != "_base_zero"

    def _tssl_step(self: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        return self._tssl_kept(x, states["mem"]), {}


class Synaptic(_Synapse):
    """``snntorch.Synaptic``. No reset touches ``syn``."""

    _tssl_states = ("syn", "mem")

    @eager
    def forward(self, input_: Tensor, syn: Tensor | None = None, mem: Tensor | None = None) -> Any:
        return self._tssl_call(input_, syn, mem)

    def _tssl_foreseen(self) -> bool:
        return bound_reset(self) != "_base_zero"

    def _tssl_step(self: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        syn = self.alpha.clamp(0, 1) * states["syn"] + x
        return self._tssl_kept(syn, states["mem"]), {"syn": self._tssl_quantised(syn)}


class Alpha(Compiled):
    """``snntorch.Alpha``.

    The potential depends on the currents alone, so that F_v = 0. A reset by subtraction takes the
    threshold from ``syn_exc``, all of ``syn_inh``, and -syn_inh[t-1] from the potential. As that is
    not an amount of the potential's own, the engine sees no reset there, only the drive.
    """

    _tssl_states = ("syn_exc", "syn_inh", "mem")
    _tssl_numbers = ("alpha", "beta")
    _tssl_resets: ClassVar[Any] = {**RESETS, "_base_sub": Never()}
    _tssl_nonlinear = "its potential is the sum of two currents, and a spike resets these"

    @eager
    def forward(
        self,
        input_: Tensor,
        syn_exc: Tensor | None = None,
        syn_inh: Tensor | None = None,
        mem: Tensor | None = None,
    ) -> Any:
        return self._tssl_call(input_, syn_exc, syn_inh, mem)

    @classmethod
    def _tssl_charge(cls, layer: Any) -> LinearCharge:
        return LinearCharge(0.0, 1.0, 0.0, _alpha_charge)

    @classmethod
    def _tssl_traits(cls, layer: Any) -> Traits:
        learns = layer.alpha.requires_grad or layer.beta.requires_grad  # their logarithm is torch's
        return replace(super()._tssl_traits(layer), written=not learns)

    def _tssl_charged(self: Any, inputs: Tensors, states: Tensors) -> Tensor:
        mem: Tensor = self._tssl_stepped(inputs, states)[0]
        return mem

    def _tssl_others(self: Any, inputs: Tensors, states: Tensors) -> Tensors:
        currents: Tensors = self._tssl_stepped(inputs, states)[1:]
        return currents

    def _tssl_stepped(self: Any, inputs: Tensors, states: Tensors) -> Tensors:
        named = dict(zip(("mem", "syn_exc", "syn_inh"), states, strict=True))
        mem, others = self._tssl_step(inputs[0], named)
        return mem, *others.values()

    def _tssl_step(self: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        alpha, beta = self.alpha.clamp(0, 1), self.beta.clamp(0, 1)
        exc = alpha * states["syn_exc"] + x
        inh = beta * states["syn_inh"] - x
        scale = torch.log(alpha) / (torch.log(beta) - torch.log(alpha)) + 1
        mem = scale * (exc + inh)
        bound = bound_reset(self)
        if bound != "_base_int":
            with torch.no_grad():
                due = self.mem_reset(states["mem"])  # in the dtype that the library rounds to
            zero = bound == "_base_zero"
            taken = (exc, inh, mem) if zero else self._tssl_subtracted(states, inh)
            exc, inh, mem = (
                self._tssl_less(state, amount * due)
                for state, amount in zip((exc, inh, mem), taken, strict=True)
            )
        others = {"syn_exc": self._tssl_quantised(exc), "syn_inh": self._tssl_quantised(inh)}
        return mem, others

    def _tssl_subtracted(self: Any, states: States, inh: Tensor) -> tuple[Value, ...]:
        """What a reset by subtraction takes from each state."""
        return self.threshold, inh, -states["syn_inh"]

    def _tssl_less(self, state: Tensor, taken: Tensor) -> Tensor:
        """A state after a reset; the library subtracts in place."""
        return (state - taken).to(state.dtype)


class RLeaky(_Recurrent, _Leaking):
    """``snntorch.RLeaky``."""

    _tssl_states = ("spk", "mem")
    _tssl_numbers = ("beta",)

    def _tssl_charged(self: Any, inputs: Tensors, states: Tensors) -> Tensor:
        return _joined(self.beta.clamp(0, 1) * states[0], inputs)

    @eager
    def forward(self, input_: Tensor, spk: Tensor | None = None, mem: Tensor | None = None) -> Any:
        return self._tssl_call(input_, spk, mem)

    def _tssl_rounds_alike(self) -> bool:
        return False

    def _tssl_step(self: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        return self._tssl_kept(x + self.recurrent(states["spk"]), states["mem"]), {}


class RSynaptic(_Recurrent, _Synapse):
    """``snntorch.RSynaptic``. No reset touches ``syn``."""

    _tssl_states = ("spk", "syn", "mem")

    @eager
    def forward(
        self,
        input_: Tensor,
        spk: Tensor | None = None,
        syn: Tensor | None = None,
        mem: Tensor | None = None,
    ) -> Any:
        if self._tssl_lacks(spk, mem):
            return self._tssl_native.forward(self, input_, spk, syn, mem)
        return self._tssl_call(input_, spk, syn, mem)

    def _tssl_lacks(self: Any, spk: Tensor | None, mem: Tensor | None) -> bool:
        """Whether the library raises an error: without delay it resets what it was given."""
        if getattr(self, "reset_delay", True):
            return False
        return spk is None or (
            mem is None and int(self.reset_mechanism_val) != RESET_CODES["_base_int"]
        )

    @classmethod
    def _tssl_delayed(cls, layer: Any) -> bool:
        """Always: without delay the library resets a variable that it then discards."""
        return True

    def _tssl_step(self: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        syn = self.alpha.clamp(0, 1) * states["syn"] + x + self.recurrent(states["spk"])
        return self._tssl_kept(syn, states["mem"]), {"syn": self._tssl_quantised(syn)}


NEURONS: dict[str, type[Layer]] = {
    cls.__name__: cls for cls in (Leaky, Lapicque, Synaptic, Alpha, RLeaky, RSynaptic)
}
"""The mixin for the library's class of that name."""
