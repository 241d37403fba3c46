"""The adapters of the libraries that a program has imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from torch import nn

from tssl_adapters.adapters.base import Adapter
from tssl_adapters.adapters.library import Library, copied, libraries, version_of
from tssl_adapters.elementwise import ordinary
from tssl_adapters.errors import AdapterError, LibraryVersionError


def loaded(*classes: type[nn.Module]) -> Iterator[Adapter]:
    """The adapters of the libraries that are imported, or that one of the classes is a copy from.

    Raises:
        LibraryVersionError: a library lacks what its adapter needs.
        AdapterError: an installed adapter is not valid.
    """
    copies = {copied(cls) for cls in classes}
    for library in libraries().values():
        if library.imported or library.name in copies or library.point.module in sys.modules:
            yield _adapter(library)


def _adapter(library: Library) -> Adapter:
    try:
        with ordinary():  # it probes what the library computes
            adapter = library.point.load()
            if not isinstance(adapter, Adapter) or adapter.library != library.name:
                raise AdapterError(
                    f"{library.point.value} is not an adapter of {library.name}, but {adapter!r}."
                )
            if library.imported and not adapter.kinds:
                kinds, loops = adapter.find()
                adapter.kinds.update(kinds)
                adapter.loops.update(loops)
    except (ImportError, AttributeError) as error:
        raise LibraryVersionError(
            f"{library.name} {version_of(library.name)} lacks what its adapter needs of it "
            f"({error}); use a version that was tested."
        ) from error
    return adapter
