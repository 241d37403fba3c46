"""Norse: every feed-forward and recurrent neuron whose potentials are not coupled.

The library's own step computes the values. Each neuron is described once, in
:mod:`tssl_adapters.adapters.norse.neurons`, for its cell, its module and their recurrent forms.
"""

from __future__ import annotations

from functools import partial
from inspect import signature
from typing import Any

import torch
from norse.torch.functional import (
    iaf,
    izhikevich,
    lif,
    lif_adex,
    lif_adex_refrac,
    lif_box,
    lif_ex,
    lif_refrac,
    lsnn,
)
from norse.torch.functional.reset import reset_subtract, reset_value
from norse.torch.module.snn import SNN, SNNCell, SNNRecurrent, SNNRecurrentCell
from torch import Tensor, nn

from tssl_adapters.adapters.base import Adapter, Kind, Wrapped, defined_by
from tssl_adapters.adapters.norse import layers, linear

_EXPECTED: dict[type[Wrapped], tuple[Any, ...]] = {
    linear.WrappedIAFCell: (iaf.iaf_feed_forward_step,),
    linear.WrappedIAF: (iaf.iaf_feed_forward_step,),
    linear.WrappedLIFCell: (lif.lif_feed_forward_step, lif.lif_feed_forward_step_sparse),
    linear.WrappedLIF: (lif.lif_feed_forward_step, lif.lif_feed_forward_step_sparse),
    linear.WrappedLIFBoxCell: (lif_box.lif_box_feed_forward_step,),
    layers.WrappedLIFRecurrentCell: (lif.lif_step, lif.lif_step_sparse),
    layers.WrappedLIFRecurrent: (lif.lif_step, lif.lif_step_sparse),
    layers.WrappedLIFExCell: (lif_ex.lif_ex_feed_forward_step,),
    layers.WrappedLIFEx: (lif_ex.lif_ex_feed_forward_step,),
    layers.WrappedLIFExRecurrentCell: (lif_ex.lif_ex_step,),
    layers.WrappedLIFExRecurrent: (lif_ex.lif_ex_step,),
    layers.WrappedLIFAdExCell: (lif_adex.lif_adex_feed_forward_step,),
    layers.WrappedLIFAdEx: (lif_adex.lif_adex_feed_forward_step,),
    layers.WrappedLIFAdExRecurrentCell: (lif_adex.lif_adex_step,),
    layers.WrappedLIFAdExRecurrent: (lif_adex.lif_adex_step,),
    layers.WrappedLSNNCell: (lsnn.lsnn_feed_forward_step,),
    layers.WrappedLSNN: (lsnn.lsnn_feed_forward_step,),
    layers.WrappedLSNNRecurrentCell: (lsnn.lsnn_step,),
    layers.WrappedLSNNRecurrent: (lsnn.lsnn_step,),
    layers.WrappedIzhikevichCell: (izhikevich.izhikevich_feed_forward_step,),
    layers.WrappedIzhikevich: (izhikevich.izhikevich_feed_forward_step,),
    layers.WrappedIzhikevichRecurrentCell: (izhikevich.izhikevich_recurrent_step,),
    layers.WrappedIzhikevichRecurrent: (izhikevich.izhikevich_recurrent_step,),
    layers.WrappedLIFRefracCell: (lif_refrac.lif_refrac_feed_forward_step,),
    layers.WrappedLIFRefracRecurrentCell: (lif_refrac.lif_refrac_step,),
    layers.WrappedLIFRefracRecurrent: (
        lif_refrac.lif_refrac_step,
        lif_refrac.lif_refrac_step_sparse,
    ),
    layers.WrappedLIFAdExRefracCell: (lif_adex_refrac.lif_adex_refrac_feed_forward_step,),
    layers.WrappedLIFAdExRefracRecurrentCell: (lif_adex_refrac.lif_adex_refrac_step,),
    layers.WrappedLIFAdExRefracRecurrent: (lif_adex_refrac.lif_adex_refrac_step,),
}
"""The library's steps, for dense and for sparse input, that each class is known to take."""

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


def _problem(expected: tuple[Any, ...], layer: Any) -> str | None:
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
    if getattr(p, "reset_method", reset_value) not in (reset_value, reset_subtract):
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


def _run(layer: Any, x: Tensor) -> Tensor:
    if isinstance(layer, SNN | SNNRecurrent):
        out: Tensor = layer(x)[0]
        return out
    outs, state = [], None
    for step in x:
        out, state = layer(step, state)
        outs.append(out)
    return torch.stack(outs)


ADAPTER = Adapter(
    library="norse",
    kinds={
        cls._tssl_native: Kind(cls, partial(_problem, expected))
        for cls, expected in _EXPECTED.items()
    },
    spiking=_spiking,
    native=lambda module: defined_by("norse", module),
    mode=lambda layer: "sequence" if isinstance(layer, SNN | SNNRecurrent) else "step",
    example=_example,
    run=_run,
    reasons=_REASONS,
)
