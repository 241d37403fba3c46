"""Tests a layer whose class is not the library's own, on copies, before it is wrapped.

This finds what does not depend on the input: a neuron other than the one the class is taken for, a
state that it detaches, something that it keeps as it runs. A layer that does not run natively on
the shapes tried here is left to its first call.
"""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tssl_adapters.adapters import Adapter, Kind
from tssl_adapters.adapters.base import HOOKS
from tssl_adapters.elementwise import identical, ordinary
from tssl_adapters.engine.call.settings import Settings
from tssl_adapters.errors import LibraryVersionError
from tssl_adapters.rules import Rule, SurrogateGradient

_STEPS, _BATCH = 4, 8
_STRONGEST = 30.0
"""Strong enough for every library's defaults to spike, however it scales its input."""
_ROUNDING = 1e-3
"""The tolerance of a gradient, relative to its largest element."""


class _Ran(NamedTuple):
    """The results of a layer's run.

    Attributes:
        values: outputs and states.
        grads: gradients of the input and of every learnable parameter, by name, or ``None``.
        kept: the attributes that the layer is left with, except those of every library layer.
    """

    values: list[Tensor]
    grads: dict[str, Tensor | None]
    kept: dict[str, Any]


def why_not(
    adapter: Adapter,
    kind: Kind,
    layer: nn.Module,
    like: type[nn.Module],
    rule: Rule,
    tau_s: float,
) -> str | None:
    """Why a layer cannot be wrapped as one of the class ``like``, or ``None``."""
    with _aside():
        try:
            trial = _Trial(adapter, kind, layer, like)
        except Exception:
            return None  # it cannot be copied, or does not run natively on these inputs
        try:
            difference = trial.difference()
            if difference is None:
                trial.run(rule, tau_s)
            return difference
        except LibraryVersionError as error:
            return f"it does not compute the neuron of {like.__name__}: {_found(error)}"
        except Exception as error:
            return (
                f"it runs natively, but not as a {like.__name__} would wrapped "
                f"({type(error).__name__}: {error})"
            )


class _Trial:
    """A layer's native run, to compare with runs of wrapped copies.

    Raises:
        Exception: it cannot be copied, or it ran on none of the shapes that were tried.
    """

    def __init__(
        self, adapter: Adapter, kind: Kind, layer: nn.Module, like: type[nn.Module]
    ) -> None:
        self.adapter, self.kind, self.layer, self.like = adapter, kind, layer, like
        self.own = like is not type(layer) and type(layer) in adapter.kinds
        self.known = self._known()
        self.input, self.native = self._first_that_runs()

    def difference(self) -> str | None:
        """What differs from the native run, with the library's surrogate as the rule."""
        name, surrogate = self.like.__name__, self.kind.wrapped._tssl_spikes(self.layer)
        ran = self._ran(self._wrapped(SurrogateGradient(_derivative(surrogate)), 1.0))
        native = self.native
        if not all(map(identical, ran.values, native.values)):
            return f"wrapped as {name} it has another forward pass than natively"
        lost = [key for key, value in native.kept.items() if not _alike(value, ran.kept.get(key))]
        if lost:
            return (
                f"as it runs it keeps {', '.join(map(repr, lost))}, which {name} does not, and "
                "which would be lost; keep it in a module around the layer, or in a forward hook"
            )
        for key, theirs in native.grads.items():
            if key == "" and theirs is not None and _cuts(theirs):
                ours = ran.grads[key]
                if ours is not None and not _cuts(ours):
                    return (
                        "it detaches its state from one step to the next, so that natively no "
                        f"gradient goes back in time, as it does in {name}; wrap {name} with "
                        "rules.SurrogateGradient(..., chain=False), or skip this layer"
                    )
            if not _near(ran.grads[key], theirs):
                of = f"its parameter '{key}'" if key else "its input"
                return (
                    f"with the library's own surrogate the gradient of {of} is another than "
                    f"natively: it computes something that {name} does not"
                )
        return None

    def run(self, rule: Rule, tau_s: float) -> None:
        """Run forward and backward with the requested rule."""
        self._ran(self._wrapped(rule, tau_s))

    def _first_that_runs(self) -> tuple[Tensor, _Ran]:
        problem = None
        like = next((t for t in self._tensors() if t.is_floating_point()), torch.empty(0))
        steps = self.adapter.steps(self.layer) or _STEPS
        for shape in _shapes(self._tensors()):
            x = torch.rand((steps, *shape), dtype=torch.float64) ** 3 * _STRONGEST - 0.5
            x = x.to(like)
            try:
                return x, self._ran(_copied(self.layer), x)
            except Exception as error:
                problem = error
        assert problem is not None
        raise problem

    def _wrapped(self, rule: Rule, tau_s: float) -> Any:
        layer: Any = _copied(self.layer)
        layer.__class__ = self.kind.wrapped
        layer._tssl_settings = Settings(type(self.layer).__name__, rule, tau_s, trial=True)
        self.kind.attach(layer)
        return layer

    def _ran(self, layer: Any, x: Tensor | None = None) -> _Ran:
        x = (self.input if x is None else x).clone().requires_grad_()
        learned = {name: p for name, p in layer.named_parameters() if p.requires_grad}
        values = self.adapter.record(layer, x)
        ends = (values[0][-1], *values[1:])  # the last step's: the rest flows back over time
        differentiable = [value for value in ends if value.requires_grad]
        grads: dict[str, Tensor | None] = dict.fromkeys(["", *learned])
        if differentiable:
            found = torch.autograd.grad(
                [_weighted(value) for value in differentiable],
                [x, *learned.values()],
                allow_unused=True,
            )
            grads = dict(zip(grads, found, strict=True))
        kept = {**vars(layer), **layer._buffers}
        return _Ran(values, grads, {k: v for k, v in kept.items() if k not in self.known})

    def _known(self) -> set[str]:
        """The attributes that every layer of the library's class is left with."""
        if not self.own:
            return {*vars(self.layer), *self.layer._buffers}
        example = self.adapter.example(self.like, 1)
        self.adapter.record(example, torch.zeros(self.adapter.steps(example) or _STEPS, 1, 1))
        return {*vars(example), *example._buffers}

    def _tensors(self) -> list[Tensor]:
        """The tensors that may show the layer's shapes: all that it registers or has by name."""
        layer = self.layer
        held = [*layer.parameters(), *layer.buffers(), *vars(layer).values()]
        for kept in self.adapter.registries:
            held += vars(layer).get(kept, {}).values()
        held += [part for value in held if isinstance(value, tuple) for part in value]
        return [value for value in held if isinstance(value, Tensor)]


def _shapes(tensors: list[Tensor]) -> Iterator[tuple[int, ...]]:
    """Shapes ``[batch, ...]`` of a step that a layer may take, guessed from its tensors."""
    sizes = [tuple(n if n > 1 else 3 for n in t.shape) for t in tensors if t.ndim]
    for size in dict.fromkeys(sizes):
        yield (_BATCH, size[-1])
        yield (_BATCH, *size)
        yield (_BATCH, size[0], 6, 6)
        yield size
    yield (_BATCH, 3)
    yield (_BATCH, 3, 6, 6)


class _Cut(TorchFunctionMode):
    """Tensors with a graph, which torch refuses to copy, are copied by value; a library's own kind
    of tensor that cannot be copied is shared: it stands for a state not yet initialised.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError:
            if func is not Tensor.__deepcopy__:
                raise
            return args[0] if args[0].is_leaf else args[0].detach().clone()


def _copied(layer: nn.Module) -> nn.Module:
    """A copy of a layer, in training mode, without its hooks, which may reach anywhere."""
    held = (vars(module).get(hooks) for module in layer.modules() for hooks in HOOKS)
    memo: dict[int, Any] = {id(hooks): OrderedDict() for hooks in held if hooks}
    with _Cut():
        return copy.deepcopy(layer, memo).train()


@contextmanager
def _aside() -> Iterator[None]:
    """Leave no side effects: no warnings, no random numbers drawn, no modes."""
    with (
        torch.random.fork_rng(devices=[]),
        ordinary(),
        torch.autocast("cpu", enabled=False),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(0)
        yield


def _derivative(surrogate: Any) -> Any:
    def derivative(distance: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = distance.detach().requires_grad_()
            (slope,) = torch.autograd.grad(surrogate(leaf).sum(), leaf)
        return slope

    return derivative


def _weighted(value: Tensor) -> Tensor:
    weights = torch.linspace(-1.0, 2.0, value.numel(), dtype=value.dtype, device=value.device)
    return (value * weights.view_as(value)).sum()


def _cuts(grad: Tensor) -> bool:
    """Whether the input has no gradient before the last step."""
    return not grad[:-1].any() and bool(grad[-1].any())


def _near(ours: Tensor | None, theirs: Tensor | None) -> bool:
    """Whether gradients agree; if there is natively none, a rule may still have one."""
    if theirs is None or ours is None:
        return theirs is None or not theirs.any()
    largest = float(theirs.nan_to_num().abs().max())
    off = (ours - theirs).nan_to_num().abs().max()
    return float(off) <= _ROUNDING * largest


def _alike(ours: Any, theirs: Any) -> bool:
    """Whether two attributes of layers are the same, as far as can be determined."""
    if isinstance(theirs, Tensor):
        graph = isinstance(ours, Tensor) and ours.requires_grad == theirs.requires_grad
        return graph and identical(ours, theirs)
    if type(ours) is not type(theirs):
        return False
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(_alike(ours[k], theirs[k]) for k in ours)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(_alike, ours, theirs))
    return not isinstance(theirs, int | float | str) or bool(ours == theirs)


def _found(error: Exception) -> str:
    """What a probe found, without the layer and the advice."""
    return str(error).partition(": ")[2].partition(". ")[0]
