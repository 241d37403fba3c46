"""Layers whose time step is compiled from its formulas, with all of its states and inputs."""

from __future__ import annotations

from functools import partial
from itertools import zip_longest
from typing import Any, ClassVar

import torch
from torch import Tensor

from tssl_adapters.adapters import (
    Cell,
    Described,
    Settings,
    Stepped,
    Steps,
    Tensors,
    compiled_step,
    known_trace,
    untouched,
)
from tssl_adapters.adapters.snntorch.due import Due, LateReset
from tssl_adapters.adapters.snntorch.layer import Layer, States, held, leave


def carried(states: States) -> tuple[str, ...]:
    """The names of the states that a step computes, the potential first."""
    if len(states) == 1:  # at every step, where it is the fastest way
        return ("mem",)
    return ("mem", *[name for name in states if name not in ("mem", "spk")])


class Compiled(Layer):
    """A layer that describes what its time step computes."""

    _tssl_numbers: ClassVar[tuple[str, ...]]
    """Names of the numbers in its charge."""
    reset: Any
    _tssl_late: ClassVar[bool]
    """Whether ``reset`` is computed when it is read: not if the user's class has its own."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        native = vars(cls).get("_tssl_native")
        if native is not None:
            cls._tssl_late = not hasattr(native, "reset")
            if cls._tssl_late:
                cls.reset = LateReset()

    def __getstate__(self) -> Any:
        """Copies and pickles keep the reset itself."""
        getattr(self, "reset", None)
        return super().__getstate__() if hasattr(super(), "__getstate__") else self.__dict__

    def _tssl_clears(self) -> bool:
        """Whether its reset to zero clears the input, too."""
        return True

    def _tssl_charged(self, inputs: Tensors, states: Tensors) -> Tensor:
        """The charged potential, without a reset that is due; ``states[0]`` is the potential."""
        raise NotImplementedError

    def _tssl_others(self, inputs: Tensors, states: Tensors) -> Tensors:
        """The other states after the step."""
        return []

    def _tssl_run(self, x: Tensor, states: States, fresh: bool) -> Any:
        return self._tssl_next(self._tssl_inputs(x, states), states, fresh)

    def _tssl_inputs(self, x: Tensor, states: States) -> tuple[Tensor, ...]:
        """What arrives in a step, term by term."""
        return (x,)

    def _tssl_by_torch(
        self, inputs: Tensors, states: States, trace: Tensor | None, fresh: bool
    ) -> Any:
        """The step in torch, as for any other layer."""
        return self._tssl_by_engine(inputs[0], states, trace, fresh)

    def _tssl_next(self: Any, inputs: Tensors, states: States, fresh: bool) -> Any:
        names = carried(states)
        trace = self._tssl_trace(states, fresh)
        pinned = self._tssl_pinned()
        # A leak that learned to be 0 is refused below.
        lost = any(number.requires_grad for number in pinned) and self._tssl_decayless(self)
        if not (lost or self._tssl_graded() or self.state_quant):
            cell = partial(self._tssl_cell, states, inputs)
            described = Described(cell, pinned, partial(self._tssl_in_torch, names))
            given = tuple(states[name] for name in names)
            ran = compiled_step(self._tssl_settings, described, inputs, given, trace, fresh)
            if ran is not None:
                return self._tssl_ran(ran, names)
        return self._tssl_by_torch(inputs, states, trace, fresh)

    def _tssl_ran(self: Any, ran: Stepped, names: tuple[str, ...]) -> Any:
        if ran.before is not None:
            potential, numbers = ran.before
            due = Due(potential, numbers[len(self._tssl_numbers)].value)
            if self._tssl_late and "reset" not in self._buffers:
                self.__dict__["reset"] = due
            else:
                leave(self, "reset", due.computed())
        elif ran.due is not None:
            leave(self, "reset", ran.due)
        after = dict(zip(names, ran.states, strict=True))
        self._tssl_keep(after, ran.out if ran.spike is None else ran.spike)
        if self.init_hidden and not self.output:
            return ran.out
        if len(after) == 1:  # of most layers
            return ran.out, ran.states[0]
        return (ran.out, *[after[name] for name in self._tssl_states if name != "spk"])

    def _tssl_as_decided(self: Any, steps: Steps, x: Any, *given: Any) -> Any:
        names = self._tssl_states
        if given and (self.init_hidden or len(given) > len(names)):
            return None
        if steps.learned and self._tssl_decayless(self):  # a leak that learned to be 0 is refused
            return None
        states = {}
        try:
            for name, state in zip_longest(names, given):
                states[name] = held(self, name) if state is None else state
        except AttributeError:  # older versions do not save their states
            return None
        return self._tssl_shortly(steps, x, states)

    def _tssl_shortly(self: Any, steps: Steps, x: Tensor, states: States) -> Any:
        """The output of a step that its compiled steps fit, else ``None``."""
        names, trace = carried(states), None
        given = [states[name] for name in names]
        if steps.traced:
            if states["mem"].shape != x.shape:  # the library begins anew
                return None
            trace = self._tssl_trace(states, False)
        pinned, count = self._tssl_pinned(), steps.form.inputs
        if not steps.fits((x,) * count, given, pinned, trace):
            return None
        inputs = self._tssl_inputs(x, states)
        if count > 1 and not steps.fits(inputs, given, pinned, trace):
            return self._tssl_next(inputs, states, False)
        return self._tssl_ran(steps.run(inputs, given, trace), names)

    def _tssl_pinned(self: Any) -> list[Tensor]:
        names, buffers = (*self._tssl_numbers, "threshold", "graded_spikes_factor"), self._buffers
        try:
            return [buffers[name] for name in names]
        except KeyError:  # some learn, or are plain attributes in older versions
            return [held(self, name) for name in names]

    def _tssl_cell(self: Any, states: States, inputs: Tensors) -> Cell:
        neuron = self._tssl_neuron(states)
        return Cell(
            self._tssl_charged,
            lambda given, before, spike: self._tssl_others(given, before),
            lambda given, before: self.threshold,
            neuron.reset,
            neuron.timing,
            neuron.strict,
            neuron.detached,
            inputs=len(inputs),
            states=len([name for name in states if name != "spk"]),
            sends="spk" in states,
            clears=self._tssl_clears(),
        )

    def _tssl_in_torch(
        self: Any,
        names: tuple[str, ...],
        settings: Settings,
        inputs: Tensors,
        before: Tensors,
        trace: Tensor | None,
    ) -> Stepped:
        """A step in torch, with the given settings."""
        given = dict(zip(names, before, strict=True))
        given = {n: given.get(n, torch.zeros_like(inputs[0])) for n in self._tssl_states}
        with untouched(self):
            self.__dict__["_tssl_settings"] = settings
            out = self._tssl_by_torch(inputs, given, trace, False)
            after = [getattr(self, name) for name in names]
            sent = self.spk if "spk" in given and settings.tau_s != 1.0 else None
        out = out[0] if isinstance(out, tuple) else out
        return Stepped(out, after, known_trace(after[0]), sent)
