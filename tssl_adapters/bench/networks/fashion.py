"""Larger networks of the three libraries on Fashion-MNIST: a residual net, a transformer, two CNNs.

The data files must already be there; these networks are run only when named.
Few time steps, and smaller images where a network allows them, keep a run to minutes on one core.
Each library is imported when one of its networks is built.
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from tssl_adapters.bench.data import images
from tssl_adapters.bench.networks.recipes import (
    adam,
    mean_cross_entropy,
    mean_over_time,
    most_cross_entropy,
    most_over_time,
    repeated,
    sgd,
)
from tssl_adapters.bench.networks.spec import Network, Split

TRAIN, TEST = 10_000, 2_000
EPOCHS = 4
MEAN, DEVIATION = 0.286, 0.353
"""Mean and standard deviation of Fashion-MNIST's pixels."""


@cache
def clothes(folder: Path | None) -> Split:
    """The first images of both parts, ``[N, 1, 28, 28]`` from 0 to 1."""
    data = images.fashion_mnist(folder)
    return Split(
        data.train_images[:TRAIN] / 255,
        data.train_labels[:TRAIN],
        data.test_images[:TEST] / 255,
        data.test_labels[:TEST],
    )


@cache
def small_clothes(folder: Path | None) -> Split:
    """The same, pooled to ``[N, 1, 14, 14]``."""
    train_x, train_y, test_x, test_y = clothes(folder)
    return Split(F.avg_pool2d(train_x, 2), train_y, F.avg_pool2d(test_x, 2), test_y)


def sew_resnet18() -> nn.Module:
    """SpikingJelly's SEW ResNet-18, ``[T, batch, 3, height, width]`` to ``[T, batch, classes]``.

    Raises:
        ImportError: something that SpikingJelly needs for it cannot be imported.
    """
    from spikingjelly.activation_based import functional, neuron, surrogate

    try:
        from spikingjelly.activation_based.model import sew_resnet
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise ImportError(
            f"SpikingJelly's SEW ResNet needs torchvision, which cannot be imported: {error}"
        ) from error
    model: nn.Module = sew_resnet.sew_resnet18(
        cnf="ADD",
        spiking_neuron=neuron.IFNode,
        surrogate_function=surrogate.ATan(),
        detach_reset=True,
        num_classes=10,
    )
    functional.set_step_mode(model, "m")
    return model


def spikformer() -> nn.Module:
    """SpikingJelly's Spikformer with two blocks, for images of 14 x 14: 16 tokens."""
    from spikingjelly.activation_based.model.spikformer import Spikformer

    model: nn.Module = Spikformer(
        in_channels=1,
        img_size_h=14,
        img_size_w=14,
        patch_size=4,
        num_classes=10,
        embed_dims=64,
        num_heads=4,
        depths=2,
    )
    return model


def snntorch_conv() -> nn.Module:
    """The network of snnTorch's tutorial 6, with max pooling before the neurons."""
    import snntorch
    from snntorch import surrogate

    from tssl_adapters.bench.networks.snntorch import Net

    connections = [
        nn.Sequential(nn.Conv2d(1, 12, 5), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(12, 64, 5), nn.MaxPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(64 * 4 * 4, 10)),
    ]
    spike_grad = surrogate.fast_sigmoid(slope=25)
    return Net(connections, [snntorch.Leaky(0.5, spike_grad=spike_grad) for _ in connections])


def norse_conv() -> nn.Module:
    """The network of Norse's README for 14 x 14 images, with the gain of its ``ConvNet``."""
    import norse.torch as norse

    from tssl_adapters.bench.architectures.norse import Gain

    model: nn.Module = norse.SequentialState(
        nn.Conv2d(1, 20, 5, padding=2), norse.LIFCell(), nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5, padding=2), Gain(10.0), norse.LIFCell(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(50 * 3 * 3, 10), norse.LICell(),
    )  # fmt: skip
    return model


def run_sew_resnet(model: nn.Module, x: Tensor) -> Tensor:
    """Grey images, repeated in the three channels that the network expects, for two steps."""
    from tssl_adapters.bench.architectures.spikingjelly import run

    return run(model, repeated(x.expand(-1, 3, -1, -1), 2))


def run_spikformer(model: nn.Module, x: Tensor) -> Tensor:
    """Images for two steps."""
    from tssl_adapters.bench.architectures.spikingjelly import run

    return run(model, repeated(x, 2))


def run_snntorch_conv(model: nn.Module, x: Tensor) -> Tensor:
    """Images for ten steps; the output layer's spikes."""
    output: Tensor = model(repeated(x, 10)).spikes
    return output


def run_norse_conv(model: nn.Module, x: Tensor) -> Tensor:
    """Normalised images for eight steps."""
    from tssl_adapters.bench.architectures.norse import run

    return run(model, repeated((x - MEAN) / DEVIATION, 8))


def rate_cross_entropy(output: Tensor, labels: Tensor) -> Tensor:
    """snnTorch's rate loss: the cross-entropy of each step's spikes, averaged over time."""
    from snntorch import functional

    loss: Tensor = functional.ce_rate_loss()(output, labels).squeeze()
    return loss


def adamw(model: nn.Module) -> Optimizer:
    """As Spikformer is trained on CIFAR10."""
    return AdamW(model.parameters(), 5e-4, weight_decay=0.06)


fashion = partial(Network, kind="fashion", epochs=EPOCHS)

NETWORKS = (
    fashion(  # the recipe of the library's ImageNet example
        name="spikingjelly-fashion-sew-resnet18",
        library="spikingjelly",
        data=small_clothes,
        build=sew_resnet18,
        forward=run_sew_resnet,
        loss=mean_cross_entropy,
        score=mean_over_time,
        optimizer=sgd(0.1),
        batch_size=64,
    ),
    fashion(
        name="spikingjelly-fashion-spikformer",
        library="spikingjelly",
        data=small_clothes,
        build=spikformer,
        forward=run_spikformer,
        loss=mean_cross_entropy,
        score=mean_over_time,
        optimizer=adamw,
        batch_size=64,
    ),
    fashion(  # tutorial 6
        name="snntorch-fashion-conv",
        library="snntorch",
        data=clothes,
        build=snntorch_conv,
        forward=run_snntorch_conv,
        loss=rate_cross_entropy,
        score=mean_over_time,
        optimizer=adam(1e-2),
        batch_size=128,
    ),
    fashion(  # the example on MNIST
        name="norse-fashion-conv",
        library="norse",
        data=small_clothes,
        build=norse_conv,
        forward=run_norse_conv,
        loss=most_cross_entropy,
        score=most_over_time,
        optimizer=adam(2e-3),
        batch_size=64,
    ),
)
