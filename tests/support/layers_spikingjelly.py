"""SpikingJelly's LIF, IF and PLIF with all their settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from cases import Case, Run, sigmoid
from compat_spikingjelly import node, sequences
from torch import Tensor, nn


def run_spikingjelly(layer: Any, x: Tensor, v0: Tensor | None) -> Run:
    layer.reset()
    if v0 is not None:
        layer.v = v0
    if sequences(layer):
        return Run(layer(x), layer.v_seq)
    outs, vs = [], []
    for step in x:
        outs.append(layer(step))
        vs.append(layer.v)
    return Run(torch.stack(outs), torch.stack(vs))


def spikingjelly_cases() -> Iterator[Case]:
    classes = {
        "LIFNode": {"tau": 3.0},
        "IFNode": {},
        "ParametricLIFNode": {"init_tau": 3.0},
    }
    for name, settings in classes.items():
        leaky = name != "IFNode"
        for mode, v_reset, decay_input, detach in itertools.product(
            ("s", "m"), (0.0, -0.3, None), (True, False) if leaky else (None,), (True, False)
        ):
            options: dict[str, Any] = {
                **settings,
                "v_threshold": 0.6,
                "v_reset": v_reset,
                "detach_reset": detach,
                "step_mode": mode,
                "store_v_seq": mode == "m",
            }
            if decay_input is not None:
                options["decay_input"] = decay_input

            def make(dtype: torch.dtype, name: str = name, options: Any = options) -> nn.Module:
                return node(name, **options).to(dtype)  # type: ignore[no-any-return]

            reset = {0.0: "hard", None: "soft"}.get(v_reset, f"to{v_reset}")
            yield Case(
                f"spikingjelly-{name}-{mode}-{reset}"
                + ("" if decay_input is None else f"-{'decay' if decay_input else 'nodecay'}_input")
                + ("-detached" if detach else ""),
                make,
                run_spikingjelly,
                sigmoid,
                rest=v_reset or 0.0,
            )


CASES = list(spikingjelly_cases())
