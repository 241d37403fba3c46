"""Triton's kernels on the CPU, where its interpreter does something else than its compiler."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch

from tssl_adapters.engine.compiled import launch


def as_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round a float32 to the nearest bfloat16, where the interpreter cuts it off, and try kernels
    on few neurons, as it takes a second for a block of them.
    """
    interpreter = importlib.import_module("triton.runtime.interpreter")
    cut = interpreter._convert_float

    def convert(data: Any, from_: Any, to: Any, mode: Any) -> Any:
        if not (from_.is_fp32() and to.is_bf16()):
            return cut(data, from_, to, mode)
        nearest = torch.from_numpy(np.array(data, np.float32)).to(torch.bfloat16)
        return nearest.view(torch.int16).numpy().view(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", convert)
    monkeypatch.setattr(launch, "NEURONS", 101)
