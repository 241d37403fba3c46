"""What tests need to know of the Norse that is installed, whatever its version: it is asked."""

from __future__ import annotations

from typing import Any

import norse.torch as norse
import torch
from norse.torch.functional.lif import LIFParameters
from norse.torch.functional.threshold import threshold
from norse.torch.module import snn
from torch import Tensor

HAS_BOX = hasattr(norse, "LIFBoxCell")
HAS_RESETS = hasattr(norse, "reset_subtract")
RECORDS = hasattr(snn, "_merge_states")
"""Whether modules can record their states."""


def box(dt: float = 0.001, **values: Any) -> Any:
    """A cell without a current, or the nearest there is."""
    if HAS_BOX:
        return norse.LIFBoxCell(norse.LIFBoxParameters(**values), dt=dt)
    return norse.LIFCell(LIFParameters(**values), dt=dt)


def _starts_at_a_vector() -> bool:
    try:
        norse.IAFCell(norse.IAFParameters(v_reset=torch.zeros(2)))(torch.zeros(1, 2))
    except (AttributeError, TypeError):
        return False
    return True


VECTOR_START = _starts_at_a_vector()
"""Whether an IAF neuron's reset, at which it starts, may differ from neuron to neuron."""


def _starts_in_double() -> bool:
    layer, state = norse.LIFRecurrentCell(2, 2).double(), None
    try:
        for _ in range(2):
            _, state = layer(torch.zeros(1, 2, dtype=torch.float64), state)
    except RuntimeError:
        return False
    return True


_DOUBLE_START = _starts_in_double()


def starts(layer: Any, x: Tensor) -> bool:
    """Whether a layer that is given no state can go on from the one that it makes."""
    recurrent = isinstance(layer, norse.LIFRecurrentCell | norse.LIFRecurrent)
    return _DOUBLE_START or not recurrent or x.dtype is not torch.float64


class _Loop(norse.Lift):  # type: ignore[misc]
    """The time loop that users write where ``Lift`` threads no states."""

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        outs, state = [], None
        for step in x:
            out, state = self.lifted_module(step, state)
            outs.append(out)
        return torch.stack(outs), state


def lifted(cell: Any) -> Any:
    """A cell over a whole sequence, and the state after it."""
    lift = norse.Lift(cell)
    return lift if hasattr(lift, "is_stateful") else _Loop(cell)


def _alpha() -> float:
    """The steepness that the default surrogate has: some versions ignore the one they are given."""
    p = LIFParameters()
    x = torch.ones((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(threshold(x, p.method, float(p.alpha)), x)
    return round(float(slope) ** -0.5 - 1.0)


ALPHA = _alpha()


def superspike(x: Tensor) -> Tensor:
    """Norse's default surrogate."""
    return 1.0 / (ALPHA * x.abs() + 1.0) ** 2
