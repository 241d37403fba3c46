"""The libraries: which are loaded, and the static table of what is known of each.

A library's adapter is imported only once the library itself was: a model cannot hold layers of a
library that nobody imported.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from importlib import metadata

from tssl_adapters.adapters.base import Adapter, Kind, Wrapped

KNOWN: dict[str, dict[str, str]] = {
    "snntorch": {
        f"snntorch.{name}": "step"
        for name in ("Leaky", "Lapicque", "Synaptic", "Alpha", "RLeaky", "RSynaptic")
    },
    "spikingjelly": {
        f"spikingjelly.activation_based.neuron.{name}": "step and sequence (step_mode)"
        for name in ("LIFNode", "IFNode", "ParametricLIFNode")
    },
    "norse": {
        "norse.torch.LIFCell": "step",
        "norse.torch.LIFBoxCell": "step",
        "norse.torch.LIF": "sequence",
    },
}
"""Supported classes by library, and what a call of each brings."""

_ENTRANCES = {
    "snntorch": "snntorch",
    "spikingjelly": "spikingjelly.activation_based.neuron",
    "norse": "norse.torch",
}


def loaded() -> Iterator[Adapter]:
    """The adapters of the libraries that were imported already."""
    for library, entrance in _ENTRANCES.items():
        if entrance in sys.modules:
            adapter = importlib.import_module(f"tssl_adapters.adapters.{library}").ADAPTER
            assert isinstance(adapter, Adapter)
            yield adapter


def version_of(library: str) -> str | None:
    """The installed version, read from the metadata; ``None`` where it is not installed."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


__all__ = ["KNOWN", "Adapter", "Kind", "Wrapped", "loaded", "version_of"]
