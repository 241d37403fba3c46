"""What several recipes share: encodings, losses, scores, optimizers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

MakeOptimizer = Callable[[nn.Module], Optimizer]


def repeated(x: Tensor, num_steps: int, gain: float = 1.0) -> Tensor:
    """Samples ``[batch, ...]`` as a constant drive ``[T, batch, ...]``."""
    return (gain * x).expand(num_steps, *x.shape)


def rows(x: Tensor) -> Tensor:
    """Images ``[batch, 1, height, width]`` row by row, ``[height, batch, width]``."""
    return x.squeeze(1).transpose(0, 1)


def in_time(x: Tensor) -> Tensor:
    """Sequences ``[batch, T, ...]``, transposed to time first."""
    return x.transpose(0, 1)


def itself(output: Tensor) -> Tensor:
    """Scores of an output ``[batch, classes]``: the output itself."""
    return output


def mean_over_time(output: Tensor) -> Tensor:
    """Scores of an output ``[T, batch, classes]``: its mean over time."""
    return output.mean(0)


def most_over_time(output: Tensor) -> Tensor:
    """Scores of an output ``[T, batch, classes]``: its maximum over time."""
    return output.amax(0)


def cross_entropy(score: Callable[[Tensor], Tensor], output: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of an output's scores."""
    return F.cross_entropy(score(output), labels)


mean_cross_entropy = partial(cross_entropy, mean_over_time)
most_cross_entropy = partial(cross_entropy, most_over_time)


def rate_error(output: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error of the rates of ``[T, batch, classes]`` to 1 and 0."""
    return F.mse_loss(output.mean(0), F.one_hot(labels, output.shape[-1]).float())


def adam(lr: float) -> MakeOptimizer:
    """Adam, otherwise with PyTorch's defaults."""
    return lambda model: Adam(model.parameters(), lr)


def sgd(lr: float) -> MakeOptimizer:
    """SGD with momentum 0.9."""
    return lambda model: SGD(model.parameters(), lr, momentum=0.9)


def clipped(make: MakeOptimizer, norm: float = 1.0) -> MakeOptimizer:
    """An optimizer that first clips the gradient to a norm."""

    def made(model: nn.Module) -> Optimizer:
        optimizer, parameters = make(model), list(model.parameters())

        def clip(*_: object) -> None:
            nn.utils.clip_grad_norm_(parameters, norm)

        optimizer.register_step_pre_hook(clip)
        return optimizer

    return made


@torch.no_grad()
def scaled(linear: nn.Linear, weights: float = 1.0, biases: float = 1.0) -> nn.Linear:
    """A layer with its initial weights and biases scaled."""
    linear.weight.mul_(weights)
    linear.bias.mul_(biases)
    return linear
