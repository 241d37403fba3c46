"""The installed library's layers, with the neurons of its version."""

from __future__ import annotations

import snntorch

from tssl_adapters.adapters.snntorch.classic import neuron_of
from tssl_adapters.adapters.snntorch.layer import Layer


class WrappedLeaky(neuron_of(snntorch.Leaky), snntorch.Leaky):  # type: ignore[misc]
    """``snntorch.Leaky`` with the gradient of a rule."""

    _tssl_native = snntorch.Leaky


class WrappedLapicque(neuron_of(snntorch.Lapicque), snntorch.Lapicque):  # type: ignore[misc]
    """``snntorch.Lapicque`` with the gradient of a rule."""

    _tssl_native = snntorch.Lapicque


class WrappedSynaptic(neuron_of(snntorch.Synaptic), snntorch.Synaptic):  # type: ignore[misc]
    """``snntorch.Synaptic`` with the gradient of a rule."""

    _tssl_native = snntorch.Synaptic


class WrappedAlpha(neuron_of(snntorch.Alpha), snntorch.Alpha):  # type: ignore[misc]
    """``snntorch.Alpha`` with the gradient of a rule."""

    _tssl_native = snntorch.Alpha


class WrappedRLeaky(neuron_of(snntorch.RLeaky), snntorch.RLeaky):  # type: ignore[misc]
    """``snntorch.RLeaky`` with the gradient of a rule."""

    _tssl_native = snntorch.RLeaky


class WrappedRSynaptic(neuron_of(snntorch.RSynaptic), snntorch.RSynaptic):  # type: ignore[misc]
    """``snntorch.RSynaptic`` with the gradient of a rule."""

    _tssl_native = snntorch.RSynaptic


WRAPPED: tuple[type[Layer], ...] = (
    WrappedLeaky,
    WrappedLapicque,
    WrappedSynaptic,
    WrappedAlpha,
    WrappedRLeaky,
    WrappedRSynaptic,
)
