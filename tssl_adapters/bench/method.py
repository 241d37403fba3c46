"""The training set-up of the TSSL-BP paper, for images and for events.

W. Zhang and P. Li, NeurIPS 2020, and the authors' code: tau_m = 5, theta = 1, layers without bias.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tssl_adapters import losses
from tssl_adapters.bench.known import LATENCY

TAU_M = 5.0
PIXEL_MEAN, PIXEL_DEVIATION = 0.1307, 0.3081  # MNIST's, used by the authors for every data set
MAX_WEIGHT = 4.0
MAX_GRADIENT_NORM = 1.0
LATENCY_TAU = 2.0  # in time steps
FIRED = -1e9  # reset far enough down to prevent a second spike
MEAN_LOSSES = ("cross-entropy", LATENCY)  # the others are summed, as the authors do


def encode(samples: Tensor, num_steps: int, tau_s: float, once: bool = False) -> Tensor:
    """Encode samples as float input ``[T, batch, ...]``, filtered by the PSC recursion.

    ``samples`` are bytes: pixels ``[batch, channels, height, width]``, normalised and repeated for
    T steps, or event counts ``[batch, T, channels, height, width]``. With ``once`` each pixel is a
    single spike instead, see :func:`latencies`.
    """
    if once:
        return latencies(samples, num_steps)
    if samples.dim() == 5:
        return losses.psc(samples.transpose(0, 1).float(), tau_s)
    pixels = (samples / 255 - PIXEL_MEAN) / PIXEL_DEVIATION
    return losses.psc(pixels.expand(num_steps, *pixels.shape), tau_s)


def latencies(pixels: Tensor, num_steps: int) -> Tensor:
    """One spike per pixel, earlier for brighter ones, as floats ``[T, batch, ...]``.

    A byte p > 0 of ``pixels`` ``[batch, channels, height, width]`` fires at step (1 - p/255) T/2,
    rounded, which leaves the second half of the window for its effects; 0 never fires.
    """
    times = torch.round((1 - pixels / 255) * (num_steps / 2))
    steps = torch.arange(num_steps, device=pixels.device).reshape(-1, *(1 for _ in pixels.shape))
    return ((steps == times) & (pixels > 0)).float()


class SumPool2d(nn.Module):
    """Sum over 2 x 2 pixels, times 1.1, as the authors pool: ``[..., channels, height, width]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Halve height and width."""
        pooled = F.avg_pool2d(x.flatten(0, -4), kernel_size=2, divisor_override=1)
        return 1.1 * pooled.reshape(*x.shape[:-2], *pooled.shape[-2:])


def init_weights(model: nn.Module, seed: int, once: bool = False) -> None:
    """Draw the weights as the authors do; the same ``seed`` gives the same ones in each library.

    For neurons that fire ``once`` their mean is positive, or most neurons would never fire.
    """
    torch.manual_seed(seed)
    for module in model.modules():
        if once and isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, 1 / fan_in, 0.2 / fan_in**0.5)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Conv2d):
            module.reset_parameters()


def scores(name: str, output: Tensor) -> Tensor:
    """The class scores that a loss uses: ``[T, batch, classes]`` to ``[batch, classes]``.

    The output summed over time; for ``latency`` sum_t (T - t) s[t] / tau, which for a single spike
    is the time left in the window. This is a ramp in t, and so is its gradient G[t]: any rule can
    use it, and its forward difference, as in STDBP, is the gradient of the spike time.
    """
    if name != LATENCY:
        return output.sum(0)
    left = torch.arange(len(output), 0, -1, dtype=output.dtype, device=output.device)
    ranked: Tensor = torch.tensordot(left, output, 1) / LATENCY_TAU
    return ranked


def batch_loss(name: str, output: Tensor, labels: Tensor, tau_s: float) -> Tensor:
    """The loss of ``output`` ``[T, batch, classes]`` under ``labels`` ``[batch]``, a scalar.

    For :data:`MEAN_LOSSES` the batch mean of the cross-entropy of :func:`scores`, else a sum over
    the batch.
    """
    num_steps, _, num_classes = output.shape
    if name == "kernel":
        target = losses.target_spike_train(labels, num_steps, num_classes)
        return losses.psc_kernel_loss(output, target, tau_s)
    if name == "count":
        counts = losses.target_spike_counts(labels, num_classes, wanted=num_steps - 1, others=1)
        return losses.spike_count_loss(output, counts)
    return F.cross_entropy(scores(name, output), labels)
