"""The libraries: which are loaded, and the static table of what is known of each.

A library's adapter is imported only once the library itself was: a model cannot hold layers of a
library that nobody imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from torch import nn

from tssl_adapters.adapters.base import Adapter, Kind, Wrapped, copied
from tssl_adapters.elementwise import ordinary
from tssl_adapters.errors import LibraryVersionError


def _norse(name: str, *, module: bool = True, recurrent: bool = True) -> dict[str, str]:
    """A neuron's cells and modules in Norse."""
    forms = {f"{name}Cell": "step", f"{name}": "sequence"} if module else {f"{name}Cell": "step"}
    if recurrent:
        forms |= {f"{name}RecurrentCell": "step", f"{name}Recurrent": "sequence"}
    return {f"norse.torch.{form}": mode for form, mode in forms.items()}


_SPIKINGJELLY = (
    *("LIFNode", "IFNode", "ParametricLIFNode", "HalfThresholdIFNode", "KLIFNode", "QIFNode"),
    *("EIFNode", "IzhikevichNode", "ComplementaryLIFNode", "CUBALIFNode", "RAFNode"),
    *("SimpleIFNode", "SimpleLIFNode"),
)
KNOWN: dict[str, dict[str, str]] = {
    "snntorch": {
        f"snntorch.{name}": "step"
        for name in ("Leaky", "Lapicque", "Synaptic", "Alpha", "RLeaky", "RSynaptic")
    },
    "spikingjelly": {
        f"spikingjelly.activation_based.neuron.{name}": "step or sequence" for name in _SPIKINGJELLY
    }
    | {"spikingjelly.activation_based.neuron.GatedLIFNode": "sequence"}
    | {
        f"spikingjelly.clock_driven.neuron.{name}": "step"
        for name in ("LIFNode", "IFNode", "ParametricLIFNode", "QIFNode", "EIFNode")
    }
    | {
        f"spikingjelly.clock_driven.neuron.MultiStep{name}": "sequence"
        for name in ("LIFNode", "IFNode", "ParametricLIFNode", "EIFNode")
    },
    "norse": {
        "norse.torch.LIFCell": "step",
        "norse.torch.LIFBoxCell": "step",
        "norse.torch.LIF": "sequence",
        "norse.torch.LIFRecurrentCell": "step",
        "norse.torch.LIFRecurrent": "sequence",
        **_norse("IAF", recurrent=False),
        **_norse("LIFEx"),
        **_norse("LIFAdEx"),
        **_norse("LSNN"),
        **_norse("Izhikevich"),
        **_norse("LIFRefrac", module=False),
        **_norse("LIFAdExRefrac", module=False),
    },
}
"""Supported classes by library, and what a call of each brings."""

_ENTRANCES = {
    "snntorch": ("snntorch",),
    "spikingjelly": ("spikingjelly.activation_based.neuron", "spikingjelly.clock_driven.neuron"),
    "norse": ("norse.torch",),
}


def loaded(*classes: type[nn.Module]) -> Iterator[Adapter]:
    """The adapters of the libraries that were imported already, or that some classes are copies of.

    Raises:
        LibraryVersionError: a library lacks what its adapter needs.
    """
    copies = {copied(cls) for cls in classes}
    for library, entrances in _ENTRANCES.items():
        imported = any(entrance in sys.modules for entrance in entrances)
        if imported or library in copies or f"{__name__}.{library}" in sys.modules:
            yield _adapter(library, imported)


def _adapter(library: str, imported: bool) -> Adapter:
    try:
        with ordinary():  # it asks the library what it computes
            adapter = importlib.import_module(f"tssl_adapters.adapters.{library}").ADAPTER
            if imported and not adapter.kinds:
                kinds, loops = adapter.find()
                adapter.kinds.update(kinds)
                adapter.loops.update(loops)
    except (ImportError, AttributeError) as error:
        raise LibraryVersionError(
            f"{library} {version_of(library)} lacks what tssl_adapters needs of it ({error}); use "
            "a version that was tested."
        ) from error
    assert isinstance(adapter, Adapter)
    return adapter


def installed(path: str) -> bool:
    """Whether the module of a class is there; imports nothing."""
    library, *inner = path.split(".")[:-1]
    spec = importlib.util.find_spec(library)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    found = [Path(folder, *inner) for folder in folders]
    return any(file.is_dir() or file.with_suffix(".py").is_file() for file in found)


def version_of(library: str) -> str | None:
    """The installed version, read from the metadata; ``None`` where it is not installed.

    Of a package of that name that was imported from elsewhere it is where that lies.
    """
    file = getattr(sys.modules.get(library), "__file__", None)
    elsewhere = None if file is None else _elsewhere(library, file)
    try:
        return elsewhere or metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


@cache
def _elsewhere(library: str, file: str) -> str | None:
    """Where an imported package lies, if that is not where its distribution was installed."""
    folder = Path(file).resolve().parent
    try:
        distribution = metadata.distribution(library)
    except metadata.PackageNotFoundError:
        return f"in {folder}"
    origin = distribution.read_text("direct_url.json")
    editable = origin is not None and '"editable": true' in origin
    same = Path(str(distribution.locate_file(library))).resolve() == folder
    return None if same or editable else f"in {folder}"


__all__ = ["KNOWN", "Adapter", "Kind", "Wrapped", "installed", "loaded", "version_of"]
