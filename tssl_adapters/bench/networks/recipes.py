"""What the recipes of several networks share: encodings, losses, scores, optimizers."""

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
    """Samples of sequences ``[batch, T, ...]``, time first."""
    return x.transpose(0, 1)


def itself(output: Tensor) -> Tensor:
    """An output ``[batch, classes]`` that is its own scores."""
    return output


def mean_over_time(output: Tensor) -> Tensor:
    """Scores of an output ``[T, batch, classes]``."""
    return output.mean(0)


def most_over_time(output: Tensor) -> Tensor:
    """Scores of an output ``[T, batch, classes]``."""
    return output.amax(0)


def cross_entropy(score: Callable[[Tensor], Tensor], output: Tensor, labels: Tensor) -> Tensor:
    """Of an output's scores."""
    return F.cross_entropy(score(output), labels)


mean_cross_entropy = partial(cross_entropy, mean_over_time)
most_cross_entropy = partial(cross_entropy, most_over_time)


def rate_error(output: Tensor, labels: Tensor) -> Tensor:
    """Mean squared difference of rates ``[T, batch, classes]`` from 1 and 0."""
    return F.mse_loss(output.mean(0), F.one_hot(labels, output.shape[-1]).float())


def adam(lr: float) -> MakeOptimizer:
    """Adam, else as PyTorch has it."""
    return lambda model: Adam(model.parameters(), lr)


def sgd(lr: float) -> MakeOptimizer:
    """Gradient descent with a momentum of 0.9."""
    return lambda model: SGD(model.parameters(), lr, momentum=0.9)


def clipped(make: MakeOptimizer, norm: float = 1.0) -> MakeOptimizer:
    """An optimizer that first scales the gradient down to a norm."""

    def made(model: nn.Module) -> Optimizer:
        optimizer, parameters = make(model), list(model.parameters())

        def clip(*_: object) -> None:
            nn.utils.clip_grad_norm_(parameters, norm)

        optimizer.register_step_pre_hook(clip)
        return optimizer

    return made


@torch.no_grad()
def scaled(linear: nn.Linear, weights: float = 1.0, biases: float = 1.0) -> nn.Linear:
    """A layer whose first weights are so many times torch's."""
    linear.weight.mul_(weights)
    linear.bias.mul_(biases)
    return linear
