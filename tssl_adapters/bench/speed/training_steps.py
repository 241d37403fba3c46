"""A training step of the suite's networks: native, and wrapped under each rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tssl_adapters.bench.networks import training
from tssl_adapters.bench.networks.spec import Network
from tssl_adapters.bench.report.tables import REFERENCE
from tssl_adapters.bench.speed import measure
from tssl_adapters.bench.speed.cases import Plan, Row

COMPILED = "native-compiled"
"""The library's own gradient, computed by the engine's loops."""


class Step:
    """A network's training step on one batch, from its start: a :class:`..tasks.Task`."""

    def __init__(self, network: Network, rule: str, x: Tensor, labels: Tensor) -> None:
        self.network, self.x, self.labels = network, x, labels
        self.model = training.start(network, rule, seed=0).train()
        self.optimizer = network.optimizer(self.model)

    def forward(self) -> Tensor:
        return self.network.loss(self.network.forward(self.model, self.x), self.labels)

    def backward(self, out: Tensor) -> None:
        self.optimizer.zero_grad()
        torch.autograd.backward(out)
        self.optimizer.step()


def network_steps(
    networks: Sequence[Network], plan: Plan, leave_out: Callable[[str], None]
) -> Iterator[Row]:
    """One row per network and rule: the plan's rule, and :data:`COMPILED`.

    Args:
        networks: the networks to time, on the CPU.
        plan: how to measure; its rule is used for the wrapped networks.
        leave_out: receives which network a rule refuses, and why.
    """
    rules = [rule for rule in dict.fromkeys((plan.rule, COMPILED)) if rule != REFERENCE]
    for network in networks:
        split = network.data(None)
        batch = next(training.batches(split, 0, network.batch_size))[0]
        x, labels = split.train_x[batch], split.train_y[batch]
        tasks = {REFERENCE: Step(network, REFERENCE, x, labels)}
        for rule in rules:
            refused = training.refusal(network, rule)
            if refused is None:
                tasks[rule] = Step(network, rule, x, labels)
            else:
                leave_out(f"{network.name}: {rule}: {refused}")
        for task in tasks.values():
            for _ in range(2):  # to compile, and to warm all caches
                measure.once(task, plan.device)
        taken = measure.in_turns(tasks, plan.device, plan.rounds, plan.budget)
        for rule in tasks:
            yield {
                "network": network.name,
                "rule": rule,
                "rounds": len(taken[rule]),
                "total_s": measure.median(taken[rule]),
                "processor_s": measure.median(taken[rule], "processor"),
                "times_faster": measure.ratio(taken[REFERENCE], taken[rule]),
                "times_less_processor": measure.ratio(taken[REFERENCE], taken[rule], "processor"),
            }
