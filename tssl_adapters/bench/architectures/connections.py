"""The connections between the neurons, the same modules in every library."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from tssl_adapters.bench.known import BETWEEN, CONVOLUTION, POOL, PRESETS
from tssl_adapters.bench.method import SumPool2d


def hidden_sizes(network: str) -> list[int]:
    """The layer sizes in a name such as ``400-400``.

    Raises:
        ValueError: the name is not of this form.
    """
    sizes = network.split(BETWEEN)
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise ValueError(f"--network must be cnn or sizes such as 400-400, not {network}")
    return [int(size) for size in sizes]


def connections(network: str, shape: Sequence[int], num_classes: int) -> list[nn.Module]:
    """One module before each layer of neurons, including the output layer.

    Args:
        network: the layers in the paper's notation, such as ``400-400`` or
            ``32C5p2-P2-64C5p2-P2-1024``: convolutions of 32 channels, 5 x 5, padded by 2, and sum
            pooling over 2 x 2, then 1024 neurons; or a name in :data:`PRESETS`.
        shape: channels, height and width of the input.
        num_classes: neurons of the output layer.

    Raises:
        ValueError: the notation is not understood, or an image is too small for the network.
    """
    channels, height, width = shape
    found: list[nn.Module] = []
    before: list[nn.Module] = []
    parts = PRESETS.get(network, network).split(BETWEEN)
    spatial = [part for part in parts if not part.isdecimal()]
    if parts[: len(spatial)] != spatial:
        raise _not_understood(network)
    for part in spatial:
        convolution = CONVOLUTION.fullmatch(part)
        if part == POOL:
            before.append(SumPool2d())
            height, width = height // 2, width // 2
        elif convolution:
            outputs, kernel, padding = (int(number or 0) for number in convolution.groups())
            layer = nn.Conv2d(channels, outputs, kernel, padding=padding, bias=False)
            found.append(nn.Sequential(*before, layer))
            channels, before = outputs, []
            height, width = (side + 2 * padding - kernel + 1 for side in (height, width))
        else:
            raise _not_understood(network)
        if min(height, width) < 1:
            raise ValueError(f"--network {network} is too deep for images of {shape[1:]}")
    sizes = [channels * height * width, *map(int, parts[len(spatial) :]), num_classes]
    for inputs, outputs in pairwise(sizes):
        found.append(nn.Sequential(*before, nn.Flatten(), nn.Linear(inputs, outputs, bias=False)))
        before = []
    return found


def _not_understood(network: str) -> ValueError:
    return ValueError(
        f"--network must be one of {', '.join(PRESETS)} or layers such as 400-400 or "
        f"15C5-P2-40C5-P2-300, not {network}"
    )
