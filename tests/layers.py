"""The layers under test: every supported class of every library, with all its settings.

A :class:`Case` makes a layer and runs it over ``[T, batch, neurons]`` the way a user's loop would,
so that one suite serves all three libraries.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import norse.torch as norse
import snntorch
import torch
from norse.torch.functional.lif import LIFFeedForwardState, LIFParameters
from norse.torch.functional.lif_box import LIFBoxFeedForwardState, LIFBoxParameters
from norse.torch.functional.reset import reset_subtract, reset_value
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

BATCH, NEURONS = 3, 5


class Run(NamedTuple):
    """What a run gives: outputs, membrane potentials ``[T, ...]``, other states."""

    out: Tensor
    membrane: Tensor
    others: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Case:
    """A layer with its settings."""

    name: str
    make: Callable[[torch.dtype], nn.Module]
    run: Callable[[nn.Module, Tensor, Tensor | None], Run]
    derivative: Callable[[Tensor], Tensor]
    params: Callable[[nn.Module], list[Tensor]] = field(
        default=lambda layer: list(layer.parameters())
    )
    rest: float = 0.0
    float64: bool = True
    psc: bool = True
    """Whether the layer can be wrapped at ``tau_s > 1``."""

    def __str__(self) -> str:
        return self.name


def atan(x: Tensor) -> Tensor:
    """snnTorch's default surrogate, alpha = 2."""
    return 1.0 / (1.0 + (math.pi * x) ** 2)


def sigmoid(x: Tensor) -> Tensor:
    """SpikingJelly's default surrogate, alpha = 4."""
    s = torch.sigmoid(4.0 * x)
    return (1.0 - s) * s * 4.0


def superspike(x: Tensor) -> Tensor:
    """Norse's default surrogate."""
    return 1.0 / (x.abs() + 1.0) ** 2


# --- snnTorch --------------------------------------------------------------------------------


def run_snntorch(layer: Any, x: Tensor, v0: Tensor | None) -> Run:
    mem = layer.init_leaky() if v0 is None else v0
    outs, mems = [], []
    for step in x:
        out, mem = layer(step, mem)
        outs.append(out)
        mems.append(mem)
    return Run(torch.stack(outs), torch.stack(mems))


def run_snntorch_hidden(layer: Any, x: Tensor, v0: Tensor | None) -> Run:
    layer.reset_mem()
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
    for reset, delay, kind in itertools.product(
        ("subtract", "zero", "none"), (True, False), ("scalar", "vector", "graded", "hidden")
    ):
        settings: dict[str, Any] = {"reset_mechanism": reset, "reset_delay": delay}
        if kind == "hidden":
            settings |= {"init_hidden": True, "output": reset == "zero"}

        def make(dtype: torch.dtype, kind: str = kind, settings: Any = settings) -> nn.Module:
            return _leaky(dtype, kind == "vector", kind != "hidden", kind == "graded", **settings)

        yield Case(
            f"snntorch-Leaky-{reset}-{'delay' if delay else 'nodelay'}-{kind}",
            make,
            run_snntorch_hidden if kind == "hidden" else run_snntorch,
            atan,
            _snntorch_params,
        )


# --- SpikingJelly ----------------------------------------------------------------------------


def run_spikingjelly(layer: Any, x: Tensor, v0: Tensor | None) -> Run:
    layer.reset()
    if v0 is not None:
        layer.v = v0
    if layer.step_mode == "m":
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
                node = getattr(neuron, name)(**options)
                return node.to(dtype)  # type: ignore[no-any-return]

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


# --- Norse -----------------------------------------------------------------------------------


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
    if isinstance(layer, norse.LIFBoxCell):
        return LIFBoxFeedForwardState(v=v0)
    return LIFFeedForwardState(v=v0, i=0.1 * v0)


def _norse_params(layer: Any) -> list[Tensor]:
    return [v for v in layer.p if isinstance(v, Tensor) and v.requires_grad]


def norse_cases() -> Iterator[Case]:
    for name, learn, vector in itertools.product(
        ("LIFCell", "LIF", "LIFBoxCell", "LIFBoxCell-subtract"), (False, True), (False, True)
    ):
        if vector and not learn:
            continue

        def make(
            dtype: torch.dtype, name: str = name, learn: bool = learn, vector: bool = vector
        ) -> nn.Module:
            shape = (NEURONS,) if vector else ()

            def value(x: float) -> Tensor:
                return torch.full(shape, x, dtype=dtype).requires_grad_(learn)

            common = {
                "tau_mem_inv": value(300.0),
                "v_leak": torch.tensor(0.1, dtype=dtype).requires_grad_(learn),
                "v_th": value(0.4),
                "v_reset": value(-0.2),
            }
            if name.startswith("LIFBoxCell"):
                method = reset_subtract if name.endswith("subtract") else reset_value
                return norse.LIFBoxCell(LIFBoxParameters(**common, reset_method=method))
            p = LIFParameters(tau_syn_inv=value(400.0), **common)
            return norse.LIF(p, record_states=True) if name == "LIF" else norse.LIFCell(p)

        yield Case(
            f"norse-{name}" + ("-learnable" if learn else "") + ("-vector" if vector else ""),
            make,
            run_norse,
            superspike,
            _norse_params,
            rest=0.1,
        )


CASES = [*snntorch_cases(), *spikingjelly_cases(), *norse_cases()]
