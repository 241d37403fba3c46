"""Nodes with any smooth charge and any further states, without a formula for each.

The library's own step is run with a recorder in place of its surrogate function. The recorder
sees h - theta with its graph, and returns the spike that the rest of the step uses. So one run
with the potential held fixed and theta at zero gives the charge; a second one, with the spike that
has the rule's gradient, gives the graph of all states besides the potential.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tssl_adapters.adapters import (
    CannotWriteError,
    Cell,
    Decided,
    Described,
    NativeForward,
    Reset,
    Result,
    Settings,
    Stepped,
    Tensors,
    attach_smooth,
    compiled_step,
    valued,
)
from tssl_adapters.adapters.spikingjelly.node import Node, Ran, sequences

States = tuple[Any, ...]


class Recorder:
    """Stands in for a surrogate function for one step.

    Args:
        spike: what to return; by default the plain spike.
    """

    spiking = False  # so that a node that replaces its surrogate in evaluation leaves it alone
    distance: Tensor

    def __init__(self, spike: Tensor | None = None) -> None:
        self.spike = spike

    def __call__(self, distance: Tensor) -> Tensor:
        self.distance = distance
        return (distance >= 0).to(distance) if self.spike is None else self.spike


def shadow(node: Any, recorder: Recorder) -> Any:
    """A copy of the node with another surrogate function, sharing parameters and settings.

    The node itself, and its surrogate function, which other layers may share, are not touched:
    another thread may be using them.
    """
    twin = object.__new__(type(node))
    twin.__dict__.update(node.__dict__)
    for own in ("_memories", "_buffers"):
        twin.__dict__[own] = dict(node.__dict__[own])
    modules = node.__dict__["_modules"].items()
    twin.__dict__["_modules"] = {k: v for k, v in modules if k != "surrogate_function"}
    twin.__dict__["surrogate_function"] = recorder
    return twin


class SmoothNode(Node):
    """A node that charges, compares with its threshold, and resets at once."""

    @classmethod
    def _tssl_written(cls, layer: Any) -> bool:
        return True

    def _tssl_step(self: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        """The library's own step; called on shadows too."""
        (spike,), after = self.single_step_functional_forward((x,), states)
        return spike, after

    def _tssl_compute(
        self: Any, x: Tensor, states: States, trace: Tensor | None, keep: bool
    ) -> Ran:
        if not sequences(self):
            out, states, trace = self._tssl_next(x, states, trace)
            return Ran(out, states, trace, None)
        outs, history = [], []
        for step in x:
            out, states, trace = self._tssl_next(step, states, trace)
            outs.append(out)
            history.append(states)
        kept = tuple(map(torch.stack, zip(*history, strict=True))) if keep else None
        return Ran(torch.stack(outs), states, trace, kept)

    def _tssl_next(
        self: Any, x: Tensor, states: States, trace: Tensor | None
    ) -> tuple[Tensor, States, Tensor | None]:
        """One step: output, states and trace."""
        described = Described(self._tssl_cell, self._tssl_pinned(), self._tssl_in_torch)
        ran = compiled_step(self._tssl_settings, described, (x,), states, trace)
        if ran is not None:
            return ran.out, tuple(ran.states), ran.trace
        result, after = self._tssl_attach(x, states, trace)
        return result.out, after, result.trace

    def _tssl_as_decided(self: Any, decided: Decided, x: Any) -> Any:
        if sequences(self) or getattr(self, "store_v_seq", False):
            return None
        return super()._tssl_as_decided(decided, x)

    def _tssl_cell(self: Any) -> Cell:
        """The library's step, as a cell to compile."""
        if not self._tssl_written(self):
            raise CannotWriteError("a step of another form")

        def charge(inputs: Tensors, states: Tensors) -> Tensor:
            found: Tensor = self._tssl_charged(inputs[0], states[0], [*states[1:]])
            return found

        def others(inputs: Tensors, states: Tensors, spike: Tensor) -> Tensors:
            _, after = shadow(self, Recorder(spike))._tssl_step(inputs[0], tuple(states))
            found: Tensors = after[1:]
            return found

        def after(inputs: Tensors, states: Tensors, charged: Tensor, spike: Tensor) -> Tensor:
            reset: Any = self._tssl_reset_of([*states[1:]])
            found: Tensor = reset.formula(charged, spike, *reset.others)
            return found

        # Older versions have memories that are not states; the trace is the engine's.
        states = len(self._tssl_names()) - (self._tssl_settings.tau_s != 1.0)
        reset = self._tssl_reset_of([None] * (states - 1))
        return Cell(
            charge,
            others,
            lambda inputs, states: self.v_threshold,
            reset,
            timing="immediate",
            strict=False,
            detached=self._tssl_detached(),
            inputs=1,
            states=states,
            after=after if reset.stepwise else None,
        )

    def _tssl_in_torch(
        self: Any, settings: Settings, inputs: Tensors, states: Tensors, trace: Tensor | None
    ) -> Stepped:
        """A step in torch, with the given settings."""
        twin = shadow(self, self.surrogate_function)
        twin.__dict__["_tssl_settings"] = settings
        result, after = twin._tssl_attach(inputs[0], tuple(states), trace)
        return Stepped(result.out, after, result.trace)

    def _tssl_attach(
        self: Any, x: Tensor, states: States, trace: Tensor | None
    ) -> tuple[Result, States]:
        """One step: its result, and all states after it."""
        settings = self._tssl_settings
        v, *others = states
        if not settings.rule.chain:  # no gradient goes back in time
            others = [s.detach() if isinstance(s, Tensor) else s for s in others]
        spike, after = self._tssl_values(x, states)

        def probe(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            spike, after = shadow(self, Recorder())._tssl_values(x, (v, *others))
            with torch.no_grad():
                return self._tssl_charged(x, v, others), spike, after[0]

        result = attach_smooth(
            settings,
            lambda v: self._tssl_charged(x, v, others),
            v,
            trace,
            NativeForward(x, lambda: (spike, after[0]), probe),
            reset=self._tssl_reset_of(others),
            threshold=self.v_threshold,
            strict=False,
            detached=self._tssl_detached(),
        )
        if others and torch.is_grad_enabled():
            before = v if settings.rule.chain else v.detach()
            _, like = shadow(self, Recorder(result.fired))._tssl_step(x, (before, *others))
            after = tuple(map(_with_graph, after, like))
        return result, (result.state, *after[1:])

    def _tssl_values(self: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        """The library's spikes and states."""
        with torch.no_grad():
            spike, after = self._tssl_step(x, states)
        # A step's spikes may be a view of a sequence's; the caller may write to them.
        return spike.clone() if spike._is_view() else spike, after

    def _tssl_charged(self: Any, x: Tensor, v: Tensor, others: list[Any]) -> Tensor:
        """h, with a graph to the input, the other states, and the parameters."""
        recorder = Recorder()
        twin = shadow(self, recorder)
        twin.__dict__["v_threshold"] = 0.0  # subtracting a large one would lose h's last digits
        twin._tssl_step(x, (v, *others))
        return recorder.distance

    def _tssl_detached(self: Any) -> bool:
        """Whether the library cuts the gradient through the reset."""
        return bool(self.detach_reset)

    def _tssl_reset_of(self: Any, others: list[Any]) -> Reset:
        reset: Reset = self._tssl_reset()
        return reset


def _with_graph(value: Any, like: Any) -> Any:
    return valued(value, like) if isinstance(value, Tensor) else value
