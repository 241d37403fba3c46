"""The suite: every network by its name, and the sets that they are split into."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import get_args

import yaml

from tssl_adapters.bench.architectures import LIBRARIES
from tssl_adapters.bench.networks.spec import Kind, Network

FILES = (*LIBRARIES, "fashion")
"""Modules beside this one, each with its ``NETWORKS``."""
SETS: dict[str, list[str]] = yaml.safe_load(Path(__file__).with_name("split.yaml").read_text())
"""Names of networks: those that a rule is chosen on, and those that it is reported on."""
ALL = "all"
KINDS: tuple[Kind, ...] = get_args(Kind)


@cache
def networks() -> dict[str, Network]:
    """All of them by name; imports the three libraries."""
    found = (import_module(f"{__package__}.{file}").NETWORKS for file in FILES)
    return {network.name: network for networks in found for network in networks}


def set_of(name: str) -> str | None:
    """The set that a network is in, if it is in one."""
    return next((found for found, names in SETS.items() if name in names), None)


def chosen(words: Iterable[str]) -> list[Network]:
    """The networks that words name: one, a set, a kind, or all that are in a set.

    Raises:
        ValueError: a word names none.
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
