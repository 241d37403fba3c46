"""The training set-up of the TSSL-BP paper, for images and for events.

W. Zhang and P. Li, NeurIPS 2020, and the authors' code: tau_m = 5, theta = 1, layers without bias.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tssl_adapters import losses

TAU_M = 5.0
PIXEL_MEAN, PIXEL_DEVIATION = 0.1307, 0.3081  # MNIST's, which the authors use for every data set
MAX_WEIGHT = 4.0
MAX_GRADIENT_NORM = 1.0
MEAN_LOSS = "cross-entropy"  # the others are summed over the batch, as the authors do
FEWEST_STEPS = {"kernel": 2, "cross-entropy": 1, "count": 3}
"""The losses, and the time steps in which their targets differ."""


def encode(samples: Tensor, num_steps: int, tau_s: float) -> Tensor:
    """What a network receives, as floats ``[T, batch, ...]``, filtered by the PSC recursion.

    ``samples`` are bytes: pixels ``[batch, channels, height, width]``, normalised and repeated over
    T steps, or counts of events ``[batch, T, channels, height, width]``.
    """
    if samples.dim() == 5:
        return losses.psc(samples.transpose(0, 1).float(), tau_s)
    pixels = (samples / 255 - PIXEL_MEAN) / PIXEL_DEVIATION
    return losses.psc(pixels.expand(num_steps, *pixels.shape), tau_s)


class SumPool2d(nn.Module):
    """Sum over 2 x 2 pixels, times 1.1, as the authors pool: ``[..., channels, height, width]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Halve height and width."""
        pooled = F.avg_pool2d(x.flatten(0, -4), kernel_size=2, divisor_override=1)
        return 1.1 * pooled.reshape(*x.shape[:-2], *pooled.shape[-2:])


def init_weights(model: nn.Module, seed: int) -> None:
    """Draw the weights as the authors do, the same in each library for the same ``seed``."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Conv2d):
            module.reset_parameters()


def batch_loss(name: str, output: Tensor, labels: Tensor, tau_s: float) -> Tensor:
    """The loss of ``output`` ``[T, batch, classes]`` under ``labels`` ``[batch]``, a scalar.

    Its mean for cross-entropy on the output summed over time, else summed over the batch.
    """
    num_steps, _, num_classes = output.shape
    if name == "kernel":
        target = losses.target_spike_train(labels, num_steps, num_classes)
        return losses.psc_kernel_loss(output, target, tau_s)
    if name == "count":
        counts = losses.target_spike_counts(labels, num_classes, wanted=num_steps - 1, others=1)
        return losses.spike_count_loss(output, counts)
    return F.cross_entropy(output.sum(0), labels)
