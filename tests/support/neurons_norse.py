"""The further neurons of the library, with their settings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import norse.torch as norse
import torch
from cases import NEURONS, Case, Run
from compat_norse import RECORDS, VECTOR_START, starts, superspike
from norse.torch.functional import (
    iaf,
    izhikevich,
    lif,
    lif_adex,
    lif_ex,
    lif_refrac,
    lsnn,
)
from norse.torch.module.snn import SNN, SNNRecurrent, SNNRecurrentCell
from torch import Tensor, nn

Learn = Callable[..., Tensor]
"""``(number, scalar=False)``: a parameter, a vector unless it has to be a scalar."""


def parameters(name: str, value: Learn) -> Any:
    """A neuron's parameters, at which a few of the suite's neurons spike at every step."""
    common = {
        "tau_mem_inv": value(300.0),
        "v_leak": value(0.1, scalar=True),
        "v_th": value(0.4, scalar=name == "LSNN"),
        "v_reset": value(-0.2),
    }
    if name == "IAF":
        return iaf.IAFParameters(v_th=value(0.9), v_reset=value(-0.2, scalar=not VECTOR_START))
    if name == "Izhikevich":
        return izhikevich.IzhikevichParameters(
            a=value(0.3), b=value(0.4), c=value(-0.2), d=value(0.25), sq=value(0.3),
            mn=value(-0.8), bias=value(0.2), v_th=value(0.4), tau_inv=value(400.0),
        )  # fmt: skip
    common["tau_syn_inv"] = value(400.0)
    adaptive = {
        "adaptation_current": value(0.7), "adaptation_spike": value(0.3),
        "tau_ada_inv": value(200.0), "delta_T": value(0.3),
    }  # fmt: skip
    if name == "LIF":
        return lif.LIFParameters(**common)
    if name == "LIFRefrac":
        return lif_refrac.LIFRefracParameters(lif.LIFParameters(**common), value(2.0))
    if name == "LIFEx":
        return lif_ex.LIFExParameters(delta_T=value(0.3), **common)
    if name == "LIFAdEx":
        return lif_adex.LIFAdExParameters(**adaptive, **common)
    if name == "LIFAdExRefrac":
        inner = lif_adex.LIFAdExParameters(**adaptive, **common)
        return norse.LIFAdExRefracParameters(inner, value(2.0))
    assert name == "LSNN"
    return lsnn.LSNNParameters(tau_adapt_inv=value(150.0), beta=value(0.3), **common)


def flat(state: Any) -> Iterator[tuple[str, Tensor]]:
    """A state's tensors by name, those of a state within it too."""
    for name, value in state._asdict().items():
        if isinstance(value, tuple):
            yield from flat(value)
        else:
            yield name, value


def start(state: Any, v0: Tensor) -> Any:
    """A state like the library's, made from a potential: every neuron has one of its own."""
    made = {
        "v": v0, "i": 0.1 * v0, "a": 0.2 * v0, "b": 0.4 + 0.1 * v0, "u": 0.3 * v0,
        "z": (v0.detach() > 0.3).to(v0.dtype) + 0.0 * v0,
        "rho": 2.0 * (v0.detach() > 0.4).to(v0.dtype) + 0.0 * v0,
    }  # fmt: skip
    return type(state)(
        *(
            start(value, v0) if isinstance(value, tuple) else made[name]
            for name, value in state._asdict().items()
        )
    )


def run(layer: Any, x: Tensor, v0: Tensor | None) -> Run:
    """A user's loop over the cell, or one call of the module."""
    sequence = isinstance(layer, SNN | SNNRecurrent)
    state = None
    if v0 is None and not starts(layer, x):
        v0 = torch.zeros_like(x[0])
    if v0 is not None:
        state = start(layer.state_fallback(x if sequence else x[0]), v0)
    if sequence:
        if RECORDS:
            layer.record_states = True
        out, after = layer(x, state)
        fields = dict(flat(after))
    else:
        outs, states = [], []
        for step in x:
            out, state = layer(step, state)
            outs.append(out)
            states.append(dict(flat(state)))
        out = torch.stack(outs)
        fields = {name: torch.stack([s[name] for s in states]) for name in states[0]}
    return Run(out, fields.pop("v"), tuple(fields.values()))


def learning(layer: Any) -> list[Tensor]:
    """Every tensor of the parameters and weights that learns."""
    tensors = [value for _, value in flat(layer.p) if isinstance(value, Tensor)]
    return [t for t in tensors if t.requires_grad] + list(layer.parameters())


_FORMS = {
    "IAF": ("Cell", ""),
    "LIF": ("RecurrentCell", "Recurrent"),
    "LIFRefrac": ("Cell", "RecurrentCell", "Recurrent"),
    "LIFAdExRefrac": ("Cell", "RecurrentCell", "Recurrent"),
    **dict.fromkeys(
        ("LIFEx", "LIFAdEx", "LSNN", "Izhikevich"), ("Cell", "", "RecurrentCell", "Recurrent")
    ),
}
FORMS = {
    name: tuple(form for form in forms if hasattr(norse, name + form))
    for name, forms in _FORMS.items()
}
"""Those that this version has."""


def make(
    dtype: torch.dtype, name: str, form: str, learn: bool, vector: bool, autapses: bool
) -> nn.Module:
    """A layer; its parameters are scalars or vectors, constant or learnable."""

    def value(number: float, scalar: bool = False) -> Tensor:
        shape = (NEURONS,) if vector and not scalar else ()
        return torch.full(shape, number, dtype=dtype).requires_grad_(learn)

    given = parameters(name, value)
    if name == "Izhikevich":
        v = torch.tensor(0.05, dtype=dtype, requires_grad=True)
        given = izhikevich.IzhikevichSpikingBehavior(
            given, izhikevich.IzhikevichState(v, torch.tensor(0.02, dtype=dtype))
        )
    cls = getattr(norse, name + form)
    if issubclass(cls, SNNRecurrent | SNNRecurrentCell):
        layer = cls(NEURONS, NEURONS, given, autapses=autapses).to(dtype)
        with torch.no_grad():
            layer.input_weights.copy_(layer.input_weights * 0.5 + torch.eye(NEURONS))
        return layer
    return cls(given)


def cases() -> Iterator[Case]:
    """Every form of every neuron."""
    for name, forms in FORMS.items():
        for form, (learn, vector) in itertools.product(
            forms, ((False, False), (True, False), (True, True))
        ):
            for autapses in (False, True) if "Recurrent" in form and not learn else (False,):

                def build(
                    dtype: torch.dtype,
                    settings: tuple[Any, ...] = (name, form, learn, vector, autapses),
                ) -> nn.Module:
                    return make(dtype, *settings)

                yield Case(
                    f"norse-{name}{form}"
                    + ("-learnable" if learn else "")
                    + ("-vector" if vector else "")
                    + ("-autapses" if autapses else ""),
                    build,
                    run,
                    superspike,
                    learning,
                )


CASES: list[Case] = list(cases())
