"""Rows of any number of neurons, in vectors of any width: each neuron's own, and nothing beside."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tssl_adapters.arithmetic import Line, absolute, exp, maximum, where
from tssl_adapters.engine.cpu import compile as compiling
from tssl_adapters.engine.cpu import emit, loops, row

BITS = [128, 256, 512]
"""Of the vectors of NEON and SSE, AVX, and AVX-512."""
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def computed(x: Any, y: Any, p: Any) -> Any:
    """Something of every kind of operation."""
    return where(x > y, exp(-absolute(x)) * p, maximum(x, y) / (1.0 + y * y) - x)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_of_neurons(dtype: str, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    width = emit.INTERLEAVED * bits // (8 * emit.SIZES[emit.TYPES[dtype]])
    monkeypatch.setattr(row, "lanes", lambda kind: emit.Lanes(kind, width))
    line = Line()
    found = computed(*(line.input(name) for name in ("x", "y", "p")))
    source = loops.row_over_all(f"rows.{dtype}.{bits}", line, {"x": found}, ["p"], dtype)
    assert source.parameters == (
        "first",
        "last",
        "steps",
        "neurons",
        "values",
        "window",
        "x",
        "y",
        "to.x",
    )
    run, kind = compiling.compiled(source), DTYPES[dtype]
    generator = torch.Generator().manual_seed(0)
    p, space = torch.tensor([0.7], dtype=kind), torch.zeros(1, dtype=kind)
    for n in range(1, 3 * width + 2):
        x, y = torch.randn(2, n + width, generator=generator, dtype=kind)
        expected = x.clone()
        expected[:n] = computed(x, y, 0.7)[:n]
        x, y = x.clone(), y.clone()
        places = (p, space, x, y, x)  # over one of its inputs
        run(0, n, 1, n, *(tensor.data_ptr() for tensor in places))
        torch.testing.assert_close(x, expected, rtol=4.0 * torch.finfo(kind).eps, atol=0.0)
        assert torch.equal(x[n:], expected[n:])
