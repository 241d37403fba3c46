"""The suite: every network by name, and the sets it is split into."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import import_module

from tssl_adapters.bench.known import ALL, KINDS, LIBRARIES, SETS, installed
from tssl_adapters.bench.networks.spec import Network

FILES = (*LIBRARIES, "fashion")
"""Modules in this package, each with its ``NETWORKS``."""


@cache
def networks() -> dict[str, Network]:
    """The networks of the installed libraries, by name; imports these libraries."""
    files = [file for file in FILES if file not in LIBRARIES or installed(file)]
    found = (import_module(f"{__package__}.{file}").NETWORKS for file in files)
    return {
        network.name: network
        for networks in found
        for network in networks
        if installed(network.library)
    }


def set_of(name: str) -> str | None:
    """The set that contains a network, if any."""
    return next((found for found, names in SETS.items() if name in names), None)


def chosen(words: Iterable[str]) -> list[Network]:
    """The networks selected by names, sets, kinds, or the word for all networks in a set.

    Raises:
        ValueError: a word selects none.
    """
    wanted: set[str] = set()
    for word in words:
        named = {name for name, network in networks().items() if word in _words(network)}
        if not named:
            known = ", ".join((ALL, *SETS, *KINDS, *networks()))
            raise ValueError(f"{word!r} is none of {known}")
        wanted |= named
    return [network for name, network in networks().items() if name in wanted]


def _words(network: Network) -> set[str]:
    of_set = set_of(network.name)
    return {network.name, network.kind} | ({of_set, ALL} if of_set else set())
