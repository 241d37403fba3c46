"""What is known about a library before it is imported, and which package adapts it.

An adapter's package has a file ``library.json`` beside its ``__init__.py``, which is read without
importing the package. :mod:`tssl_adapters.adapters` describes its contents.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from tssl_adapters.errors import AdapterError

GROUP = "tssl_adapters.adapters"
FILE = "library.json"
_BUILT_IN = ("snntorch", "spikingjelly", "norse")


@dataclass(frozen=True)
class Library:
    """A library that has an adapter.

    Attributes:
        name: its top-level module.
        point: the entry point of its adapter.
        layers: its supported classes by path, and what each takes in one call (steps or sequences).
        title: its name as its authors write it.
        distribution: the name it is installed under.
        tested: the versions that its adapter's tests passed with, oldest first, and what they
            were run with.
        bases: names of the classes that its neurons derive from, in copies of it too.
        having: an attribute that tells such a class from another of that name.
    """

    name: str
    point: EntryPoint
    layers: Mapping[str, str]
    title: str
    distribution: str
    tested: Mapping[str, str] = field(default_factory=dict)
    bases: tuple[str, ...] = ()
    having: str = ""

    @property
    def entrances(self) -> set[str]:
        """The modules that its layers are imported from."""
        return {path.rpartition(".")[0] for path in self.layers}

    @property
    def imported(self) -> bool:
        """Whether a model may hold one of its layers."""
        return any(entrance in sys.modules for entrance in self.entrances)


@cache
def libraries() -> Mapping[str, Library]:
    """Every library that has an adapter, by name; those of this package come first.

    Raises:
        AdapterError: an installed adapter is not valid, or a library has two.
    """
    points = {name: EntryPoint(name, f"{__package__}.{name}:ADAPTER", GROUP) for name in _BUILT_IN}
    for point in metadata.entry_points(group=GROUP):
        known = points.get(point.name)
        if known is not None and known.value != point.value:
            raise AdapterError(
                f"There are two adapters of {point.name}, {known.value} and {point.value}; "
                "uninstall one of them."
            )
        points[point.name] = point
    return {name: _described(point) for name, point in points.items()}


def _described(point: EntryPoint) -> Library:
    """The library that an adapter is for, as described in the file beside it."""
    spec = find_spec(point.module)
    if spec is None or spec.origin is None:
        raise _wrong(point, f"there is no module {point.module}")
    file = Path(spec.origin).with_name(FILE)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        layers, copies = found["layers"], found.get("copies", {})
        foreign = [path for path in layers if path.split(".")[0] != point.name]
        if foreign:
            raise _wrong(point, f"{file} lists {foreign[0]}, which is not of {point.name}")
        return Library(
            name=point.name,
            point=point,
            layers=layers,
            title=found.get("title", point.name),
            distribution=found.get("distribution", point.name),
            tested=found.get("tested", {}),
            bases=tuple(copies.get("bases", ())),
            having=copies.get("having", ""),
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _wrong(point, f"{file} cannot be read ({type(error).__name__}: {error})") from error


def _wrong(point: EntryPoint, why: str) -> AdapterError:
    return AdapterError(
        f"What is installed as the adapter of {point.name}, {point.value}, is not one: {why}. "
        "tssl_adapters.adapters says what it has to be; mend it, or uninstall it."
    )


def titles() -> str:
    """The libraries' names, for a sentence."""
    *others, last = (library.title for library in libraries().values())
    return f"{', '.join(others)} or {last}"


def installed(path: str) -> bool:
    """Whether the module of a class exists, without importing anything."""
    library, *inner = path.split(".")[:-1]
    spec = find_spec(library)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    found = [Path(folder, *inner) for folder in folders]
    return any(file.is_dir() or file.with_suffix(".py").is_file() for file in found)


def version_of(name: str) -> str | None:
    """A library's installed version, read from the metadata; ``None`` where it is not installed.

    If a package of that name was imported from elsewhere, its location instead.
    """
    library = libraries().get(name)
    distribution = name if library is None else library.distribution
    file = getattr(sys.modules.get(name), "__file__", None)
    elsewhere = None if file is None else _elsewhere(name, distribution, file)
    try:
        return elsewhere or metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@cache
def _elsewhere(name: str, installed_as: str, file: str) -> str | None:
    """Where an imported package lies, if that is not where its distribution was installed."""
    folder = Path(file).resolve().parent
    try:
        distribution = metadata.distribution(installed_as)
    except metadata.PackageNotFoundError:
        return f"in {folder}"
    origin = distribution.read_text("direct_url.json")
    editable = origin is not None and '"editable": true' in origin
    same = Path(str(distribution.locate_file(name))).resolve() == folder
    return None if same or editable else f"in {folder}"


def copied(cls: type) -> str | None:
    """The library that a class, defined in another package, is a copy from, or ``None``."""
    for library in libraries().values():
        if not library.bases:
            continue
        if derives_from_copy(library.name, cls) or library.name in cls.__module__.split(".")[1:]:
            return library.name
    return None


def derives_from_copy(name: str, cls: type) -> bool:
    """Whether a class derives from a copy of the library's neuron base, not from the original."""
    library = libraries()[name]
    roots = [
        base
        for base in cls.__mro__
        if base.__name__ in library.bases and hasattr(base, library.having)
    ]
    return bool(roots) and not any(from_library(name, base) for base in (cls, *roots))


def where(cls: type) -> str:
    """A class's name with its module."""
    return f"{cls.__module__}.{cls.__qualname__}"


def defined_by(library: str, module: nn.Module) -> bool:
    """Whether a module's own class is the library's, rather than the user's."""
    return from_library(library, type(module))


def from_library(library: str, cls: type) -> bool:
    """Whether a class is defined in the library."""
    return cls.__module__.split(".")[0] == library
