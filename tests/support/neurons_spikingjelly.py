"""The further nodes of SpikingJelly, with their settings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from cases import NEURONS, Case, Run, sigmoid
from compat_spikingjelly import NOT_STATES, has, neuron, node, sequences
from torch import Tensor, nn

RESETS = {"hard": 0.0, "to": -0.2, "soft": None}


def rect(x: Tensor) -> Tensor:
    """``surrogate.Rect``, alpha = 1."""
    return (x.abs() < 0.5).to(x)


def is_a(layer: nn.Module, name: str) -> bool:
    """isinstance, of a class that a version may lack."""
    return any(cls.__name__ == name for cls in type(layer).__mro__)


def run(layer: Any, x: Tensor, v0: Tensor | None) -> Run:
    """The states beside the potential after every step, or after the last one of a sequence."""
    names = [name for name in layer._memories if name not in ("v", *NOT_STATES)]
    layer.reset()
    if v0 is not None:
        layer.v = v0
    if sequences(layer) and is_a(layer, "SimpleBaseNode"):
        outs = []
        vs = []
        for part in x.split(2):  # these keep no sequence of potentials
            outs.append(layer(part))
            vs.append(layer.v)
        return Run(torch.cat(outs), torch.stack(vs), tuple(getattr(layer, name) for name in names))
    if sequences(layer):
        out = layer(x)
        if is_a(layer, "ComplementaryLIFNode"):
            return Run(out, layer.state_seqs[0], (layer.state_seqs[1], layer.v, layer.m))
        return Run(out, layer.v_seq, tuple(getattr(layer, name) for name in ("v", *names)))
    outs, vs, others = [], [], []
    for step in x:
        outs.append(layer(step))
        vs.append(layer.v)
        others += [getattr(layer, name) for name in names]
    return Run(torch.stack(outs), torch.stack(vs), tuple(others))


def run_gated(layer: Any, x: Tensor, v0: Tensor | None) -> Run:
    """Two calls: the library forgets the last spike, not the potential."""
    layer.reset()
    if v0 is not None:
        layer.v = v0[..., None, None]
    first, second = x.unsqueeze(-1).unsqueeze(-1).split([layer.T, x.shape[0] - layer.T])
    out = layer(first)
    v = layer.v
    again = layer(torch.cat([second, first[: layer.T - second.shape[0]]]))
    return Run(torch.cat([out, again]), v, (layer.v, layer.u))


def case(
    name: str,
    make: Callable[[], nn.Module],
    run: Callable[..., Run] = run,
    derivative: Callable[[Tensor], Tensor] = sigmoid,
    **attributes: Any,
) -> Case:
    """A case whose node gets these attributes."""

    def made(dtype: torch.dtype) -> nn.Module:
        node = make().to(dtype)
        for key, value in attributes.items():
            setattr(node, key, value)
        return node

    return Case(f"spikingjelly-{name}", made, run, derivative)


def runs(make: Callable[[], nn.Module]) -> bool:
    """Whether the library itself can do it: KLIF's charge once took a number as ``v_reset``."""
    try:
        make()(torch.zeros(2, 3))
    except RuntimeError:
        return False
    return True


def basic(
    name: str,
    cls: str,
    learned: dict[str, float] | None = None,
    resets: dict[str, float | None] = RESETS,
    **settings: Any,
) -> Iterator[Case]:
    """Both step modes, every reset, detached or not; ``learned`` are parameters' values."""
    for mode, reset, detached in itertools.product("sm", resets, (False, True)):
        if not has(cls, mode):
            continue

        def make(mode: str = mode, reset: str = reset, detached: bool = detached) -> nn.Module:
            options = {"v_reset": resets[reset]} if resets is not HALF else {}
            store = mode == "m" and "Simple" not in cls
            made = node(
                cls, step_mode=mode, store_v_seq=store, detach_reset=detached, **options, **settings
            )
            for key, value in (learned or {}).items():
                nn.init.constant_(getattr(made, key), value)
            return made  # type: ignore[no-any-return]

        if cls == "KLIFNode" and reset == "soft" and not runs(make):
            continue
        yield case(f"{name}-{mode}-{reset}{'-detached' if detached else ''}", make)


HALF: dict[str, float | None] = {"soft": None}


def gated(inplane: int | None, seed: int) -> nn.Module:
    np.random.seed(seed)
    node = neuron.GatedLIFNode(4, inplane, init_v_threshold=0.6)
    for parameter in (node.alpha, node.beta, node.gamma, node.conduct):
        nn.init.normal_(parameter, 0.3, 0.5)
    return node  # type: ignore[no-any-return]


def cases() -> Iterator[Case]:
    yield from basic("Half", "HalfThresholdIFNode", resets=HALF, v_threshold=0.9)
    for scale, decay in ((False, True), (True, False)):
        name = f"KLIF{'-scaled' if scale else ''}{'-decay' if decay else ''}"
        options = {"tau": 3.0, "v_threshold": 0.5, "scale_reset": scale, "decay_input": decay}
        yield from basic(name, "KLIFNode", {"k": 1.3}, **options)
    yield from basic("QIF", "QIFNode", v_rest=0.1, v_c=0.4, v_threshold=0.6)
    yield from basic("EIF", "EIFNode", v_rest=0.1, tau=5.0, delta_T=2.0)
    izhikevich = {"v_threshold": 0.6, "v_rest": 0.1, "w_rest": 0.2, "a": 0.4, "b": 0.3}
    yield from basic("Izhikevich", "IzhikevichNode", **izhikevich)
    yield from basic("RAF", "RAFNode", v_threshold=0.5)
    yield from basic("SimpleIF", "SimpleIFNode")
    for decay in (False, True):
        name = f"SimpleLIF{'-decay' if decay else ''}"
        hard = {"hard": 0.0, "to": -0.2}  # natively the other reset fails
        options = {"tau": 3.0, "decay_input": decay, "v_threshold": 0.5}
        yield from basic(name, "SimpleLIFNode", resets=hard, **options)
    if has("CUBALIFNode"):
        yield from cuba_cases()
    if has("ComplementaryLIFNode"):
        yield from complementary_cases()
    if has("GatedLIFNode"):
        yield from gated_cases()


def cuba_cases() -> Iterator[Case]:
    for mode, reset, detached in itertools.product("sm", RESETS, (False, True)):
        yield case(
            f"CUBA-{mode}-{reset}{'-detached' if detached else ''}",
            lambda reset=reset: neuron.CUBALIFNode(v_reset=RESETS[reset]),  # type: ignore[misc]
            derivative=rect,
            step_mode=mode,
            detach_reset=detached,
            store_v_seq=mode == "m",
        )


def complementary_cases() -> Iterator[Case]:
    for mode in "sm":
        yield case(
            f"Complementary-{mode}",
            lambda mode=mode: neuron.ComplementaryLIFNode(  # type: ignore[misc]
                3.0, 0.7, step_mode=mode, store_state_seqs=mode == "m"
            ),
            derivative=rect,
        )


def gated_cases() -> Iterator[Case]:
    for inplane in (None, NEURONS):
        yield case(
            f"Gated-{'channels' if inplane else 'layer'}",
            lambda inplane=inplane: gated(inplane, 0),  # type: ignore[misc]
            run_gated,
        )


CASES: list[Case] = list(cases())
