"""One forward and one backward pass, and what is recorded of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tssl_adapters import adapters
from tssl_adapters.adapters import Wrapped
from tssl_adapters.comparing.comparison import ParameterComparison
from tssl_adapters.comparing.records import Potentials, Spikes, recording
from tssl_adapters.tracing import untraced


class Pass(NamedTuple):
    """A loss, and the gradients of the parameters that require one, by name."""

    loss: float
    gradients: dict[str, Tensor | None]


def run(model: nn.Module, step: Callable[[Any], Tensor]) -> Pass:
    """Run the forward and the backward pass of a training step, without the optimizer.

    Raises:
        TypeError: ``step`` did not return a tensor.
        ValueError: the loss is not a scalar, has no graph, or was differentiated already.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in parameters.values():
        parameter.grad = None
    with torch.enable_grad():
        loss = step(model)
    _check(loss, any(parameter.grad is not None for parameter in parameters.values()))
    with _alone(loss, parameters.values()):
        loss.backward()  # type: ignore[no-untyped-call]
        return Pass(float(loss.detach()), {name: p.grad for name, p in parameters.items()})


def _check(loss: object, differentiated: bool) -> None:
    name = "tssl_adapters.compare"
    if differentiated:
        raise ValueError(f"{name}: step called backward; it is to return the loss and leave that.")
    if not isinstance(loss, Tensor):
        raise TypeError(f"{name}: step has to return the loss, a scalar tensor, not {loss!r}.")
    if loss.numel() != 1:
        shape = tuple(loss.shape)
        raise ValueError(f"{name}: step returned a tensor of shape {shape}; the loss is a scalar.")
    if not loss.requires_grad:
        raise ValueError(
            f"{name}: the loss that step returned has no graph, so that there is no gradient: was "
            "it detached, computed under no_grad, or from counts as whole numbers?"
        )


@contextmanager
def _alone(loss: Tensor, parameters: Any) -> Iterator[None]:
    """Keep the backward pass from changing other leaves' gradients, and from hooks that train."""
    mine = {id(parameter) for parameter in parameters}
    others = [(leaf, leaf.grad) for leaf in _leaves(loss) if id(leaf) not in mine]
    hooks = [getattr(p, "_post_accumulate_grad_hooks", None) or {} for p in parameters]
    kept = [dict(hook) for hook in hooks]
    for leaf, _ in others:
        leaf.grad = None
    for hook in hooks:
        hook.clear()
    try:
        yield
    finally:
        for leaf, grad in others:
            leaf.grad = grad
        for hook, content in zip(hooks, kept, strict=True):
            hook.update(content)


def _leaves(loss: Tensor) -> list[Tensor]:
    """The leaves of a graph."""
    found, seen, ahead = [], set(), [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        ahead += [function for function, _ in node.next_functions]
    return found


@contextmanager
def watched(spikes: Mapping[nn.Module, Spikes]) -> Iterator[None]:
    """Record the layers' outputs."""

    @untraced  # torch.compile would trace it
    def see(layer: nn.Module, _: Any, output: Any) -> None:
        out = output[0] if isinstance(output, tuple) else output
        spikes[layer].see(out, 2 if _sequence(layer) else 1)

    hooks = [layer.register_forward_hook(see) for layer in spikes]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _sequence(layer: nn.Module) -> bool:
    return any(a.spiking(layer) and a.mode(layer) == "sequence" for a in adapters.loaded())


def recorded(model: nn.Module) -> dict[nn.Module, Potentials]:
    """Have the rules of all wrapped layers record what they see, with the engine ``torch``."""
    found: dict[nn.Module, Potentials] = {}
    for module in model.modules():
        if isinstance(module, Wrapped):
            own = module._tssl_settings
            seen = Potentials(own.rule, type(module)._tssl_traits(module))
            rule = recording(own.rule, seen)
            module._tssl_settings = replace(own, rule=rule, engine="torch", decided=None)
            found[module] = seen
    return found


def differences(
    model: nn.Module, native: Mapping[str, Tensor | None], wrapped: Mapping[str, Tensor | None]
) -> tuple[ParameterComparison, ...]:
    """Compare the gradients of every parameter in both passes."""
    norms = {name: _flat(parameter) for name, parameter in model.named_parameters()}
    return tuple(
        _difference(name, float(norms[name].norm()), gradient, wrapped[name])
        for name, gradient in native.items()
    )


def _difference(
    name: str, norm: float, native: Tensor | None, wrapped: Tensor | None
) -> ParameterComparison:
    left, right = (None if g is None else _flat(g) for g in (native, wrapped))
    before, after = (None if g is None else float(g.norm()) for g in (left, right))
    ratio = cosine = None
    if left is not None and right is not None and before and after:
        ratio = after / before
        cosine = float((left / before) @ (right / after))
    return ParameterComparison(name, norm, before, after, ratio, cosine)


def _flat(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return (tensor.to_dense() if tensor.is_sparse else tensor).flatten().double()
