"""What tests share that pytest itself has to find."""

import gc
from collections import Counter, defaultdict
from collections.abc import Iterator

import pytest
from pairs import pairwise, singly

from tssl_adapters import adapters
from tssl_adapters.registry import library_class


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "of each test's cases few that have every pair of settings"
    parser.addoption("--pairwise", action="store_true", help=text)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("pairwise"):
        return
    tests = defaultdict(list)
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    seen: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
    left = set()
    for name, cases in tests.items():
        settings = [_settings(case) for case in cases]
        if cases[0].get_closest_marker("singly"):
            places = singly(settings, seen[name.partition("::")[0]])
        else:
            places = pairwise(settings)
        left |= {cases[place].nodeid for place in places}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in left])
    items[:] = [item for item in items if item.nodeid in left]


def pytest_configure() -> None:
    """No garbage is collected while twenty thousand cases are made, and they never are any."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def looked_at_once() -> Iterator[None]:
    """What a file's tests leave behind, such as torch's compiler, is left out of later garbage
    collections, which would take a second each.
    """
    yield
    gc.collect()
    gc.freeze()


def _settings(item: pytest.Item) -> list[str]:
    """The words of a case's name."""
    return item.nodeid.partition("[")[2].removesuffix("]").split("-")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Registrations end with the test: other tests ask what the libraries' own classes are."""
    yield
    for adapter in adapters.loaded():
        registered = [cls for cls in adapter.kinds if library_class(adapter, cls) is not cls]
        for cls in registered:
            del adapter.kinds[cls]
