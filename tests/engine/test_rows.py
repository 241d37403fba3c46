"""Rows of any number of neurons, in vectors of any width: each neuron's own, and nothing beside."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from llvmlite import binding

from tssl_adapters.arithmetic import Line, absolute, exp, maximum, where
from tssl_adapters.engine.cpu import backward, emit, loops
from tssl_adapters.engine.cpu import compile as compiling
from tssl_adapters.engine.cpu.function import Source
from tssl_adapters.engine.step.spec import Form, Spec, spec_of
from tssl_adapters.engine.step.traced import Back
from tssl_adapters.resets import Subtract, reset_by_subtraction
from tssl_adapters.rules import SmoothTSSLBP

BITS = [128, 256, 512]
"""Of the vectors of NEON and SSE, AVX, and AVX-512."""
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def computed(x: Any, y: Any, p: Any) -> Any:
    """Something of every kind of operation."""
    return where(x > y, exp(-absolute(x)) * p, maximum(x, y) / (1.0 + y * y) - x)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_of_neurons(dtype: str, bits: int) -> None:
    width = emit.lanes(emit.TYPES[dtype], bits).width
    line = Line()
    found = computed(*(line.input(name) for name in ("x", "y", "p")))
    source = loops.row_over_all(
        f"rows.{dtype}.{bits}", line, {"x": found}, ["p"], dtype, None, bits
    )
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


LINE = [("float32", 3.0), ("float64", 1.0)]


def neuron(dtype: str, psc: bool) -> Spec:
    form = Form(dtype, False, 1, "immediate", True, psc)
    return spec_of(lambda v, x, beta: beta * v + x, Subtract(reset_by_subtraction), form)


def sequence(which: str, dtype: str, tau_s: float, bits: int) -> Source:
    """A whole sequence's loop."""
    spec = neuron(dtype, tau_s != 1.0)
    if which == "forward":
        return loops.forward_sequence("f", spec, tau_s, False, bits)
    there = ("output", "outside", "later", "membrane", "detached")
    fields: dict[str, Any] = {name: name in there for name in Back._fields}
    traced = tau_s != 1.0
    back = Back(**{**fields, "traced": traced, "trace": "after" if traced else None})
    return backward.backward_sequence("b", spec, SmoothTSSLBP(), back, tau_s, frozenset(), bits)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("dtype", "tau_s"), LINE)
@pytest.mark.parametrize("which", ["forward", "backward"])
def test_the_loops_of_a_sequence_are_fast(which: str, dtype: str, tau_s: float, bits: int) -> None:
    """What made them so: whole vectors, writes past the caches, and prefetching. A row is left for
    the last neurons, or the few of a small layer.
    """
    source, lanes = sequence(which, dtype, tau_s, bits), emit.lanes(emit.TYPES[dtype], bits)
    for row in re.findall(r"^define internal .*?^}$", source.text, re.MULTILINE | re.DOTALL):
        whole, few = row.split("\nfew:")
        assert re.search(f"load {lanes.type}", whole)
        assert re.search(f"store {lanes.type}", whole)
        scalars = rf" (load|store|f(add|sub|mul|div|cmp \w+)) {lanes.kind} "
        assert not re.search(scalars, whole.split("\nall:")[1])
        assert "masked.store" in few
    stores = re.findall(r"store .*!nontemporal", source.text)
    assert len(stores) == 1
    ahead = source.text.count("call void @llvm.prefetch")
    alone = which == "forward" and tau_s == 1.0  # the machine itself prefetches one stream
    assert (ahead == 0) is alone


@pytest.mark.parametrize(
    ("triple", "bits", "cpu", "wanted"),
    [
        ("x86_64-unknown-linux-gnu", 512, "skylake-avx512", ("vmovntps.*%zmm", "prefetch", "%zmm")),
        ("x86_64-unknown-linux-gnu", 256, "haswell", ("vmovntps.*%ymm", "prefetch", "%ymm")),
        ("aarch64-unknown-linux-gnu", 128, "", (r"stnp\s+q", "prfm", r"fmul\s+v\d+\.4s")),
    ],
)
def test_machines_have_the_instructions(
    triple: str, bits: int, cpu: str, wanted: tuple[str, ...]
) -> None:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    target = binding.Target.from_triple(triple)
    machine = target.create_target_machine(cpu=cpu, opt=3, jit=True)
    module = compiling.optimised(sequence("backward", "float32", 1.0, bits).text, machine)
    text = machine.emit_assembly(module)
    for instruction in wanted:
        assert re.search(instruction, text), instruction
