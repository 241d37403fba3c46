"""Which of torch's layers may see all steps of a sequence as one batch, ``[T * batch, ...]``.

A layer may if each sample's output depends on that sample alone and nothing is remembered.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from torch import nn
from torch.nn.utils import parametrize

How: TypeAlias = Literal["folded", "stepped"]

_DIMENSIONS = ("1d", "2d", "3d")


def _named(*names: str) -> set[type[nn.Module]]:
    """Layers by name; a name that ends in ``Nd`` stands for one, two and three dimensions."""
    every = [name[:-2] + d for name in names if name.endswith("Nd") for d in _DIMENSIONS] + [
        name for name in names if not name.endswith("Nd")
    ]
    return {getattr(nn, name) for name in every if hasattr(nn, name)}


_ELEMENTWISE = _named(
    *("CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU"),
    *(
        "LogSigmoid",
        "Mish",
        "PReLU",
        "ReLU",
        "ReLU6",
        "RReLU",
        "SELU",
        "SiLU",
        "Sigmoid",
        "Softplus",
    ),
    *("Softshrink", "Softsign", "Tanh", "Tanhshrink", "Threshold", "Identity"),
)
_DROPOUT = _named("Dropout", "DropoutNd", "AlphaDropout", "FeatureAlphaDropout")
_BY_SAMPLE = _named(
    *("Linear", "Embedding", "ConvNd", "ConvTransposeNd", "Fold", "Unfold"),
    *("AvgPoolNd", "LPPoolNd", "MaxPoolNd", "AdaptiveAvgPoolNd", "AdaptiveMaxPoolNd"),
    *("ConstantPadNd", "ReflectionPadNd", "ReplicationPadNd", "ZeroPadNd", "CircularPadNd"),
    *("Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d", "PixelShuffle", "PixelUnshuffle"),
    *("ChannelShuffle", "LayerNorm", "GroupNorm", "RMSNorm", "LocalResponseNorm"),
)
_BY_DIMENSION = _named("Flatten", "Unflatten", "Softmax", "LogSoftmax", "Softmin", "GLU")
_BY_BATCH = _named("BatchNormNd", "SyncBatchNorm")
_BY_INSTANCE = _named("InstanceNormNd")

_FORWARD: dict[Any, type[nn.Module]] = {
    cls.forward: cls
    for group in (_ELEMENTWISE, _DROPOUT, _BY_SAMPLE, _BY_DIMENSION, _BY_BATCH, _BY_INSTANCE)
    for cls in group
}
"""The layers by their ``forward``: a user's class that keeps a layer's ``forward`` counts too."""


def torch_class(cls: type[nn.Module]) -> type[nn.Module] | None:
    """The torch layer that a class is, or to which it adds a ``step_mode``."""
    forwards = (getattr(base, "forward", None) for base in cls.__mro__)
    return next((_FORWARD[forward] for forward in forwards if forward in _FORWARD), None)


def computes_torchs(cls: type[nn.Module]) -> bool:
    """Whether a class computes just what a layer of torch does."""
    return cls.forward in _FORWARD


def how(module: nn.Module, cls: type[nn.Module]) -> tuple[How, str | None]:
    """How to run a module that computes what torch's ``cls`` does, and what prevents it, if any."""
    return ("stepped" if _may_touch_the_batch(module, cls) else "folded"), _problem(module, cls)


def _may_touch_the_batch(module: Any, cls: type[nn.Module]) -> bool:
    """Whether a layer may touch the first dimension, which is a different one once folded."""
    if cls not in _BY_DIMENSION:
        return False
    first = module.start_dim if cls is nn.Flatten else module.dim
    return first != -1 and not (isinstance(first, int) and first >= 1)


def _problem(module: Any, cls: type[nn.Module]) -> str | None:
    if cls in _BY_BATCH and (module.training or module.running_mean is None):
        return (
            "it normalises by the statistics of its batch, which is one step's in a loop over time "
            "and would be all steps' here; put it in evaluation with running statistics, or use "
            "GroupNorm or LayerNorm"
        )
    if cls in _BY_INSTANCE and module.training and module.running_mean is not None:
        return (
            "it updates its running statistics once a step in a loop over time, and would once a "
            "sequence here; use track_running_stats=False, or put it in evaluation"
        )
    if getattr(module, "return_indices", False):
        return "it returns indices beside its output; use return_indices=False"
    if module.training and parametrize.is_parametrized(module) and _moves(module.parametrizations):
        return (
            "a parametrization of it keeps statistics (spectral_norm does), which would move once "
            "a sequence rather than once a step; put it in evaluation, or remove that"
        )
    return None


def _moves(parametrizations: nn.Module) -> bool:
    return next(parametrizations.buffers(), None) is not None
