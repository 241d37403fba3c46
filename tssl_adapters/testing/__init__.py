"""The tests that every adapter should pass; all they need is a list of cases.

A test module derives a class whose name begins with ``Test`` from :class:`AdapterSuite`, and lists
what to test; pytest then collects it like any other::

    from tssl_adapters.testing import AdapterSuite, Case, Refusal

    class TestAbc(AdapterSuite):
        library = "abc"
        cases = [Case("abc-LIF", make, run, derivative), ...]
        refusals = [Refusal("threshold", lambda: abc.LIF(threshold=-1), "is not positive")]
        golden = Golden(make, run)

This needs pytest and hypothesis: ``pip install tssl-adapters[testing]``.
"""

import pytest

pytest.register_assert_rewrite("tssl_adapters.testing.suite", "tssl_adapters.testing.measures")

from tssl_adapters.testing.cases import BATCH, NEURONS, STEPS, Case, Golden, Refusal, Run  # noqa: E402
from tssl_adapters.testing.measures import close, drive, flat, gradients, made  # noqa: E402
from tssl_adapters.testing.suite import AdapterSuite  # noqa: E402

__all__ = [
    "BATCH",
    "NEURONS",
    "STEPS",
    "AdapterSuite",
    "Case",
    "Golden",
    "Refusal",
    "Run",
    "close",
    "drive",
    "flat",
    "gradients",
    "made",
]
