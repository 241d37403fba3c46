"""SpikingJelly's model zoo: every public constructor of ``activation_based.model``.

The models are made as small as a constructor allows (32x32 images, two to six steps, a batch of
two, ten classes), with the neuron that the library's own training scripts put in.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn

from zoo import spikingjelly_blocks
from zoo.entry import Entry
from zoo.torchvision_stub import declare_missing_operators

PACKAGE = "spikingjelly.activation_based.model"
IMAGES = (2, 2, 3, 32, 32)
"""[T, batch, channels, height, width]"""
STEPS_APART = (2, 4, 3, 32, 32)
"""Step by step, a norm over a batch of two leaves nothing of a gradient but rounding errors."""
IF = {
    "spiking_neuron": neuron.IFNode,
    "surrogate_function": surrogate.ATan(),
    "detach_reset": True,
    "v_threshold": 0.5,
}
LIF = {**IF, "spiking_neuron": neuron.LIFNode, "tau": 2.0}
PLIF = {**IF, "spiking_neuron": neuron.ParametricLIFNode, "init_tau": 2.0}
VGG11 = [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"]
CONNECTIONS = ("ADD", "AND", "IAND")


def modules() -> Iterator[ModuleType]:
    """The modules of the zoo."""
    declare_missing_operators()
    package = importlib.import_module(PACKAGE)
    for found in pkgutil.iter_modules(package.__path__):
        yield importlib.import_module(f"{PACKAGE}.{found.name}")


def constructors() -> Iterator[tuple[str, Any]]:
    """What a module lists in ``__all__``, and its other public ``nn.Module`` classes."""
    for module in modules():
        short = module.__name__.removeprefix(f"{PACKAGE}.")
        listed = list(module.__all__)
        classes = [
            name
            for name, value in vars(module).items()
            if inspect.isclass(value)
            and issubclass(value, nn.Module)
            and value.__module__ == module.__name__
            and not name.startswith("_")
        ]
        for name in dict.fromkeys([*listed, *classes]):
            yield f"{short}.{name}", getattr(module, name)


def run_sequence(model: Any, x: Tensor) -> Tensor:
    """A whole sequence in one call, from rest."""
    functional.reset_net(model)
    out = model(x)
    return out[0] if isinstance(out, tuple | list) else out  # type: ignore[no-any-return]


def run_steps(model: Any, x: Tensor) -> Tensor:
    """A loop over the steps, from rest; of a pair (online rules, auxiliary heads) the first."""
    functional.reset_net(model)
    outs = [model(step) for step in x]
    return torch.stack([out[0] if isinstance(out, tuple | list) else out for out in outs])


def in_mode(mode: str, build: Callable[..., nn.Module], *args: Any, **settings: Any) -> nn.Module:
    """Build a model and set its step mode, as the library's scripts do."""
    model = build(*args, **settings)
    functional.set_step_mode(model, mode)
    return model


def entries() -> Iterator[Entry]:
    """At least one entry per constructor."""
    for name, build in constructors():
        found = list(_recipes(name, build))
        yield from found or [Entry("spikingjelly", name, None, note="no recipe")]


def _recipes(name: str, build: Any) -> Iterator[Entry]:
    module, short = name.split(".")
    entry = partial(Entry, "spikingjelly", name)
    recipe = _BY_MODULE.get(module)
    if short in spikingjelly_blocks.NOT_MODELS:
        yield entry(None, note=spikingjelly_blocks.NOT_MODELS[short])
    elif name in spikingjelly_blocks.BLOCKS:
        block = spikingjelly_blocks.BLOCKS[name]
        yield entry(partial(in_mode, block.mode, block.make, build), block.run, block.shape)
    elif recipe is not None:
        yield from recipe(short, build, entry)


def _residual(short: str, build: Any, entry: Any) -> Iterator[Entry]:
    """Spike-element-wise networks have three connect functions; their paper uses IFNode."""
    args, settings = _resnet_arguments(short)
    sew = short.lower().startswith("sew")
    for connection in CONNECTIONS if sew else (None,):
        options = {**IF, **settings, "num_classes": 10}
        if connection:
            options["cnf"] = connection
        for mode, run in (("m", run_sequence), ("s", run_steps)):
            if mode == "s" and not short.endswith("18"):
                continue
            variant = [connection] if connection else []
            variant += ["step mode s"] if mode == "s" else []
            make = partial(in_mode, mode, build, *args, **options)
            if connection == "AND":
                make = partial(_excited, make)
            yield entry(make, run, IMAGES if mode == "m" else STEPS_APART, ", ".join(variant))


def _excited(make: Callable[[], nn.Module]) -> nn.Module:
    """Products of spikes vanish over the blocks unless nearly every neuron spikes."""
    model = make()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.constant_(module.bias, 2.0)
    return model


def _resnet_arguments(short: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if short not in ("SEWResNet", "SpikingResNet"):
        return (), {"pretrained": False}
    module = "sew_resnet" if short == "SEWResNet" else "spiking_resnet"
    block = importlib.import_module(f"{PACKAGE}.{module}").BasicBlock
    return (block, [1, 1, 1, 1]), {}


def _vgg(short: str, build: Any, entry: Any) -> Iterator[Entry]:
    args = (VGG11,) if short == "SpikingVGG" else ()
    # Without a norm, the drive shrinks from layer to layer.
    options = LIF if short.endswith("_bn") else {**LIF, "v_threshold": 0.1}
    for mode, run in (("m", run_sequence), ("s", run_steps)):
        if mode == "m" or short.endswith("11"):
            make = partial(in_mode, mode, build, *args, **options, num_classes=10)
            yield entry(make, run, IMAGES, "step mode s" if mode == "s" else "")


_PLIF_SHAPES = {
    "MNISTNet": (1, 28, 28),
    "FashionMNISTNet": (1, 28, 28),
    "NMNISTNet": (2, 34, 34),
    "CIFAR10Net": (3, 32, 32),
    "CIFAR10DVSNet": (2, 128, 128),
    "DVSGestureNet": (2, 128, 128),
}


def _plif(short: str, build: Any, entry: Any) -> Iterator[Entry]:
    shape = (2, 2, *_PLIF_SHAPES[short])
    for mode, run in (("m", run_sequence), ("s", run_steps)):
        make = partial(in_mode, mode, build, channels=16, **PLIF)
        yield entry(make, run, shape, "step mode s" if mode == "s" else "")


def _ottt(short: str, build: Any, entry: Any) -> Iterator[Entry]:
    """Networks for OTTT's neuron and container; with a plain LIFNode the same network uses BPTT."""
    args = (VGG11,) if short == "OTTTSpikingVGG" else ()
    classes = [neuron.OTTTLIFNode]
    if short in ("OTTTSpikingVGG", "ottt_spiking_vggws"):  # the small ones
        classes.append(neuron.LIFNode)
    for cls in classes:
        settings = {"spiking_neuron": cls, "num_classes": 10, "v_threshold": 0.2}
        make = partial(in_mode, "s", build, *args, **settings)
        yield entry(make, run_steps, IMAGES, cls.__name__)


_OWN_NEURON: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "MASNN": ({"reduction_t": 1}, (5, 2, 2, 32, 32)),
    "masnn_dvs128_gesture": ({}, (10, 2, 2, 32, 32)),
    "Spikformer": (
        {"img_size_h": 32, "img_size_w": 32, "patch_size": 4, "embed_dims": 64, "depths": 2},
        IMAGES,
    ),
    "spikformer_ti": ({"img_size_h": 32, "img_size_w": 32}, IMAGES),
    "spikformer_s": ({"img_size_h": 32, "img_size_w": 32}, IMAGES),
    "QKFormer": ({"embed_dims": 192, "depths": (1, 1, 1)}, IMAGES),
    "MaxFormer": ({"embed_dims": 128, "depths": (1, 1, 1)}, IMAGES),
    "SpikeDrivenTransformer": ({"embed_dims": 64, "depths": 2}, IMAGES),
}


def _own_neuron(short: str, build: Any, entry: Any) -> Iterator[Entry]:
    """Models with their own neuron, in step mode "m" only."""
    settings, shape = _OWN_NEURON.get(short, ({}, IMAGES))
    options = {"T": shape[0], "num_classes": 10, "v_threshold": 0.25, **settings}
    yield entry(partial(_opened, build, **options), run_sequence, shape)


def _opened(build: Callable[..., nn.Module], **settings: Any) -> nn.Module:
    """Open residual branches that start closed, with a norm weight of 0: their layers would have
    no gradient before the second training step.
    """
    model = build(**settings)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.weight.any():
            nn.init.constant_(module.weight, 0.5)
    return model


_BY_MODULE: dict[str, Callable[[str, Any, Any], Iterator[Entry]]] = {
    "sew_resnet": _residual,
    "spiking_resnet": _residual,
    "spiking_vgg": _vgg,
    "parametric_lif_net": _plif,
    "spiking_vggws_ottt": _ottt,
    **dict.fromkeys(
        (
            "masnn",
            "maxformer",
            "ms_resnet",
            "qkformer",
            "spike_driven_transformer",
            "spikformer",
        ),
        _own_neuron,
    ),
}
