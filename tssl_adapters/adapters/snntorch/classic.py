"""Support for older versions of snnTorch. Each class follows what its version computes.

Up to 0.7 a layer has two forward passes, one for states passed as arguments and one for states that
it holds, and they are not always the same neuron. An uninitialised state is ``False`` or an empty
tensor with an ``init_flag``, and states passed as arguments are not stored on the layer.

From 0.8 until before 0.9.4 ``Synaptic`` uses ``mem`` in place of the ``syn`` that it is passed, and
discards the reset that it computes without delay.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tssl_adapters.adapters import (
    LinearCharge,
    Reset,
    SubtractEarly,
    Value,
)
from tssl_adapters.adapters.snntorch.layer import Layer, States, bound_reset
from tssl_adapters.adapters.snntorch.neurons import (
    NEURONS,
    Alpha,
    Lapicque,
    Leaky,
    RLeaky,
    RSynaptic,
    Synaptic,
)


class _Classic(Layer):
    """States as in versions up to 0.7; every reset is delayed."""

    @classmethod
    def _tssl_delayed(cls, layer: Any) -> bool:
        return True

    def _tssl_foreseen(self) -> bool:
        return False

    def _tssl_call(self: Any, x: Tensor, *given: Tensor | bool | None) -> Any:
        passed = [None if state is False else state for state in given]
        if self.init_hidden:
            misuse = any(state is not None for state in passed)
        else:
            misuse = passed[-1] is None
        if misuse or self._tssl_runs_native():
            return self._tssl_native.forward(self, x, *(False if p is None else p for p in passed))
        states, fresh = self._tssl_incoming(x, passed)
        return self._tssl_run(x, states, fresh)

    def _tssl_emitted(self: Any, x: Tensor, *given: Tensor | None) -> Any:
        raise self._tssl_refusal(
            "it is another neuron now than the one it was wrapped as, and with this version of "
            "snnTorch its post-synaptic current cannot be told; unwrap and wrap it anew"
        )

    def _tssl_incoming(self: Any, x: Tensor, given: Any) -> tuple[States, bool]:
        names = self._tssl_states
        if self.init_hidden:
            given = [getattr(self, name) for name in names]
            begun = not hasattr(self.mem, "init_flag")
        else:
            begun = not any(hasattr(state, "init_flag") for state in given)
        if not begun:  # the library's new states require a gradient
            return {name: torch.zeros_like(x, requires_grad=True) for name in names}, True
        chain = self._tssl_settings.rule.chain
        states = {}
        for name, state in zip(names, given, strict=True):
            one = torch.zeros_like(x) if state is None else state
            states[name] = one if chain or name == "mem" else one.detach()
        return states, False

    def _tssl_natively(self: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        if self.init_hidden:
            self._tssl_from_itself(x, states)
            return self.spk, {name: getattr(self, name) for name in self._tssl_states}
        spikes, *after = self._tssl_native.forward(self, x, *states.values())
        return spikes, dict(zip(self._tssl_returned(), after, strict=True))

    def _tssl_returned(self) -> list[str]:
        return [name for name in self._tssl_states if name != "spk"]

    def _tssl_keep(self: Any, after: States, spikes: Tensor) -> None:
        """States passed as arguments are not stored, except for the spike that is fed back to a
        layer that emits its PSC; later versions store it too.
        """
        if self.init_hidden:
            for name in self._tssl_returned():
                setattr(self, name, after[name])
        elif "spk" not in self._tssl_states or self._tssl_settings.tau_s == 1.0:
            return
        self.spk = spikes


class _Early(_Classic):
    """With states as arguments the threshold is subtracted before the decay."""

    @classmethod
    def _tssl_reset(cls, layer: Any) -> Reset:
        early = bound_reset(layer) == "_base_sub" and not layer.init_hidden
        return SubtractEarly() if early else super()._tssl_reset(layer)


class ClassicLeaky(_Early, Leaky):
    """With states as arguments a reset to zero clears the input too."""

    def _tssl_clears(self: Any) -> bool:
        return not self.init_hidden

    def _tssl_rounds_alike(self: Any) -> bool:
        return bool(self.init_hidden) or bound_reset(self) != "_base_zero"

    def _tssl_step(self: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        return (x if self.init_hidden else self._tssl_kept(x, states["mem"])), {}


class ClassicLapicque(_Classic, Lapicque):
    """The same neuron."""


class ClassicSynaptic(_Classic, Synaptic):
    """If it holds its states, the input bypasses ``syn`` on its way to the potential; ``syn`` only
    matters in a reset to zero, which subtracts it from the potential.
    """

    def _tssl_rounds_alike(self: Any) -> bool:
        return not (self.init_hidden and bound_reset(self) == "_base_zero")

    def _tssl_step(self: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        if not self.init_hidden:
            return super()._tssl_step(x, states)
        syn = self.alpha.clamp(0, 1) * states["syn"] + x
        zero = bound_reset(self) == "_base_zero"
        drive = x - self._tssl_due(states["mem"]) * syn if zero else x
        return drive, {"syn": self._tssl_quantised(syn)}


class ClassicAlpha(_Classic, Alpha):
    """With states as arguments a reset by subtraction takes from the currents only."""

    def _tssl_subtracted(self: Any, states: States, inh: Tensor) -> tuple[Value, ...]:
        *currents, mem = super()._tssl_subtracted(states, inh)
        return (*currents, mem if self.init_hidden else 0.0)

    def _tssl_less(self, state: Tensor, taken: Tensor) -> Tensor:
        return state - taken


class ClassicRLeaky(_Early, RLeaky):
    """As ``Leaky`` in its reset by subtraction."""


class ClassicRSynaptic(_Classic, RSynaptic):
    """If it holds its states, a reset to zero clears ``syn`` as well."""

    def _tssl_step(self: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        if not (self.init_hidden and bound_reset(self) == "_base_zero"):
            return super()._tssl_step(x, states)
        syn = self.alpha.clamp(0, 1) * states["syn"] + x + self.recurrent(states["spk"])
        left = syn - self._tssl_due(states["mem"]) * syn
        return self._tssl_kept(syn, states["mem"]), {"syn": self._tssl_quantised(left)}


def _mixed_charge(mem: Tensor, drive: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return beta * mem + (alpha * mem + drive)


class MixedSynaptic(Synaptic):
    """If ``syn`` is passed, ``mem`` is used in its place: the potential decays by alpha + beta.

    The states of such a call have no ``syn``.
    """

    def _tssl_call(self: Any, x: Tensor, *given: Tensor | None) -> Any:
        if given[0] is not None and given[1] is None:
            return self._tssl_native.forward(self, x, *given)  # which fails
        return super()._tssl_call(x, *given)

    @classmethod
    def _tssl_delayed(cls, layer: Any) -> bool:
        return True

    @classmethod
    def _tssl_charge(cls, layer: Any) -> LinearCharge:
        return super()._tssl_charge(layer) if layer.init_hidden else cls._tssl_mixed(layer)

    @classmethod
    def _tssl_mixed(cls, layer: Any) -> LinearCharge:
        alpha, beta = layer.alpha.clamp(0, 1), layer.beta.clamp(0, 1)
        return LinearCharge(alpha + beta, 1.0, 0.0, _mixed_charge, (alpha, beta))

    def _tssl_charge_from(self, states: States) -> LinearCharge:
        return super()._tssl_charge(self) if "syn" in states else self._tssl_mixed(self)

    def _tssl_incoming(self, x: Tensor, given: Any) -> tuple[States, bool]:
        states, fresh = super()._tssl_incoming(x, given)
        if given[0] is not None:
            del states["syn"]
        return states, fresh

    def _tssl_step(self: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        if "syn" in states:
            return super()._tssl_step(x, states)
        mem = states["mem"] if self._tssl_settings.rule.chain else states["mem"].detach()
        syn = self.alpha.clamp(0, 1) * mem + x
        return self._tssl_kept(x, states["mem"]), {"syn": self._tssl_quantised(syn)}

    def _tssl_natively(self: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        if "syn" in states:
            output = self._tssl_from_itself(x, states)
        else:
            output = self._tssl_native.forward(self, x, states["mem"], states["mem"])
        spikes: Tensor = output[0] if isinstance(output, tuple) else output
        return spikes, {"syn": self.syn, "mem": self.mem}


def two_forwards(cls: Any) -> bool:
    """Whether a class is from a version whose layers have two forward passes."""
    return hasattr(cls, "_build_state_function_hidden")


@torch.no_grad()
def mixes_states(synaptic: Any) -> bool:
    """Whether ``Synaptic`` uses ``mem`` in place of ``syn``."""
    with unlisted(synaptic):
        layer = synaptic(alpha=0.5, beta=0.5)
    one = torch.ones(1)
    _, syn, _ = layer(0 * one, one, 0 * one)
    return bool(syn == 0.0)


@contextmanager
def unlisted(cls: Any) -> Iterator[None]:
    """Make layers without leaving them in the library's list of all instances."""
    known = list(cls.instances)
    try:
        yield
    finally:
        cls.instances[:] = known


CLASSIC: dict[str, type[Layer]] = {
    "Leaky": ClassicLeaky,
    "Lapicque": ClassicLapicque,
    "Synaptic": ClassicSynaptic,
    "Alpha": ClassicAlpha,
    "RLeaky": ClassicRLeaky,
    "RSynaptic": ClassicRSynaptic,
}


def neuron_of(cls: Any) -> type[Layer]:
    """The mixin for a class, which is the library's of that name in some version."""
    name = cls.__name__
    if two_forwards(cls):
        return CLASSIC[name]
    return MixedSynaptic if name == "Synaptic" and mixes_states(cls) else NEURONS[name]
