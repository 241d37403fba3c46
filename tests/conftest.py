"""What tests share that pytest itself has to find."""

from collections.abc import Iterator

import pytest

from tssl_adapters import adapters
from tssl_adapters.registry import library_class


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Registrations end with the test: other tests ask what the libraries' own classes are."""
    yield
    for adapter in adapters.loaded():
        registered = [cls for cls in adapter.kinds if library_class(adapter, cls) is not cls]
        for cls in registered:
            del adapter.kinds[cls]
