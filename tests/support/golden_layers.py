"""The paper's neuron in each library, and how to run it over a sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import compat_snntorch
import snntorch
import torch
from compat_norse import HAS_BOX, box
from compat_spikingjelly import node
from torch import Tensor


def snntorch_layer(tau_m: float, theta: float, dtype: torch.dtype) -> Any:
    return snntorch.Leaky(
        beta=torch.tensor(1.0 - 1.0 / tau_m, dtype=dtype),
        threshold=torch.tensor(theta, dtype=dtype),
        reset_mechanism="zero",
        init_hidden=True,  # up to 0.7 a state by argument loses the input that follows a spike
        output=True,
    )


def spikingjelly_layer(tau_m: float, theta: float, dtype: torch.dtype, step_mode: str = "m") -> Any:
    settings = {"tau": tau_m, "decay_input": False, "v_threshold": theta, "v_reset": 0.0}
    return node("LIFNode", step_mode=step_mode, **settings)


def spikingjelly_step(tau_m: float, theta: float, dtype: torch.dtype) -> Any:
    return spikingjelly_layer(tau_m, theta, dtype, "s")


def norse_layer(tau_m: float, theta: float, dtype: torch.dtype) -> Any:
    return box(
        1.0,
        tau_mem_inv=torch.tensor(1.0 / tau_m, dtype=dtype),
        v_th=torch.tensor(theta, dtype=dtype),
    )


def run_snntorch(layer: Any, x: Tensor) -> Tensor:
    compat_snntorch.start(layer)
    return torch.stack([layer(step)[0] for step in x.unbind(0)])


def run_spikingjelly(layer: Any, x: Tensor) -> Tensor:
    layer.reset()
    return layer(x)  # type: ignore[no-any-return]


def run_spikingjelly_steps(layer: Any, x: Tensor) -> Tensor:
    layer.reset()
    return torch.stack([layer(step) for step in x.unbind(0)])


def run_norse(layer: Any, x: Tensor) -> Tensor:
    """The cell's gain is 1/tau_m, the paper's 1."""
    state, outs = None, []
    for step in x.unbind(0):
        out, state = layer(step / layer.p.tau_mem_inv, state)
        outs.append(out)
    return torch.stack(outs)


Library = tuple[Callable[..., Any], Callable[[Any, Tensor], Tensor]]

LIBRARIES: dict[str, Library] = {
    "snntorch": (snntorch_layer, run_snntorch),
    "spikingjelly-m": (spikingjelly_layer, run_spikingjelly),
    "spikingjelly-s": (spikingjelly_step, run_spikingjelly_steps),
}

if HAS_BOX:  # the paper's neuron
    LIBRARIES["norse"] = (norse_layer, run_norse)
