"""For older versions only: steps whose membrane sees the current before the input is added.

Which steps do so differs from version to version, and in one of them between dense and sparse
input; some versions have an optional C++ operator. So each step is probed, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from norse.torch.functional import lif, lif_adex, lif_ex
from torch import Tensor

from tssl_adapters.adapters.norse import neurons

Step = Callable[..., "tuple[Tensor, Any]"]


class LateLIFEx(neurons.Late, neurons.LIFEx):
    """``LIFEx`` of older versions."""


class LateLIFAdEx(neurons.Late, neurons.LIFAdEx):
    """``LIFAdEx`` of older versions."""


_AS_IT_WAS: dict[type[neurons.LIF], type[neurons.LIF]] = {
    neurons.LIF: neurons.Late,
    neurons.LIFEx: LateLIFEx,
    neurons.LIFAdEx: LateLIFAdEx,
}

_STEPS: dict[Step, tuple[type[Any], type[Any]]] = {
    lif.lif_feed_forward_step: (lif.LIFFeedForwardState, lif.LIFParameters),
    lif.lif_feed_forward_step_sparse: (lif.LIFFeedForwardState, lif.LIFParameters),
    lif.lif_step: (lif.LIFState, lif.LIFParameters),
    lif.lif_step_sparse: (lif.LIFState, lif.LIFParameters),
    lif_ex.lif_ex_feed_forward_step: (lif_ex.LIFExFeedForwardState, lif_ex.LIFExParameters),
    lif_ex.lif_ex_step: (lif_ex.LIFExState, lif_ex.LIFExParameters),
    lif_adex.lif_adex_feed_forward_step: (
        lif_adex.LIFAdExFeedForwardState,
        lif_adex.LIFAdExParameters,
    ),
    lif_adex.lif_adex_step: (lif_adex.LIFAdExState, lif_adex.LIFAdExParameters),
}


def _potential(step: Step, x: float, v: Tensor) -> Tensor:
    """The potential after a step from a potential and an input, the rest of the state being 0."""
    state_type, parameters = _STEPS[step]
    sparse = step in (lif.lif_feed_forward_step_sparse, lif.lif_step_sparse)
    given = torch.full((1, 1), x)
    nothing = torch.zeros(1, 1)
    state = dict.fromkeys(state_type._fields, nothing) | {"v": v}
    if sparse:
        given, nothing = given.to_sparse(), nothing.to_sparse()
    weights: tuple[Tensor, ...] = ()
    if "z" in state:
        state["z"], weights = nothing, (torch.ones(1, 1), torch.zeros(1, 1))
    _, after = step(given, state_type(**state), *weights, parameters(), 0.001)
    potential: Tensor = after.v
    return potential


@torch.no_grad()
def _late() -> Iterator[Step]:
    """The steps whose input reaches the membrane only in the next step."""
    for step in _STEPS:
        one, other = (_potential(step, x, torch.zeros(1, 1)) for x in (0.0, 1.0))
        if torch.equal(one, other):
            yield step


@torch.enable_grad()
def _uncut() -> bool:
    """Whether the recurrent step has a gradient through its reset, as the C++ operator does."""
    v = torch.full((1, 1), 2.0, requires_grad=True)
    (grad,) = torch.autograd.grad(_potential(lif.lif_step, 0.0, v).sum(), v)
    return bool(grad != 0)


LATE = frozenset(_late())
UNCUT = frozenset({lif.lif_step} if _uncut() else ())


def as_computed(neuron: type[neurons.LIF], step: Step) -> type[neurons.LIF]:
    """The description of a neuron that fits the library's step."""
    return _AS_IT_WAS[neuron] if step in LATE else neuron
