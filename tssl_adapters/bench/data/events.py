"""Recordings of event sensors, from the folders that the package ``tonic`` keeps them in."""

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

from tssl_adapters.bench.data.images import DATA_ROOTS, Data

CLASSES = {"n-mnist": "NMNIST", "dvs-gesture": "DVSGesture", "shd": "SHD"}
"""Tonic's, by our names."""


def load(name: str, folder: Path | None, num_steps: int) -> Data:
    """Count a data set's events into frames, once: they are kept in the user's cache.

    Args:
        name: one of :data:`CLASSES`.
        folder: the one that was given to tonic as ``save_to``; ``None`` searches the usual places.
        num_steps: frames of equal duration in a recording, from its first event to its last.

    Returns:
        Frames ``[N, T, polarities, height, width]`` of counts up to 255, read from the file as
        they are used.

    Raises:
        ModuleNotFoundError: tonic is not installed.
        FileNotFoundError: the recordings are not there; nothing is downloaded.
    """
    cache = _cache() / f"{name}-{num_steps}-mixed.pt"
    if not cache.is_file():
        parts = [part for train in (True, False) for part in _read(name, folder, num_steps, train)]
        cache.parent.mkdir(parents=True, exist_ok=True)
        unfinished = cache.with_name(f"{cache.name}.{os.getpid()}")
        torch.save(parts, unfinished)
        os.replace(unfinished, cache)
    return Data(*torch.load(cache, weights_only=True, mmap=True))


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root, "tssl_adapters", "bench")


def _read(name: str, folder: Path | None, num_steps: int, train: bool) -> tuple[Tensor, Tensor]:
    """Frames and labels of one part, in an order of chance: some sets come class by class."""
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
    """Tonic's data set, in the first folder that has it, and its sensor's size."""
    try:
        from tonic import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name} is read with tonic; pip install 'tssl_adapters[events]'"
        ) from error

    def refuse(_: object) -> None:
        raise FileNotFoundError

    known = getattr(datasets, CLASSES[name])
    # Of the same name, which is its folder's; it would download what it does not find.
    local = type(known.__name__, (known,), {"download": refuse})
    folders = [root.expanduser() for root in DATA_ROOTS] if folder is None else [folder]
    for candidate in folders:
        try:
            return local(save_to=str(candidate), train=train), known.sensor_size
        except FileNotFoundError:
            continue
    looked_in = "".join(f"  {(candidate / CLASSES[name]).absolute()}\n" for candidate in folders)
    raise FileNotFoundError(
        f"{name} was not found. Looked in:\n{looked_in}"
        f"To get it: python -c \"import tonic; tonic.datasets.{CLASSES[name]}('data')\", "
        "or name the folder that was given to tonic with --data-dir."
    )
