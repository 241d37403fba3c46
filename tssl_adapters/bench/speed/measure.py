"""Time, memory kept and peak memory of tasks."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from tssl_adapters.bench.measures import KeptForBackward
from tssl_adapters.bench.speed.tasks import Task

FEWEST_ROUNDS = 3


class Timing(NamedTuple):
    """One run, in seconds of wall-clock time, and of processor time over the process's threads."""

    forward: float
    backward: float
    processor: float = 0.0

    @property
    def total(self) -> float:
        """The sum of both passes."""
        return self.forward + self.backward


def once(task: Task, device: torch.device) -> Timing:
    """Run a task."""
    used, started = time.process_time(), _now(device)
    out = task.forward()
    between = _now(device)
    task.backward(out)
    ended = _now(device)
    return Timing(between - started, ended - between, time.process_time() - used)


def in_turns(
    tasks: Mapping[str, Task], device: torch.device, rounds: int, budget: float
) -> dict[str, list[Timing]]:
    """Run the tasks round by round, so that a noisy machine affects them alike.

    Args:
        tasks: by name; already run once, so that nothing is compiled any more.
        device: the tasks' device.
        rounds: the maximum number.
        budget: seconds after which no new round starts, once there are three.
    """
    taken: dict[str, list[Timing]] = {name: [] for name in tasks}
    ends = time.monotonic() + budget
    with _no_collections():
        for number in range(rounds):
            if number >= FEWEST_ROUNDS and time.monotonic() > ends:
                break
            gc.collect()
            for name, task in tasks.items():
                taken[name].append(once(task, device))
    return taken


@contextmanager
def _no_collections() -> Iterator[None]:
    """Disable garbage collection in the rounds; collections between them see new objects only."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def median(taken: Sequence[Timing], half: str = "total") -> float:
    """The median, in seconds."""
    return float(statistics.median(getattr(timing, half) for timing in taken))


def ratio(over: Sequence[Timing], under: Sequence[Timing], half: str = "total") -> float:
    """The median of the rounds' ratios: how many times faster ``under`` is."""
    pairs = zip(over, under, strict=True)
    return float(statistics.median(getattr(a, half) / getattr(b, half) for a, b in pairs))


def bytes_kept(task: Task) -> int:
    """Bytes of distinct tensors saved for the backward pass."""
    with KeptForBackward() as kept:
        out = task.forward()
    del out
    return kept.num_bytes


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
