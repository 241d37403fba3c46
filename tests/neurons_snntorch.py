"""The further neurons of the library, with their settings."""

from __future__ import annotations

from layers import Case

CASES: list[Case] = []
