"""Norse's LIF and LIFBox with all their settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import norse.torch as norse
import torch
from cases import NEURONS, Case, Run
from compat_norse import HAS_BOX, HAS_RESETS, RECORDS, superspike
from norse.torch.functional.lif import LIFFeedForwardState, LIFParameters
from torch import Tensor, nn


def run_norse(layer: Any, x: Tensor, v0: Tensor | None) -> Run:
    sequence = isinstance(layer, norse.LIF)
    state = None if v0 is None else _norse_state(layer, x, v0)
    if sequence:
        out, states = layer(x, state)
        return Run(out, states.v, (states.i,))
    outs, states = [], []
    for step in x:
        out, state = layer(step, state)
        outs.append(out)
        states.append(state)
    currents = [s.i for s in states if hasattr(s, "i")]
    return Run(
        torch.stack(outs),
        torch.stack([s.v for s in states]),
        (torch.stack(currents),) if currents else (),
    )


def _norse_state(layer: Any, x: Tensor, v0: Tensor) -> Any:
    if HAS_BOX and isinstance(layer, norse.LIFBoxCell):
        return norse.LIFBoxFeedForwardState(v=v0)
    return LIFFeedForwardState(v=v0, i=0.1 * v0)


def _norse_params(layer: Any) -> list[Tensor]:
    return [v for v in layer.p if isinstance(v, Tensor) and v.requires_grad]


LAYERS = ("LIFCell", "LIF")
LAYERS += ("LIFBoxCell",) if HAS_BOX else ()
LAYERS += ("LIFBoxCell-subtract",) if HAS_RESETS else ()


def norse_cases() -> Iterator[Case]:
    for name, learn, vector in itertools.product(LAYERS, (False, True), (False, True)):
        if vector and not learn:
            continue

        def make(
            dtype: torch.dtype, name: str = name, learn: bool = learn, vector: bool = vector
        ) -> nn.Module:
            shape = (NEURONS,) if vector else ()

            def value(x: float) -> Tensor:
                return torch.full(shape, x, dtype=dtype).requires_grad_(learn)

            common: dict[str, Any] = {
                "tau_mem_inv": value(300.0),
                "v_leak": torch.tensor(0.1, dtype=dtype).requires_grad_(learn),
                "v_th": value(0.4),
                "v_reset": value(-0.2),
            }
            if name.startswith("LIFBoxCell"):
                if name.endswith("subtract"):
                    common["reset_method"] = norse.reset_subtract
                return norse.LIFBoxCell(norse.LIFBoxParameters(**common))
            p = LIFParameters(tau_syn_inv=value(400.0), **common)
            settings = {"record_states": True} if RECORDS else {}
            return norse.LIF(p, **settings) if name == "LIF" else norse.LIFCell(p)

        yield Case(
            f"norse-{name}" + ("-learnable" if learn else "") + ("-vector" if vector else ""),
            make,
            run_norse,
            superspike,
            _norse_params,
            rest=0.1,
        )


CASES = list(norse_cases())
