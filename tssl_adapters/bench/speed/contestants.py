"""What a work is run with: the library, its compiled form, and every engine of this package."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

import tssl_adapters
from tssl_adapters.bench.speed.quadratic import QuadraticTSSLBP
from tssl_adapters.bench.speed.works import Run, Work

NATIVE, COMPILED, COPY, QUADRATIC = "native", "native, compiled", "copy", "T x T"
LAYERWISE = "multi_step_forward"
PRODUCTS = "connections alone"
"""A network without its neurons: a lower bound on the time of any engine."""
ONLY_ON = {"cpu": "cpu", "triton": "cuda"}
"""Engines for one kind of device; on any other they leave the work to torch."""
QUADRATIC_RULE = "tsslbp"
"""The rule that the authors' algorithm computes."""
MOST_QUADRATIC = 1e9
"""T^2 N above which the T x T recursion is left out: a run would take tens of seconds."""


@dataclass(frozen=True)
class Contestant:
    """A model and how to run it.

    Attributes:
        name: its name in tables.
        model: the layer or network.
        run: maps model and input to the output.
        may_fail: whether an error only leaves it out, instead of ending the benchmark.
    """

    name: str
    model: nn.Module
    run: Run
    may_fail: bool = False


def named(engine: str, tau_s: float, layerwise: bool = False) -> str:
    """The name of a wrapped contestant."""
    return f"{engine}, tau_s = {tau_s:g}" + (f", {LAYERWISE}" if layerwise else "")


def engines(device: torch.device) -> list[str]:
    """The available engines that have their own code for a device."""
    return [
        row.name
        for row in tssl_adapters.engines()
        if row.available and ONLY_ON.get(row.name, device.type) == device.type
    ]


def contestants(
    work: Work,
    device: torch.device,
    dtype: torch.dtype,
    tau_s: Sequence[float],
    compiled: bool,
    rule: str,
) -> Iterator[Contestant]:
    """All contestants that do not depend on the size; all start from the same weights."""
    torch.manual_seed(0)
    first = work.make().to(device, dtype)
    start = deepcopy(first.state_dict())  # copied, as buffers that hold states change during a run

    def model() -> Any:
        made = work.make().to(device, dtype)
        made.load_state_dict(start)
        return made

    yield Contestant(NATIVE, first, work.run)
    if work.is_network:
        connections = [layer for layer in model() if isinstance(layer, nn.Linear)]
        yield Contestant(PRODUCTS, nn.Sequential(*connections), nn.Module.__call__)
    yield from _library_backends(work, model, device)
    if compiled:
        yield Contestant(COMPILED, work.compiled(model()), work.run, may_fail=True)
    for engine in engines(device):
        for tau in tau_s:
            wrapped = tssl_adapters.wrap(model(), rule=rule, engine=engine, tau_s=tau)
            yield Contestant(named(engine, tau), wrapped, work.run)
            if work.layerwise is not None:
                wrapped = tssl_adapters.wrap(model(), rule=rule, engine=engine, tau_s=tau)
                yield Contestant(named(engine, tau, True), wrapped, work.layerwise)


def quadratic(work: Work, tau_s: float, steps: int, neurons: int) -> Contestant | str | None:
    """The authors' algorithm, or why it is left out; ``None`` if it does not support the neuron."""
    if work.recursion is None:
        return None
    if steps**2 * neurons > MOST_QUADRATIC:
        return f"T^2 N is above {MOST_QUADRATIC:.0e}"
    name = f"{QUADRATIC}, tau_s = {tau_s:g}"
    return Contestant(name, QuadraticTSSLBP(*work.recursion, tau_s), nn.Module.__call__)


def why_not_compiled(device: torch.device) -> str | None:
    """Why ``torch.compile`` cannot be used here."""
    if device.type == "cuda":
        return None if find_spec("triton") else "torch.compile needs triton"
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"torch.compile needs a C++ compiler, and there is no {compiler}"
    return None


def _library_backends(work: Work, model: Any, device: torch.device) -> Iterator[Contestant]:
    """SpikingJelly before 2.0 lets a layer choose a backend; 2.0 chooses one itself."""
    if device.type != "cuda":
        return
    for backend in getattr(work.make(), "supported_backends", ()):
        if backend != "torch":
            layer = model()
            layer.backend = backend
            yield Contestant(f"native, {backend}", layer, work.run, may_fail=True)
