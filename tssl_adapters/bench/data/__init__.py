"""The data sets, as tensors of bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tssl_adapters.bench.data import images
from tssl_adapters.bench.data.images import Data
from tssl_adapters.bench.known import EVENTS

Loader = Callable[[Path | None, int], Data]


def _events(name: str, folder: Path | None, num_steps: int) -> Data:
    from tssl_adapters.bench.data import events  # needs more than the examples require

    return events.load(name, folder, num_steps)


LOADERS: dict[str, Loader] = {
    "digits": lambda folder, steps: images.digits(),
    "mnist5k": lambda folder, steps: images.mnist5k(),
    "mnist": lambda folder, steps: images.mnist(folder),
    "fashion-mnist": lambda folder, steps: images.fashion_mnist(folder),
    **{name: partial(_events, name) for name in EVENTS},
}
"""Loaders by name; each takes the folder of the files, or ``None``, and the number of steps."""


def load(
    name: str,
    folder: Path | None,
    num_steps: int,
    limit: int | None = None,
    validation: int | None = None,
) -> Data:
    """Read a data set.

    Args:
        name: one of :data:`LOADERS`.
        folder: where its files are; ``None`` searches the usual places.
        num_steps: time steps into which events are binned; images do not depend on it.
        limit: keep only the first samples of both parts.
        validation: first replace the test set by this many of the last training samples.

    Raises:
        FileNotFoundError: the files were not found; says where it looked.
        ValueError: ``validation`` leaves nothing to train on.
        ModuleNotFoundError: the package that reads them is not installed.
    """
    return LOADERS[name](folder, num_steps).held_out(validation).first(limit)


__all__ = ["LOADERS", "Data", "load"]
