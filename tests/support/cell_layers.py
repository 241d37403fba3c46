"""Layers whose steps are compiled from what torch computes, and loops over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import numpy
import pytest
import snntorch
import torch
from compat_snntorch import start
from norse.torch.functional import izhikevich
from spikingjelly.activation_based import neuron
from torch import Tensor

import tssl_adapters
from tssl_adapters import rules

STEPS, SHAPE = 7, (3, 5)
SIZE = SHAPE[-1]
BEHAVIOUR = izhikevich.tonic_spiking
Change = Callable[[Any], None]
EACH_ITS_OWN = norse.LSNNParameters(
    tau_mem_inv=torch.linspace(50.0, 200.0, SIZE, dtype=torch.float64),
    v_th=torch.linspace(0.2, 0.5, SIZE, dtype=torch.float64),
)
HELD_LONGER = norse.LIFAdExRefracParameters(rho_reset=torch.tensor(2.0))


def gated(inplane: int | None) -> Any:
    """A node that takes the first four steps of a sequence."""
    numpy.random.seed(0)
    node = neuron.GatedLIFNode(4, inplane, init_v_threshold=0.6)
    for parameter in (node.alpha, node.beta, node.gamma, node.conduct):
        torch.nn.init.normal_(parameter, 0.3, 0.5)
    return node


LAYERS: dict[str, Callable[[], Any]] = {
    "RLeaky": lambda: snntorch.RLeaky(0.8, linear_features=SIZE),
    "RLeaky to zero": lambda: snntorch.RLeaky(
        0.8, linear_features=SIZE, reset_mechanism="zero", learn_beta=True
    ),
    "RLeaky at once": lambda: snntorch.RLeaky(0.8, linear_features=SIZE, reset_delay=False),
    "RLeaky, one to one": lambda: snntorch.RLeaky(0.8, all_to_all=False, V=0.5),
    "Leaky, each its own": lambda: snntorch.Leaky(
        torch.linspace(0.2, 0.9, SIZE), learn_beta=True, learn_threshold=True
    ),
    "RLeaky, each its own": lambda: snntorch.RLeaky(
        torch.linspace(0.2, 0.9, SIZE), linear_features=SIZE, learn_beta=True
    ),
    "Synaptic, each its own": lambda: snntorch.Synaptic(
        torch.linspace(0.2, 0.9, SIZE), 0.8, threshold=torch.linspace(0.3, 1.2, SIZE)
    ),
    "RSynaptic": lambda: snntorch.RSynaptic(
        0.7, 0.8, linear_features=SIZE, learn_alpha=True, learn_threshold=True
    ),
    "Synaptic at once": lambda: snntorch.Synaptic(
        0.7, 0.8, reset_mechanism="zero", reset_delay=False
    ),
    "Lapicque": lambda: snntorch.Lapicque(0.8),
    "Alpha": lambda: snntorch.Alpha(0.8, 0.7),
    "Alpha to zero": lambda: snntorch.Alpha(0.8, 0.7, reset_mechanism="zero"),
    "LIFRecurrentCell": lambda: norse.LIFRecurrentCell(SIZE, SIZE, autapses=True),
    "LSNNCell": lambda: norse.LSNNCell(),
    "LSNNCell, each its own": lambda: norse.LSNNCell(EACH_ITS_OWN),
    "LSNNRecurrentCell": lambda: norse.LSNNRecurrentCell(SIZE, SIZE),
    "LSNNRecurrent": lambda: norse.LSNNRecurrent(SIZE, SIZE),
    "LIFExCell": lambda: norse.LIFExCell(),
    "LIFAdExRecurrentCell": lambda: norse.LIFAdExRecurrentCell(SIZE, SIZE),
    "IzhikevichCell": lambda: norse.IzhikevichCell(BEHAVIOUR),
    "IzhikevichRecurrentCell": lambda: norse.IzhikevichRecurrentCell(SIZE, SIZE, BEHAVIOUR),
    "LIFRefracCell": lambda: norse.LIFRefracCell(),
    "LIFRefracRecurrentCell": lambda: norse.LIFRefracRecurrentCell(SIZE, SIZE),
    "LIFAdExRefracCell": lambda: norse.LIFAdExRefracCell(HELD_LONGER),
    "KLIFNode": lambda: neuron.KLIFNode(),
    "KLIFNode by subtraction": lambda: neuron.KLIFNode(v_reset=None, detach_reset=True),
    "QIFNode": lambda: neuron.QIFNode(),
    "EIFNode": lambda: neuron.EIFNode(step_mode="m"),
    "IzhikevichNode": lambda: neuron.IzhikevichNode(a=0.3, b=0.2),
    "ComplementaryLIFNode": lambda: neuron.ComplementaryLIFNode(3.0, 0.7),
    "CUBALIFNode": lambda: neuron.CUBALIFNode(0.6, 0.7),
    "RAFNode": lambda: neuron.RAFNode(v_threshold=0.5),
    "SimpleLIFNode": lambda: neuron.SimpleLIFNode(2.0, True),
    "GatedLIFNode": lambda: gated(None),
    "GatedLIFNode, each channel its own": lambda: gated(SIZE),
}
RULES = {
    "default": rules.SmoothTSSLBP(),
    "native": rules.Native(),
    "TSSL-BP": rules.TSSLBP(),
    "TSSL-BP, complete": rules.TSSLBP(reset_path="complete"),
}
layers = pytest.mark.parametrize("name", LAYERS)


def wrapped(name: str, rule: Any = "smooth-tsslbp", **settings: Any) -> Any:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    return tssl_adapters.wrap(layer.to(settings.pop("dtype", torch.float32)), rule=rule, **settings)


def dtype_of(name: str) -> torch.dtype:
    """snnTorch's spikes are float32 whatever comes in, and then torch computes."""
    return torch.float32 if isinstance(LAYERS[name](), snntorch.SpikingNeuron) else torch.float64


def drive(dtype: torch.dtype = torch.float32, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = scale * torch.randn(STEPS, *SHAPE, generator=generator, dtype=dtype)
    return x.requires_grad_()


def flat(state: Any) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else [t for part in state for t in flat(part)]


def steps(layer: Any, x: Tensor, change: Change | None = None, call: Any = None) -> list[Tensor]:
    """Outputs and states of a loop, with a change of the layer after three steps."""
    if isinstance(layer, norse.LSNNRecurrent):
        return flat(layer(x))
    if isinstance(layer, neuron.GatedLIFNode):
        x = torch.cat([x, x])[..., None, None]  # four steps at least
    if getattr(layer, "step_mode", "s") == "m":
        return [layer(x), *layer._memories.values()]
    found: list[Tensor] = []
    call = call or (lambda *given: layer(*given))
    snn, node = isinstance(layer, snntorch.SpikingNeuron), hasattr(layer, "_memories")
    states: Any = start(layer) if snn else ()
    for t, step in enumerate(x.unbind(0)):
        if t == 3 and change is not None:
            change(layer)
        if node:
            found += [layer(step), *layer._memories.values()]
            continue
        out, *after = call(step, *states)
        found += [out, *flat(after)]
        states = [out, *after] if hasattr(layer, "recurrent") else after
    if node:
        layer.reset()
    return found


def gradients(found: list[Tensor], x: Tensor, layer: Any) -> list[Tensor]:
    """Of the input and all parameters, of a loss on all outputs and on some of the states."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(v.shape, generator=generator, dtype=x.dtype).to(x) for v in found]
    chosen = [k for k in range(len(found)) if k % 3 != 1 or k < 8]
    loss = sum((found[k] * weights[k]).sum() for k in chosen)
    given = [x, *(p for p in layer.parameters() if p.requires_grad)]
    return list(torch.autograd.grad(loss, given, allow_unused=True))


def took(found: list[Tensor]) -> int:
    """How many of these compiled steps gave."""
    names = [value.grad_fn.name() for value in found if value.grad_fn is not None]
    return names.count("CompiledStepFunctionBackward")


def close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            scale = float(other.abs().max())
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * scale)
