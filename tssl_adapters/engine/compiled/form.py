"""What is fixed about a layer's single steps once they are decided, and what a step gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tssl_adapters.engine.call.pins import Pin
from tssl_adapters.engine.compiled.step_loops import BackwardLoop, ForwardLoop
from tssl_adapters.engine.step.cell import Tensors

NOTHING, ZEROS = -1, -2
"""Gradients that no room holds."""


class Stepped(NamedTuple):
    """A step's results.

    Attributes:
        out: PSC, or spikes at ``tau_s == 1``.
        states: the states after the step.
        trace: a[t] for the next step, at ``tau_s > 1``.
        spike: the spikes, at ``tau_s > 1`` if the cell ``sends`` them.
        due: r if the reset is delayed.
        before: instead of ``due``, what it can be computed from: the potential before the step, in
            memory that nobody else has, and the neuron's numbers.
    """

    out: Tensor
    states: Tensors
    trace: Tensor | None = None
    spike: Tensor | None = None
    due: Tensor | None = None
    before: tuple[Tensor, Sequence[Pin]] | None = None


class StepForm(NamedTuple):
    """What a step's functions are written for.

    Attributes:
        dtype: that of inputs and states.
        device: theirs, ``None`` for the CPU.
        formats: whether they may lie in a memory format that torch's results keep.
        inputs: number of inputs.
        states: number of states.
        traced: whether it has a PSC.
        timed: whether the rule asks for the number of time steps.
        links: number of parts of the link.
        least_dims: the least number of an input's dimensions.
        fixed: snapshots of the tensors with its numbers, if none of them learns and all can be
            looked at.
        of_each: the names of those with a number for each neuron.
        read: the names of those that are read where they lie.
        learned: those that take a gradient.
        forward: its loops.
        backward: the loop back.
        from_h: the same where h of the step before is kept for the potential, if there is one.
        given: the names of what may take a gradient: inputs, states, PSC, and numbers that learn.
        reached: for each result, those of ``given`` that its gradient reaches.
        kept: the names of what is kept for the backward pass.
    """

    dtype: torch.dtype
    device: torch.device | None
    formats: bool
    inputs: int
    states: int
    traced: bool
    timed: bool
    links: int
    least_dims: int
    fixed: Sequence[Pin] | None
    of_each: Sequence[str]
    read: Sequence[str]
    learned: Sequence[Tensor]
    forward: ForwardLoop
    backward: BackwardLoop
    from_h: BackwardLoop | None
    given: Sequence[str]
    reached: Sequence[set[str]]
    kept: Sequence[str]

    def reaches_all(self, name: str) -> bool:
        """Whether all results have a gradient that reaches one of ``given``."""
        return all(name in reached for reached in self.reached)

    def constant(self, needs: Sequence[bool]) -> list[int]:
        """The results that have no gradient, if these of ``given`` need one."""
        needed = {name for name, need in zip(self.given, needs, strict=True) if need}
        return [k for k, reached in enumerate(self.reached) if not needed & reached]

    def places(
        self, backward: BackwardLoop, arrived: Sequence[bool], link: bool, linked: bool
    ) -> list[int]:
        """Which room holds the gradient of each of ``given``, or that there is none, or zeros.

        Args:
            backward: the loop.
            arrived: whether the gradient of each result did.
            link: whether that of the link did.
            linked: whether a link came in.
        """
        # The link comes with the potential, the second result.
        reached = [r for k, r in enumerate(self.reached) if arrived[k] or (k == 1 and link)]
        found = []
        for name, place in zip(self.given, backward.at[linked], strict=True):
            arrives = any(name in names for names in reached)
            # Norse has a hook on recurrent weights, which takes no None, even where their input
            # is that of a last step that acts in the next one.
            missing = ZEROS if name == "x1" and not arrives else NOTHING
            found.append(place if arrives and place is not None else missing)
        return found
