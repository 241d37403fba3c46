"""The leaky neuron of the golden files of the three further rules, in every library that has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import compat_snntorch
import numpy as np
import snntorch
import torch
from compat_norse import HAS_BOX, HAS_RESETS, box, norse
from compat_spikingjelly import node
from torch import Tensor

from tssl_adapters.engine.attach import attach
from tssl_adapters.engine.call.settings import Settings
from tssl_adapters.neuron import LinearCharge, Neuron, Reset, Value
from tssl_adapters.resets import Subtract, ToValue
from tssl_adapters.rules import Rule

GOLDEN = Path(__file__).parents[1] / "golden"

RESETS: dict[str, Reset] = {"subtract": Subtract(), "zero": ToValue(0.0)}


def golden(rule: str) -> dict[str, Any]:
    """A rule's golden file, its arrays as tensors."""
    return {
        key: torch.as_tensor(value) if value.dtype.kind in "fi" else str(value)
        for key, value in np.load(GOLDEN / f"rule_{rule}.npz").items()
    }


def leaky(decay: float, threshold: Value, reset: str, gain: float = 1.0) -> Neuron:
    """h[t] = decay u[t-1] + gain x[t]."""
    charge = LinearCharge(decay, gain, 0.0, lambda v, x: decay * v + gain * x)
    return Neuron(charge, RESETS[reset], threshold)


def by_engine(
    rule: Rule,
    neuron: Neuron,
    drive: Tensor,
    tau_s: float = 1.0,
    cuts: Any = (),
    engine: str = "torch",
) -> Tensor:
    """The output over ``[T, batch, neurons]``: in calls that end at ``cuts``, or step by step."""
    settings = Settings("layer", rule, tau_s, engine)
    state, trace, outs = torch.zeros_like(drive[0]), None, []
    ends = range(1, len(drive)) if cuts == "steps" else cuts
    for part in torch.tensor_split(drive, [end for end in ends if end < len(drive)]):
        whole = cuts != "steps"
        result = attach(
            settings, neuron, part if whole else part[0], state, trace, None, sequence=whole
        )
        state, trace = result.state, result.trace
        outs.append(result.out if whole else result.out[None])
    return torch.cat(outs)


def snntorch_layer(decay: float, reset: str) -> Any:
    # By subtraction the golden neuron's threshold goes before the decay.
    delay = compat_snntorch.delay(snntorch.Leaky, reset == "zero")
    return snntorch.Leaky(beta=decay, reset_mechanism=reset, init_hidden=True, output=True, **delay)


def run_snntorch(layer: Any, x: Tensor) -> Tensor:
    compat_snntorch.start(layer)
    return torch.stack([layer(step)[0] for step in x])


def spikingjelly_layer(decay: float, reset: str, step_mode: str = "m") -> Any:
    v_reset = None if reset == "subtract" else 0.0
    if decay == 1.0:
        return node("IFNode", step_mode=step_mode, v_reset=v_reset)
    tau = 1.0 / (1.0 - decay)
    return node("LIFNode", step_mode=step_mode, tau=tau, decay_input=False, v_reset=v_reset)


def run_spikingjelly(layer: Any, x: Tensor) -> Tensor:
    layer.reset()
    return layer(x)  # type: ignore[no-any-return]


def run_spikingjelly_steps(layer: Any, x: Tensor) -> Tensor:
    layer.reset()
    return torch.stack([layer(step) for step in x])


def norse_layer(decay: float, reset: str) -> Any:
    if decay == 1.0:
        return norse.IAFCell()
    method = {"reset_method": norse.reset_subtract} if reset == "subtract" else {}
    return box(1.0, tau_mem_inv=1.0 - decay, v_th=1.0, **method)


def run_norse(layer: Any, x: Tensor) -> Tensor:
    """The gain of a cell that leaks is 1 - decay."""
    state, outs = None, []
    for step in x / getattr(layer.p, "tau_mem_inv", 1.0):
        out, state = layer(step, state)
        outs.append(out)
    return torch.stack(outs)


Library = tuple[Callable[[float, str], Any], Callable[[Any, Tensor], Tensor]]
LIBRARIES: dict[str, Library] = {
    "snntorch": (snntorch_layer, run_snntorch),
    "spikingjelly-m": (spikingjelly_layer, run_spikingjelly),
    "spikingjelly-s": (
        lambda decay, reset: spikingjelly_layer(decay, reset, "s"),
        run_spikingjelly_steps,
    ),
}
if HAS_BOX:
    LIBRARIES["norse"] = (norse_layer, run_norse)


def offered(library: str, reset: str, decay: float) -> bool:
    """Whether a library's installed version has this neuron."""
    if library == "snntorch":
        return reset == "zero" or False in compat_snntorch.delays(snntorch.Leaky)
    if library != "norse":
        return True
    leaks = decay < 1.0
    return leaks and HAS_RESETS if reset == "subtract" else leaks or hasattr(norse, "IAFCell")


def relative(ours: Tensor | None, golden: Tensor) -> float:
    """The largest difference over the largest value."""
    assert ours is not None
    scale = golden.abs().max().clamp(min=1e-30)
    return float((ours.detach().double() - golden).abs().max() / scale)
