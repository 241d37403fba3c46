"""How a rule's gradient spreads through a network, layer by layer, on one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tssl_adapters.bench.architectures import Forward


class LayerActivity(NamedTuple):
    """The activity of a spiking layer in a batch, the same under every rule; shares from 0 to 1.

    ``silent`` steps have no spike; ``gated`` ones are silent to TSSL-BP, a[t] < 1/(4 tau_s), where
    it uses its fallback; ``dead`` neurons do not spike in the whole batch.
    """

    silent: float
    gated: float
    dead: float


class Spread(NamedTuple):
    """A gradient in a network of L spiking layers, over T steps.

    Attributes:
        weights: the flattened gradient of each parameter.
        drive: norm of each layer's drive gradient at each step, ``[L, T]``.
        activity: the activity of each layer.
    """

    weights: list[Tensor]
    drive: Tensor
    activity: list[LayerActivity]


class _Recorder:
    """Records inputs and outputs of the spiking layers, in single-step or multi-step calls."""

    def __init__(self, model: nn.Module, neuron: type[nn.Module]) -> None:
        self.layers = [module for module in model.modules() if isinstance(module, neuron)]
        self.drives: dict[nn.Module, list[Tensor]] = {layer: [] for layer in self.layers}
        self.outputs: dict[nn.Module, list[Tensor]] = {layer: [] for layer in self.layers}

    def __enter__(self) -> _Recorder:
        self.hooks = [layer.register_forward_hook(self._record) for layer in self.layers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _record(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        drive: Tensor = inputs[0]
        drive.retain_grad()
        self.drives[layer].append(drive)
        self.outputs[layer].append((output[0] if isinstance(output, tuple) else output).detach())


def spread(
    model: nn.Module,
    forward: Forward,
    neuron: type[nn.Module],
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    tau_s: float,
) -> Spread:
    """One forward and one backward pass.

    Args:
        model: the network; its gradients are overwritten.
        forward: runs it on ``x`` ``[T, batch, ...]``.
        neuron: class of its spiking layers.
        x: the input.
        loss: maps the output of ``forward`` to a scalar.
        tau_s: synaptic time constant of the layers.
    """
    model.zero_grad()
    with _Recorder(model, neuron) as recorder:
        loss(forward(model, x)).backward()  # type: ignore[no-untyped-call]
    drives = [_gradient_norms(recorder.drives[layer], len(x)) for layer in recorder.layers]
    activity = [_activity(recorder.outputs[layer], len(x), tau_s) for layer in recorder.layers]
    weights = [
        (torch.zeros_like(weight) if weight.grad is None else weight.grad).flatten().clone()
        for weight in model.parameters()
    ]
    return Spread(weights, torch.stack(drives), activity)


def _sequence(parts: Sequence[Tensor], num_steps: int) -> Tensor:
    """Tensors from one call, or from one call per step, as ``[T, everything else]``."""
    return torch.cat(list(parts)).reshape(num_steps, -1)


def _gradient_norms(drives: Sequence[Tensor], num_steps: int) -> Tensor:
    gradients = [torch.zeros_like(drive) if drive.grad is None else drive.grad for drive in drives]
    norms: Tensor = _sequence(gradients, num_steps).norm(dim=1)
    return norms


def _activity(outputs: Sequence[Tensor], num_steps: int, tau_s: float) -> LayerActivity:
    emitted = torch.cat(list(outputs))
    psc = emitted.reshape(num_steps, -1, *emitted.shape[1:]) if len(outputs) > 1 else emitted
    before = torch.cat([torch.zeros_like(psc[:1]), psc[:-1]])
    fires = tau_s * psc - (tau_s - 1) * before > 0.5
    return LayerActivity(
        silent=1.0 - fires.float().mean().item(),
        gated=(psc < 1 / (4 * tau_s)).float().mean().item(),
        dead=1.0 - fires.any(0).any(0).float().mean().item(),
    )


def cosines(gradients: Sequence[Tensor]) -> list[list[float]]:
    """The cosine of each pair of gradients; 0 if one of them is zero."""
    stacked = torch.stack(list(gradients)).double()
    unit = stacked / stacked.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.double).tiny)
    found: list[list[float]] = (unit @ unit.T).tolist()
    return found
