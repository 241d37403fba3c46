"""The default rule: a smooth surrogate on the neuron's own scales of potential and time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tssl_adapters.arithmetic import absolute, arithmetic, maximum, minimum, where
from tssl_adapters.neuron import Traits, Value
from tssl_adapters.rules.base import Step
from tssl_adapters.rules.checks import at_least_one, has_numbers, one_of, out_of_reach
from tssl_adapters.rules.ordinary import OrdinaryAdjoint

COARSE = 6.0
"""Up to this many steps of memory, a neuron's time grid counts as coarse."""
FINER = 4.0
"""In steps: the cusp grows with the square of the memory beyond that, in this unit."""
SHARPEST = 20.0
"""The upper bound of the cusp."""
LONGEST = 1e6
"""In steps: the memory of a neuron that does not leak, if T is unknown."""


@dataclass(frozen=True)
class SmoothTSSLBP(OrdinaryAdjoint):
    """One smooth kernel at spikes and silent steps, on the neuron's own scales.

    With h the membrane potential before the reset, theta the threshold and v_reset the potential
    after a spike, the scale of potentials is the *drop* D = ``abs(theta - v_reset)``
    (``abs(theta)`` under reset by subtraction or none; 1 where that is 0). The scale of time is
    the neuron's *memory* n = min(1 / (1 - F_v), T) in steps, with F_v the decay, i.e. the
    derivative of a step's charge by the potential, and T the number of time steps. Backpropagation
    through time replaces ds[t]/dh[t] by ::

        phi[t] = 1 / (D (1 + c abs(z) + z^2)),    z = pi (h[t] - theta) / D
        c      = min(max(n - 6, 0)^2 / 16, 20)

    and the gradient goes through the reset if the library lets it.

    On a coarse grid, n <= 6, this is the arctan kernel, as wide as the drop. A potential that takes
    many steps to reach the threshold rises little per step: then the kernel has a cusp about as
    wide as such a rise, which is sensitive to when a neuron fires, like the paper's 1/d (Zhang and
    Li, NeurIPS 2020), on flanks that still reach silent neurons. Its peak is 1/D on any grid.
    Nothing is measured or stored, and a sample's gradient does not depend on the rest of its batch.
    For a nonlinear charge, F_v is that of each neuron and step.

    With D = 1 and n <= 6 this is the default surrogate of snnTorch's layers, and SpikingJelly's
    ``surrogate.ATan()``. A state that the model computed from the layer's own (e.g. by a mask)
    counts as that, and any other (e.g. a learned start) begins a sequence.

    Args:
        memory: n in steps, 1 or more, instead of the neuron's own.
        reset_path: ``None`` follows the layer (detached or not), ``"none"`` cuts the gradient
            through the reset's spike, ``"complete"`` keeps it.
        checkpoint: as for :class:`tssl_adapters.rules.TSSLBP`.

    Raises:
        TypeError: ``memory`` or ``checkpoint`` is not a number.
        ValueError: ``memory`` or ``checkpoint`` below 1, ``memory`` not finite, or an unknown
            ``reset_path``.
    """

    memory: float | None = None
    reset_path: Literal["none", "complete"] | None = None
    checkpoint: int | None = None

    timed = True

    def __post_init__(self) -> None:
        self._check_checkpoint()
        if self.memory is not None:
            at_least_one("SmoothTSSLBP", "memory", self.memory)
        one_of("SmoothTSSLBP", "reset_path", self.reset_path, (None, "none", "complete"))

    def remarks(
        self, modules: Mapping[str, nn.Module], taken: Mapping[str, Traits], tau_s: float
    ) -> list[str]:
        once = [
            f"'{path}' (v_reset={value:g})"
            for path, traits in taken.items()
            if has_numbers(traits) and (value := out_of_reach(traits)) is not None
        ]
        if not once:
            return []
        return [
            "SmoothTSSLBP's slope is at most 1 over what a spike takes from the potential, next to "
            f"nothing where a reset leads out of reach: {', '.join(once)}. There, and before it, "
            "hardly anything is learned. Take rules.STDBP(), made for neurons that fire once, or a "
            "rules.SurrogateGradient with reset_path='none', or a v_reset near the threshold."
        ]

    @arithmetic
    def slope(self, step: Step) -> Tensor:
        drop = scale_of(_looked_up(step.drop))
        distance = step.charged - step.threshold
        z = absolute(distance * (math.pi / drop))
        cusp = self._cusp(_looked_up(step.decay), step.steps)
        slope: Tensor = 1.0 / (drop * (1.0 + z * (z + cusp)))
        if isinstance(drop, float) and math.isfinite(drop):
            return slope
        never = absolute(distance) == math.inf  # a neuron that does not fire
        kept: Tensor = where(never, 0.0, slope)
        return kept

    def _cusp(self, decay: Value, steps: Value) -> Value:
        """c, one number or one per neuron."""
        if self.memory is not None:
            memory: Value = self.memory
        else:
            memory = 1.0 / maximum(1.0 - decay, maximum(1.0 / steps, 1.0 / LONGEST))
        beyond = maximum(memory - COARSE, 0.0) / FINER
        cusp: Value = minimum(beyond * beyond, SHARPEST)
        return cusp


def _looked_up(value: Value) -> Value:
    """A Python number if reading it is free: torch's operations on one number take as long as on
    thousands.
    """
    if not isinstance(value, Tensor):
        return value
    if (
        value.ndim == 0
        and value.device.type == "cpu"
        and not torch._C._are_functorch_transforms_active()
    ):
        return float(value.detach())
    return value.detach()


def scale_of(drop: Value) -> Value:
    """A neuron's scale of potentials D, from what a spike takes from one at the threshold."""
    size = absolute(drop)
    found: Value = where(size == 0.0, 1.0, size)
    return found
