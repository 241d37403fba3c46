"""The library's nodes of nonlinear charge, or with states beside the potential."""

from __future__ import annotations

from typing import Any

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor

from tssl_adapters.adapters.spikingjelly.node import Ran
from tssl_adapters.adapters.spikingjelly.smooth import SmoothNode, States
from tssl_adapters.engine.attach import Native, Result
from tssl_adapters.engine.smooth import attach_smooth, valued
from tssl_adapters.engine.state import hand_over
from tssl_adapters.neuron import ByFormula, Reset, Subtract, ToValue


class WrappedQIFNode(SmoothNode, neuron.QIFNode):  # type: ignore[misc]
    """``QIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.QIFNode


class WrappedEIFNode(SmoothNode, neuron.EIFNode):  # type: ignore[misc]
    """``EIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.EIFNode


class WrappedIzhikevichNode(SmoothNode, neuron.IzhikevichNode):  # type: ignore[misc]
    """``IzhikevichNode`` with the gradient of a rule, through its recovery ``w`` too."""

    _tssl_native = neuron.IzhikevichNode


class WrappedCUBALIFNode(SmoothNode, neuron.CUBALIFNode):  # type: ignore[misc]
    """``CUBALIFNode`` with the gradient of a rule, through its current ``c`` too."""

    _tssl_native = neuron.CUBALIFNode


class WrappedRAFNode(SmoothNode, neuron.RAFNode):  # type: ignore[misc]
    """``RAFNode`` with the gradient of a rule; the input arrives through ``u`` a step later."""

    _tssl_native = neuron.RAFNode


class WrappedKLIFNode(SmoothNode, neuron.KLIFNode):  # type: ignore[misc]
    """``KLIFNode`` with the gradient of a rule, for ``k`` too.

    The neuron's potential is what is compared with the threshold, relu(k h). With ``scale_reset``
    the library hands on that potential over k, so it is multiplied by k as it comes in.
    """

    _tssl_native = neuron.KLIFNode

    def _tssl_attach(
        self: Any, x: Tensor, states: States, trace: Tensor | None
    ) -> tuple[Result, States]:
        if not self.scale_reset:
            return SmoothNode._tssl_attach(self, x, states, trace)
        (v,), k = states, self.k
        fixed = k.detach()  # v is what the library carries: k acts on the charge, at a given v
        spike, (after,) = self._tssl_values(x, states)

        def charged(x: Tensor, potential: Tensor) -> Tensor:
            h: Tensor = self._tssl_charged(x, potential / fixed, [])
            return h

        def probe(x: Tensor, potential: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            spike, (after,) = self._tssl_values(x, (potential / k,))
            return charged(x, potential), spike, after * k

        result = attach_smooth(
            self._tssl_settings,
            lambda potential: charged(x, potential),
            v * fixed,
            trace,
            Native(x, lambda: (spike, after * k), probe),
            reset=self._tssl_reset_of([]),
            threshold=self.v_threshold,
            strict=False,
            detached=self.detach_reset,
            carrier=v,
        )
        by_k = -k * (result.state / fixed).detach()
        return result, (hand_over(result.state, valued(after, result.state / k), by_k),)

    def _tssl_reset_of(self: Any, others: list[Any]) -> Reset:
        if self.v_reset is None:
            return Subtract()
        return ToValue(self.v_reset * self.k if self.scale_reset and self.v_reset else self.v_reset)


class WrappedComplementaryLIFNode(SmoothNode, neuron.ComplementaryLIFNode):  # type: ignore[misc]
    """``ComplementaryLIFNode`` with the gradient of a rule, through ``m`` too.

    In evaluation the library cuts the gradient through the spike; the rule's stays.
    """

    _tssl_native = neuron.ComplementaryLIFNode

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
