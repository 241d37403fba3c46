"""Nodes with one state and a linear charge, for the engine's whole-sequence and fastest paths."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tssl_adapters.adapters import (
    Described,
    LinearCharge,
    NativeForward,
    Neuron,
    Settings,
    Stepped,
    Tensors,
    Traits,
    Value,
    attach,
    computes,
    linear_cell,
    untouched,
)
from tssl_adapters.adapters.spikingjelly.node import Node, Ran, rest_of, sequences
from tssl_adapters.arithmetic import arithmetic


class LinearNode(Node):
    """A node whose charge is linear in the potential, with a known decay."""

    _tssl_single = True

    def _tssl_charge(self) -> LinearCharge:
        raise NotImplementedError

    @classmethod
    def _tssl_traits(cls, layer: Any) -> Traits:
        decay = cls._tssl_charge(layer).decay
        return replace(super()._tssl_traits(layer), decay=decay, sequence=sequences(layer))

    def _tssl_charge_of(self) -> tuple[Value, ...]:
        """The layer's settings, besides its reset, that the charge depends on."""
        raise NotImplementedError

    def _tssl_neuron(self: Any) -> Neuron:
        """The record, rebuilt only if something that it depends on has changed."""
        settings = self._tssl_settings
        numbers = (self.v_threshold, self.v_reset, self.detach_reset, *self._tssl_charge_of())
        plain = not any(isinstance(value, Tensor) for value in numbers)
        if plain and settings.record is not None and settings.record[0] == numbers:
            return settings.record[1]  # type: ignore[no-any-return]
        record = Neuron(
            charge=self._tssl_charge(),
            reset=self._tssl_reset(),
            threshold=self.v_threshold,
            timing="immediate",
            strict=False,
            detached=self.detach_reset,
        )
        settings.record = (numbers, record) if plain else None
        return record

    def _tssl_compute(
        self: Any, x: Tensor, states: tuple[Any, ...], trace: Tensor | None, keep: bool
    ) -> Ran:
        (state,) = states
        neuron = self._tssl_neuron()

        def run(drive: Tensor, potential: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                return self._tssl_whole(drive, potential, keep)  # type: ignore[no-any-return]

        def probe(drive: Tensor, potential: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            with untouched(self):
                return (drive, *run(drive, potential))

        result = attach(
            self._tssl_settings,
            neuron,
            x,
            state,
            trace,
            NativeForward(x, lambda: run(x, state), probe, steady=self._tssl_steady(x)),
            sequence=sequences(self),
            keep_states=keep,
            described=self._tssl_described(),
        )
        kept = None if result.states is None else (result.states,)
        return Ran(result.out, (result.state,), result.trace, kept)

    def _tssl_described(self: Any) -> Described | None:
        """Its step, unless a number of it is a tensor whose value may change unnoticed, or its
        states are kept.
        """
        pinned = self._tssl_pinned()
        numbers = (self.v_threshold, self.v_reset, *self._tssl_charge_of())
        known = {id(tensor) for tensor in pinned}
        tensors = [id(number) for number in numbers if isinstance(number, Tensor)]
        if getattr(self, "store_v_seq", False) or not known.issuperset(tensors):
            return None

        def by_torch(
            settings: Settings, inputs: Tensors, states: Tensors, trace: Tensor | None
        ) -> Stepped:
            neuron = self._tssl_neuron()
            ran = attach(settings, neuron, inputs[0], states[0], trace, None, sequence=False)
            return Stepped(ran.out, (ran.state,), ran.trace)

        cell = partial(linear_cell, self._tssl_neuron)
        return Described(cell, pinned, by_torch if tensors else None)

    def _tssl_whole(self: Any, x: Tensor, v: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
        """The library's spikes, and its potential, with ``keep`` after every step."""
        if keep:
            self.v = v
            return self._tssl_native.forward(self, x), self.v_seq
        (spikes,), (after,) = self._tssl_native.functional_forward(self, (x,), (v,))
        # A step's spikes are a view of a sequence's; the caller may write to them.
        return spikes.clone() if spikes._is_view() else spikes, after


def _plain_leak_input(v: Any, x: Any, tau: Any, v_reset: Any) -> Any:
    return (x - (v - v_reset)) / tau + v


def _plain_leak_only(v: Any, x: Any, tau: Any, v_reset: Any) -> Any:
    return v - (v - v_reset) / tau + x


def _plain_leak_input_at(v: Any, x: Any, rate: Any, v_reset: Any) -> Any:
    return (x - (v - v_reset)) * rate + v


def _plain_leak_only_at(v: Any, x: Any, rate: Any, v_reset: Any) -> Any:
    return v - (v - v_reset) * rate + x


@computes(_plain_leak_input)
def _leak_input(v: Tensor, x: Tensor, tau: Value, v_reset: Value) -> Tensor:
    return ((x - _above(v, v_reset)) / tau).add_(v)


@computes(_plain_leak_only)
def _leak_only(v: Tensor, x: Tensor, tau: Value, v_reset: Value) -> Tensor:
    return v - _above(v, v_reset) / tau + x


@computes(_plain_leak_input_at)
def _leak_input_at(v: Tensor, x: Tensor, rate: Value, v_reset: Value) -> Tensor:
    return ((x - _above(v, v_reset)) * rate).add_(v)


@computes(_plain_leak_only_at)
def _leak_only_at(v: Tensor, x: Tensor, rate: Value, v_reset: Value) -> Tensor:
    return v - _above(v, v_reset) * rate + x


def _above(v: Tensor, v_reset: Value) -> Tensor:
    return v if isinstance(v_reset, float) and v_reset == 0.0 else v - v_reset


@arithmetic
def _integrate(v: Tensor, x: Tensor) -> Tensor:
    return v + x


class LIF(LinearNode):
    """The charge of ``LIFNode``."""

    def _tssl_charge_of(self: Any) -> tuple[Value, ...]:
        return self.tau, self.decay_input

    def _tssl_charge(self: Any) -> LinearCharge:
        rate, rest = 1.0 / self.tau, rest_of(self)
        # A division by a power of two is a multiplication to the bit, which takes less time.
        multiplies = isinstance(self.tau, float) and math.frexp(self.tau)[0] == 0.5
        by_input = _leak_input_at if multiplies else _leak_input
        alone = _leak_only_at if multiplies else _leak_only
        return LinearCharge(
            decay=1.0 - rate,
            gain=rate if self.decay_input else 1.0,
            offset=rest * rate,
            formula=by_input if self.decay_input else alone,
            raw=(rate if multiplies else self.tau, rest),
        )


class ParametricLIF(LinearNode):
    """The charge of ``ParametricLIFNode``."""

    def _tssl_charge_of(self: Any) -> tuple[Value, ...]:
        return self.w, self.decay_input

    def _tssl_charge(self: Any) -> LinearCharge:
        rate, rest = self.w.sigmoid(), rest_of(self)
        # A potential that starts at v_reset, however large, gives the decay no gradient.
        centred = isinstance(rest, float) and rest != 0.0
        return LinearCharge(
            decay=1.0 - rate,
            gain=rate if self.decay_input else 1.0,
            offset=rest if centred else rest * rate,
            formula=_leak_input_at if self.decay_input else _leak_only_at,
            raw=(rate, rest),
            centred=1 if centred else None,
        )


class IF(LinearNode):
    """The charge of ``IFNode``."""

    def _tssl_charge_of(self) -> tuple[Value, ...]:
        return ()

    def _tssl_charge(self: Any) -> LinearCharge:
        return LinearCharge(decay=1.0, gain=1.0, offset=0.0, formula=_integrate)
