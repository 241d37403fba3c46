"""SpikingJelly's layers and containers over a whole sequence."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tssl_adapters.adapters import (
    Mode,
    Part,
    Walk,
    Wrapped,
    as_it_is,
    computes_torchs,
    copied,
    folded,
    from_library,
    stepped,
    torch_class,
)
from tssl_adapters.adapters.spikingjelly.node import sequences

_FEEDBACK = (
    "its output comes back to its layers at the next step, so that they cannot take a sequence each"
)


def mode(module: nn.Module) -> Mode | None:
    """What a layer takes in one call; torch's layers with a mere ``step_mode`` take either."""
    if not (hasattr(module, "step_mode") or _remembers(module)):
        old = _is(module, "MultiStepContainer") or _is(module, "SeqToANNContainer")
        return "sequence" if old else None
    if computes_torchs(type(module)):
        return None
    return "sequence" if sequences(module) else "step"


def part(walk: Walk, path: str, module: Any) -> Part | None:
    """How a layer runs over a whole sequence."""
    brings = mode(module)
    if brings is None:
        return None
    if walk.whole:
        return walk.in_steps().chain(path, module) if _cuts(module) else as_it_is(module)
    if brings == "sequence":
        return walk.refuse(path, module, "it takes whole sequences, and is given single steps")
    if _is(module, "StepModeContainer"):
        return walk.chain(path, module)
    if _remembers(module):
        return _memory(walk, path, module)
    if _is(module, "VotingLayer"):
        return folded(module)
    known = torch_class(type(module))
    if known is None or not from_library("spikingjelly", _computes(module)):
        return None
    return walk.stateless(path, module)


def _memory(walk: Walk, path: str, module: Any) -> Part | None:
    """A layer that holds its state."""
    if any(_inherits(module, f"{kind}RecurrentContainer") for kind in ("ElementWise", "Linear")):
        return walk.refuse(path, module, _FEEDBACK)
    if any(mode(inner) is not None for inner in module.modules() if inner is not module):
        return None
    walk.hold(path, module)
    return at_once(module) if _takes_sequences(module) else stepped(module)


def _takes_sequences(node: Any) -> bool:
    """Whether a wrapped node that is called in steps can be called on a sequence instead."""
    wrapped = isinstance(node, Wrapped) and hasattr(node, "step_mode")
    stores = any(getattr(node, name, False) for name in ("store_v_seq", "store_state_seqs"))
    # What a step stores is appended to what was stored before.
    return wrapped and not stores and "m" in node.supported_step_mode()


def at_once(node: Any) -> Part:
    """A wrapped node, set to step mode ``m`` for one call."""
    one_by_one = stepped(node)

    def run(x: Tensor, _: Any) -> tuple[Tensor, None]:
        if not x.is_floating_point():  # at each call the library gives the state its dtype
            return one_by_one.run(x, None)
        node.step_mode = "m"
        try:
            return node(x), None
        finally:
            node.step_mode = "s"

    return Part(run)


def _cuts(module: Any) -> bool:
    """Whether a container calls its layers step by step."""
    if _is(module, "MultiStepContainer"):
        return True
    return _is(module, "StepModeContainer") and bool(module.stateful)


def _remembers(module: nn.Module) -> bool:
    return _inherits(module, "MemoryModule")


def _inherits(module: nn.Module, name: str) -> bool:
    """Whether a module is an instance of the library's class of that name."""
    bases = type(module).__mro__
    theirs = copied(type(module)) == "spikingjelly"
    return any(
        cls.__name__ == name and (theirs or from_library("spikingjelly", cls)) for cls in bases
    )


def _is(module: nn.Module, name: str) -> bool:
    """Whether a module computes what the library's class of that name does."""
    cls = _computes(module)
    return cls.__name__ == name and from_library("spikingjelly", cls)


def _computes(module: nn.Module) -> type:
    """The class that defines a module's ``forward``."""
    return next(cls for cls in type(module).__mro__ if "forward" in vars(cls))
