"""SpikingJelly: ``LIFNode``, ``IFNode``, ``ParametricLIFNode``, step modes "s" and "m".

The nodes compare ``v >= v_threshold`` and reset at once: to ``v_reset``, or by subtraction where
it is ``None``. At ``tau_s > 1`` the trace is a registered memory, ``tssl_psc``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from spikingjelly.activation_based import base, neuron, surrogate
from torch import Tensor, nn

from tssl_adapters.adapters.base import Adapter, Kind, Wrapped, defined_by, eager
from tssl_adapters.engine.attach import Native, Result, attach
from tssl_adapters.engine.state import trace_beside, untag
from tssl_adapters.errors import UnsupportedConfigError
from tssl_adapters.neuron import LinearCharge, Neuron, Subtract, ToValue

_TRACE = "tssl_psc"


class _Node(Wrapped):
    """What all wrapped nodes share. Mixed in before the library's class."""

    def _tssl_charge(self) -> LinearCharge:
        raise NotImplementedError

    def _tssl_neuron(self: Any) -> Neuron:
        return Neuron(
            charge=self._tssl_charge(),
            reset=Subtract() if self.v_reset is None else ToValue(self.v_reset),
            threshold=self.v_threshold,
            timing="immediate",
            strict=False,
            detached=self.detach_reset,
        )

    @eager
    def forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        if self._tssl_runs_native():
            return self._tssl_native.forward(self, *args, **kwargs)  # type: ignore[no-any-return]
        (x,) = (*args, *kwargs.values())
        keep = self.store_v_seq and self.step_mode == "m"
        result = self._tssl_run(x, tuple(self._memories.values()), keep)
        for name, value in zip(self._memories, _states(result), strict=True):
            self._memories[name] = value
        if self.step_mode == "m":
            self.v_seq = result.states
        elif self.store_v_seq:
            self._append_v_seq(self.v)
        out: Tensor = result.out
        return out

    @eager
    def functional_forward(
        self: Any, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """What memopt's checkpointing and ``to_functional_forward`` call."""
        if self._tssl_runs_native():
            native = self._tssl_native.functional_forward(self, inputs, states, **kwargs)
            return native  # type: ignore[no-any-return]
        result = self._tssl_run(inputs[0], states, False)
        return (result.out,), _states(result)

    def _tssl_run(self: Any, x: Tensor, states: tuple[Any, ...], keep: bool) -> Result:
        v, trace = (*states, None)[:2]
        (state,) = self.materialize_states((x,), (v,), self.step_mode)
        started = isinstance(v, Tensor) and v.shape == state.shape
        settings = self._tssl_settings
        incoming = None
        if trace is not None:
            rest = (_leak_towards(self), 0.0)
            incoming = trace_beside(settings, state if started else None, trace, rest)

        def run(drive: Tensor, potential: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad(), self._tssl_without_trace():
                if keep:
                    self.v = potential
                    return self._tssl_native.forward(self, drive), self.v_seq
                (spikes,), (after,) = self._tssl_native.functional_forward(
                    self, (drive,), (potential,)
                )
                # A step's spikes are a view of a sequence's; the caller may write to them.
                return spikes.clone() if spikes._is_view() else spikes, after

        return attach(
            settings,
            self._tssl_neuron(),
            x,
            state,
            incoming,
            Native(x, lambda: run(x, state), lambda drive, v: (drive, *run(drive, v))),
            sequence=self.step_mode == "m",
            keep_states=keep,
        )

    @contextmanager
    def _tssl_without_trace(self: Any) -> Iterator[None]:
        """The library pairs memories and states one to one: it must not see ours."""
        trace = self._memories.pop(_TRACE, None)
        try:
            yield
        finally:
            if trace is not None:
                self._memories[_TRACE] = trace


def _states(result: Result) -> tuple[Tensor, ...]:
    return (result.state,) if result.trace is None else (result.state, result.trace)


def _leak_input(v: Tensor, x: Tensor, tau: float, v_reset: float) -> Tensor:
    return ((x - _above(v, v_reset)) / tau).add_(v)


def _leak_only(v: Tensor, x: Tensor, tau: float, v_reset: float) -> Tensor:
    return v - _above(v, v_reset) / tau + x


def _learned_leak_input(v: Tensor, x: Tensor, rate: Tensor, v_reset: float) -> Tensor:
    return ((x - _above(v, v_reset)) * rate).add_(v)


def _learned_leak_only(v: Tensor, x: Tensor, rate: Tensor, v_reset: float) -> Tensor:
    return v - _above(v, v_reset) * rate + x


def _above(v: Tensor, v_reset: float) -> Tensor:
    return v if v_reset == 0.0 else v - v_reset


def _integrate(v: Tensor, x: Tensor) -> Tensor:
    return v + x


def _leak_towards(node: Any) -> float:
    return 0.0 if node.v_reset is None else float(node.v_reset)


class WrappedLIFNode(_Node, neuron.LIFNode):  # type: ignore[misc]
    """``LIFNode`` with the gradient of a rule."""

    _tssl_native = neuron.LIFNode

    def _tssl_charge(self) -> LinearCharge:
        rate, rest = 1.0 / self.tau, _leak_towards(self)
        return LinearCharge(
            decay=1.0 - rate,
            gain=rate if self.decay_input else 1.0,
            offset=rest * rate,
            formula=_leak_input if self.decay_input else _leak_only,
            raw=(self.tau, rest),
        )


class WrappedParametricLIFNode(_Node, neuron.ParametricLIFNode):  # type: ignore[misc]
    """``ParametricLIFNode`` with the gradient of a rule, for ``w`` too."""

    _tssl_native = neuron.ParametricLIFNode

    def _tssl_charge(self) -> LinearCharge:
        rate, rest = self.w.sigmoid(), _leak_towards(self)
        return LinearCharge(
            decay=1.0 - rate,
            gain=rate if self.decay_input else 1.0,
            offset=rest * rate,
            formula=_learned_leak_input if self.decay_input else _learned_leak_only,
            raw=(rate, rest),
        )


class WrappedIFNode(_Node, neuron.IFNode):  # type: ignore[misc]
    """``IFNode`` with the gradient of a rule."""

    _tssl_native = neuron.IFNode

    def _tssl_charge(self) -> LinearCharge:
        return LinearCharge(decay=1.0, gain=1.0, offset=0.0, formula=_integrate)


def _problem(node: Any) -> str | None:
    if not getattr(node.surrogate_function, "spiking", True):
        return (
            "its surrogate_function has spiking=False, so the output is not a spike; call "
            "surrogate_function.set_spiking_mode(True)"
        )
    if node._neuron_precision is not None:
        return "it has a neuron precision of its own; convert it back to the default precision"
    return None


def _attach(node: Any) -> None:
    if node._tssl_settings.tau_s == 1.0:
        return
    if hasattr(node, _TRACE):
        path = node._tssl_settings.path
        raise UnsupportedConfigError(
            f"Layer '{path}' has an attribute '{_TRACE}', the name of the memory that wrap adds "
            "at tau_s > 1. Rename yours."
        )
    node.register_memory(_TRACE, 0.0)


def _detach(node: Any) -> None:
    if _TRACE in node._memories:
        delattr(node, _TRACE)
    untag(node.v)


_SPIKING_MODULES = tuple(
    f"spikingjelly.activation_based.{name}" for name in ("neuron", "rnn", "lynxi_exchange")
)


def _spiking(module: nn.Module) -> bool:
    return not _non_spiking(module) and any(
        cls.__module__.startswith(_SPIKING_MODULES) for cls in type(module).__mro__
    )


def _non_spiking(module: nn.Module) -> bool:
    return any("NonSpiking" in cls.__name__ for cls in type(module).__mro__)


def _native(module: nn.Module) -> bool:
    if isinstance(module, surrogate.SurrogateFunctionBase):  # part of a node
        return False
    return defined_by("spikingjelly", module) or isinstance(module, base.MemoryModule)


_OWN_RULE = "it has a learning rule of its own"
_NOT_BINARY = "its output is not a binary spike"

ADAPTER = Adapter(
    library="spikingjelly",
    kinds={
        cls._tssl_native: Kind(cls, _problem, _attach, _detach)
        for cls in (WrappedLIFNode, WrappedParametricLIFNode, WrappedIFNode)
    },
    spiking=_spiking,
    native=_native,
    mode=lambda node: "sequence" if node.step_mode == "m" else "step",
    reasons={
        **dict.fromkeys(("OTTTLIFNode", "SLTTLIFNode", "DSRIFNode", "DSRLIFNode"), _OWN_RULE),
        "MPBNBaseNode": "it normalises the membrane potential over the batch",
        **dict.fromkeys(("PSN", "MaskedPSN", "SlidingPSN"), "it has no state and no reset"),
        **dict.fromkeys(("LIAFNode", "ILIFNode", "TernaryIFNode", "TernaryLIFNode"), _NOT_BINARY),
    },
)
