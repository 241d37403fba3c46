"""A layer's call on a whole sequence as one operation in torch.compile's graph.

To Dynamo, AOTAutograd and Inductor it is an operation with a shape; where it runs, the layer runs
as it does uncompiled. It keeps its inputs alone: the backward pass runs the layer again, as
``torch.utils.checkpoint`` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.compiler import assume_constant_result

_layers: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""Layers of compiled models, by the names in their settings."""


class Opaque:
    """Mixed into a layer's class whose calls on whole sequences may stay in the graph."""

    def _tssl_is_opaque(self) -> bool:
        """Whether the result of a call follows from its input, its parameters, and attributes that
        are set as attributes of the layer.
        """
        raise NotImplementedError

    def _tssl_replayed(
        self, x: Tensor, start: Sequence[float], learned: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The output over ``x`` ``[T, batch, ...]``, then the states after the last step. The layer
        stays as it is.

        Args:
            x: the input.
            start: the states before the first step.
            learned: tensors to use in place of the parameters.
        """
        raise NotImplementedError

    def _tssl_outlined(
        self, x: Tensor, start: Sequence[float], learned: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The same for tensors that have a shape and a dtype but no values."""
        raise NotImplementedError

    def _tssl_operation(self: Any, x: Tensor, start: list[float]) -> list[Tensor] | None:
        """What :meth:`_tssl_replayed` gives with the layer's own parameters, where torch.compile
        traces; ``None`` if the graph has to break.
        """
        name = self._tssl_enlisted()
        # The graph is for this layer until one of its attributes is set. That may be earlier in the
        # graph itself, where only the code that is traced sees it.
        if not name or self._tssl_settings.name != name:
            return None
        learned = [value for value in self._parameters.values() if value is not None]
        found: list[Tensor] = sequence(name, x, start, learned)
        return found

    @assume_constant_result  # type: ignore[untyped-decorator]
    def _tssl_enlisted(self: Any) -> str:
        """The name by which the operation finds the layer; empty if a call cannot be one."""
        settings = self._tssl_settings
        if settings.rule.follows or not self._tssl_is_opaque() or _has_other_graphs(self):
            return ""
        settings.name = settings.name or uuid4().hex  # no other process's: torch keeps graphs
        _layers[settings.name] = self
        name: str = settings.name
        return name


def _has_other_graphs(layer: Any) -> bool:
    """Whether a layer computes with tensors that get gradients and are not its own parameters."""
    own = {id(value) for value in layer._parameters.values()}
    held = [*vars(layer).values(), *layer.buffers(), *layer.parameters()]
    return any(isinstance(t, Tensor) and t.requires_grad and id(t) not in own for t in held)


@torch.library.custom_op(
    "tssl_adapters::sequence",
    mutates_args=(),
    schema="(str layer, Tensor x, float[] start, Tensor[] learned) -> Tensor[]",
)
def sequence(
    layer: str, x: Tensor, start: Sequence[float], learned: Sequence[Tensor]
) -> list[Tensor]:
    """A layer's output over ``x`` ``[T, batch, ...]``, then its states after the last step.

    Args:
        layer: the name in its settings.
        x: its input.
        start: its states, as numbers.
        learned: its parameters.
    """
    with _recording():  # what stands in the way of a gradient is to be said now
        outs = _layer(layer)._tssl_replayed(_leaf(x), start, [*map(_leaf, learned)])
    return [
        # Two states may be one tensor, and the outputs of an operation must not be.
        out.detach().clone()
        if any(out is other for other in outs[:i])
        else out.detach().contiguous()
        for i, out in enumerate(outs)
    ]


@torch.library.custom_op(
    "tssl_adapters::sequence_backward",
    mutates_args=(),
    schema="(str layer, Tensor x, float[] start, Tensor[] learned, Tensor[] grads) -> Tensor[]",
)
def sequence_backward(
    layer: str,
    x: Tensor,
    start: Sequence[float],
    learned: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> list[Tensor]:
    """The gradients of the input and of the parameters, from those of all outputs."""
    with _recording():
        inputs = [_leaf(x), *map(_leaf, learned)]
        outs = _layer(layer)._tssl_replayed(inputs[0], start, inputs[1:])
        pairs = [(out, grad) for out, grad in zip(outs, grads, strict=True) if out.requires_grad]
        found = torch.autograd.grad(
            [out for out, _ in pairs],
            [t for t in inputs if t.requires_grad],
            [grad for _, grad in pairs],
            allow_unused=True,
            materialize_grads=True,
        )
    known = iter(found)
    return [next(known).contiguous() if t.requires_grad else torch.zeros_like(t) for t in inputs]


@sequence.register_fake
def _(layer: str, x: Tensor, start: Sequence[float], learned: Sequence[Tensor]) -> list[Tensor]:
    outs = _layer(layer)._tssl_outlined(x, start, learned)
    return [torch.empty_like(out, memory_format=torch.contiguous_format) for out in outs]


@sequence_backward.register_fake
def _(
    layer: str,
    x: Tensor,
    start: Sequence[float],
    learned: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> list[Tensor]:
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, *learned)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.layer, x, ctx.start, learned = inputs
    ctx.save_for_backward(x, *learned)


def _backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    x, *learned = ctx.saved_tensors
    grad_x, *rest = sequence_backward(ctx.layer, x, ctx.start, learned, grads)
    return None, grad_x, None, rest


sequence.register_autograd(_backward, setup_context=_keep)


def _layer(name: str) -> Any:
    """The layer of this name.

    Raises:
        RuntimeError: it was changed, or is gone, since the operation was traced or ran forward.
    """
    found = _layers.get(name)
    if found is None or found._tssl_settings.name != name:
        which = "a layer" if found is None else f"layer '{found._tssl_settings.path}'"
        what = "deleted" if found is None else "changed"
        raise RuntimeError(
            f"tssl_adapters: {which} of a compiled model was {what} between the forward and the "
            "backward pass, which runs it again; do that before or after both."
        )
    return found


@contextmanager
def _recording() -> Iterator[None]:
    """Record graphs: torch runs the code of an operation with autograd's dispatch left out."""
    included = torch._C._dispatch_tls_local_include_set()
    excluded = torch._C._dispatch_tls_local_exclude_set()
    excluded = excluded - DispatchKeySet(DispatchKey.AutogradFunctionality)
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point())
