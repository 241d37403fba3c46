"""Nodes of older versions, whose steps read their states from the node and write them back.

Newer versions have ``functional_forward`` instead. The nodes are in stepped.py
(``activation_based`` before it had that) and in clock_driven.py (the package before it).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from tssl_adapters.adapters.spikingjelly.node import TRACE, Node, Ran, problem, sequences
from tssl_adapters.adapters.spikingjelly.smooth import States

_NOT_STATES = ("v_seq", "v_threshold", "v_reset", TRACE)
"""Memories of some versions that a step does not carry on to the next."""


@cache
def _evaluates_apart(cls: type) -> bool:
    """Whether a node has separate steps for evaluation, whose spikes have no gradient."""
    return any(name.startswith("jit_eval") for name in dir(cls))


class Classic(Node):
    """Mixed in before a neuron's class: how the library is run, and what it keeps."""

    _tssl_free = Node._tssl_free - {"training"}  # evaluation may have steps of its own

    @classmethod
    def _tssl_cuts_spikes(cls, layer: Any) -> bool:
        return not layer.training and _evaluates_apart(cls._tssl_native)

    def _tssl_as_native(self, x: Tensor, states: States) -> Any:
        """These versions compute everything in torch."""
        return self

    def _tssl_steady(self: Any, x: Tensor) -> bool:
        """Whether the library rounds the same way in every call: not where TorchScript may fuse its
        steps, which it does once they have run, nor in evaluation, if that has other formulas.
        """
        if not self.training and _evaluates_apart(self._tssl_native):
            return False
        return x.is_cpu and not torch._C._jit_can_fuse_on_cpu()

    def _tssl_names(self: Any) -> list[str]:
        states = [name for name in self._memories if name not in _NOT_STATES]
        return [*states, TRACE] if TRACE in self._memories else states

    def _tssl_materialized(self: Any, x: Tensor, states: States) -> States:
        first = x[0] if sequences(self) else x
        return tuple(
            torch.full_like(first.detach(), state) if isinstance(state, float) else state
            for state in states
        )

    def _tssl_fills(self) -> bool:
        return True

    def _tssl_twin(self: Any, states: States) -> Any:
        """A copy of the node with these states; running it leaves the node itself untouched."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        given = dict(zip(self._tssl_names(), states, strict=False))
        twin.__dict__["_memories"] = {**self._memories, **given}
        return twin

    def _tssl_whole(self: Any, x: Tensor, v: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
        twin = self._tssl_twin((v,))
        spikes = self._tssl_native.forward(twin, x)
        return spikes, twin.v_seq if keep else twin.v

    def _tssl_step(self: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        twin = self._tssl_twin(states)
        spike = twin._tssl_one(x)
        names = self._tssl_names()[: len(states)]
        return spike, tuple(twin._memories[name] for name in names)

    def _tssl_one(self: Any, x: Tensor) -> Tensor:
        """The library's step, on a twin."""
        return self._tssl_native.single_step_forward(self, x)  # type: ignore[no-any-return]

    def _tssl_store(self: Any, ran: Ran) -> None:
        if ran.kept is not None:
            self.v_seq = ran.kept[0]


class ClockDriven(Classic):
    """Mixed in before a neuron's class."""

    def __init_subclass__(cls) -> None:
        """Take the native name: the library's monitor knows multi-step nodes by ``MultiStep...``.
        Pickle uses the qualified name, which stays.
        """
        if "_tssl_native" in vars(cls):
            cls.__name__ = cls._tssl_native.__name__

    def _tssl_materialized(self: Any, x: Tensor, states: States) -> States:
        (v,) = states
        return (v if isinstance(v, Tensor) else self._tssl_start(v, x),)

    def _tssl_steady(self, x: Tensor) -> bool:
        return True  # nothing is scripted

    def _tssl_start(self, v: float, x: Tensor) -> Tensor:
        """A 0-dimensional tensor, which acts as a number in type promotion and rounding."""
        dtype = torch.float64 if x.is_floating_point() else None
        return torch.as_tensor(v, dtype=dtype, device=x.device)

    def _tssl_one(self: Any, x: Tensor) -> Tensor:
        if sequences(self):
            return self._tssl_native.forward(self, x.unsqueeze(0))[0]  # type: ignore[no-any-return]
        return self._tssl_native.forward(self, x)  # type: ignore[no-any-return]

    def _tssl_keeps(self) -> bool:
        return sequences(self)


class InSingle:
    """Mixed in before :class:`ClockDriven`: the library turns the number into a tensor."""

    def _tssl_start(self, v: float, x: Tensor) -> Tensor:
        return torch.as_tensor(v, device=x.device)


def classic_problem(wrapped: Any, node: Any) -> str | None:
    """Which of a node's settings cannot be wrapped, or ``None``."""
    backend = getattr(node, "backend", "torch")
    if backend != "torch":
        return (
            f"its backend is {backend!r}, which runs kernels of its own, in this version of the "
            "library for whole sequences and its surrogate gradient together; set it to 'torch'"
        )
    if getattr(node, "cupy_fp32_inference", False):
        return (
            "it has cupy_fp32_inference=True, with which it writes to the potential in place; "
            "set it to False"
        )
    return problem(wrapped, node)
