"""What is tested: layers with their settings, and how a user runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tssl_adapters.rules import Rule

STEPS, BATCH, NEURONS = 7, 3, 5
"""Time steps, samples and neurons of a run."""


class Run(NamedTuple):
    """The results of a run.

    Attributes:
        out: the layer's outputs, ``[T, batch, neurons]``.
        membrane: its potentials, after every step or after the last.
        others: its other states, likewise.
    """

    out: Tensor
    membrane: Tensor
    others: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Case:
    """A layer with its settings.

    Attributes:
        name: the test's name, beginning with the library's.
        make: ``make(dtype)`` gives a new layer of :data:`NEURONS` neurons; the same one for the
            same state of torch's random generator.
        run: ``run(layer, x, v0)`` runs the layer over ``x [T, batch, neurons]`` as a user's loop
            does, from a potential ``v0 [batch, neurons]``, or from rest if that is ``None``.
        derivative: d spike / d h of the layer's own surrogate, as a function of h - theta.
        params: the tensors of a layer that get a gradient.
        rest: the potential at rest.
        float64: whether ``make`` supports it.
        psc: whether the layer can be wrapped at ``tau_s > 1``.
        rule: the rule for tests that need no particular one, if the layer refuses the default.
        tolerance: how far a gradient may be from the library's own, relative to the largest
            element: if spikes are float32 whatever the input, so are their gradients.
        calls: ``calls(layer, parts)`` runs the layer from rest over several sequences in turn, each
            from the state that the one before left, and returns the outputs, ``[T, ...]`` each.
    """

    name: str
    make: Callable[[torch.dtype], nn.Module]
    run: Callable[[Any, Tensor, Tensor | None], Run]
    derivative: Callable[[Tensor], Tensor]
    params: Callable[[Any], list[Tensor]] = field(default=lambda layer: list(layer.parameters()))
    rest: float = 0.0
    float64: bool = True
    psc: bool = True
    rule: Rule | str | None = None
    tolerance: float | None = None
    calls: Callable[[Any, Sequence[Tensor]], list[Tensor]] | None = None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Refusal:
    """A model that cannot be wrapped.

    Attributes:
        name: the test's name.
        make: makes the model.
        says: a regular expression that the error message must match.
        options: further arguments of ``wrap``.
        config: whether a setting is at fault rather than the class.
    """

    name: str
    make: Callable[[], nn.Module]
    says: str
    options: dict[str, Any] = field(default_factory=dict)
    config: bool = True

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Golden:
    """The neuron of the TSSL-BP paper, h = (1 - 1/tau_m) u + x, reset to zero, in the library.

    Attributes:
        make: ``make(tau_m, theta, dtype)`` gives a layer of any number of neurons.
        run: ``run(layer, x)`` gives its outputs over ``x [T, batch, neurons]``, from rest.
        tolerance: how far a gradient may be off in float64, relative to its largest element.
    """

    make: Callable[[float, float, torch.dtype], nn.Module]
    run: Callable[[Any, Tensor], Tensor]
    tolerance: float = 1e-12
