"""One number a layer, which a rule keeps of its backward passes: how wide its surrogate is, say.

It stays as it is through a backward pass, and what the pass measured moves it afterwards. So all
time steps of a pass see one number, whether they came in one call or in many, and no sample's
gradient depends on the others of its batch. It lies in a buffer of the layer that is not part of
``state_dict``: copies and pickles take it along, it moves to other devices with the layer, and
``DistributedDataParallel`` gives every process that of rank 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from tssl_adapters.rules import Rule, Step
from tssl_adapters.rules.base import RUNNING


class Running:
    """A layer's running number, and what the backward pass at work has measured so far."""

    def __init__(self, layer: nn.Module, rule: Rule, start: float, device: torch.device) -> None:
        layer.register_buffer(RUNNING, torch.tensor(start, device=device), persistent=False)
        self._buffers = layer._buffers  # the dictionary: tensors in it are replaced by others
        self._rule = rule
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sums": None, "_task": -1, "_number": None}

    def _forget(self) -> None:
        self._sums: Tensor | None = None
        self._task = -1
        self._number: Tensor | None = None

    def number(self, device: torch.device) -> Tensor:
        """The number that this backward pass goes by, a tensor without dimensions."""
        task = int(torch._C._current_graph_task_id())
        if self._number is None or task != self._task:
            self._forget()
            self._task, self._number = task, self._kept().clone()
        return self._number.to(device)

    def _kept(self) -> Tensor:
        kept = self._buffers[RUNNING]
        assert kept is not None
        return kept.detach()

    def measure(self, step: Step) -> None:
        """Have the rule measure a time step of the backward pass at work."""
        if self._task == -1 or torch._C._are_functorch_transforms_active():
            return
        found = self._rule.measure(step).detach()
        if self._sums is None:
            Variable._execution_engine.queue_callback(self._follow)
            self._sums = found
        else:
            self._sums += found.to(self._sums)  # replicas of a layer may be on other devices

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the number, once the pass is through."""
        if self._sums is not None:
            kept = self._kept()
            kept.copy_(self._rule.follow(kept, self._sums.to(kept)))
        self._forget()
