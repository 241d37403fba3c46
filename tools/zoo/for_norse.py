"""Norse's own ``norse.torch.models``, and networks in the manner of its tasks and examples.

Its examples use pytorch-lightning and data sets; here are the networks alone, small. Norse's
default neuron needs a strong drive, so thresholds are lower and rates higher than its defaults.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import norse.torch as norse
import torch
from norse.torch.functional.lif import LIFParameters
from norse.torch.functional.lif_box import LIFBoxParameters
from norse.torch.functional.lif_refrac import LIFRefracParameters
from norse.torch.functional.lsnn import LSNNParameters
from torch import nn

from zoo.entry import Entry
from zoo.norse_networks import Encoded, Pair, Readout, Recurrent, Regularised, Stacked, first

MODULES = ("conv", "vgg", "mobilenet")
STEPS, BATCH = 8, 2
FLAT = (STEPS, BATCH, 40)
MOVIE = (STEPS, BATCH, 3, 16, 16)
DIGITS = (STEPS, BATCH, 1, 28, 28)
T = torch.as_tensor
P = LIFParameters(tau_mem_inv=T(300.0), v_th=T(0.2))


def conv_classifier() -> nn.Module:
    """Digits: two convolutions, a hidden layer, a leaky readout; one step at a time."""
    return Stacked(
        norse.SequentialState(
            nn.Conv2d(1, 8, 5), norse.LIFCell(P), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 5), norse.LIFCell(P), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(16 * 4 * 4, 32), norse.LIFCell(P),
            norse.LILinearCell(32, 10),
        )
    )  # fmt: skip


def conv_classifier_encoded() -> nn.Module:
    """The same for a still image, encoded as spikes by a constant current."""
    return Encoded(norse.ConstantCurrentLIFEncoder(STEPS), conv_classifier(), gain=20.0)


def conv_classifier_poisson() -> nn.Module:
    """The same with Poisson encoding."""
    return Encoded(norse.PoissonEncoder(STEPS, f_max=400.0), conv_classifier())


def _block(inputs: int, outputs: int, p: Any = P) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), norse.LIFCell(p)]


def colour_images() -> nn.Module:
    """Features and a classifier, each its own ``SequentialState``."""
    features = norse.SequentialState(
        *_block(3, 16), *_block(16, 32), nn.MaxPool2d(2), *_block(32, 32), nn.MaxPool2d(2),
        nn.Flatten(),
    )  # fmt: skip
    classifier = norse.SequentialState(nn.Linear(32 * 16, 10, bias=False), norse.LICell())
    return Stacked(norse.SequentialState(features, classifier))


def lifted_vgg() -> nn.Module:
    """A VGG-like stack over whole sequences: lifted layers between ``LIF`` modules."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        norm, pool = nn.BatchNorm2d(outputs), nn.MaxPool2d(2)
        return [norse.Lift(convolution), norse.Lift(norm), norse.LIF(P), norse.Lift(pool)]

    head = [norse.Lift(nn.Flatten()), norse.Lift(nn.Linear(32 * 16, 10)), norse.LI()]
    return Readout(norse.SequentialState(*block(3, 16), *block(16, 32), *head))


def box_network() -> nn.Module:
    """Neurons without a synaptic current."""
    p = LIFBoxParameters(tau_mem_inv=T(300.0), v_th=T(0.1))
    return Stacked(
        norse.SequentialState(
            nn.Linear(40, 32), norse.LIFBoxCell(p), nn.Linear(32, 10), norse.LIBoxCell()
        )
    )


def regularised() -> nn.Module:
    """Counts the spikes between two layers, for a regularisation term in the loss."""
    before = norse.SequentialState(nn.Linear(40, 32), norse.LIFCell(P))
    return Regularised(before, norse.RegularizationCell(), nn.Linear(32, 10))


def recurrent_cell(name: str) -> nn.Module:
    """A recurrent cell and a leaky readout, step by step: speech commands, memory tasks."""
    cell = getattr(norse, name)(40, 32, p=_parameters(name))
    return Recurrent(cell, norse.LILinearCell(32, 10))


def _parameters(name: str) -> Any:
    if name.startswith("LSNN"):
        return LSNNParameters(tau_mem_inv=T(300.0), v_th=T(0.2), alpha=T(100.0))
    if name.startswith("LIFRefrac"):
        return LIFRefracParameters(lif=P)
    return P


def recurrent_sequence() -> nn.Module:
    """A recurrent layer over whole sequences."""
    return Readout(norse.SequentialState(norse.LIFRecurrent(40, 32, p=P), norse.LI()))


def store_and_recall() -> nn.Module:
    """Half of the recurrent neurons have adaptive thresholds."""
    adaptive = norse.LSNNRecurrentCell(40, 16, p=_parameters("LSNN"))
    return Recurrent(
        Pair(norse.LIFRecurrentCell(40, 16, p=P), adaptive), norse.LILinearCell(32, 10)
    )


def pole_policy() -> nn.Module:
    """Control: encoded observations of both signs, a recurrent layer, dropout, the peak voltage."""
    encoder = norse.ConstantCurrentLIFEncoder(STEPS)
    cell = norse.LIFRecurrentCell(8, 32, p=P)
    return Encoded(encoder, Recurrent(cell, norse.LILinearCell(32, 2), 0.5), 50.0, signed=True)


def feed_forward(name: str) -> nn.Module:
    """Two layers of the same kind of cell."""
    kinds: dict[str, Callable[[], nn.Module]] = {
        "LIFRefracCell": lambda: norse.LIFRefracCell(LIFRefracParameters(lif=P)),
        "LSNNCell": lambda: norse.LSNNCell(_parameters("LSNN")),
    }
    make = kinds.get(name, getattr(norse, name))
    return Stacked(
        norse.SequentialState(nn.Linear(40, 32), make(), nn.Linear(32, 10), make()), gain=20.0
    )


def adjoint_network() -> nn.Module:
    """Norse's adjoint method instead of autograd through a surrogate."""
    p = P._replace(method="adjoint")
    cells = (norse.LIFCell(p), norse.LIFCell(p))
    return Stacked(norse.SequentialState(nn.Linear(40, 32), cells[0], nn.Linear(32, 10), cells[1]))


class Model(NamedTuple):
    """A builder, its input shape, and the setting it takes."""

    build: Callable[..., nn.Module]
    shape: tuple[int, ...] = FLAT
    setting: str = ""


BUILDERS = [
    Model(conv_classifier, DIGITS),
    Model(conv_classifier_encoded, DIGITS[1:]),
    Model(conv_classifier_poisson, DIGITS[1:]),
    Model(colour_images, MOVIE),
    Model(lifted_vgg, MOVIE),
    Model(box_network),
    Model(regularised),
    Model(recurrent_cell, setting="LIFRecurrentCell"),
    Model(recurrent_cell, setting="LIFRefracRecurrentCell"),
    Model(recurrent_cell, setting="LSNNRecurrentCell"),
    Model(recurrent_sequence),
    Model(store_and_recall),
    Model(pole_policy, (BATCH, 4)),
    *(
        Model(feed_forward, setting=name)
        for name in ("IAFCell", "LIFExCell", "LIFAdExCell", "LIFRefracCell", "LSNNCell")
    ),
    Model(adjoint_network),
]


def library_constructors() -> Iterator[tuple[str, Any]]:
    """``__all__`` of the modules of ``norse.torch.models``, else their public classes."""
    for short in MODULES:
        module = importlib.import_module(f"norse.torch.models.{short}")
        own = [
            name
            for name, value in vars(module).items()
            if inspect.isclass(value)
            and value.__module__ == module.__name__
            and not name.startswith("_")
        ]
        for name in dict.fromkeys([*getattr(module, "__all__", []), *own]):
            yield f"models.{short}.{name}", getattr(module, name)


def _library_entry(name: str, build: Any) -> Entry:
    short = name.split(".")[-1]
    entry = partial(Entry, "norse", name, run=first)
    images = (2, 2, 3, 32, 32)
    special: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
        "ConvNet": (build, DIGITS),
        "ConvNet4": (build, DIGITS),
        "VGG": (lambda: build(nn.Identity(), num_classes=10), (2, 2, 512, 7, 7)),
        "ConvBNReLU": (lambda: build(3, 8, nn.BatchNorm2d), images),
        "InvertedResidual": (lambda: build(3, 3, 1, 6, nn.BatchNorm2d), images),
    }
    make, shape = special.get(short, (partial(build, num_classes=10), images))
    return entry(partial(_lively, make), shape=shape)


def _lively(make: Callable[[], nn.Module]) -> nn.Module:
    """Lower the threshold, which models do not expose; at its default, deep layers stay silent."""
    model = make()
    for module in model.modules():
        if isinstance(module, norse.LIF | norse.LIFCell):
            module.p = module.p._replace(tau_mem_inv=T(1000.0), v_th=T(0.2))
    return model


def entries() -> Iterator[Entry]:
    """The library's models, then one entry per builder."""
    for name, build in library_constructors():
        yield _library_entry(name, build)
    for model in BUILDERS:
        make = partial(model.build, model.setting) if model.setting else model.build
        yield Entry("norse", model.build.__name__, make, first, model.shape, model.setting)
