"""Triton's kernels for steps of recurrent and of nonlinear neurons: what torch gives.

As in ``test_triton.py``, on a GPU where there is one, else through Triton's interpreter.
"""

from __future__ import annotations

import importlib
import math
import os
from array import array
from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest
import torch
from cell_layers import (
    LAYERS,
    RULES,
    close,
    drive,
    dtype_of,
    gradients,
    steps,
    took,
    wrapped,
)
from changes import beta_written_past_torch
from torch import Tensor

from tssl_adapters.arithmetic import Line
from tssl_adapters.engine.call import pins
from tssl_adapters.engine.compiled import deciding, launch
from tssl_adapters.engine.compiled import steps as compiled_steps
from tssl_adapters.engine.compiled.kernels import Gate, MismatchError, backend
from tssl_adapters.engine.step import written
from tssl_adapters.errors import EngineWarning

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("no GPU, and no TRITON_INTERPRET=1", allow_module_level=True)

# Where a kernel is not what torch is, torch takes its place, with a warning.
pytestmark = pytest.mark.filterwarnings("error::tssl_adapters.errors.EngineWarning")
STEPS = 4


@pytest.fixture(autouse=True)
def _few_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        monkeypatch.setattr(launch, "NEURONS", 33)


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are what they are on a GPU: not to be read but by its kernels."""
    if DEVICE == "cuda":
        return
    for module in (pins, written, compiled_steps, deciding):
        monkeypatch.setattr(module, "on_host", lambda tensor: False)


def check(
    name: str, rule: Any, dtype: torch.dtype, change: Any = None, tau_s: float = 1.0
) -> list[Tensor]:
    """By kernels: what torch gives, also in a second sequence, which finds all decided."""
    ours = []
    for engine in ("triton", "torch"):
        layer = wrapped(name, rule, engine=engine, dtype=dtype, tau_s=tau_s).to(DEVICE)
        x = drive(dtype)[:STEPS].detach().to(DEVICE).requires_grad_()
        for _ in range(2):
            found = steps(layer, x, change)
        assert (took(found) > 0) == (engine == "triton")
        ours.append((found, gradients(found, x, layer)))
    assert all(map(torch.equal, ours[0][0], ours[1][0]))
    close(ours[0][1], ours[1][1], 1e-5 if dtype is torch.float32 else 1e-12)
    assert ours[0][1][0].abs().sum() > 0
    return ours[0][0]


@pytest.mark.parametrize(("name", "rule"), zip(LAYERS, cycle(RULES), strict=False))
def test_steps(name: str, rule: str) -> None:
    check(name, RULES[rule], dtype_of(name))


@pytest.mark.parametrize("rule", ["default", "TSSL-BP"])
@pytest.mark.parametrize("name", ["RLeaky", "LSNNRecurrentCell", "KLIFNode"])
def test_steps_with_a_psc(name: str, rule: str) -> None:
    check(name, RULES[rule], dtype_of(name), tau_s=3.0)


@pytest.mark.parametrize("rule", ["default", "TSSL-BP"])
def test_channels_last(rule: str) -> None:
    """In a format that torch's results keep."""
    found = []
    for engine in ("triton", "torch"):
        layer = wrapped("KLIFNode", RULES[rule], engine=engine).to(DEVICE)
        x = torch.linspace(-1.0, 4.0, STEPS * 120).view(STEPS, 2, 3, 4, 5).to(DEVICE)
        x.requires_grad_()
        values = [layer(step.contiguous(memory_format=torch.channels_last)) for step in x]
        assert took(values) == (STEPS if engine == "triton" else 0)
        assert all(v.is_contiguous(memory_format=torch.channels_last) for v in values)
        found.append((values, gradients(values, x, layer)))
    assert all(map(torch.equal, found[0][0], found[1][0]))
    close(found[0][1], found[1][1], 1e-5)


@pytest.mark.parametrize(
    "name", ["RLeaky to zero", "RSynaptic", "LSNNRecurrentCell", "KLIFNode", "EIFNode"]
)
def test_numbers_that_kernels_read(on_device: None, name: str) -> None:
    check(name, "smooth-tsslbp", torch.float32)


def test_a_number_that_kernels_read_counts_from_step_to_step(on_device: None) -> None:
    """Also if torch does not know that it was written to."""
    found = check("RLeaky", "smooth-tsslbp", torch.float32, beta_written_past_torch)
    unchanged = check("RLeaky", "smooth-tsslbp", torch.float32)
    assert not torch.equal(found[-1], unchanged[-1])


@pytest.mark.parametrize("name", ["RLeaky", "KLIFNode"])
def test_kernels_that_cannot_be_made_are_not_missed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    emit = importlib.import_module("tssl_adapters.engine.triton.emit")
    monkeypatch.delitem(emit._WRITTEN, "multiply")
    found = []
    for engine in ("triton", "torch"):
        layer = wrapped(name, engine=engine).to(DEVICE)
        x = drive()[:STEPS].detach().to(DEVICE).requires_grad_()
        if engine == "triton":
            with pytest.warns(EngineWarning, match=rf"layer '{name}'.*cannot be run \(KeyError"):
                steps(layer, x)
        values = steps(layer, x)
        assert took(values) == 0
        found.append([*values, *gradients(values, x, layer)])
    assert all(map(torch.equal, *found))


def loop(compute: Callable[[Any, Any], Any], read: tuple[str, ...] = ()) -> Any:
    """A kernel of an input ``x`` and a number ``n``."""
    kernels, line = backend("triton"), Line()
    assert kernels is not None
    found = compute(line.input("x"), line.input("n"))
    return kernels.row_loop(line, {"out": found}, ["n"], read, torch.float32, Gate("out", 0.5))


def run_on(kernel: Any, given: dict[str, Tensor], numbers: array[float], neurons: int) -> None:
    """Run a kernel on the tensors that it takes."""
    kernel([given[name] for name in kernel.takes], numbers, neurons, math.inf)


def room(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """These, and where such a kernel writes."""
    x = given["x"]
    bits = torch.zeros(-(-x.numel() // 8), dtype=torch.uint8)
    return {**given, "to.out": torch.zeros_like(x), "bits": bits}


WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "dtype": Tensor.double,
    "number": lambda x: x[:-1].clone(),
    "strides": lambda x: x.repeat_interleave(2)[::2],
    "device": lambda x: x.to("meta"),
    "sign": lambda x: torch._neg_view(x),
}


@pytest.mark.parametrize("argument", ["x", "to.out", "n", "bits"])
@pytest.mark.parametrize("wrong", WRONG)
def test_memory_of_another_form_is_not_taken(wrong: str, argument: str) -> None:
    run = loop(lambda x, n: x * n, read=("n",))
    given = {"x": torch.ones(6), "n": torch.tensor(2.0)}
    given = {name: tensor.to(DEVICE) for name, tensor in room(given).items()}
    run_on(run, given, array("f", [0.0]), 6)
    assert given["to.out"].eq(2.0).all()
    assert given["bits"].eq(0b111111).all()
    if (wrong, argument) in (("strides", "n"), ("strides", "bits"), ("dtype", "n")):
        return  # one number has no order, and may have any dtype
    given[argument] = WRONG[wrong](given[argument].reshape(-1))
    with pytest.raises(MismatchError, match="where a loop wants"):
        run_on(run, given, array("f", [0.0]), 6)


def test_bits_of_several_blocks_of_neurons() -> None:
    """What one kernel writes of whether a neuron is active, another reads."""
    given = room({"x": torch.randn(300), "n": torch.tensor(2.0)})
    given = {name: tensor.to(DEVICE) for name, tensor in given.items()}
    run_on(loop(lambda x, n: x * n), given, array("f", [2.0]), 300)
    active = given["to.out"] >= 0.5
    assert 0.2 < active.float().mean() < 0.8
    kernels, line = backend("triton"), Line()
    assert kernels is not None
    result = {"out": line.input("active") * line.input("x")}
    run_on(kernels.row_loop(line, result, [], (), torch.float32), given, array("f"), 300)
    assert torch.equal(given["to.out"], torch.where(active, given["x"], 0.0))


def test_numbers_are_sent_to_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they are: one that the kernel reads elsewhere has no value, and 0 has a sign."""
    sent: list[Any] = []
    run, frombuffer = loop(lambda x, n: x / n), torch.frombuffer
    importlib.import_module("tssl_adapters.engine.triton.backend")._on_device.cache_clear()
    monkeypatch.setattr(torch, "frombuffer", lambda *a, **k: sent.append(a) or frombuffer(*a, **k))
    given = {name: t.to(DEVICE) for name, t in room({"x": torch.ones(6)}).items()}
    for number in (0.0, -0.0, math.nan, 0.0, -0.0, math.nan):
        run_on(run, given, array("f", [number]), 6)
        expected = torch.tensor(1.0) / torch.tensor(number)
        torch.testing.assert_close(given["to.out"][0].cpu(), expected, equal_nan=True)
    assert len(sent) == 3


@pytest.mark.parametrize(
    ("on_gpu", "read", "divided"),
    [(False, (), True), (True, (), False), (True, ("n",), True)],
)
def test_a_division_rounds_as_torch_s_on_that_device(
    on_gpu: bool, read: tuple[str, ...], divided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU multiplies by the reciprocal of a number that is not there."""
    monkeypatch.setattr("tssl_adapters.engine.triton.emit.interpreted", lambda: not on_gpu)
    x, n = torch.randn(300), torch.tensor(3.0)
    given = {name: tensor.to(DEVICE) for name, tensor in room({"x": x, "n": n}).items()}
    run_on(loop(lambda x, n: x / n, read), given, array("f", [3.0]), 300)
    assert torch.equal(given["to.out"].cpu(), x / 3.0 if divided else x * (1.0 / n))
    assert not torch.equal(x / 3.0, x * (1.0 / n))
