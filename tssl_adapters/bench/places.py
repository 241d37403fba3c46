"""Where the data files are. Needs no torch, so missing files are reported at once."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
TORCHVISION = {"Fashion-MNIST": Path("FashionMNIST", "raw"), "MNIST": Path("MNIST", "raw")}
DATASETS_FOLDER = Path("/usr/share/datasets")  # Debian's
DATA_ROOTS = (Path("."), Path("data"), Path("~/data"), Path("~/datasets"))
SETS = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
TONIC = {"n-mnist": "NMNIST", "dvs-gesture": "DVSGesture", "shd": "SHD"}
"""Tonic's names, by ours."""


def check(name: str, folder: Path | None, num_steps: int) -> Path | None:
    """Check that a data set's files are there; they are not read.

    Returns the folder, or the file of cached frames; ``None`` for data that comes with a package.

    Args:
        name: one of ``bench.known.DATA``.
        folder: where its files are; ``None`` searches the usual places.
        num_steps: time steps into which events are binned.

    Raises:
        FileNotFoundError: they were not found; says where it looked and how to get them.
        ModuleNotFoundError: the package that reads them is not installed.
    """
    if name in SETS:
        return find_idx_files(SETS[name], folder)
    if name not in TONIC:
        return None
    if (frames := cached(name, num_steps)).is_file():
        return frames
    if find_spec("tonic") is None:
        raise _no_tonic(name)
    for root in roots(folder):
        if (recordings := root / TONIC[name]).is_dir():
            return recordings
    raise no_recordings(name, folder)


def roots(folder: Path | None) -> list[Path]:
    """The folders that may hold tonic's data."""
    return [root.expanduser() for root in DATA_ROOTS] if folder is None else [folder]


def cached(name: str, num_steps: int) -> Path:
    """The file of cached frames of an event data set."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root, "tssl_adapters", "bench", f"{name}-{num_steps}-mixed.pt")


def _no_tonic(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"{name} is read with tonic, which is not installed; python -m pip install "
        "'tssl-adapters[events]'",
        name="tonic",
    )


def no_recordings(name: str, folder: Path | None) -> FileNotFoundError:
    """The error for a missing or incomplete tonic folder."""
    looked_in = ", ".join(str((root / TONIC[name]).absolute()) for root in roots(folder))
    return FileNotFoundError(
        f"{name}'s recordings are not in {looked_in}; name the folder that was given to tonic "
        f'with --data-dir, or get them: python -c "import tonic; '
        f"tonic.datasets.{TONIC[name]}('data')\""
    )


def find_idx_files(name: str, folder: Path | None) -> Path:
    """The first folder with all four files of a data set, as ``FILE`` or ``FILE.gz``.

    ``name`` is Fashion-MNIST or MNIST, ``folder`` holds the files or is torchvision's root.
    """
    inside = TORCHVISION[name]
    if folder is None:  # not the roots themselves: the files of both sets have the same names
        roots = [root.expanduser() / inside for root in DATA_ROOTS]
        folders = [DATASETS_FOLDER / name.lower(), *roots]
    else:
        folders = [folder, folder / inside]
    for candidate in folders:
        if all(idx_file(candidate, file).is_file() for file in IDX_FILES):
            return candidate
    raise FileNotFoundError(
        f"{name}'s four files, {IDX_FILES[0]} and so on, as they are or with .gz, are not in "
        f"{', '.join(str(candidate.absolute()) for candidate in folders)}; name their folder "
        f"with --data-dir, or get them: {_how_to_get(name)}"
    )


def _how_to_get(name: str) -> str:
    torchvision = (
        f'python -c "import torchvision; torchvision.datasets.{TORCHVISION[name].parts[0]}'
        "('data', download=True)\""
    )
    if name == "MNIST":
        return torchvision
    return f"apt-get install dataset-fashion-mnist (Debian), or {torchvision}"


def idx_file(folder: Path, name: str) -> Path:
    """One of the files, gzipped or not."""
    raw = folder / name
    return raw if raw.is_file() else folder / f"{name}.gz"
