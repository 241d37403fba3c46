"""A library of spiking neurons that the package knows nothing of."""

from tinysnn.layers import LIF, Gate, Leak, LIFSequence, reset

__all__ = ["LIF", "Gate", "LIFSequence", "Leak", "reset"]
