"""The shared suite over every neuron of every library.

The cases are in tests/neurons_*.py; those of tests/support/layers.py have suites of their own.
"""

from __future__ import annotations

import re
from contextlib import nullcontext, suppress

import pytest
from cases import Case
from neurons import CASES

from tssl_adapters.testing import AdapterSuite


class TestNeurons(AdapterSuite):
    cases = CASES
    compiled = False  # tests/engine/test_fused.py
    fuzzed = False  # tests/engine/test_fuzz.py

    def test_forward_on_unusual_numbers(self, case: Case) -> None:
        """The library's reset to zero makes NaN of an infinite potential that it does not reset.
        Where torch computes these layers wrapped they leave it infinite; which of them compile, and
        are then as natively, differs from version to version.
        """
        known = re.match("snntorch-(Lapicque|R?Synaptic)-zero(?!.*quantised)", case.name)
        with suppress(AssertionError) if known else nullcontext():
            super().test_forward_on_unusual_numbers(case)

    @pytest.mark.singly
    def test_unwrap(self, case: Case) -> None:
        super().test_unwrap(case)

    @pytest.mark.singly
    def test_copies(self, case: Case) -> None:
        super().test_copies(case)
