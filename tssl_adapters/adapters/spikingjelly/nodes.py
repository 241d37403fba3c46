"""The library's nodes, whose ``functional_forward`` takes and returns their states."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from typing import Any

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor

from tssl_adapters.adapters.base import Kind, from_library
from tssl_adapters.adapters.spikingjelly.gated import WrappedGatedLIFNode
from tssl_adapters.adapters.spikingjelly.klif import KLIF
from tssl_adapters.adapters.spikingjelly.linear import IF, LIF, ParametricLIF
from tssl_adapters.adapters.spikingjelly.node import Ran, problem, start, stop
from tssl_adapters.adapters.spikingjelly.simple import (
    WrappedSimpleIFNode,
    WrappedSimpleLIFNode,
    simple_problem,
)
from tssl_adapters.adapters.spikingjelly.smooth import SmoothNode
from tssl_adapters.neuron import ByFormula, Reset, Traits


class WrappedLIFNode(LIF, neuron.LIFNode):  # type: ignore[misc]
    """``LIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.LIFNode


class WrappedParametricLIFNode(ParametricLIF, neuron.ParametricLIFNode):  # type: ignore[misc]
    """``ParametricLIFNode`` with the gradient of a rule, for ``w`` too."""

    _tssl_native = neuron.ParametricLIFNode


class WrappedIFNode(IF, neuron.IFNode):  # type: ignore[misc]
    """``IFNode`` with the gradient of a rule."""

    _tssl_native = neuron.IFNode


class WrappedHalfThresholdIFNode(IF, neuron.HalfThresholdIFNode):  # type: ignore[misc]
    """``HalfThresholdIFNode``: an ``IFNode`` that starts at half its threshold."""

    _tssl_native = neuron.HalfThresholdIFNode


class WrappedQIFNode(SmoothNode, neuron.QIFNode):  # type: ignore[misc]
    """``QIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.QIFNode
    _tssl_nonlinear = "its charge is quadratic in the potential"


class WrappedEIFNode(SmoothNode, neuron.EIFNode):  # type: ignore[misc]
    """``EIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.EIFNode
    _tssl_nonlinear = "its charge is exponential in the potential"


class WrappedIzhikevichNode(SmoothNode, neuron.IzhikevichNode):  # type: ignore[misc]
    """``IzhikevichNode`` with the gradient of a rule, through its recovery ``w`` too."""

    _tssl_native = neuron.IzhikevichNode
    _tssl_nonlinear = "its charge is quadratic in the potential, and it adapts"


class WrappedCUBALIFNode(SmoothNode, neuron.CUBALIFNode):  # type: ignore[misc]
    """``CUBALIFNode`` with the gradient of a rule, through its current ``c`` too."""

    _tssl_native = neuron.CUBALIFNode

    @classmethod
    def _tssl_traits(cls, layer: Any) -> Traits:
        traits = super()._tssl_traits(layer)
        return replace(traits, decay=layer.v_decay, synapse=layer.c_decay)


class WrappedRAFNode(SmoothNode, neuron.RAFNode):  # type: ignore[misc]
    """``RAFNode`` with the gradient of a rule; the input arrives through ``u`` a step later."""

    _tssl_native = neuron.RAFNode
    _tssl_nonlinear = "its potential resonates with a second state"


class WrappedKLIFNode(KLIF, neuron.KLIFNode):  # type: ignore[misc]
    """``KLIFNode`` with the gradient of a rule, for ``k`` too."""

    _tssl_native = neuron.KLIFNode


class WrappedComplementaryLIFNode(SmoothNode, neuron.ComplementaryLIFNode):  # type: ignore[misc]
    """``ComplementaryLIFNode`` with the gradient of a rule, through ``m`` too.

    In evaluation the library cuts the gradient through the spike; the rule's stays.
    """

    _tssl_native = neuron.ComplementaryLIFNode
    _tssl_nonlinear = "what its spikes take depends on those before"

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


_PASSED_BY = ("forward", "single_step_forward", "multi_step_forward", "functional_forward")
"""What a wrapped node does not call: it has the library step from states to states."""


def node_problem(node: Any) -> str | None:
    """What of a node, or of a registered class, cannot be wrapped."""
    own = takewhile(lambda cls: not from_library("spikingjelly", cls), type(node).__mro__)
    changed = {name for cls in own for name in _PASSED_BY if name in vars(cls)}
    if changed:
        return (
            f"its class overrides {', '.join(sorted(changed))}, which a wrapped node does not "
            "call; override single_step_functional_forward, or put what it adds into a module "
            "around it"
        )
    return problem(node)


_NODES = (
    WrappedLIFNode,
    WrappedParametricLIFNode,
    WrappedIFNode,
    WrappedHalfThresholdIFNode,
    WrappedKLIFNode,
    WrappedQIFNode,
    WrappedEIFNode,
    WrappedIzhikevichNode,
    WrappedComplementaryLIFNode,
    WrappedCUBALIFNode,
    WrappedRAFNode,
    WrappedGatedLIFNode,
)
_SIMPLE = (WrappedSimpleIFNode, WrappedSimpleLIFNode)

KINDS = {
    **{cls._tssl_native: Kind(cls, node_problem, start, stop) for cls in _NODES},
    **{cls._tssl_native: Kind(cls, simple_problem, start, stop) for cls in _SIMPLE},
}
