"""What the layers of a model do with a whole sequence: the parts that ``multi_step_forward`` runs.

A *step* layer is written for one time step, ``[batch, ...]``; a *sequence* layer takes all of them,
``[T, batch, ...]``. A part always takes and gives all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

Run: TypeAlias = Callable[[Any, Any], "tuple[Any, Any]"]
"""``(x [T, batch, ...], state) -> output, state``, the state being ``None`` where none is passed"""


class Part(NamedTuple):
    """A layer, or several, over a whole sequence.

    Attributes:
        run: what it computes.
        single: whether a step of it gives one tensor, as a layer behind it needs.
        threads: whether its state is passed in and handed back rather than held.
    """

    run: Run
    single: bool = True
    threads: bool = False


class Walk(Protocol):
    """A way through a model, as an adapter sees it.

    Attributes:
        whole: whether the layers here are sequence layers. They are called as they are.
    """

    whole: bool

    def part(self, path: str, module: nn.Module) -> Part:
        """The part that a module is."""
        ...

    def children(self, path: str, module: nn.Module, *, threading: bool) -> list[Part]:
        """The parts that a container's modules are, in their order, each to feed the next.

        ``threading`` says whether the container passes states on from step to step.
        """
        ...

    def chain(self, path: str, module: nn.Module) -> Part:
        """The modules of a container, one after the other."""
        ...

    def stateless(self, path: str, module: nn.Module) -> Part:
        """A layer that computes, a step at a time, what one of torch's layers does."""
        ...

    def in_steps(self) -> Walk:
        """The same way within a layer that cuts the sequence into steps."""
        ...

    def hold(self, path: str, module: nn.Module) -> None:
        """Note that a layer holds a state, and so may be met only once."""
        ...

    def refuse(self, path: str, module: nn.Module, why: str) -> Part:
        """Note what cannot be run over a whole sequence."""
        ...


def as_it_is(module: Any) -> Part:
    """A layer that takes whole sequences."""
    return Part(lambda x, _: (module(x), None))


def stepped(module: Any, *, single: bool = True) -> Part:
    """A layer that holds its state, in a loop of its own over time."""
    return Part(lambda x, _: (stacked(map(module, x.unbind(0))), None), single)


def stepped_with_state(module: Any) -> Part:
    """A layer that is passed its state, in a loop of its own over time."""

    def run(x: Tensor, state: Any) -> tuple[Any, Any]:
        outs = []
        for step in x.unbind(0):
            out, state = module(step, state)
            outs.append(out)
        return stacked(outs), state

    return Part(run, threads=True)


def folded(module: Any) -> Part:
    """A layer without a state, once, time and batch being one dimension ``[T * batch, ...]``."""

    def run(x: Tensor, _: Any) -> tuple[Tensor, None]:
        if x.ndim < 3:  # a step without a batch, or with nothing else
            return stacked(map(module, x.unbind(0))), None
        return module(x.flatten(0, 1)).unflatten(0, x.shape[:2]), None

    return Part(run)


def stacked(steps: Iterator[Any] | list[Any]) -> Any:
    """What every step gave, over time; tuples tensor by tensor."""
    rows = list(steps)
    if isinstance(rows[0], Tensor):
        return torch.stack(rows)
    return tuple(map(stacked, map(list, zip(*rows, strict=True))))
