"""A layer's call on a whole sequence as one operation in torch.compile's graph.

To Dynamo, AOTAutograd and Inductor it is an operation with a shape; where it runs, the layer runs
as it does uncompiled. It keeps its inputs alone: the backward pass runs the layer again, as
``torch.utils.checkpoint`` does. Importing this imports torch's compiler.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.compiler import assume_constant_result

from tssl_adapters.adapters.opaque import LAYERS, Opaque

# Torch.compile calls it while it traces, and the graph has the name that it returns.
assume_constant_result(Opaque._tssl_enlisted)  # type: ignore[no-untyped-call]


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
    found = LAYERS.get(name)
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
