"""What is timed: spiking layers and small networks of each library, run as users run them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn

LIBRARIES = ("spikingjelly", "norse", "snntorch")
INPUTS, HIDDEN, CLASSES = 64, 512, 10
NETWORK = f"{INPUTS}-{HIDDEN}-{HIDDEN}-{CLASSES}"

Run = Callable[[Any, Tensor], Tensor]
"""Runs a model from rest: maps it and its input ``[T, batch, ...]`` to ``[T, batch, ...]``."""


def whole(model: nn.Module) -> nn.Module:
    """Compile a model in place, so that functions that reset states still find its layers."""
    model.compile()
    return model


@dataclass(frozen=True)
class Work:
    """A layer or a network, and how users run it.

    Attributes:
        name: its name for ``--works``.
        title: its name in tables and plots.
        kind: ``"sequence"``, a layer that takes all steps in one call; ``"step"``, a layer in the
            user's loop over time; ``"network"``, a training step of a network in such a loop,
            including the optimizer; ``"network, sequence"``, one that takes all steps in one call.
        make: builds it.
        run: runs it.
        compiled: applies ``torch.compile`` where it works best in this library.
        gain: factor of a standard normal drive, chosen so that some neurons spike.
        recursion: decay, gain and threshold of a neuron with reset to zero, if the paper's T x T
            recursion is timed too.
        layerwise: runs it, wrapped, layer by layer instead of step by step.
    """

    name: str
    title: str
    kind: Literal["sequence", "step", "network", "network, sequence"]
    make: Callable[[], nn.Module]
    run: Run
    compiled: Callable[[nn.Module], nn.Module] = whole
    gain: float = 1.0
    recursion: tuple[float, float, float] | None = None
    layerwise: Run | None = None

    @property
    def is_network(self) -> bool:
        """Whether its sizes are fixed."""
        return self.kind.startswith("network")


def dense(neuron: Callable[[], nn.Module]) -> nn.Sequential:
    """A fully connected network, 64-512-512-10, with neurons after each connection."""
    sizes = (INPUTS, HIDDEN, HIDDEN, CLASSES)
    return nn.Sequential(*(m for pair in pairwise(sizes) for m in (nn.Linear(*pair), neuron())))


def load(names: Sequence[str] | None = None) -> tuple[list[Work], list[str]]:
    """The works of the installed libraries, and why the others are missing.

    Args:
        names: the works to load; by default all.

    Raises:
        ValueError: no installed library has a work of that name.
    """
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    there = [name for name in LIBRARIES if name not in missing]
    modules = [import_module(f"{__name__}.{name}") for name in there]
    works: list[Work] = [work for module in modules for work in module.WORKS]
    known = [work.name for work in works]
    for name in names or ():
        if name not in known:
            raise ValueError(f"{name!r} is none of {', '.join(known)}")
    chosen = [work for work in works if not names or work.name in names]
    return chosen, [f"{name}'s works: it is not installed" for name in missing]
