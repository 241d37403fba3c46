"""What each neuron does in one step, whether its layer is recurrent or not.

Only the graph is described here: the values are those of the library's own step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tssl_adapters.adapters import Value
from tssl_adapters.adapters.norse.values import number


@dataclass(frozen=True)
class LIF:
    """One step of a leaky integrate-and-fire neuron with a synaptic current.

    Attributes:
        p: the library's parameters.
        dt: time step.
        state: the library's state before the step.
        arriving: the synaptic input, term by term: the input, or the weighted input and recurrent
            spikes.
        detached: whether the library cuts the gradient through the reset.
    """

    p: Any
    dt: float
    state: Any
    arriving: tuple[Tensor, ...]
    detached: bool

    late: ClassVar[tuple[str, ...]] = ()
    """The states through which the input reaches the membrane one step later."""
    nonlinear: ClassVar[str | None] = None
    """Why it is not an integrate-and-fire neuron."""

    @property
    def synaptic(self) -> Tensor:
        """The synaptic current that the membrane sees."""
        return self.joined(self.state.i)

    def joined(self, current: Tensor) -> Tensor:
        """A current plus its inputs, added in the library's order."""
        for arriving in self.arriving:
            current = current + arriving
        return current

    @property
    def left(self) -> Tensor:
        """The synaptic current after the step."""
        current = self.synaptic
        left: Tensor = current - self.dt * self.p.tau_syn_inv * current
        return left

    def driven(self, drift: Tensor) -> Tensor:
        """A drift of the potential plus the current that charges it."""
        return drift + self.synaptic

    def charge(self, v: Tensor) -> Tensor:
        """The potential before the comparison with the threshold."""
        p = self.p
        charged: Tensor = v + self.dt * p.tau_mem_inv * self.driven(p.v_leak - v)
        return charged

    def slope(self, v: Tensor) -> Value:
        """The derivative of :meth:`charge`."""
        return 1.0 - number(self.dt * self.p.tau_mem_inv)

    @property
    def threshold(self) -> Value:
        """What the potential has to exceed."""
        threshold: Value = self.p.v_th
        return threshold

    @property
    def reset(self) -> Value:
        """The potential after a spike."""
        value: Value = self.p.v_reset
        return value

    def others(self, fired: Tensor) -> dict[str, Tensor]:
        """The states after the step, other than potential and spike."""
        return {"i": self.left}


class Late(LIF):
    """Mixed in: the membrane sees the synaptic current before the input is added."""

    late = ("i",)

    @property
    def synaptic(self) -> Tensor:
        current: Tensor = self.state.i
        return current

    @property
    def left(self) -> Tensor:
        i = self.state.i
        left: Tensor = i - self.dt * self.p.tau_syn_inv * i
        return self.joined(left)


class LIFEx(LIF):
    """Its potential grows exponentially around the threshold."""

    nonlinear = "its charge is exponential in the potential"

    def charge(self, v: Tensor) -> Tensor:
        p = self.p
        runaway = p.delta_T * torch.exp((v - p.v_th) / p.delta_T)
        drift = self.driven((p.v_leak - v) + runaway)
        charged: Tensor = v + self.dt * p.tau_mem_inv * drift
        return charged

    def slope(self, v: Tensor) -> Value:
        p = self.p
        slope: Value = 1.0 + self.dt * p.tau_mem_inv * (torch.exp((v - p.v_th) / p.delta_T) - 1.0)
        return slope


class LIFAdEx(LIFEx):
    """The same with an adaptation current, driven by the potential before the charge."""

    nonlinear = "its charge is exponential in the potential, and it adapts"

    def driven(self, drift: Tensor) -> Tensor:
        driven: Tensor = super().driven(drift) - self.state.a
        return driven

    def others(self, fired: Tensor) -> dict[str, Tensor]:
        p, state = self.p, self.state
        drift = p.adaptation_current * (state.v - p.v_leak) - state.a
        return {
            "i": self.left,
            "a": state.a + self.dt * p.tau_ada_inv * drift + fired * p.adaptation_spike,
        }


class LSNN(Late):
    """A threshold that rises with every spike."""

    nonlinear = "its threshold adapts"

    @property
    def threshold(self) -> Tensor:
        b = self.state.b
        raised: Tensor = b + self.dt * self.p.tau_adapt_inv * (self.p.v_th - b)
        return raised

    def others(self, fired: Tensor) -> dict[str, Tensor]:
        # The recurrent step cuts the spike here as it does in the reset.
        fired = fired.detach() if self.detached else fired
        return {
            "i": self.left,
            "b": self.threshold + fired * self.p.beta,
        }


class Izhikevich(LIF):
    """A quadratic charge and a recovery variable, driven by the potential before the charge."""

    nonlinear = "its charge is quadratic in the potential, and it adapts"

    def charge(self, v: Tensor) -> Tensor:
        p = self.p
        drift = self.joined(p.sq * v**2 + p.mn * v + p.bias - self.state.u)
        charged: Tensor = v + p.tau_inv * self.dt * drift
        return charged

    def slope(self, v: Tensor) -> Value:
        p = self.p
        slope: Value = 1.0 + p.tau_inv * self.dt * (2.0 * p.sq * v + p.mn)
        return slope

    @property
    def reset(self) -> Value:
        value: Value = self.p.c
        return value

    def others(self, fired: Tensor) -> dict[str, Tensor]:
        p, (v, u) = self.p, (self.state.v, self.state.u)
        u = u + p.tau_inv * self.dt * p.a * (p.b * v - u)
        return {"u": (1 - fired) * u + fired * (u + p.d)}
