"""Norse's layers and containers over a whole sequence."""

from __future__ import annotations

from inspect import signature
from typing import Any

import norse.torch as norse
from norse.torch.module.snn import SNN, SNNRecurrent
from torch import nn

from tssl_adapters.adapters import (
    Mode,
    Part,
    Walk,
    as_it_is,
    defined_by,
    from_library,
    stepped_with_state,
)
from tssl_adapters.adapters.norse import linear

_OTHERS = [getattr(norse, name, None) for name in ("LConv2d", "ExpFilter")]
_SEQUENCES = (SNN, SNNRecurrent, norse.Lift, *filter(None, _OTHERS))
_RECURRENT = getattr(norse, "RecurrentSequential", ())
_FEEDBACK = (
    "its output comes back to its first layer at the next step, so that no layer can take a "
    "sequence before the others"
)


def mode(module: nn.Module) -> Mode | None:
    """What a layer takes in one call."""
    if isinstance(module, _SEQUENCES):
        return "sequence"
    theirs = any(from_library("norse", cls) for cls in type(module).__mro__)
    if not theirs or isinstance(module, norse.SequentialState):
        return None
    return "step" if "state" in signature(module.forward).parameters else None


def part(walk: Walk, path: str, module: Any) -> Part | None:
    """How a layer or a container runs over a whole sequence."""
    if type(module).forward is getattr(norse.SequentialState, "forward", None):
        return _sequential(walk, path, module)
    brings = mode(module)
    if brings is None:
        return None
    if walk.whole:
        if type(module).forward is norse.Lift.forward:
            return _lifted(walk, path, module)
        return _passed(module) if _takes_state(module) else as_it_is(module)
    if brings == "sequence":
        return walk.refuse(path, module, "it takes whole sequences, and is given single steps")
    if isinstance(module, _RECURRENT):
        return walk.refuse(path, module, _FEEDBACK)
    if isinstance(module, linear.Layer):
        return Part(module._tssl_sequence, threads=True)
    mixed = any(mode(inner) is not None for inner in module.modules() if inner is not module)
    return None if mixed and not defined_by("norse", module) else stepped_with_state(module)


def _takes_state(module: nn.Module) -> bool:
    return "state" in signature(module.forward).parameters


def _passed(module: Any) -> Part:
    """A layer that takes whole sequences and whose state is passed in."""
    return Part(lambda x, state: module(x, state), threads=True)


def _sequential(walk: Walk, path: str, module: Any) -> Part:
    """``SequentialState``: its states are a list, one for each layer."""
    parts = walk.children(path, module, threading=True)
    if walk.whole:
        parts = [
            _passed(layer) if stateful and not part.threads else part
            for layer, stateful, part in zip(module, module.stateful_layers, parts, strict=True)
        ]
    shows = getattr(module, "return_hidden", False)

    def run(x: Any, given: Any) -> tuple[Any, Any]:
        states = [None] * len(parts) if given is None else given
        outs = []
        for index, part in enumerate(parts):
            x, after = part.run(x, states[index])
            if part.threads:
                states[index] = after
            outs.append(x)
        return (outs if shows else x), states

    return Part(run, not shows, threads=True)


def _lifted(walk: Walk, path: str, module: Any) -> Part:
    """``Lift``: a step layer, run over a sequence."""
    inner = walk.in_steps().part(
        f"{path}.lifted_module" if path else "lifted_module", module.lifted_module
    )
    if inner.threads and not getattr(module, "is_stateful", False):
        return as_it_is(module)  # which fails, in the version that discards states

    def run(x: Any, _: Any) -> tuple[Any, None]:
        x, state = x if isinstance(x, tuple) else (x, None)
        out, state = inner.run(x, state)
        return ((out, state) if inner.threads else out), None

    return Part(run)
