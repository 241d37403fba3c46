"""Event-camera recordings, read from the folders in which ``tonic`` keeps them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tssl_adapters.bench.data.images import Data
from tssl_adapters.bench.places import TONIC, cached, check, no_recordings, roots


def load(name: str, folder: Path | None, num_steps: int) -> Data:
    """Bin a data set's events into frames, once: they are kept in the user's cache.

    Args:
        name: one of ``bench.known.EVENTS``.
        folder: tonic's ``save_to``; ``None`` searches the usual places.
        num_steps: frames of equal duration per recording, from its first event to its last.

    Returns:
        Frames ``[N, T, polarities, height, width]`` of counts up to 255, read from the file on
        demand.

    Raises:
        ModuleNotFoundError: tonic is not installed.
        FileNotFoundError: the recordings are not there; nothing is downloaded.
    """
    cache = cached(name, num_steps)
    if not cache.is_file():
        parts = [part for train in (True, False) for part in _read(name, folder, num_steps, train)]
        cache.parent.mkdir(parents=True, exist_ok=True)
        unfinished = cache.with_name(f"{cache.name}.{os.getpid()}")
        torch.save(parts, unfinished)
        os.replace(unfinished, cache)
    return Data(*torch.load(cache, weights_only=True, mmap=True))


def _read(name: str, folder: Path | None, num_steps: int, train: bool) -> tuple[Tensor, Tensor]:
    """Frames and labels of one part, shuffled, since some sets are sorted by class."""
    recordings, sensor_size = _recordings(name, folder, train)
    from tonic.transforms import ToFrame

    width, height, polarities = sensor_size
    to_frame = ToFrame(sensor_size=sensor_size, n_time_bins=num_steps)
    frames = torch.empty(len(recordings), num_steps, polarities, height, width, dtype=torch.uint8)
    labels = torch.empty(len(recordings), dtype=torch.long)
    part = "train" if train else "test"
    indices = track(
        range(len(recordings)),
        description=f"{name}, {part}: recordings to frames",
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    order = torch.randperm(len(recordings), generator=torch.Generator().manual_seed(0)).tolist()
    for i in indices:
        events, labels[i] = recordings[order[i]]
        counts = np.minimum(to_frame(events), 255).astype(np.uint8)
        frames[i] = torch.from_numpy(counts).reshape(frames.shape[1:])
    return frames, labels


def _recordings(name: str, folder: Path | None, train: bool) -> tuple[Any, tuple[int, int, int]]:
    """Tonic's data set from the first folder that has it, and the sensor size."""
    check(name, folder, num_steps=0)
    from tonic import datasets

    def refuse(_: object) -> None:
        raise FileNotFoundError

    known = getattr(datasets, TONIC[name])
    # Same class name, since the folder is named after it; tonic would download what it lacks.
    local = type(known.__name__, (known,), {"download": refuse})
    for candidate in roots(folder):
        try:
            return local(save_to=str(candidate), train=train), known.sensor_size
        except FileNotFoundError:
            continue
    raise no_recordings(name, folder)
