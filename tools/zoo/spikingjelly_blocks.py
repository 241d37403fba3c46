"""The public parts of SpikingJelly's models, and those for architecture search."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn

NOT_MODELS = {
    "DSpike": "a surrogate function",
    **dict.fromkeys(
        ("SEWResNet34Config", "SpikformerConfig", "SpikformerCIFAR10Config"),
        "a configuration; what it builds is in this table under the model's own name",
    ),
}

SEARCH = SimpleNamespace(
    fea_step=3, fea_num_layers=8, fea_block_multiplier=3, fea_filter_multiplier=48
)
CELL = torch.tensor([[1, 1], [0, 1], [3, 2], [2, 1], [7, 1], [8, 1]])
LEVELS = np.array([0, 0, 1, 1, 1, 2, 2, 2])


class Block(NamedTuple):
    """How to build a part from its class, and how to run it."""

    make: Callable[[Any], nn.Module]
    shape: tuple[int, ...] = ()
    run: Callable[[Any, Tensor], Tensor] = lambda model, x: _run(model, x)
    mode: str = "m"


def _run(model: Any, x: Tensor) -> Tensor:
    functional.reset_net(model)
    out = model(x)
    return out[0] if isinstance(out, tuple | list) else out  # type: ignore[no-any-return]


def _run_twice(model: Any, x: Tensor) -> Tensor:
    """A part with two inputs."""
    functional.reset_net(model)
    out = model(x, x)
    return out[-1] if isinstance(out, tuple) else out  # type: ignore[no-any-return]


def _run_steps(model: Any, x: Tensor) -> Tensor:
    functional.reset_net(model)
    return torch.stack([model(step) for step in x])


def _run_searched(model: Any, x: Tensor) -> Tensor:
    """The main prediction and the auxiliary one, which exists only in training mode."""
    functional.reset_net(model)
    return torch.cat([out.flatten() for out in model(x)])


def _snas(cell: str) -> Any:
    connections = torch.tensor([[0, 3, 2, 1], [3, 0, 3, 4], [2, 3, 0, 3], [1, 2, 3, 0]])
    args = SimpleNamespace(
        timestep=2,
        second_avgpooling=2,
        dataset="cifar10",
        celltype=cell,
        threshold=0.5,
        tau=4.0 / 3.0,
    )
    return args, connections


def _levels(module_of: type) -> Any:
    return sys.modules[module_of.__module__].network_layer_to_space(LEVELS)


_FEATURES = (2, 2, 64, 8, 8)
_IF = {"spiking_neuron": neuron.IFNode, "detach_reset": True}
_OPS = [[3, 8, "snn_b3"], [3, 8, "snn_b3"]]


def _snas_net(build: Any) -> nn.Module:
    args, connections = _snas("backward")
    return build(args, connections)  # type: ignore[no-any-return]


def _neuronal_cell(build: Any) -> nn.Module:
    args, connections = _snas("forward")
    return build(args, 64, 64, connections)  # type: ignore[no-any-return]


BLOCKS: dict[str, Block] = {
    "sew_resnet.BasicBlock": Block(lambda b: b(64, 64, cnf="ADD", **_IF), _FEATURES),
    "sew_resnet.Bottleneck": Block(lambda b: b(64, 16, cnf="ADD", **_IF), _FEATURES),
    "spiking_resnet.BasicBlock": Block(lambda b: b(64, 64, **_IF), _FEATURES),
    "spiking_resnet.Bottleneck": Block(lambda b: b(64, 16, **_IF), _FEATURES),
    "spiking_vggws_ottt.Scale": Block(lambda b: b(2.0), _FEATURES),
    "snas_net.ScaleLayer": Block(lambda b: b(), _FEATURES),
    "snas_net.Neuronal_Cell": Block(_neuronal_cell, _FEATURES, _run_steps, "s"),
    "snas_net.Neuronal_Cell_backward": Block(_neuronal_cell, _FEATURES, _run_steps, "s"),
    "snas_net.SNASNet": Block(_snas_net, (2, 3, 32, 32), mode="s"),
    "spike_dhs.save_v_LIFNode": Block(lambda b: b(), _FEATURES),
    "spike_dhs.SpikingConv2d": Block(lambda b: b(64, 8), _FEATURES),
    "spike_dhs.SpikingLinear": Block(lambda b: b(64, 8), (2, 4, 64)),
    "spike_dhs.SpikingAvgPool2d": Block(lambda b: b(), _FEATURES),
    "spike_dhs.SpikingAdaptiveAvgPool2d": Block(lambda b: b(1), _FEATURES),
    "spike_dhs.SearchSpikingConv2d_stem": Block(lambda b: b(64, 8), _FEATURES),
    "spike_dhs.SearchSpikingConv2d_cell": Block(lambda b: b(_OPS), (2, 2, 3, 8, 8), _run_twice),
    "spike_dhs.Nearest": Block(lambda b: b([4, 4]), (2, 3, 8, 8)),
    "spike_dhs.Cell": Block(
        lambda b: b(3, 3, 8, 8, CELL, None, 8, 0), (2, 2, 24, 8, 8), _run_twice
    ),
    "spike_dhs.newFeature": Block(
        lambda b: b(3, _levels(b), CELL.numpy(), args=SEARCH), (2, 2, 3, 32, 32), _run_searched
    ),
    "spike_dhs.AuxiliaryHeadCIFAR": Block(lambda b: b(64, 10), _FEATURES),
    "spike_dhs.SpikeDHS": Block(lambda b: b(args=SEARCH), (2, 3, 32, 32), _run_searched),
    "spikformer.SpikformerConv2dBN": Block(lambda b: b(64, 8, 3), _FEATURES),
    "spikformer.SpikformerConv2dBNLIF": Block(lambda b: b(64, 8, 3), _FEATURES),
    "spikformer.SpikformerPatchStem": Block(lambda b: b(32, 32, 4, 3, 64), (2, 2, 3, 32, 32)),
    "spikformer.SpikformerMLP": Block(lambda b: b(64, 128, 64), (2, 2, 64, 16)),
    "spikformer.SpikformerBlock": Block(lambda b: b(64, 4, v_threshold=0.25), _FEATURES),
}
