"""What tests share that pytest itself has to find."""

import os
from collections.abc import Iterator

import pytest

from tssl_adapters import adapters

# Plain torch compiles nothing; tests that are about another engine say so.
os.environ.setdefault("TSSL_ADAPTERS_ENGINE", "torch")


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Registrations end with the test."""
    before = {adapter.library: dict(adapter.kinds) for adapter in adapters.loaded()}
    yield
    for adapter in adapters.loaded():
        adapter.kinds.clear()
        adapter.kinds.update(before[adapter.library])
