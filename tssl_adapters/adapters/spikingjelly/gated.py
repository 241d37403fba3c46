"""``GatedLIFNode``: whole sequences only, and a reset that the library applies a step later.

Within a call the neuron is equivalent to one that resets at once: what the library subtracts at
step t + 1, ((1 - alpha (1 - tau)) gamma v + (1 - gamma) v_subreset) s[t], leaves the potential at
step t. From one call to the next the library discards the last spike, and its reset with it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from spikingjelly.activation_based import functional
from torch import Tensor

from tssl_adapters.adapters import (
    ByFormula,
    Native,
    Result,
    Subtract,
    Traits,
    attach_smooth,
    tag,
    valued,
)
from tssl_adapters.adapters.spikingjelly.node import Node, Ran

_PARAMETERS = "alpha beta gamma tau v_threshold linear_decay v_subreset".split()


class _Gates(NamedTuple):
    """The parameters as the library's step takes them, with their graph."""

    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    tau: Tensor
    threshold: Tensor
    linear_decay: Tensor
    subreset: Tensor

    @property
    def decay(self) -> Tensor:
        return 1.0 - self.alpha * (1.0 - self.tau)

    def current(self, x: Tensor, conduct: Tensor) -> Tensor:
        gated = x * (1.0 - self.beta * (1.0 - conduct))
        return gated - (1.0 - self.alpha) * self.linear_decay


def _gate(parameter: Tensor) -> Tensor:
    return parameter.view(1, -1, 1, 1).sigmoid()


def _after(h: Tensor, s: Tensor, gamma: Tensor, subreset: Tensor, decay: Tensor) -> Tensor:
    return h - s * (gamma * h + (1.0 - gamma) * subreset / decay)


class GatedLIF(Node):
    """``GatedLIFNode``, with the gradient for all its parameters."""

    _tssl_nonlinear = "its gates change the charge from step to step"

    @classmethod
    def _tssl_traits(cls, layer: Any) -> Traits:
        return Traits(nonlinear=cls._tssl_nonlinear, reset=Subtract())

    def _tssl_compute(
        self: Any, x: Tensor, states: tuple[Any, ...], trace: Tensor | None, keep: bool
    ) -> Ran:
        with torch.no_grad():
            (spikes,), (last, _) = self.multi_step_functional_forward((x,), states)
        gates = _Gates(*(_gate(getattr(self, name)) for name in _PARAMETERS))
        state, outs = states[0], []
        for t in range(self.T):  # the library, too, uses that many steps of the input
            result = self._tssl_attach(x[t], spikes[t].clone(), state, trace, gates, t)
            state, trace = result.state, result.trace
            outs.append(result.out)
        assert result.charged is not None
        v = valued(last, result.charged)
        tag(v, (), trace)
        return Ran(torch.stack(outs), (v, v), trace, None)

    def _tssl_attach(
        self: Any,
        x: Tensor,
        spike: Tensor,
        state: Tensor,
        trace: Tensor | None,
        gates: _Gates,
        t: int,
    ) -> Result:
        conduct, decay = _gate(self.conduct[t]), gates.decay
        current = gates.current(x, conduct)
        reset = ByFormula(_after, (gates.gamma, gates.subreset, decay))

        def values() -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                return spike, reset.apply(decay * state + current, spike)

        def probe(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            with torch.no_grad():
                still = torch.zeros_like(x)
                spike, h = functional.gated_lif_step(
                    x, v, still, *gates, conduct, self.surrogate_function
                )
                return decay * v + gates.current(x, conduct), spike, reset.apply(h, spike)

        return attach_smooth(
            self._tssl_settings,
            lambda v: decay * v + current,
            state,
            trace,
            Native(x, values, probe),
            reset=reset,
            threshold=gates.threshold,
            strict=False,
            detached=False,
            slope=decay,
            fresh=t == 0,
        )

    def _tssl_keeps(self) -> bool:
        return False

    def _tssl_store(self, ran: Ran) -> None:
        """These nodes keep no sequence of states."""
