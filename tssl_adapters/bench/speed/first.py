"""A layer's first call, and the import of this package, in fresh processes.

Run as a program, with the name of a work and a rule's, this module is one of those processes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

import torch

import tssl_adapters
from tssl_adapters.bench.speed import works
from tssl_adapters.bench.speed.measure import once
from tssl_adapters.bench.speed.tasks import LayerTask

PROCESSES = 3
STEPS, BATCH, NEURONS = 8, 4, 32
_IMPORT = """
import time, torch
began = time.process_time()
import tssl_adapters
print(time.process_time() - began)
"""


def first_call(name: str, rule: str) -> float:
    """A work's first call and its backward pass, in seconds of processor time.

    Torch, the library and its own layer were at work before, and the layer is wrapped. Median over
    processes.
    """
    return _median("-m", __name__, name, rule)


def first_import() -> float:
    """The import of this package beside torch's, measured likewise."""
    return _median("-c", _IMPORT)


def _median(*arguments: str) -> float:
    command = [sys.executable, *arguments]
    runs = [
        subprocess.run(command, capture_output=True, check=True, text=True)
        for _ in range(PROCESSES)
    ]
    return statistics.median(float(run.stdout.split()[-1]) for run in runs)


def _here(name: str, rule: str) -> float:
    """:func:`first_call` in this process, which must be fresh."""
    torch.set_num_threads(1)
    [work], _ = works.load([name])
    drive = work.gain * torch.randn(STEPS, BATCH, NEURONS)
    native = LayerTask(work.make(), work.run, drive, drive)
    ours = LayerTask(tssl_adapters.wrap(work.make(), rule=rule), work.run, drive, drive)
    return [once(task, drive.device).processor for task in (native, ours)][1]


if __name__ == "__main__":
    print(_here(*sys.argv[1:]))
