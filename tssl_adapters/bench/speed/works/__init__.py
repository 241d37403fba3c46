"""What is timed: spiking layers and small networks of each library, run as its users run them."""

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
"""A model and its input ``[T, batch, ...]``, from rest, to its output ``[T, batch, ...]``."""


def whole(model: nn.Module) -> nn.Module:
    """Compile a model in place: the functions that reset its states still find its layers."""
    model.compile()
    return model


@dataclass(frozen=True)
class Work:
    """A layer or a network, and how its users run it.

    Attributes:
        name: what ``--works`` takes.
        title: what tables and plots say.
        kind: ``"sequence"``, a layer that takes all steps in one call; ``"step"``, a layer in the
            user's loop over time; ``"network"``, a training step of a network in such a loop, its
            optimizer included; ``"network, sequence"``, one that takes all steps in one call.
        make: builds it.
        run: runs it.
        compiled: what ``torch.compile`` is best applied to, in this library.
        gain: what a standard normal drive is multiplied by, so that some of the neurons spike.
        recursion: decay, gain and threshold of a neuron that is reset to zero, where the paper's
            T x T recursion is timed too.
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
        """Whether its sizes are its own."""
        return self.kind.startswith("network")


def dense(neuron: Callable[[], nn.Module]) -> nn.Sequential:
    """64-512-512-10, fully connected, each connection followed by neurons."""
    sizes = (INPUTS, HIDDEN, HIDDEN, CLASSES)
    return nn.Sequential(*(m for pair in pairwise(sizes) for m in (nn.Linear(*pair), neuron())))


def load(names: Sequence[str] | None = None) -> tuple[list[Work], list[str]]:
    """The works of the installed libraries, and why others are missing.

    Args:
        names: those that are wanted; without them, all.

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
