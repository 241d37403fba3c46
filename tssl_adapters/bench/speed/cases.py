"""One work at one size: all contestants, measured in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from tssl_adapters.bench.speed import measure
from tssl_adapters.bench.speed.contestants import (
    COPY,
    NATIVE,
    QUADRATIC_RULE,
    Contestant,
    contestants,
    quadratic,
    why_not_compiled,
)
from tssl_adapters.bench.speed.memory import peak_bytes
from tssl_adapters.bench.speed.tasks import CopyTask, LayerTask, Task, TrainingTask
from tssl_adapters.bench.speed.works import CLASSES, INPUTS, Work

NEEDED_DRIVES = 5
"""Forward: drive in, output out. Backward: drive and output gradient in, drive gradient out."""
MOST_DRIVES = 24
"""More drives than any contestant keeps at once."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """The settings of a measurement."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    rounds: int = 15
    budget: float = 20.0
    tau_s: tuple[float, ...] = (1.0, 3.0)
    rule: str = "smooth-tsslbp"
    compiled: bool = True
    memory: bool = True


@dataclass(frozen=True)
class Case:
    """A work, its input size, and torch's number of threads."""

    work: Work
    steps: int
    batch: int
    neurons: int
    threads: int = 1

    @property
    def title(self) -> str:
        """The case in words, for messages."""
        size = f"batch {self.batch}" if self.work.is_network else f"{self.batch} x {self.neurons}"
        return f"{self.work.title}, T = {self.steps}, {size}"

    def row(self) -> Row:
        """The columns that all rows of this case share."""
        return {
            "work": self.work.name,
            "title": self.work.title,
            "steps": self.steps,
            "batch": self.batch,
            "neurons": None if self.work.is_network else self.neurons,
            "threads": self.threads,
        }


def run_case(case: Case, plan: Plan, leave_out: Callable[[str], None]) -> list[Row]:
    """Measure a case; returns one row per contestant.

    Args:
        case: what to measure.
        plan: how to measure it.
        leave_out: receives the reason why a contestant, or the case, is left out.
    """
    drive = input_of(case, plan)
    if drive.nbytes * MOST_DRIVES > _free_bytes(plan.device):
        leave_out(f"{case.title}: too little memory")
        return []
    torch.set_num_threads(case.threads)
    if plan.compiled:
        torch.compiler.reset()  # else torch silently stops compiling after too many sizes
    tasks = ready_tasks(case, plan, drive, leave_out)
    taken = measure.in_turns(tasks, plan.device, plan.rounds, plan.budget)
    shared = case.row() | {"drive_bytes": drive.nbytes}
    return [shared | figures(name, tasks, taken, drive, plan) for name in tasks]


def figures(
    name: str,
    tasks: dict[str, Task],
    taken: dict[str, list[measure.Timing]],
    drive: Tensor,
    plan: Plan,
) -> Row:
    """The figures of one contestant."""
    mine, native = taken[name], taken[NATIVE]
    if name == COPY:
        return {
            "contestant": name,
            "rounds": len(mine),
            "forward_s": measure.median(mine, "forward"),
            "bytes_per_s": 2 * drive.nbytes / measure.median(mine, "forward"),
        }
    row: Row = {
        "contestant": name,
        "rounds": len(mine),
        "forward_s": measure.median(mine, "forward"),
        "backward_s": measure.median(mine, "backward"),
        "total_s": measure.median(mine),
        "processor_s": measure.median(mine, "processor"),
        "forward_times_faster": measure.ratio(native, mine, "forward"),
        "backward_times_faster": measure.ratio(native, mine, "backward"),
        "times_faster": measure.ratio(native, mine),
        "times_less_processor": measure.ratio(native, mine, "processor"),
        "bytes_kept": measure.bytes_kept(tasks[name]),
        "peak_bytes": peak_bytes(tasks[name], plan.device) if plan.memory else None,
    }
    if COPY in taken:
        row["bytes_per_s"] = NEEDED_DRIVES * drive.nbytes / measure.median(mine)
        row["drives_kept"] = row["bytes_kept"] / drive.nbytes
        row["of_copy"] = NEEDED_DRIVES / 2 * measure.ratio(taken[COPY], mine)
    return row


def ready_tasks(
    case: Case, plan: Plan, drive: Tensor, leave_out: Callable[[str], None]
) -> dict[str, Task]:
    """The contestants' tasks, each run twice so that it is compiled and all caches are warm."""
    generator = torch.Generator().manual_seed(1)
    gradient = torch.randn(drive.shape, generator=generator).to(drive)
    labels = torch.randint(CLASSES, (case.batch,), generator=generator).to(plan.device)
    tasks: dict[str, Task] = {}
    for entry in _contestants(case, plan, leave_out):
        task: Task = (
            TrainingTask(entry.model, entry.run, drive, labels)
            if case.work.is_network
            else LayerTask(entry.model, entry.run, drive, gradient)
        )
        try:
            for _ in range(2):
                measure.once(task, plan.device)
        except Exception as error:
            if not entry.may_fail:
                raise
            said = str(error).strip().splitlines() or [""]
            leave_out(f"{case.title}: {entry.name}: {type(error).__name__}: {said[0]}")
            continue
        tasks[entry.name] = task
    if not case.work.is_network:
        tasks[COPY] = CopyTask(drive)
    return tasks


def input_of(case: Case, plan: Plan) -> Tensor:
    """The drive ``[T, batch, neurons]``, or a network's input."""
    generator = torch.Generator().manual_seed(0)
    features = INPUTS if case.work.is_network else case.neurons
    drive = torch.randn(case.steps, case.batch, features, generator=generator)
    return drive.mul_(case.work.gain).to(plan.device, plan.dtype)


def _contestants(case: Case, plan: Plan, leave_out: Callable[[str], None]) -> Iterator[Contestant]:
    reason = why_not_compiled(plan.device) if plan.compiled else None
    if reason is not None:
        leave_out(f"{case.title}: compiled: {reason}")
    compiled = plan.compiled and reason is None
    yield from contestants(case.work, plan.device, plan.dtype, plan.tau_s, compiled, plan.rule)
    if plan.rule != QUADRATIC_RULE:
        return
    baseline = quadratic(case.work, plan.tau_s[-1], case.steps, case.batch * case.neurons)
    if isinstance(baseline, str):
        leave_out(f"{case.title}: T x T recursion: {baseline}")
    elif baseline is not None:
        yield baseline


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
