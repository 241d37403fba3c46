"""The shared suite for tinysnn; the environment may ask for an adapter with a fault."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import adapter_for_tinysnn
import tinysnn
import torch
from torch import Tensor

from tssl_adapters.adapters import library
from tssl_adapters.testing import AdapterSuite, Case, Golden, Refusal, Run


def run(layer: Any, x: Tensor, v0: Tensor | None) -> Run:
    layer.v = 0.0 if v0 is None else v0
    if isinstance(layer, tinysnn.LIFSequence):
        return Run(layer(x), layer.v)
    seen = [(layer(step), layer.v) for step in x]
    outs, potentials = zip(*seen, strict=True)
    return Run(torch.stack(outs), torch.stack(potentials))


def calls(layer: Any, parts: Sequence[Tensor]) -> list[Tensor]:
    layer.v = 0.0
    sequence = isinstance(layer, tinysnn.LIFSequence)
    return [layer(part) if sequence else torch.stack([*map(layer, part)]) for part in parts]


def derivative(distance: Tensor) -> Tensor:
    return 1.0 / (1.0 + distance.abs()) ** 2


# --8<-- [start:cases]
class TestTinySNN(AdapterSuite):
    library = "tinysnn"
    cases = [  # noqa: RUF012
        Case("step", lambda dtype: tinysnn.LIF(), run, derivative, calls=calls),
        Case("sequence", lambda dtype: tinysnn.LIFSequence(0.6), run, derivative, calls=calls),
        Case("to zero", lambda dtype: tinysnn.LIF(to_zero=True), run, derivative, calls=calls),
    ]
    golden = Golden(
        lambda tau_m, theta, dtype: tinysnn.LIFSequence(1.0 - 1.0 / tau_m, theta, to_zero=True),
        lambda layer, x: layer(x),
    )
    refusals = [  # noqa: RUF012
        Refusal("threshold", lambda: tinysnn.LIF(0.5, -1.0), "threshold is not positive"),
        Refusal("gate", tinysnn.Gate, "its output is no spike", config=False),
    ]


# --8<-- [end:cases]
def _spoil(fault: str) -> None:
    layer, adapter = adapter_for_tinysnn.Layer, adapter_for_tinysnn.ADAPTER
    if fault == "gradient":  # another leak in the gradient than in the values
        charge = adapter_for_tinysnn.LinearCharge

        def other(decay: float, *rest: Any) -> Any:
            return charge(0.9 * decay, *rest)

        adapter_for_tinysnn.LinearCharge = other  # type: ignore[misc,assignment]
    elif fault == "values":
        plain = layer.forward
        layer.forward = lambda self, x: plain(self, x) * 1.0000001  # type: ignore[method-assign]
    elif fault == "stays":
        for cls, kind in adapter.kinds.items():
            stay = {"detach": lambda layer: setattr(layer, "more", 1)}
            adapter.kinds[cls] = replace(kind, **stay)
    elif fault == "table":
        del adapter.kinds[tinysnn.LIFSequence]
    elif fault == "accepts":
        for cls, kind in adapter.kinds.items():
            adapter.kinds[cls] = replace(kind, problem=lambda wrapped, layer: None)
    elif fault == "forgets":
        plain = layer.forward

        def anew(self: Any, x: Tensor) -> Tensor:
            self.v = 0.0
            return plain(self, x)  # type: ignore[no-any-return]

        layer.forward = anew  # type: ignore[method-assign]
    assert library.libraries()["tinysnn"].imported


if os.environ.get("TINYSNN_FAULT"):
    _spoil(os.environ["TINYSNN_FAULT"])
