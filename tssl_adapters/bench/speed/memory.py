"""Peak memory of one run of a task, and what the C library does with freed memory."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tssl_adapters.bench.speed.measure import once
from tssl_adapters.bench.speed.tasks import Task

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
TRIM_THRESHOLD, MOST_MAPPED = -1, -4
"""Of mallopt(3): M_TRIM_THRESHOLD and M_MMAP_MAX."""
KEEPING = {TRIM_THRESHOLD: 2**31 - 1, MOST_MAPPED: 0}
RETURNING = {TRIM_THRESHOLD: 2**17, MOST_MAPPED: 2**16}
"""Its defaults."""

_now = RETURNING


def keep_freed_memory() -> None:
    """Have glibc keep freed memory in its heap, for this process.

    By default it returns large tensors' memory to the kernel or not, as the heap happens to lie,
    and page faults then cost some contestants as much time as their layer does.
    """
    _set(KEEPING)


def _set(options: dict[int, int]) -> None:
    global _now
    _now = options
    if platform.libc_ver()[0] == "glibc":
        for option, value in options.items():
            ctypes.CDLL(None).mallopt(option, value)


@contextmanager
def _returning() -> Iterator[None]:
    """Return freed memory to the kernel, so that what is resident is in use."""
    before = _now
    if before is KEEPING:
        _set(RETURNING)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)
    try:
        yield
    finally:
        if before is KEEPING:
            _set(KEEPING)


def peak_bytes(task: Task, device: torch.device) -> int | None:
    """The peak memory of one run beyond what was in use before; ``None`` if it cannot be measured.

    On CUDA, torch's own count. On Linux, this process's peak resident memory minus its value at
    the start, to about a MiB: the kernel is asked to reset the peak (proc(5), clear_refs), and the
    allocator to return unused memory, which the run could otherwise reuse unseen, or leave unused.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        once(task, device)
        return torch.cuda.max_memory_allocated(device) - before
    with _returning():
        try:
            CLEAR.write_text(RESET_PEAK)
            before = _resident("VmRSS")
            once(task, device)
            return max(0, _resident("VmHWM") - before)
        except OSError:
            return None


def _resident(name: str) -> int:
    """An entry of the process's status, in bytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return 1024 * int(lines[name].split()[0])
