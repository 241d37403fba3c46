"""The library's layers, wrapped."""

from __future__ import annotations

from sinabs import layers
from sinabs.layers.alif import ALIFSqueeze

from adapter_for_sinabs.layer import Adaptive, Layer


class _Recurrent(Layer):
    _tssl_recurs = True


class WrappedLIF(Layer, layers.LIF):  # type: ignore[misc]
    """``LIF`` with the gradient of a rule."""

    _tssl_native = layers.LIF


class WrappedLIFRecurrent(_Recurrent, layers.LIFRecurrent):  # type: ignore[misc]
    """``LIFRecurrent`` with the gradient of a rule."""

    _tssl_native = layers.LIFRecurrent


class WrappedLIFSqueeze(Layer, layers.LIFSqueeze):  # type: ignore[misc]
    """``LIFSqueeze`` with the gradient of a rule."""

    _tssl_native = layers.LIFSqueeze


class WrappedIAF(Layer, layers.IAF):  # type: ignore[misc]
    """``IAF`` with the gradient of a rule."""

    _tssl_native = layers.IAF


class WrappedIAFRecurrent(_Recurrent, layers.IAFRecurrent):  # type: ignore[misc]
    """``IAFRecurrent`` with the gradient of a rule."""

    _tssl_native = layers.IAFRecurrent


class WrappedIAFSqueeze(Layer, layers.IAFSqueeze):  # type: ignore[misc]
    """``IAFSqueeze`` with the gradient of a rule."""

    _tssl_native = layers.IAFSqueeze


class WrappedALIF(Adaptive, layers.ALIF):  # type: ignore[misc]
    """``ALIF`` with the gradient of a rule."""

    _tssl_native = layers.ALIF


class WrappedALIFRecurrent(Adaptive, layers.ALIFRecurrent):  # type: ignore[misc]
    """``ALIFRecurrent`` with the gradient of a rule."""

    _tssl_native = layers.ALIFRecurrent
    _tssl_recurs = True


class WrappedALIFSqueeze(Adaptive, ALIFSqueeze):  # type: ignore[misc]
    """``ALIFSqueeze`` with the gradient of a rule."""

    _tssl_native = ALIFSqueeze


WRAPPED: tuple[type[Layer], ...] = (
    WrappedLIF,
    WrappedLIFRecurrent,
    WrappedLIFSqueeze,
    WrappedIAF,
    WrappedIAFRecurrent,
    WrappedIAFSqueeze,
    WrappedALIF,
    WrappedALIFRecurrent,
    WrappedALIFSqueeze,
)
