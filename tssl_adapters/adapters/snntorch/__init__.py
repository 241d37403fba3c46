"""snnTorch: ``Leaky``, ``Lapicque``, ``Synaptic``, ``Alpha``, ``RLeaky`` and ``RSynaptic``."""

from __future__ import annotations

import importlib
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from tssl_adapters.adapters import (
    Adapter,
    Kind,
    Kinds,
    defined_by,
    untag,
)
from tssl_adapters.adapters.snntorch.classic import neuron_of, two_forwards, unlisted
from tssl_adapters.adapters.snntorch.layer import RESET_CODES, Layer, bound_reset, setting_problem
from tssl_adapters.adapters.snntorch.neurons import NEURONS, RSynaptic
from tssl_adapters.adapters.snntorch.sequence import inherits, mode, part


def _problem(wrapped: Any, layer: Any) -> str | None:
    why = setting_problem(layer)
    if why is not None:
        return why
    if _fails_without_delay(wrapped, layer):
        return (
            f"{wrapped._tssl_native.__name__} with reset_delay=False and init_hidden=True fails in "
            "the library at every call; use reset_delay=True"
        )
    code = RESET_CODES[bound_reset(layer)]
    chosen = layer.reset_mechanism_val
    seen = not chosen.is_meta and not wrapped._tssl_delayed(layer)
    if seen and int(chosen) != code:
        return (
            "reset_mechanism was changed after the layer was made, and with reset_delay=False the "
            "layer then mixes two resets; make a new layer with the reset that you want"
        )
    return wrapped._tssl_zero_decay if wrapped._tssl_decayless(layer) else None


def _fails_without_delay(wrapped: Any, layer: Any) -> bool:
    """Whether the library looks for a state among the arguments of a layer that holds it."""
    if two_forwards(layer) or getattr(layer, "reset_delay", True) or not layer.init_hidden:
        return False
    forgets: bool = wrapped._tssl_delayed(layer)
    return issubclass(wrapped, RSynaptic) or (forgets and bound_reset(layer) != "_base_int")


def _kind(wrapped: type[Layer]) -> Kind:
    return Kind(wrapped, _problem, detach=_detach)


def _detach(layer: Any) -> None:
    untag(getattr(layer, "mem", None))
    getattr(layer, "reset", None)  # computes it
    if two_forwards(layer) and not layer.init_hidden:
        vars(layer).pop("spk", None)


def _find() -> tuple[Kinds, Kinds]:
    wrapped = importlib.import_module(f"{__name__}.layers").WRAPPED
    return {native: _kind(cls) for native, cls in wrapped.items()}, {}


def _copy(cls: type[nn.Module]) -> Kind | None:
    if cls.__name__ not in NEURONS:
        return None
    return _kind(type(f"Wrapped{cls.__name__}", (neuron_of(cls),), {}))


def _spiking(module: nn.Module) -> bool:
    return inherits(module, "SpikingNeuron", "LeakyParallel", "AssociativeLeaky")


def _example(cls: Any, neurons: int) -> nn.Module:
    wanted = {"alpha": 0.9, "beta": 0.8, "linear_features": neurons, "init_hidden": True}
    accepted = signature(cls).parameters
    with unlisted(cls):
        layer: nn.Module = cls(**{name: wanted[name] for name in wanted if name in accepted})
    return layer


def _record(layer: Any, x: Tensor) -> list[Tensor]:
    hidden, recurrent = layer.init_hidden, hasattr(layer, "recurrent")
    given = () if hidden or not two_forwards(layer) else _first(layer)
    outs = []
    for step in x:
        result = layer(step, *given)
        out, *after = result if isinstance(result, tuple) else (result,)
        given = () if hidden else (out, *after) if recurrent else tuple(after)
        outs.append(out)
    return [torch.stack(outs), *([layer.mem] if hidden else after)]


def _first(layer: Any) -> tuple[Any, ...]:
    """A layer's initial states, which have to be passed in versions up to 0.7."""
    names = (f"init_{cls.__name__.lower()}" for cls in type(layer).__mro__)
    state = next(getattr(layer, name) for name in names if hasattr(layer, name))()
    return state if isinstance(state, tuple) else (state,)


def _reset(model: nn.Module) -> None:
    importlib.import_module("snntorch.utils").reset(model)


ADAPTER = Adapter(
    library="snntorch",
    find=_find,
    copy=_copy,
    spiking=_spiking,
    native=lambda module: defined_by("snntorch", module),
    mode=mode,
    part=part,
    example=_example,
    record=_record,
    reset=_reset,
    containers="snnTorch's with init_hidden=True",
    reasons={
        "SLSTM": "an LSTM cell has gates, not a leaky potential with a reset",
        "SConv2dLSTM": "an LSTM cell has gates, not a leaky potential with a reset",
        "DeltaLeaky": "it spikes on a change of the potential, not on the potential",
        "LeakyParallel": "it has no state that a rule could follow step by step",
        "StateLeaky": "it has no reset and is computed for all steps at once",
        "AssociativeLeaky": "it has no reset and is computed for all steps at once",
    },
)
