"""snnTorch's ``Leaky`` with all its settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import snntorch
import torch
from cases import NEURONS, Case, Run, atan
from compat_snntorch import FLOAT32, delay, delays, start
from torch import Tensor, nn


def run_snntorch(layer: Any, x: Tensor, v0: Tensor | None) -> Run:
    mem = start(layer)[0] if v0 is None else v0
    outs, mems = [], []
    for step in x:
        out, mem = layer(step, mem)
        outs.append(out)
        mems.append(mem)
    return Run(torch.stack(outs), torch.stack(mems))


def run_snntorch_hidden(layer: Any, x: Tensor, v0: Tensor | None) -> Run:
    start(layer)
    if v0 is not None:
        layer.mem = v0
    outs, mems = [], []
    for step in x:
        result = layer(step)
        outs.append(result[0] if layer.output else result)
        mems.append(layer.mem)
    return Run(torch.stack(outs), torch.stack(mems))


def _snntorch_params(layer: Any) -> list[Tensor]:
    return [p for _, p in layer.named_parameters()]


def _leaky(dtype: torch.dtype, vector: bool, learn: bool, graded: bool, **settings: Any) -> Any:
    shape = (NEURONS,) if vector else ()
    beta = torch.full(shape, 0.8) + 0.1 * torch.rand(shape)
    threshold = torch.full(shape, 0.5) + 0.1 * torch.rand(shape)
    return snntorch.Leaky(
        beta=beta.to(dtype),
        threshold=threshold.to(dtype),
        learn_beta=learn,
        learn_threshold=learn,
        graded_spikes_factor=1.7 if graded else 1.0,
        learn_graded_spikes_factor=graded,
        **settings,
    )


def snntorch_cases() -> Iterator[Case]:
    for reset, delayed, kind in itertools.product(
        ("subtract", "zero", "none"),
        delays(snntorch.Leaky),
        ("scalar", "vector", "graded", "hidden"),
    ):
        settings: dict[str, Any] = {"reset_mechanism": reset, **delay(snntorch.Leaky, delayed)}
        if kind == "hidden":
            settings |= {"init_hidden": True, "output": reset == "zero"}

        def make(dtype: torch.dtype, kind: str = kind, settings: Any = settings) -> nn.Module:
            return _leaky(dtype, kind == "vector", kind != "hidden", kind == "graded", **settings)

        yield Case(
            f"snntorch-Leaky-{reset}-{'delay' if delayed else 'nodelay'}-{kind}",
            make,
            run_snntorch_hidden if kind == "hidden" else run_snntorch,
            atan,
            _snntorch_params,
            tolerance=FLOAT32,
        )


CASES = list(snntorch_cases())
