"""A test's cases, thinned out until each pair of settings is left in one of them.

Faults hardly ever need three settings at once, and a product of many settings has few pairs for its
size. The settings of a case are the words of its name: ``LIFNode-m-soft-detached-tsslbp``.

Where a case takes seconds, or a test asks what a loop or a user may do to any layer, each setting
is left in one case of the test, and a file's tests have as many pairs between them as they can.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import combinations


def pairwise(cases: Sequence[Collection[str]]) -> list[int]:
    """The places, in their order, of few cases that have each pair of settings that any has.

    The case with the most pairs that are still missing comes next, the first of them where several
    have as many. That greedy cover is larger than the smallest by a logarithm at most.
    """
    have = [_pairs(settings) for settings in cases]
    missing = set().union(*have)
    waiting = [(-len(pairs), place) for place, pairs in enumerate(have)]
    heapq.heapify(waiting)
    chosen = []
    while missing:
        _, place = heapq.heappop(waiting)
        adds = len(have[place] & missing)
        if waiting and -adds > waiting[0][0]:  # it is worth less than as it was put there
            heapq.heappush(waiting, (-adds, place))
            continue
        chosen.append(place)
        missing -= have[place]
    return sorted(chosen)


def singly(cases: Sequence[Collection[str]], seen: Counter[tuple[str, ...]]) -> list[int]:
    """The places, in their order, of few cases that have each setting that any has.

    Each has one that those before have not. Of such cases the one comes next whose pairs were seen
    least. They are counted in ``seen``, so that tests that share it differ in the pairs they have.
    """
    have = [_pairs(settings) for settings in cases]
    missing = set().union(*cases)
    chosen = []
    while missing:
        fit = (place for place, settings in enumerate(cases) if missing & set(settings))
        place = min(fit, key=lambda place: sum(seen[pair] for pair in have[place]))
        chosen.append(place)
        missing -= set(cases[place])
        seen.update(have[place])
    return sorted(chosen)


def _pairs(settings: Collection[str]) -> frozenset[tuple[str, ...]]:
    """The pairs of a case's settings, and each alone."""
    known = sorted(set(settings))
    return frozenset([*((one,) for one in known), *combinations(known, 2)])
