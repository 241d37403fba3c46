"""Runs compiled loops on as many threads as torch uses, each on a range of neurons."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch

LEAST = 2**16
"""The least number of values per thread: with fewer, waking it costs more than it saves."""
TOGETHER = 64
"""Ranges are multiples of so many neurons, so that no two threads write to the same cache line."""


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="tssl_adapters")


if hasattr(os, "register_at_fork"):  # a forked process has the pool, but none of its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def over(loop: Callable[..., None], steps: int, neurons: int, *rest: Any) -> None:
    """Call ``loop(first, last, steps, neurons, *rest)`` on ranges that cover all neurons."""
    threads = steps * neurons // LEAST
    if threads > 1:
        threads = min(torch.get_num_threads(), threads)
    if threads < 2:
        loop(0, neurons, steps, neurons, *rest)
        return
    each = -(-neurons // threads // TOGETHER) * TOGETHER
    starts = range(each, neurons, each)
    pool = _pool(torch.get_num_threads() - 1)
    others = [
        pool.submit(loop, first, min(first + each, neurons), steps, neurons, *rest)
        for first in starts
    ]
    loop(0, min(each, neurons), steps, neurons, *rest)
    for other in others:
        other.result()
