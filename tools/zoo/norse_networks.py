"""The loops over time that Norse's users write around its cells."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def first(model: Any, x: Tensor) -> Tensor:
    """The output of a call, without the states."""
    out = model(x)
    return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]


class Stacked(nn.Module):
    """Runs a stateful network step by step over ``[T, batch, ...]``."""

    def __init__(self, net: nn.Module, gain: float = 1.0) -> None:
        super().__init__()
        self.net, self.gain = net, gain

    def forward(self, x: Tensor) -> Tensor:
        state, outs = None, []
        for step in x:
            out, state = self.net(self.gain * step, state)
            outs.append(out)
        return torch.stack(outs)


class Readout(nn.Module):
    """A stateful network that takes whole sequences."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)[0]
        return out


class Recurrent(nn.Module):
    """A recurrent cell and a readout of its spikes, step by step."""

    def __init__(self, cell: nn.Module, readout: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.cell, self.readout, self.dropout = cell, readout, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = voltage = None
        voltages = []
        for step in x:
            spikes, hidden = self.cell(step, hidden)
            out, voltage = self.readout(self.dropout(spikes), voltage)
            voltages.append(out)
        return torch.stack(voltages)


class Regularised(nn.Module):
    """A cell between two networks; it only counts the spikes that pass."""

    def __init__(self, before: nn.Module, counter: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.before, self.counter, self.after = before, counter, after

    def forward(self, x: Tensor) -> Tensor:
        state = count = None
        outs = []
        for step in x:
            spikes, state = self.before(step, state)
            spikes, count = self.counter(spikes, count)
            outs.append(self.after(spikes) + count.mean())
        return torch.stack(outs)


class Pair(nn.Module):
    """Two cells side by side on the same input."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        before = state or (None, None)
        left, first_state = self.left(x, before[0])
        right, second_state = self.right(x, before[1])
        return torch.cat((left, right), -1), (first_state, second_state)


class Encoded(nn.Module):
    """Encodes a constant input as spikes before the network; of both signs for control tasks."""

    def __init__(
        self, encoder: nn.Module, net: nn.Module, gain: float = 1.0, signed: bool = False
    ) -> None:
        super().__init__()
        self.encoder, self.net, self.gain, self.signed = encoder, net, gain, signed

    def forward(self, x: Tensor) -> Tensor:
        signs = (1.0, -1.0) if self.signed else (1.0,)
        spikes = [self.encoder(torch.relu(sign * self.gain * x)) for sign in signs]
        out: Tensor = self.net(torch.cat(spikes, -1))
        return out
