"""The nodes with a nonlinear charge, or with states besides the potential."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tssl_adapters.adapters import (
    ByFormula,
    Decided,
    Reset,
    Traits,
    on_graph_of,
    position_at,
    tag,
)
from tssl_adapters.adapters.spikingjelly.node import Ran
from tssl_adapters.adapters.spikingjelly.smooth import SmoothNode


class QIF(SmoothNode):
    """``QIFNode``."""

    _tssl_nonlinear = "its charge is quadratic in the potential"


class EIF(SmoothNode):
    """``EIFNode``."""

    _tssl_nonlinear = "its charge is exponential in the potential"


class Izhikevich(SmoothNode):
    """``IzhikevichNode``, with the gradient through its recovery ``w`` too."""

    _tssl_nonlinear = "its charge is quadratic in the potential, and it adapts"


class SteppedIzhikevich(Izhikevich):
    """The same, but a detached reset to a value still has the gradient of ``spike * v_reset``."""

    def _tssl_detached(self: Any) -> bool:
        return bool(self.detach_reset) and not _resets_half_detached(self)

    def _tssl_reset_of(self: Any, others: list[Any]) -> Reset:
        if _resets_half_detached(self):
            v_reset: float = self.v_reset
            return ByFormula(lambda h, due: (1.0 - due.detach()) * h + due * v_reset)
        reset: Reset = self._tssl_reset()
        return reset


def _resets_half_detached(node: Any) -> bool:
    own = next(cls for cls in type(node).__mro__ if cls.__name__ == "IzhikevichNode")
    return bool(node.detach_reset and node.v_reset and _half_detached(own))


@cache
def _half_detached(cls: Any) -> bool:
    """Whether a class's detached reset has that gradient."""
    node = cls(v_reset=-1.0, detach_reset=True)
    node.v = node.w = torch.zeros(1)
    with torch.enable_grad():
        node.neuronal_reset(torch.ones(1, requires_grad=True))
    return bool(node.v.requires_grad)


class CUBALIF(SmoothNode):
    """``CUBALIFNode``, with the gradient through its current ``c`` too."""

    @classmethod
    def _tssl_traits(cls, layer: Any) -> Traits:
        traits = super()._tssl_traits(layer)
        return replace(traits, decay=layer.v_decay, synapse=layer.c_decay)


class RAF(SmoothNode):
    """``RAFNode``; the input arrives through ``u`` a step later."""

    _tssl_nonlinear = "its potential resonates with a second state"

    def _tssl_next(
        self: Any, x: Tensor, states: tuple[Any, ...], trace: Tensor | None
    ) -> tuple[Tensor, tuple[Any, ...], Tensor | None]:
        out, (v, u), trace = super()._tssl_next(x, states, trace)
        settings = self._tssl_settings
        if u.requires_grad and not v.requires_grad and settings.rule.timed:
            # A window begins where its first input does, not where that reaches the potential.
            position = position_at(v)
            v = on_graph_of(v, u)
            trace = None if trace is None else on_graph_of(trace, u)
            tag(v, (), trace, position)
        return out, (v, u), trace

    def _tssl_as_decided(self: Any, decided: Decided, x: Any) -> Any:
        begins = not isinstance(self.v, Tensor) or self.v.grad_fn is None
        return None if begins else super()._tssl_as_decided(decided, x)


class ComplementaryLIF(SmoothNode):
    """``ComplementaryLIFNode``, with the gradient through ``m`` too.

    In evaluation the library cuts the gradient through the spike; that of a rule stays.
    """

    _tssl_free = SmoothNode._tssl_free | {"m", "state_seqs"}
    _tssl_nonlinear = "what its spikes take depends on those before"

    @classmethod
    def _tssl_cuts_spikes(cls, layer: Any) -> bool:
        return not layer.training

    def _tssl_reset_of(self: Any, others: list[Any]) -> Reset:
        tau: float = self.tau
        threshold: float = self.v_threshold

        def formula(charged: Tensor, due: Tensor, m: Tensor) -> Tensor:
            m = m * torch.sigmoid(charged / tau) + due
            return charged - due * (threshold + torch.sigmoid(m))

        return ByFormula(formula, tuple(others))

    def _tssl_keeps(self: Any) -> bool:
        return bool(self.store_state_seqs) and self.step_mode == "m"

    def _tssl_store(self: Any, ran: Ran) -> None:
        if ran.kept is not None:
            self.state_seqs = list(ran.kept)
