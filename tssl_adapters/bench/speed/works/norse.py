"""Norse: a module on a whole sequence, and cells in a loop that passes their states on."""

from __future__ import annotations

from typing import Any

import norse.torch as norse
import torch
from torch import Tensor, nn

from tssl_adapters.bench.speed.works import Work


def sequence(layer: Any, x: Tensor) -> Tensor:
    """One call on the whole sequence."""
    return layer(x)[0]  # type: ignore[no-any-return]


def steps(cell: Any, x: Tensor) -> Tensor:
    """A loop over time."""
    state, outs = None, []
    for step in x.unbind(0):
        out, state = cell(step, state)
        outs.append(out)
    return torch.stack(outs)


def compiled_step(layer: Any) -> nn.Module:
    """Compile only the step that a module loops over; torch would unroll the loop T times."""
    layer.activation = torch.compile(layer.activation)
    return layer  # type: ignore[no-any-return]


WORKS = [
    Work("norse-lif", "Norse LIF, sequence", "sequence", norse.LIF, sequence, compiled_step, 2.0),
    Work("norse-lifcell", "Norse LIFCell, step", "step", norse.LIFCell, steps, gain=2.0),
    Work("norse-lifboxcell", "Norse LIFBoxCell, step", "step", norse.LIFBoxCell, steps, gain=20.0),
]
