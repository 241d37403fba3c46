"""The loops over time that snnTorch's users write around its layers."""

from __future__ import annotations

from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn


class Loop(nn.Module):
    """Runs layers with explicit states over ``[T, batch, ...]``; collects spikes and potentials.

    If a layer has several states, the last is the membrane potential. Layers that return a single
    tensor (linear ones) have none.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        states: list[tuple[Tensor, ...]] = [()] * len(self.layers)
        outs = []
        for step in x:
            for i, layer in enumerate(self.layers):
                step, states[i] = _call(layer, step, states[i])
            outs.append(torch.stack([step, states[-1][-1]]))
        return torch.stack(outs)


def _call(layer: nn.Module, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
    result = layer(x, *states)
    if isinstance(result, Tensor):
        return result, ()
    spikes, *after = result
    recurrent = isinstance(layer, snn.RLeaky | snn.RSynaptic)
    return spikes, (spikes, *after) if recurrent else tuple(after)


class HiddenLoop(nn.Module):
    """Runs a network whose neurons hold their states (``init_hidden``) over all steps."""

    def __init__(self, net: nn.Module, repeat: int = 0) -> None:
        super().__init__()
        self.net, self.repeat = net, repeat

    def forward(self, x: Tensor) -> Tensor:
        for module in self.net.modules():
            if isinstance(module, snn.SpikingNeuron):
                module.reset_mem()
        # A still image is repeated at every step.
        frames = [x] * self.repeat if self.repeat else list(x)
        results = [self.net(frame) for frame in frames]
        return torch.stack([torch.stack(r) if isinstance(r, tuple) else r for r in results])


class Delta(nn.Module):
    """``DeltaLeaky`` takes and returns its two states as a pair."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, x: Tensor, before: Tensor | None = None, mem: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        spikes, (mem, before) = self.layer(x, (mem, before))
        return spikes, before, mem


class Plain(nn.Module):
    """Layers that take a whole sequence at once."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            out = layer(x)
            x = out[0] if isinstance(out, tuple) else out
        return x
