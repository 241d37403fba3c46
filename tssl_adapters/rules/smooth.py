"""The default: a smooth surrogate as high as the neuron's own scale says, as wide as its steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tssl_adapters.neuron import Value
from tssl_adapters.rules.base import Step
from tssl_adapters.rules.checks import one_of, positive
from tssl_adapters.rules.ordinary import OrdinaryAdjoint

COARSE = 0.3
"""The rise in a step, as a share of the drop, from which on the kernel is as wide as the drop."""
STEEPNESS = 2.0
"""Below it the width falls with this power of the rise."""
NARROWEST = 0.03
"""The least width, as a share of the drop."""
SILENT = 0.002
"""A layer that fires less often, in spikes a neuron and step, has the widest kernel."""
PACE = 0.05
"""How far a backward pass moves the width, on a logarithmic scale, to what it measured."""

FARTHEST = 1e15
"""From a threshold, in drops: an infinite potential times zero would not be a number."""


@dataclass(frozen=True)
class SmoothTSSLBP(OrdinaryAdjoint):
    """One smooth kernel at spikes and silent steps, whose width follows the layer's dynamics.

    With h the membrane potential before the reset, theta the threshold and v_reset the potential
    after a spike, the *drop* D = ``abs(theta - v_reset)`` (``abs(theta)`` under reset by
    subtraction or none; 1 where that is 0) is the scale of the neuron, and ::

        phi[t] = K((h[t] - theta) / (w D)) / D,    K(z) = 1 / (1 + (pi z)^2)

    takes the place of ds[t]/dh[t] in ordinary backpropagation through time; the gradient goes
    through the reset where the library lets it. w is one number a layer, at most 1. It starts
    there, and after each backward pass it moves by a twentieth (of its logarithm) towards what the
    pass measured: with d the root mean square of a step's rise, over D, ::

        w <- 1                    where the layer fires in less than 0.2 % of its steps
        w <- (6 d)^3              between 0.05 and 1, elsewhere

    So where steps are coarse, as in nearly all networks on images, the kernel is as wide as the
    drop, and where a potential takes many steps to the threshold, as in tasks on spike times, it is
    about as wide as a step's rise, which is the reach of the paper's 1/d (Zhang and Li, NeurIPS
    2020), while its peak stays at 1/D.

    At w = 1 and D = 1 this is the arctan surrogate that snnTorch has by default and SpikingJelly
    has as ``ATan()``, to the last bits.

    The widths are kept with the layers, by copies and pickles too, and not by ``state_dict``:
    :meth:`widths` reads them, :meth:`set_widths` sets them, :meth:`clear_widths` starts anew. Under
    ``DistributedDataParallel`` all processes have those of rank 0.

    Args:
        width: a fixed w, of 1 or any other size, instead of one that follows the layer.
        reset_path: ``None`` follows the layer (detached or not), ``"none"`` cuts the gradient
            through the reset's spike, ``"complete"`` keeps it.
        checkpoint: as for :class:`tssl_adapters.rules.TSSLBP`.

    Raises:
        TypeError: ``width`` or ``checkpoint`` is not a number.
        ValueError: ``width`` not positive and finite, an unknown ``reset_path``, or ``checkpoint``
            below 1.
    """

    width: float | None = None
    reset_path: Literal["none", "complete"] | None = None
    checkpoint: int | None = None

    def __post_init__(self) -> None:
        self._check_checkpoint()
        if self.width is not None:
            positive("SmoothTSSLBP", "width", self.width)
        one_of("SmoothTSSLBP", "reset_path", self.reset_path, (None, "none", "complete"))

    @property
    def running_start(self) -> float | None:  # type: ignore[override]
        return 1.0 if self.width is None else None

    def slope(self, step: Step) -> Tensor:
        drop = _scale(step.drop)
        width = step.running if self.width is None else self.width
        assert width is not None
        distance = step.charged - step.threshold
        never = distance.isinf() if _unbounded(drop) else None
        z = (distance * (math.pi / drop)).abs_().clamp_(max=FARTHEST)
        slope = torch.addcmul(z * (1.0 / width - 1.0), z, z).add_(1.0).mul_(drop).reciprocal_()
        return slope if never is None else slope.masked_fill(never, 0.0)

    def measure(self, step: Step) -> Tensor:
        rise = (step.increment / _scale(step.drop)).square().mean()
        return torch.stack([rise, step.spike.mean(), torch.ones_like(rise)])

    def follow(self, running: Tensor, sums: Tensor) -> Tensor:
        rise, rate, steps = sums.unbind()
        width = ((rise / steps).sqrt() / COARSE).pow(STEEPNESS).clamp(NARROWEST, 1.0)
        width = torch.where(rate / steps < SILENT, torch.ones_like(width), width)
        moved = running.pow(1.0 - PACE) * width.pow(PACE)
        return torch.where(moved.isfinite(), moved, running)

    @staticmethod
    def widths(model: nn.Module) -> dict[str, float]:
        """The widths of a model's layers, in units of their drops, by dotted name."""
        return {path: float(running.kept) for path, running in _running(model)}

    @staticmethod
    def set_widths(model: nn.Module, widths: Mapping[str, float]) -> None:
        """Set the widths of some layers; they go on following the dynamics from there.

        Raises:
            KeyError: a name is none of :meth:`widths`.
            ValueError: a width is not between 0.05 and 1.
        """
        known = dict(_running(model))
        for path, width in widths.items():
            if path not in known:
                raise KeyError(
                    f"{path!r} is no layer with a width; SmoothTSSLBP.widths(model) has "
                    f"{', '.join(map(repr, known)) or 'none'}."
                )
            if not isinstance(width, Real) or not NARROWEST <= float(width) <= 1.0:
                raise ValueError(
                    f"SmoothTSSLBP: the width of {path!r} must be between {NARROWEST} and 1, "
                    f"not {width!r}."
                )
        for path, width in widths.items():
            known[path].set(float(width))

    @staticmethod
    def clear_widths(model: nn.Module) -> None:
        """Have every layer's width start anew, at 1."""
        for _, running in _running(model):
            running.set(1.0)


def _running(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        settings: Any = getattr(module, "_tssl_settings", None)
        if settings is not None and isinstance(settings.rule, SmoothTSSLBP) and settings.running:
            yield path, settings.running


def _scale(drop: Value) -> Value:
    """The neuron's scale D."""
    if isinstance(drop, Tensor):
        drop = drop.detach().abs()
        return torch.where(drop == 0, torch.ones_like(drop), drop)
    return abs(drop) or 1.0


def _unbounded(drop: Value) -> bool:
    """Whether a neuron may be one that never fires."""
    return isinstance(drop, Tensor) or math.isinf(drop)
