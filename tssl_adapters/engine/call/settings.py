"""What is remembered of a layer from call to call: its settings, and where in time a call stands.

A window is a call and the calls linked to it. In a user's time loop its end is known only when the
backward pass begins, so all its calls share one :class:`Stretch`, which is attached to the state
tensor with the link and read in the backward pass.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

import tssl_adapters
from tssl_adapters.errors import LibraryVersionError, NativeGradientWarning
from tssl_adapters.neuron import Neuron, Traits
from tssl_adapters.rules import Rule, Window

WRITTEN = "<tssl_adapters"
"""How the file names of code begin that is written for a layer."""
_NOT_THE_USERS = (*tssl_adapters.__path__, *torch.__path__, WRITTEN)


class OtherNeuronError(LibraryVersionError):
    """A call found that a layer is not the neuron that was wrapped; the library's own gradient can
    take over.
    """


@dataclass
class Settings:
    """What ``wrap`` sets for one layer: its dotted path, rule, synaptic time constant, and engine.

    The rest is remembered between calls: whether it warned of a lost link (``warned``); whether the
    loss was found to suit the rule, or warned of, by the gradients of the spikes (``watched``) and
    of the potential around them (``seen_around``); where the record reproduces the library; the
    compiled loops; the record itself, if an adapter keeps it; whether the layer's numbers are still
    to be checked, as it was wrapped on the meta device (``unseen``); for rules that follow the
    layer's surrogate, that surrogate (``followed``) and which of the layer's numbers natively get
    no gradient (``constants``); what was decided about its calls (``decided``); what the layer was
    made of in its last call, why that can no longer be wrapped (``altered``), and whether it warned
    of that (``gave_way``); the ``name`` under which graphs of torch.compile know the layer, empty
    if none does. On a ``trial`` a layer that can no longer be wrapped is an error.
    """

    path: str
    rule: Rule
    tau_s: float
    engine: str = "torch"
    warned: bool = field(default=False, compare=False)
    watched: bool = field(default=False, compare=False)
    seen_around: bool = field(default=False, compare=False)
    reproduces: dict[Any, bool | str] = field(default_factory=dict, compare=False, repr=False)
    loops: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    record: Any = field(default=None, compare=False, repr=False)
    unseen: bool = field(default=False, compare=False, repr=False)
    followed: Any = field(default=None, compare=False, repr=False)
    constants: dict[Any, list[str]] = field(default_factory=dict, compare=False, repr=False)
    decided: Any = field(default=None, compare=False, repr=False)
    made_of: tuple[Any, ...] = field(default=(), compare=False, repr=False)
    altered: str | None = field(default=None, compare=False, repr=False)
    gave_way: bool = field(default=False, compare=False, repr=False)
    trial: bool = field(default=False, compare=False, repr=False)
    name: str = field(default="", compare=False, repr=False)

    @property
    def compiles_steps(self) -> bool:
        """Whether compiled loops may run steps that are recorded from what torch computes."""
        rule = self.rule
        return (
            self.engine != "torch"
            and rule.chain
            and not (rule.windowed or rule.looks_ahead or rule.looks_around)
            and rule.compiled
        )

    def said(self, traits: Traits) -> str:
        """The layer's rule, time constant and engine, as text."""
        if traits.written or traits.recurrent:
            compiled = self.compiles_steps
        else:
            compiled = traits.nonlinear is None and not traits.refractory and self.rule.compiled
        engine = self.engine if compiled else "torch"
        current = "" if self.tau_s == 1.0 else f"tau_s={self.tau_s:g}, "
        return f"{self.rule}, {current}engine={engine!r}"

    def __getstate__(self) -> dict[str, Any]:
        forgotten: dict[str, Any] = dict.fromkeys(("record", "decided", "followed"))
        forgotten |= {"reproduces": {}, "loops": {}, "constants": {}, "made_of": (), "name": ""}
        return {**self.__dict__, "rule": self.rule.following(None), **forgotten}

    def look(self, made_of: tuple[Any, ...], altered: Callable[[], str | None]) -> None:
        """Forget what is known about the layer if it is now made of something else.

        Raises:
            OtherNeuronError: ``altered`` gives a reason why it can no longer be wrapped.
        """
        if made_of != self.made_of:
            self.made_of, self.altered = made_of, altered()
            self.reproduces.clear()
            self.loops.clear()
            self.decided = None
        if self.altered is not None:
            raise OtherNeuronError(f"Layer '{self.path}': {self.altered}.")

    def give_way(self, error: OtherNeuronError) -> None:
        """Warn once per layer that the library's own gradient takes over in a call.

        Raises:
            OtherNeuronError: on a trial.
        """
        if self.trial:
            raise error
        if not self.gave_way:
            self.gave_way = self.warned = True  # its states have no link, needless to say
            warnings.warn(
                f"tssl_adapters: {str(error)[0].lower()}{str(error)[1:]} Until then it runs with "
                "its library's own forward pass and gradient, not the rule's.",
                NativeGradientWarning,
                stacklevel=above_us(),
            )


@dataclass(eq=False)
class Stretch:
    """A window up to where the forward pass has come: its steps, and each neuron's spikes.

    ``any_gradient``: whether a non-zero gradient has arrived; ``known``: the window made from the
    counts.
    """

    settings: Settings
    steps: int = 0
    any_gradient: bool = False
    counts: Tensor | None = None
    known: tuple[Tensor, Window] | None = None


class Position(NamedTuple):
    """A state's position in its window: the steps and spikes before it.

    It is immutable, so that a recomputed step, e.g. under checkpointing, counts once.
    """

    stretch: Stretch
    steps: int = 0
    counts: Tensor | None = None

    def after(self, more: int, spikes: Tensor | None) -> Position:
        """The position after a call of ``more`` steps with ``spikes`` ``[T, batch, ...]``, which
        are counted for rules that ask for windows.
        """
        counts = self.counts
        if spikes is not None:
            spikes = spikes.detach()
            found = spikes.sum(0, dtype=torch.promote_types(spikes.dtype, torch.float32))
            counts = found if counts is None else counts + found
        steps = self.steps + more
        if steps >= self.stretch.steps:
            self.stretch.steps, self.stretch.counts = steps, counts
        return Position(self.stretch, steps, counts)

    def sending(self, fired: Tensor, sent: Tensor) -> Position:
        """The position after a one-step call whose layer emitted ``sent`` instead of ``fired``."""
        if self.counts is None:
            return self
        counts = self.counts + (sent.detach() - fired.detach())
        if self.steps >= self.stretch.steps:
            self.stretch.counts = counts
        return self._replace(counts=counts)

    def window(self, rule: Rule, neuron: Neuron, dtype: torch.dtype) -> Window:
        """The window of a call that starts here, made once for all of its calls."""
        stretch = self.stretch
        known = stretch.known
        if known is None or known[0] is not stretch.counts or known[1].counts.dtype != dtype:
            assert stretch.counts is not None
            known = stretch.counts, _made(rule, stretch.counts.to(dtype), stretch.steps, neuron)
            stretch.known = known
        return known[1]


def _made(rule: Rule, counts: Tensor, steps: int, neuron: Neuron) -> Window:
    active = counts.clamp(max=1.0)
    window = Window(counts, active, steps, neuron.charge.decay, neuron.reset.drop(neuron.threshold))
    return window._replace(factor=rule.factor(window))


def above_us() -> int:
    """The ``stacklevel`` of the calling line outside this package and torch."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame, level = frame.f_back, level + 1
    return level
