"""What is measured in a run besides its accuracy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class SpikeRate:
    """Mean number of spikes per neuron and step over all spiking layers, from their outputs."""

    def __init__(
        self, model: nn.Module, neuron: type[nn.Module] | tuple[type[nn.Module], ...], tau_s: float
    ) -> None:
        self.tau_s, self.spikes, self.steps = tau_s, 0.0, 0
        self.layers = [module for module in model.modules() if isinstance(module, neuron)]
        self.emitted: dict[nn.Module, list[Tensor]] = {layer: [] for layer in self.layers}

    def __enter__(self) -> SpikeRate:
        self.hooks = [layer.register_forward_hook(self._record) for layer in self.layers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _record(self, layer: nn.Module, _: object, output: Any) -> None:
        self.emitted[layer].append(output[0] if isinstance(output, tuple) else output)

    def end_sequence(self, num_steps: int | None = None) -> None:
        """Count the spikes of one forward pass, made in one call or step by step.

        Without ``num_steps``, several calls count as steps, and a single one as a sequence.
        """
        for outputs in self.emitted.values():
            if not outputs:
                continue
            emitted = torch.cat(outputs)
            steps = num_steps or (len(outputs) if len(outputs) > 1 else len(emitted))
            psc = emitted.reshape(steps, -1, *emitted.shape[1:])
            # s[t] = tau_s a[t] - (tau_s - 1) a[t-1], summed over t.
            self.spikes += (psc.sum() + (self.tau_s - 1) * psc[-1].sum()).item()
            self.steps += psc.numel()
            outputs.clear()

    @property
    def rate(self) -> float:
        """Spikes per neuron and step, 0 to 1."""
        return self.spikes / self.steps if self.steps else 0.0


class KeptForBackward:
    """Bytes of distinct tensors saved for the backward pass while the context is open."""

    def __init__(self) -> None:
        self._kept: dict[int, int] = {}

    def __enter__(self) -> KeptForBackward:
        self._kept.clear()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.__exit__()

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def num_bytes(self) -> int:
        """The total."""
        return sum(self._kept.values())
