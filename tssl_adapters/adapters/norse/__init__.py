"""Norse: every feed-forward and recurrent neuron whose potentials are not coupled.

The library's own step computes the values. Each neuron is described once, in
:mod:`tssl_adapters.adapters.norse.neurons`, for its cell, its module and their recurrent forms.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from inspect import signature
from typing import Any

import norse.torch as norse
import torch
from norse.torch.functional import izhikevich
from norse.torch.functional.lif import lif_feed_forward_step
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
from torch import Tensor, nn

from tssl_adapters.adapters import (
    Adapter,
    Kind,
    defined_by,
)
from tssl_adapters.adapters.norse import layers, linear
from tssl_adapters.adapters.norse.classic import LATE
from tssl_adapters.adapters.norse.sequential import mode, part

_STEPS: dict[str, tuple[str, ...]] = {
    "IAFCell": ("iaf.iaf_feed_forward_step",),
    "IAF": ("iaf.iaf_feed_forward_step",),
    "LIFCell": ("lif.lif_feed_forward_step", "lif.lif_feed_forward_step_sparse"),
    "LIF": ("lif.lif_feed_forward_step", "lif.lif_feed_forward_step_sparse"),
    "LIFBoxCell": ("lif_box.lif_box_feed_forward_step",),
    "LIFRecurrentCell": ("lif.lif_step", "lif.lif_step_sparse"),
    "LIFRecurrent": ("lif.lif_step", "lif.lif_step_sparse"),
    "LIFExCell": ("lif_ex.lif_ex_feed_forward_step",),
    "LIFEx": ("lif_ex.lif_ex_feed_forward_step",),
    "LIFExRecurrentCell": ("lif_ex.lif_ex_step",),
    "LIFExRecurrent": ("lif_ex.lif_ex_step",),
    "LIFAdExCell": ("lif_adex.lif_adex_feed_forward_step",),
    "LIFAdEx": ("lif_adex.lif_adex_feed_forward_step",),
    "LIFAdExRecurrentCell": ("lif_adex.lif_adex_step",),
    "LIFAdExRecurrent": ("lif_adex.lif_adex_step",),
    "LSNNCell": ("lsnn.lsnn_feed_forward_step",),
    "LSNN": ("lsnn.lsnn_feed_forward_step",),
    "LSNNRecurrentCell": ("lsnn.lsnn_step",),
    "LSNNRecurrent": ("lsnn.lsnn_step",),
    "IzhikevichCell": ("izhikevich.izhikevich_feed_forward_step",),
    "Izhikevich": ("izhikevich.izhikevich_feed_forward_step",),
    "IzhikevichRecurrentCell": ("izhikevich.izhikevich_recurrent_step",),
    "IzhikevichRecurrent": ("izhikevich.izhikevich_recurrent_step",),
    "LIFRefracCell": ("lif_refrac.lif_refrac_feed_forward_step",),
    "LIFRefracRecurrentCell": ("lif_refrac.lif_refrac_step",),
    "LIFRefracRecurrent": ("lif_refrac.lif_refrac_step", "lif_refrac.lif_refrac_step_sparse"),
    "LIFAdExRefracCell": ("lif_adex_refrac.lif_adex_refrac_feed_forward_step",),
    "LIFAdExRefracRecurrentCell": ("lif_adex_refrac.lif_adex_refrac_step",),
    "LIFAdExRefracRecurrent": ("lif_adex_refrac.lif_adex_refrac_step",),
}
"""The library's steps, for dense and for sparse input, that each class is known to use."""

# In older versions the membrane sees the current before the input is added: no linear charge.
_WRAPPED = (
    linear.WRAPPED | layers.WRAPPED
    if lif_feed_forward_step in LATE
    else layers.WRAPPED | linear.WRAPPED
)


def _step(name: str) -> Any:
    module, function = name.split(".")
    return getattr(import_module(f"norse.torch.functional.{module}"), function)


_EXPECTED: dict[type[Any], tuple[Any, ...]] = {
    _WRAPPED[native]: tuple(map(_step, steps))
    for name, steps in _STEPS.items()
    if (native := getattr(norse, name, None)) is not None  # older versions lack some
}

_REASONS = {
    "CobaLIFCell": (
        "its step overwrites the conductances that its input raised, so that no gradient reaches "
        "the input"
    ),
    "LIFCorrelation": (
        "its weights come with every call, and its correlation sensors are a learning rule of "
        "their own"
    ),
    "LIFMCRecurrentCell": (
        "g_coupling lets each potential depend on every other one, and the chain over time has "
        "one number a neuron"
    ),
}
_REASONS["LIFMCRefracRecurrentCell"] = _REASONS["LIFMCRecurrentCell"]


_RESETS = [getattr(norse, name, None) for name in ("reset_value", "reset_subtract")]


def _problem(expected: tuple[Any, ...], _: Any, layer: Any) -> str | None:
    p = layer.p
    for nested in ("lif", "lif_adex"):
        p = getattr(p, nested, p)
    steps = (layer.activation, layer.activation_sparse)
    if p.method == "adjoint":
        return "method='adjoint' is a learning rule of its own; use another method"
    if any("adjoint" in getattr(step, "__name__", "") for step in steps):
        return "adjoint=True is a learning rule of its own; leave it out"
    for ours, theirs in zip((*expected, None), steps, strict=False):
        if theirs is not ours:
            name = getattr(theirs, "__name__", theirs)
            return (
                f"its activation is {name} rather than {getattr(ours, '__name__', ours)}, and may "
                "be another neuron; use the layer as the library makes it"
            )
    if hasattr(p, "reset_method") and p.reset_method not in _RESETS:
        return (
            "its reset_method is a function of your own; use norse.torch.functional.reset's "
            "reset_value or reset_subtract"
        )
    return None


def _defined_in(module: nn.Module) -> set[str]:
    prefix = "norse.torch.module."
    return {
        cls.__module__.removeprefix(prefix)
        for cls in type(module).__mro__
        if cls.__module__.startswith(prefix)
    }


def _leaks_only(module: nn.Module) -> bool:
    return bool(_defined_in(module) & {"leaky_integrator", "leaky_integrator_box"})


def _spiking(module: nn.Module) -> bool:
    if _leaks_only(module):
        return False
    if isinstance(module, SNN | SNNCell | SNNRecurrent | SNNRecurrentCell):
        return True
    return any(
        name.startswith(("coba_lif", "iaf", "izhikevich", "lif", "lsnn")) and name != "lift"
        for name in _defined_in(module)
    )


def _example(cls: Any, neurons: int) -> nn.Module:
    wanted = {
        "input_size": neurons,
        "hidden_size": neurons,
        "spiking_method": izhikevich.tonic_spiking,
    }
    accepted = signature(cls).parameters
    layer: nn.Module = cls(**{name: wanted[name] for name in wanted if name in accepted})
    return layer


def _record(layer: Any, x: Tensor) -> list[Tensor]:
    if isinstance(layer, SNN | SNNRecurrent):
        out, state = layer(x)
        return [out, *_tensors(state)]
    outs, state = [], None
    for step in x:
        out, state = layer(step, state)
        outs.append(out)
    return [torch.stack(outs), *_tensors(state)]


def _tensors(state: Any) -> list[Tensor]:
    """The tensors of a state, those of nested states included."""
    if isinstance(state, Tensor):
        return [state]
    return [tensor for part in state for tensor in _tensors(part)]


ADAPTER = Adapter(
    library="norse",
    kinds={
        cls._tssl_native: Kind(cls, partial(_problem, expected))
        for cls, expected in _EXPECTED.items()
    },
    spiking=_spiking,
    native=lambda module: defined_by("norse", module),
    mode=mode,
    part=part,
    example=_example,
    record=_record,
    reasons=_REASONS,
    containers="Norse's into a norse.torch.SequentialState",
)
