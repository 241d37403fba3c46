"""Compiled loops on disk: processes that share a cache, in whatever order, keep out of each other's
way.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = """
import sys
from fused_cases import Variant, check_against_torch
from tssl_adapters.engine.numba_backend import NumbaBackend
for reset in sys.argv[1:]:
    variant = Variant("delayed", reset, 1.0, "reference", False, False, True)
    check_against_torch(NumbaBackend(), variant, steps=3)
"""


@pytest.mark.parametrize("last", [["subtract", "never"], ["never", "subtract"]])
def test_processes_do_not_run_each_others_pieces(last: list[str], cache: dict[str, str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", CHECK, *last], env=cache, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose cache holds what two processes compiled, each a neuron."""
    folder = tmp_path_factory.mktemp("cache")
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    shared = {**os.environ, "NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": path}
    at_once = [
        subprocess.Popen([sys.executable, "-c", CHECK, reset], env=shared)
        for reset in ("subtract", "never")
    ]
    assert [process.wait() for process in at_once] == [0, 0]
    return shared
