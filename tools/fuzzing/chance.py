"""Random choices, determined by integers alone."""

from __future__ import annotations

import random
from typing import TypeVar

T = TypeVar("T")


class Chance:
    """A stream of choices determined by a few integers, on every machine and version."""

    def __init__(self, *numbers: int) -> None:
        self._random = random.Random(" ".join(map(str, numbers)))

    def pick(self, *values: T) -> T:
        return values[self._random.randrange(len(values))]

    def one_in(self, n: int) -> bool:
        return self._random.randrange(n) == 0

    def flag(self) -> bool:
        return self.one_in(2)

    def whole(self, low: int, high: int) -> int:
        return self._random.randint(low, high)
