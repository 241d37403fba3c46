"""What all wrapped SpikingJelly layers share: memories, step modes, the trace, the settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from tssl_adapters.adapters import (
    Decided,
    Opaque,
    OtherNeuronError,
    Reset,
    Subtract,
    Surrogate,
    ToValue,
    Traits,
    Value,
    Wrapped,
    eager,
    emitted,
    exporting,
    trace_beside,
    untag,
    untraced,
)
from tssl_adapters.adapters.spikingjelly import surrogates
from tssl_adapters.errors import UnsupportedConfigError

TRACE = "tssl_psc"
"""The memory that holds the trace at ``tau_s > 1``, after the library's own."""

_STEPS = ("single_step_forward", "multi_step_forward")
"""Methods that the library calls and a wrapped layer does not."""


_CONTINUOUS = (
    "its surrogate_function has spiking=False, so the output is not a spike; call "
    "surrogate_function.set_spiking_mode(True)"
)


class Ran(NamedTuple):
    """The result of a layer's call.

    Attributes:
        out: PSC, or spikes at ``tau_s == 1``.
        states: the library's memories after the last step, the membrane potential first.
        trace: a[T-1] at ``tau_s > 1``, else ``None``.
        kept: ``[T, ...]`` of each memory, if asked for; of the potential alone in some nodes.
    """

    out: Tensor
    states: tuple[Any, ...]
    trace: Tensor | None
    kept: tuple[Tensor, ...] | None

    def memories(self) -> tuple[Any, ...]:
        """The memories as the layer keeps them."""
        return self.states if self.trace is None else (*self.states, self.trace)


class Node(Opaque, Wrapped):
    """Mixed in before the library's class."""

    _tssl_free = frozenset({"training", "v", "v_seq"})
    _tssl_nonlinear: ClassVar[str | None] = None
    """Why it is not an integrate-and-fire neuron."""
    _tssl_single: ClassVar[bool] = False
    """Whether the potential is the only state that it carries."""

    @classmethod
    def _tssl_traits(cls, layer: Any) -> Traits:
        nonlinear, reset = cls._tssl_nonlinear, cls._tssl_reset(layer)
        written = cls._tssl_written(layer)
        return Traits(nonlinear, reset, threshold=layer.v_threshold, written=written)

    def _tssl_steady(self, x: Tensor) -> bool:
        """Whether the library rounds the same way in every call on such an input."""
        return True

    @classmethod
    def _tssl_written(cls, layer: Any) -> bool:
        """Whether its step is compiled from the library's formulas although it is nonlinear."""
        return False

    @classmethod
    def _tssl_spikes(cls, layer: Any) -> Callable[[Tensor], Tensor]:
        return layer.surrogate_function  # type: ignore[no-any-return]

    @classmethod
    def _tssl_own(cls, layer: Any) -> tuple[Any, ...]:
        # As torch would look it up, but faster.
        function = layer._modules.get("surrogate_function") or layer.surrogate_function
        return (*surrogates.own(function), cls._tssl_cuts_spikes(layer))

    @classmethod
    def _tssl_surrogate(cls, layer: Any) -> Surrogate:
        function = layer.surrogate_function
        if not getattr(function, "spiking", True):  # set since the layer was wrapped
            raise UnsupportedConfigError(f"Layer '{layer._tssl_settings.path}': {_CONTINUOUS}.")
        if cls._tssl_cuts_spikes(layer):
            return Surrogate(surrogates.nothing)
        return surrogates.surrogate(function)

    @classmethod
    def _tssl_cuts_spikes(cls, layer: Any) -> bool:
        """Whether native spikes have no gradient now, as those of some nodes in evaluation."""
        return False

    def _tssl_as_native(self: Any, x: Tensor, states: tuple[Any, ...]) -> Any:
        """The node itself, or a copy without a graph to those of its numbers that natively get no
        gradient: SpikingJelly's kernels treat them as constants.
        """
        settings = self._tssl_settings
        if not (settings.rule.follows and torch.is_grad_enabled()):
            return self
        held = {name: getattr(self, name, None) for name in ("v_threshold", "v_reset", "tau")}
        learning = {n: v for n, v in held.items() if isinstance(v, Tensor) and v.requires_grad}
        if not learning:
            return self
        key = (*learning, *settings.followed, x.dtype, x.device, self.training)
        if key not in settings.constants:
            settings.constants[key] = self._tssl_constants(learning, x, states)
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.__dict__["_parameters"] = dict(self._parameters)
        for name in settings.constants[key]:
            twin.__dict__["_parameters"].pop(name, None)
            twin.__dict__[name] = learning[name].detach()
        return twin

    def _tssl_constants(
        self: Any, learning: dict[str, Tensor], x: Tensor, states: tuple[Any, ...]
    ) -> list[str]:
        """The names of those that natively get no gradient."""
        given = tuple(s.detach() if isinstance(s, Tensor) else s for s in states)
        with torch.enable_grad():
            outs, after = self._tssl_native_functional((x.detach(),), given)
            sums = [t.sum() for t in (*outs, *after) if isinstance(t, Tensor) and t.requires_grad]
            if not sums:
                return [*learning]
            found = torch.autograd.grad(sums, [*learning.values()], allow_unused=True)
        return [name for name, grad in zip(learning, found, strict=True) if grad is None]

    @eager
    def forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        (x,) = (*args, *kwargs.values())
        if exporting():
            return self._tssl_emitted(x)  # type: ignore[no-any-return]
        names = self._tssl_names()
        memories = tuple(self._memories[name] for name in names)
        ran: Ran = self._tssl_run(x, memories, self._tssl_keeps())
        for name, value in zip(names, ran.memories(), strict=True):
            self._memories[name] = value
        self._tssl_store(ran)
        return ran.out

    def _tssl_in_graph(self: Any, *args: Any, **kwargs: Any) -> Any:
        (x,) = (*args, *kwargs.values())
        names = self._tssl_names()
        start = [self._memories[name] for name in names]
        if not all(isinstance(value, float) for value in start):
            return None
        ran = self._tssl_operation(x, start)
        if ran is None:
            return None
        out, *states = ran
        for name, state in zip(names, states, strict=True):
            self._memories[name] = state
        self._tssl_store(Ran(out, tuple(states), None, None))
        return out

    def _tssl_is_opaque(self: Any) -> bool:
        return (
            sequences(self)
            and not self._tssl_keeps()
            and getattr(self, "backend", "torch") == "torch"
            and hasattr(self._tssl_native, "functional_forward")
            and self._tssl_native.__module__.startswith("spikingjelly.")
        )

    def _tssl_replayed(
        self: Any, x: Tensor, start: Sequence[float], learned: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        twin = self._tssl_from(start, learned)
        return (twin.forward(x), *(twin._memories[name] for name in self._tssl_names()))

    def _tssl_outlined(
        self: Any, x: Tensor, start: Sequence[float], learned: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        twin = self._tssl_from(start, learned)
        twin.__dict__["_tssl_settings"] = replace(self._tssl_settings)  # not to forget its name
        traced = twin._memories.pop(TRACE, None) is not None
        out = self._tssl_native.forward(twin, x)
        return (out, *twin._memories.values(), *([out[-1]] if traced else []))

    def _tssl_from(self: Any, start: Sequence[float], learned: Sequence[Tensor]) -> Any:
        """A copy of the node with these states and parameters."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.__dict__["_memories"] = {
            **self._memories,
            **dict(zip(self._tssl_names(), start, strict=True)),
        }
        names = [name for name, value in self._parameters.items() if value is not None]
        given = dict(zip(names, learned, strict=True))
        twin.__dict__["_parameters"] = {**self._parameters, **given}
        return twin

    def _tssl_as_decided(self: Any, decided: Decided, x: Any) -> Any:
        settings, memories = self._tssl_settings, self._memories
        if settings.rule.follows and self._tssl_own(self) != settings.followed:
            return None
        if self.__dict__.get("v_seq") is not None:  # to be forgotten
            return None
        names, trace = self._tssl_names(), None
        states = [memories[name] for name in names]
        if any(isinstance(state, float) for state in states) and not self._tssl_fills():
            return None
        if settings.tau_s != 1.0:
            trace, v = states.pop(), states[0]
            if not (isinstance(v, Tensor) and v.shape == x.shape):  # it begins
                return None
            trace = trace_beside(settings, v, trace, rests(self))
        if not decided.fits((x,), states, self._tssl_pinned(), trace):
            return None
        ran = decided.run((x,), states, trace)
        after = ran.states if ran.trace is None else (*ran.states, ran.trace)
        memories.update(zip(names, after, strict=True))
        return ran.out

    def _tssl_pinned(self: Any) -> tuple[Tensor, ...]:
        """The tensors that, besides the node's attributes, hold a step's numbers."""
        return tuple(p for p in self._parameters.values() if p is not None)

    @untraced
    def functional_forward(
        self: Any, inputs: tuple[Tensor, ...], states: tuple[Any, ...], **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
        """What memopt's checkpointing and ``to_functional_forward`` call."""
        if not self._tssl_runs_native():
            try:
                self._tssl_look()
                ran: Ran = self._tssl_run(inputs[0], states, False)
                return (ran.out,), ran.memories()
            except OtherNeuronError as error:
                if self._tssl_settings.tau_s != 1.0:  # the library knows nothing of the trace
                    raise
                self._tssl_settings.give_way(error)
        return self._tssl_native_functional(inputs, states, **kwargs)  # type: ignore[no-any-return]

    def _tssl_parts(self: Any) -> tuple[Any, ...]:
        surrogate = self._modules.get("surrogate_function")
        return surrogate, getattr(surrogate, "spiking", None)

    def _tssl_altered(self: Any) -> str | None:
        passed_by = [name for name in _STEPS if name in self.__dict__]
        if passed_by:
            return f"its {', '.join(passed_by)} was replaced on the layer itself; take that back"
        return super()._tssl_altered()

    def _tssl_emitted(self: Any, x: Tensor) -> Tensor:
        """The PSC of the library's spikes."""
        before, trace = self._memories["v"], self._memories.pop(TRACE)
        try:
            spikes = self._tssl_native.forward(self, x)
        finally:
            self._memories[TRACE] = trace
        known = isinstance(before, Tensor) and before.shape == self.v.shape
        sequence = sequences(self)
        out = emitted(
            self._tssl_settings,
            spikes,
            before if known else None,
            self.v,
            rests(self),
            sequence=sequence,
        )
        self._memories[TRACE] = (out[-1] if sequence else out).clone()
        return out

    def _tssl_names(self: Any) -> list[str]:
        """The memories that are states: the membrane potential first, the trace last."""
        return list(self._memories)

    def _tssl_native_functional(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._tssl_native.functional_forward(self, *args, **kwargs)

    def _tssl_run(self: Any, x: Tensor, memories: tuple[Any, ...], keep: bool) -> Ran:
        settings = self._tssl_settings
        trace = None
        if settings.tau_s != 1.0:
            memories, trace = memories[:-1], memories[-1]
        given = memories[0]
        states = self._tssl_materialized(x, memories)
        if trace is not None:
            started = isinstance(given, Tensor) and given.shape == states[0].shape
            trace = trace_beside(settings, given if started else None, trace, rests(self))
        node = self._tssl_as_native(x, states)
        return node._tssl_compute(x, states, trace, keep)  # type: ignore[no-any-return]

    def _tssl_materialized(self: Any, x: Tensor, states: tuple[Any, ...]) -> tuple[Any, ...]:
        """The states as tensors of this input's shape."""
        return self.materialize_states((x,), states, self.step_mode)  # type: ignore[no-any-return]

    def _tssl_fills(self: Any) -> bool:
        """Whether a number as a state stands for itself everywhere."""
        fill = getattr(self.materialize_states, "__func__", None)
        return fill is not None and fill.__module__.startswith("spikingjelly.")

    def _tssl_compute(
        self, x: Tensor, states: tuple[Any, ...], trace: Tensor | None, keep: bool
    ) -> Ran:
        raise NotImplementedError

    def _tssl_reset(self: Any) -> Reset:
        return Subtract() if self.v_reset is None else ToValue(self.v_reset)

    def _tssl_keeps(self: Any) -> bool:
        """Whether to keep a sequence's states."""
        return bool(self.store_v_seq) and sequences(self)

    def _tssl_store(self: Any, ran: Ran) -> None:
        """Keep the sequence of states where the library does."""
        if sequences(self):
            kept = None if ran.kept is None else ran.kept[0]
            if kept is not None or self.__dict__.get("v_seq", self) is not None:  # saves a tenth
                self.v_seq = kept
        elif self.store_v_seq:
            self._append_v_seq(self.v)


def sequences(node: Any) -> bool:
    """Whether a call takes a sequence; nodes without a ``step_mode`` then have a ``v_seq``."""
    return node.step_mode == "m" if hasattr(node, "step_mode") else "v_seq" in node._memories


def rest_of(node: Any) -> Value:
    """What the membrane potential leaks towards."""
    v_reset = getattr(node, "v_reset", None)
    if isinstance(v_reset, Tensor) and v_reset.requires_grad:
        return v_reset
    return 0.0 if v_reset is None else float(v_reset)


def rests(node: Any) -> tuple[Value, ...]:
    """Potentials that count as a new start: numbers, or tensors with one for each neuron."""
    return (rest_of(node), 0.0, node._memories_rv["v"])


def problem(wrapped: Any, node: Any) -> str | None:
    """Which of a node's settings cannot be wrapped, or ``None``."""
    if not getattr(node.surrogate_function, "spiking", True):
        return _CONTINUOUS
    if getattr(node, "_neuron_precision", None) is not None:
        return "it has a neuron precision of its own; convert it back to the default precision"
    if hasattr(node, TRACE):
        return (
            f"it has an attribute '{TRACE}', the name of the memory that wrap adds at tau_s > 1; "
            "rename yours"
        )
    others = wrapped._tssl_names(node)[1:]
    if wrapped._tssl_single and others:
        return (
            f"beside its potential it has the memory {', '.join(map(repr, others))}, which the "
            "node that it is like has not, and a wrapped one would not carry on; keep it in a "
            "module around the node, or derive the class from SimpleBaseNode and register it like "
            "SimpleIFNode"
        )
    return None


def start(node: Any) -> None:
    """Add the memory for the trace to a layer that was wrapped."""
    if node._tssl_settings.tau_s != 1.0:
        node.register_memory(TRACE, 0.0)


def stop(node: Any) -> None:
    """Remove it, before the layer is unwrapped."""
    if TRACE in node._memories:
        delattr(node, TRACE)
    untag(node.v)
