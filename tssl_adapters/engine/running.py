"""One number a layer, which a rule keeps of its backward passes: how wide its surrogate is, say.

It stays as it is through a backward pass, and what the pass measured moves it afterwards. So all
time steps of a pass see one number, whether they came in one call or in many, and no sample's
gradient depends on the others of its batch. Copies and pickles of the layer take it along. Under
``DistributedDataParallel`` every process has that of rank 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel

from tssl_adapters.rules import Rule, Step


class Running:
    """A layer's running number, and what the backward pass at work has measured so far.

    Attributes:
        kept: the number, a tensor without dimensions.
    """

    def __init__(self, rule: Rule, start: float) -> None:
        self.kept = torch.tensor(start)
        self._rule = rule
        self._moved = True
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_moved": True, "_sums": None, "_task": -1, "_number": None}

    def _forget(self) -> None:
        self._sums: Tensor | None = None
        self._task = -1
        self._number: Tensor | None = None

    def set(self, number: float) -> None:
        """Go on from another number."""
        self.kept, self._moved = torch.full_like(self.kept, number), True

    @torch.no_grad()
    def share(self, device: torch.device) -> None:
        """In a forward pass of ``DistributedDataParallel``, take the number of rank 0."""
        parallel = DistributedDataParallel._active_ddp_module  # type: ignore[attr-defined]
        if parallel is not None and self._moved:
            self.kept, group = self.kept.to(device), parallel.process_group
            distributed.broadcast(self.kept, distributed.get_global_rank(group, 0), group)
            self._moved = False

    def number(self, device: torch.device) -> Tensor:
        """The number that this backward pass goes by."""
        task = int(torch._C._current_graph_task_id())
        if self._number is None or task != self._task:
            self._forget()
            self._task, self._number = task, self.kept
        return self._number.to(device)

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
            self.kept = self._rule.follow(self.kept.to(self._sums.device), self._sums)
            self._moved = True
        self._forget()
