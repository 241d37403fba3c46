"""What adapts to it: as little as there has to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tinysnn
import torch
from torch import Tensor, nn

from tssl_adapters.adapters import (
    Adapter,
    Kind,
    LinearCharge,
    Mode,
    NativeForward,
    Neuron,
    Part,
    Reset,
    Subtract,
    Surrogate,
    ToValue,
    Traits,
    Walk,
    Wrapped,
    as_it_is,
    attach,
    defined_by,
    eager,
    emitted,
    exporting,
    folded,
    stepped,
    surrogate_of,
    trace_of,
    untag,
    untouched,
)
from tssl_adapters.arithmetic import Number, absolute, arithmetic


# --8<-- [start:numbers]
@arithmetic
def _charge(v: Tensor, x: Tensor, decay: float) -> Tensor:
    return decay * v + x


@arithmetic
def _slope(x: Number) -> Number:
    scale = 1.0 + absolute(x)
    return 1.0 / (scale * scale)


@arithmetic
def _to_zero(charged: Tensor, due: Tensor, value: float) -> Tensor:
    return charged - due * charged


def _reset(layer: Any) -> Reset:
    return ToValue(0.0, _to_zero) if layer.to_zero else Subtract()


# --8<-- [end:numbers]
# --8<-- [start:layer]
class Layer(Wrapped):
    """Mixed in before the library's class."""

    _tssl_free = frozenset({"training", "v"})

    @classmethod
    def _tssl_traits(cls, layer: Any) -> Traits:
        return Traits(None, _reset(layer), decay=layer.decay, threshold=layer.threshold)

    @classmethod
    def _tssl_spikes(cls, layer: Any) -> Callable[[Tensor], Tensor]:
        return layer.spike  # type: ignore[no-any-return]

    @classmethod
    def _tssl_own(cls, layer: Any) -> tuple[Any, ...]:
        return (layer.spike,)

    @classmethod
    def _tssl_surrogate(cls, layer: Any) -> Surrogate:
        return surrogate_of(layer.spike, [Surrogate(_slope)])

    def _tssl_parts(self: Any) -> tuple[Any, ...]:
        return (self.spike,)

    def _tssl_emitted(self: Any, x: Tensor) -> Tensor:
        before = self.v if isinstance(self.v, Tensor) else None
        spikes = self._tssl_native.forward(self, x)
        sequence = isinstance(self, tinysnn.LIFSequence)
        return emitted(self._tssl_settings, spikes, before, self.v, (0.0,), sequence=sequence)

    @eager
    def forward(self: Any, x: Tensor) -> Tensor:
        if exporting():
            return self._tssl_emitted(x)  # type: ignore[no-any-return]
        settings, sequence = self._tssl_settings, isinstance(self, tinysnn.LIFSequence)
        given = self.v if isinstance(self.v, Tensor) else None
        charge = LinearCharge(self.decay, 1.0, 0.0, _charge, (self.decay,))
        neuron = Neuron(charge, _reset(self), self.threshold, strict=False)
        state = torch.zeros_like(x[0] if sequence else x) if given is None else given
        native = NativeForward(x, lambda: self._tssl_run(x, state), self._tssl_probe)
        trace = trace_of(settings, given, (0.0,))
        result = attach(
            settings, neuron, x, state, trace, native, sequence=sequence, fresh=given is None
        )
        self.v = result.state
        return result.out

    @torch.no_grad()
    def _tssl_run(self: Any, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The library's spikes, and its potential after them."""
        with untouched(self):
            self.v = v
            spikes = self._tssl_native.forward(self, x)
            return spikes, self.v

    def _tssl_probe(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (x, *self._tssl_run(x, v))


# --8<-- [end:layer]
# --8<-- [start:adapter]
class WrappedLIF(Layer, tinysnn.LIF):
    """``LIF`` with the gradient of a rule."""

    _tssl_native = tinysnn.LIF


class WrappedLIFSequence(Layer, tinysnn.LIFSequence):
    """``LIFSequence`` with the gradient of a rule."""

    _tssl_native = tinysnn.LIFSequence


def _problem(wrapped: type[Wrapped], layer: Any) -> str | None:
    return None if layer.threshold > 0.0 else "its threshold is not positive; take one that is"


def _mode(module: nn.Module) -> Mode | None:
    if not isinstance(module, tinysnn.LIF):
        return None
    return "sequence" if isinstance(module, tinysnn.LIFSequence) else "step"


def _part(walk: Walk, path: str, module: nn.Module) -> Part | None:
    if isinstance(module, tinysnn.Leak):
        return as_it_is(module) if walk.whole else folded(module)
    if _mode(module) is None:
        return None
    walk.hold(path, module)
    return as_it_is(module) if walk.whole else stepped(module)


def _record(layer: Any, x: Tensor) -> list[Tensor]:
    tinysnn.reset(layer)
    return [layer(x) if _mode(layer) == "sequence" else torch.stack([*map(layer, x)]), layer.v]


ADAPTER = Adapter(
    library="tinysnn",
    kinds={
        wrapped._tssl_native: Kind(wrapped, _problem, detach=lambda layer: untag(layer.v))
        for wrapped in (WrappedLIF, WrappedLIFSequence)
    },
    spiking=lambda module: isinstance(module, tinysnn.LIF),
    native=lambda module: defined_by("tinysnn", module),
    mode=_mode,
    part=_part,
    example=lambda cls, neurons: cls(),
    record=_record,
    reasons={"Gate": "its output is no spike"},
    reset=tinysnn.reset,
    containers="tinysnn's into an nn.Sequential as they are",
    modes="tinysnn: LIF and LIFSequence",
)
# --8<-- [end:adapter]
