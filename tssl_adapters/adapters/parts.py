"""How a model's layers run over a whole sequence: the parts that ``multi_step_forward`` runs.

A *step* layer is written for one time step, ``[batch, ...]``; a *sequence* layer takes all of them,
``[T, batch, ...]``. A part always takes and returns whole sequences.
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
        single: whether one step gives a single tensor, as the next layer needs.
        threads: whether its state is passed in and returned rather than held.
    """

    run: Run
    single: bool = True
    threads: bool = False


class Walk(Protocol):
    """A traversal of a model, as an adapter sees it.

    Attributes:
        whole: whether the layers here are sequence layers, which are called as they are.
    """

    whole: bool

    def part(self, path: str, module: nn.Module) -> Part:
        """The part for a module."""
        ...

    def children(self, path: str, module: nn.Module, *, threading: bool) -> list[Part]:
        """The parts for a container's modules, in order; each feeds the next.

        ``threading`` says whether the container passes states on from step to step.
        """
        ...

    def chain(self, path: str, module: nn.Module) -> Part:
        """The modules of a container, run one after the other."""
        ...

    def stateless(self, path: str, module: nn.Module) -> Part:
        """A layer that computes in each time step what one of torch's layers does."""
        ...

    def in_steps(self) -> Walk:
        """The same traversal inside a layer that splits the sequence into steps."""
        ...

    def hold(self, path: str, module: nn.Module) -> None:
        """Note that a layer holds a state, and so may occur only once."""
        ...

    def refuse(self, path: str, module: nn.Module, why: str) -> Part:
        """Note why a module cannot run over a whole sequence."""
        ...


def as_it_is(module: Any) -> Part:
    """A layer that takes whole sequences."""
    return Part(lambda x, _: (module(x), None))


def stepped(module: Any, *, single: bool = True) -> Part:
    """A layer that holds its state, run in its own loop over time."""
    return Part(lambda x, _: (stacked(map(module, x.unbind(0))), None), single)


def stepped_with_state(module: Any) -> Part:
    """A layer whose state is passed in, run in its own loop over time."""

    def run(x: Tensor, state: Any) -> tuple[Any, Any]:
        outs = []
        for step in x.unbind(0):
            out, state = module(step, state)
            outs.append(out)
        return stacked(outs), state

    return Part(run, threads=True)


def folded(module: Any) -> Part:
    """A stateless layer, called once with time and batch as one dimension, ``[T * batch, ...]``."""

    def run(x: Tensor, _: Any) -> tuple[Tensor, None]:
        if x.ndim < 3:  # a step without a batch, or with nothing else
            return stacked(map(module, x.unbind(0))), None
        return module(x.flatten(0, 1)).unflatten(0, x.shape[:2]), None

    return Part(run)


def stacked(steps: Iterator[Any] | list[Any]) -> Any:
    """The outputs of all steps, stacked over time; tuples tensor by tensor."""
    rows = list(steps)
    if isinstance(rows[0], Tensor):
        return torch.stack(rows)
    return tuple(map(stacked, map(list, zip(*rows, strict=True))))
