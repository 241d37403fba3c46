"""What the rules' arguments have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real


def positive(rule: str, name: str, value: object) -> None:
    """Refuse an option that is not a positive number.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not positive and finite.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{rule}: {name} must be a number, not {value!r}.")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{rule}: {name} must be positive and finite, not {value!r}.")


def one_of(rule: str, name: str, value: object, choices: Sequence[object]) -> None:
    """Refuse an option that is none of its choices.

    Raises:
        ValueError: it is something else.
    """
    if value not in choices:
        known = ", ".join(map(repr, choices))
        raise ValueError(f"{rule}: {name} must be one of {known}, not {value!r}.")


def flag(rule: str, name: str, value: object) -> None:
    """Refuse an option that is not a bool.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{rule}: {name} must be True or False, not {value!r}.")
