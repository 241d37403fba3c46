"""The shared suite as an adapter's author has it: for each library, and for one from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import layers
import norse.torch as norse
import pytest
import snntorch
import torch
from cases import Case
from compat_norse import HAS_BOX
from compat_spikingjelly import sequences
from golden_layers import LIBRARIES
from neurons import CASES
from norse.torch.module.snn import SNN, SNNRecurrent
from spikingjelly.activation_based import neuron
from torch import Tensor

from tssl_adapters.testing import AdapterSuite, Golden, Refusal

OUTSIDE = Path(__file__).parents[1] / "outside"
ROOT = OUTSIDE.parent.parent


Calls = Callable[[Any, Sequence[Tensor]], list[Tensor]]


def with_states(layer: Any, parts: Sequence[Tensor]) -> list[Tensor]:
    """snnTorch's and Norse's, which are passed their states or hold them."""
    given: tuple[Any, ...] = ()

    def call(x: Tensor) -> Tensor:
        nonlocal given
        result = layer(x, *given)
        out, *after = result if isinstance(result, tuple) else (result,)
        own = isinstance(layer, snntorch.SpikingNeuron) and hasattr(layer, "recurrent")
        given = () if getattr(layer, "init_hidden", False) else ((out,) if own else ()) + (*after,)
        return out  # type: ignore[no-any-return]

    return [call(x) if isinstance(layer, SNN | SNNRecurrent) else stacked(call, x) for x in parts]


def with_memories(node: Any, parts: Sequence[Tensor]) -> list[Tensor]:
    """SpikingJelly's, which hold them."""
    node.reset()
    return [node(x) if sequences(node) else stacked(node, x) for x in parts]


def stacked(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.stack([*map(call, x)])


def one_of_each_class(library: str, calls: Calls) -> list[Case]:
    """The first case of each class of a library."""
    found: dict[type, Case] = {}
    for case in (*layers.CASES, *CASES):
        if case.name.startswith(library):
            known = calls if "Gated" not in case.name and "conv" not in case.name else None
            found.setdefault(type(case.make(torch.float32)), replace(case, calls=known))
    return list(found.values())


class TestSnnTorch(AdapterSuite):
    library = "snntorch"
    cases = one_of_each_class("snntorch", with_states)
    compiled = False
    golden = Golden(*LIBRARIES["snntorch"], tolerance=5e-7)
    refusals = [  # noqa: RUF012
        Refusal("inhibition", lambda: snntorch.Leaky(0.5, inhibition=True), "winner-take-all"),
        Refusal("class", lambda: snntorch.SLSTM(2, 2), "has gates", config=False),
    ]


class TestSpikingJelly(AdapterSuite):
    library = "spikingjelly"
    cases = one_of_each_class("spikingjelly", with_memories)
    compiled = False
    golden = Golden(*LIBRARIES["spikingjelly-m"])
    refusals = [  # noqa: RUF012
        Refusal("class", neuron.DSRIFNode, "a learning rule of its own", config=False),
    ]


class TestNorse(AdapterSuite):
    library = "norse"
    cases = one_of_each_class("norse", with_states)
    compiled = False
    golden = Golden(*LIBRARIES["norse"]) if HAS_BOX else None
    refusals = [  # noqa: RUF012
        Refusal(
            "adjoint",
            lambda: norse.LIFCell(norse.LIFParameters(method="adjoint")),
            "method='adjoint' is a learning rule of its own",
        ),
    ]


def of_tinysnn(*options: str, **environment: str) -> tuple[int, str]:
    """The suite for tests/outside in a process of its own: its exit status, and what it prints."""
    paths = os.pathsep.join(map(str, (ROOT, OUTSIDE)))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *(*options, str(OUTSIDE / "suite_for_tinysnn.py")),
        ],
        cwd=OUTSIDE,
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_library_from_outside() -> None:
    status, said = of_tinysnn()
    assert status == 0, said
    assert "skipped" not in said


FAULTS = {
    "gradient": "test_native_gradient",
    "values": "test_forward",
    "stays": "test_unwrap",
    "table": "test_every_class_is_known_and_tested",
    "accepts": "test_refused",
    "forgets": "test_forward_in_several_calls",
}
"""By what a wrong adapter does: a test that has to see it."""


@pytest.mark.parametrize("fault", FAULTS)
def test_it_sees_faults_of_an_adapter(fault: str) -> None:
    status, said = of_tinysnn("-k", FAULTS[fault], TINYSNN_FAULT=fault)
    assert status == 1, said
    assert FAULTS[fault] in said
