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
    """What a run gives.

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
        name: the test's, the library's first.
        make: a new layer of so many neurons as there are, in a dtype; the same one at the same
            state of torch's generator.
        run: ``run(layer, x, v0)`` gives the layer ``x [T, batch, neurons]`` in the way of a user's
            loop, from a potential ``v0 [batch, neurons]``, or from rest where that is ``None``.
        derivative: d spike / d h of the layer's own surrogate, from h - theta.
        params: what of a layer has a gradient.
        rest: the potential at rest.
        float64: whether ``make`` takes it.
        psc: whether the layer can be wrapped at ``tau_s > 1``.
        rule: for what does not depend on it, where the layer does not take the default one.
        tolerance: what a gradient may be off by, of its largest element, from the library's own:
            where its spikes are float32 whatever the input, so are the gradients that come to them.
        calls: ``calls(layer, parts)`` gives the layer several sequences, one after the other, from
            rest, each from the state that the one before left; what it gave, ``[T, ...]`` each.
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
        name: the test's.
        make: the model.
        says: what the error has to say, a regular expression.
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
        run: ``run(layer, x)`` its outputs over ``x [T, batch, neurons]``, from rest.
        tolerance: what a gradient may be off by in float64, of its largest element.
    """

    make: Callable[[float, float, torch.dtype], nn.Module]
    run: Callable[[Any, Tensor], Tensor]
    tolerance: float = 1e-12
