"""Thresholds and resets far from the potentials in use, infinite thresholds among them, and starts
that are tensors.

A potential is compared with its threshold where rounding there says something; it is the neuron
that computes what the library computes, not one that is told apart by how numbers at 1e9 round.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch
import torch
from norse.torch.functional.lif import LIFParameters
from norse.torch.functional.lif_box import LIFBoxParameters
from spikingjelly.activation_based import functional, neuron
from torch import Tensor

import tssl_adapters
from tssl_adapters.errors import LostTraceError, NativeGradientWarning

FAR = [math.inf, 1e9, 1e4, -1e9]


def spikingjelly(layer: Any, x: Tensor) -> list[Tensor]:
    out = layer(x) if layer.step_mode == "m" else torch.stack([*map(layer, x)])
    return [out, layer.v, *([layer.v_seq] if getattr(layer, "store_v_seq", False) else [])]


def snn(layer: Any, x: Tensor) -> list[Tensor]:
    return [torch.stack([*map(layer, x)]), layer.mem]


def cell(layer: Any, x: Tensor) -> list[Tensor]:
    outs, state = [], None
    for step in x:
        out, state = layer(step, state)
        outs.append(out)
    assert state is not None
    return [torch.stack(outs), *state]


def sequence(layer: Any, x: Tensor) -> list[Tensor]:
    out, state = layer(x)
    return [out, *state]


Make = Callable[[float], Any]
LAYERS: dict[str, tuple[Make, Callable[[Any, Tensor], list[Tensor]]]] = {
    **{
        f"{name}-{mode}": (
            lambda th, name=name, mode=mode, settings=settings: getattr(neuron, name.split("-")[0])(
                v_threshold=th, step_mode=mode, **settings
            ),
            spikingjelly,
        )
        for mode in "sm"
        for name, settings in {
            "IFNode": {},
            "IFNode-soft": {"v_reset": None},
            "LIFNode": {"tau": 1.005, "decay_input": False, "store_v_seq": True},
            "ParametricLIFNode": {"init_tau": 1.001},
            "QIFNode": {"v_reset": None},
            "SimpleLIFNode": {"tau": 1.001, "decay_input": True},
        }.items()
    },
    "LIFNode-heavy": (lambda th: neuron.LIFNode(1.001, v_threshold=th), spikingjelly),
    **{
        f"{name}-{reset}": (
            lambda th, name=name, reset=reset, settings=settings: getattr(snntorch, name)(
                threshold=th, reset_mechanism=reset, init_hidden=True, **settings
            ),
            snn,
        )
        for reset in ("subtract", "zero", "none")
        for name, settings in {
            "Leaky": {"beta": 0.8},
            "Lapicque": {"beta": 0.8},
            "Synaptic": {"alpha": 0.9, "beta": 0.8},
        }.items()
    },
    "LIFCell": (lambda th: norse.LIFCell(LIFParameters(v_th=torch.as_tensor(th))), cell),
    "LIF": (lambda th: norse.LIF(LIFParameters(v_th=torch.as_tensor(th))), sequence),
    "LIFBoxCell": (lambda th: norse.LIFBoxCell(LIFBoxParameters(v_th=torch.as_tensor(th))), cell),
}


@pytest.mark.parametrize("threshold", FAR)
@pytest.mark.parametrize("name", LAYERS)
def test_it_runs_as_natively(name: str, threshold: float) -> None:
    make, run = LAYERS[name]
    x = 2.0 * torch.randn(4, 8, 10, generator=torch.Generator().manual_seed(0))
    native, wrapped = make(threshold), tssl_adapters.wrap(make(threshold))
    for ours, theirs in zip(run(wrapped, x), run(native, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("engine", ["torch", "cpu"])
def test_a_threshold_beyond_half_precision_is_named(engine: str) -> None:
    """It is infinite in the potential's dtype, not in that of snnTorch's spikes."""
    native, layer = (snntorch.Leaky(0.8, threshold=1e9, reset_delay=False) for _ in range(2))
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).half()
    tssl_adapters.wrap(layer, engine=engine)
    with pytest.warns(NativeGradientWarning, match=r"threshold of 1e\+09, which is infinite in"):
        found = layer(x)
    assert all(map(torch.equal, found, native(x)))


@pytest.mark.parametrize("engine", ["torch", "cpu"])
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("mode", ["s", "m"])
def test_a_far_reset_leaves_a_learned_time_constant_its_digits(
    mode: str, decay_input: bool, engine: str
) -> None:
    """The leak is towards v_reset: at 1e9 a float32 has no room for what it is a difference of."""

    def gradient(wrap: Callable[[Any], Any]) -> Tensor:
        node = neuron.ParametricLIFNode(3.0, decay_input, v_reset=-1e9, step_mode=mode)
        node.store_v_seq = mode == "m"
        layer = wrap(node)
        steps = x if mode == "m" else x.unbind()
        seen = [(layer(step), layer.v)[1] for step in ([steps] if mode == "m" else steps)]
        potentials = layer.v_seq if mode == "m" else torch.stack(seen)
        (potentials * weight).sum().backward()
        found: Tensor = node.w.grad
        return found

    generator = torch.Generator().manual_seed(0)
    x, weight = torch.rand(2, 6, 40, 10, generator=generator)
    expected = gradient(lambda node: node)
    ours = gradient(lambda node: tssl_adapters.wrap(node, rule="native", engine=engine))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=0.0)
    assert bool(expected) is decay_input


@pytest.mark.parametrize("mode", ["s", "m"])
def test_a_start_potential_for_each_neuron(mode: str) -> None:
    """The post-synaptic current starts with it; from another potential it is lost as ever."""
    lif = neuron.LIFNode(step_mode=mode)
    del lif.v
    start = torch.linspace(0.0, 0.9, 20).expand(6, 20).clone()
    lif.register_memory("v", start)
    native = tssl_adapters.wrap(neuron.LIFNode(step_mode=mode), tau_s=3.0)
    tssl_adapters.wrap(lif, tau_s=3.0)
    x = 2.0 * torch.rand(4, 6, 20, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        functional.reset_net(lif)
        out = spikingjelly(lif, x)[0]
    # The first step charges what starts at zero by as much more.
    first = x.clone()
    first[0] += start
    expected = spikingjelly(native, first)[0]
    torch.testing.assert_close(out, expected)
    assert expected.any()
    functional.reset_net(lif)
    lif.v = start[:, :5] + 0.1
    with pytest.raises(LostTraceError):
        spikingjelly(lif, x[..., :5])
