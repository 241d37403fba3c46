"""What a step is generated for: a neuron's and a backward pass's compile-time constants.

Besides the numbers, that is all by which the code of two steps may differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

from tssl_adapters.neuron import Neuron, Reset, Timing
from tssl_adapters.rules import Rule

DECAY, GAIN, OFFSET, THRESHOLD, RESET_VALUE = range(5)
LEARNED = 5
"""How many of a neuron's values take a gradient; the others only serve the charge's formula."""
GRAD_SPIKE = 3
"""The row of a link that holds G."""
ROWS = 8
"""How many numbers a neuron has: those five, then up to three of its charge's own."""


class Form(NamedTuple):
    """The compile-time constants of a neuron's step, besides its formulas.

    Attributes:
        dtype: name of the drive's dtype, e.g. ``"float32"``.
        dense: whether the numbers are given per neuron rather than once for all neurons.
        raw: how many numbers of its own the charge's formula takes.
        timing: as in :mod:`tssl_adapters.neuron`.
        strict: ``h > theta`` rather than ``>=``.
        psc: whether the output is the trace rather than the spikes.
        centred: index of the raw number that the decay is relative to, if not to 0.
        given_h: whether a backward pass is given h[t] instead of the drive.
        synapse: whether a synaptic current precedes the membrane; its leak is the last number.
    """

    dtype: str
    dense: bool
    raw: int
    timing: Timing
    strict: bool
    psc: bool
    centred: int | None = None
    given_h: bool = False
    synapse: bool = False


@dataclass(frozen=True, eq=False)
class Spec:
    """A neuron as kernels see it: charge and reset in plain arithmetic, and how they are combined.

    :func:`spec_of` makes one object per spec, because every call looks up what was compiled for it.
    """

    charge: Callable[..., Any]
    reset: Reset
    form: Form

    def shaped(self, **fields: Any) -> Spec:
        """The same neuron in another form."""
        return spec_of(self.charge, self.reset, self.form._replace(**fields))

    @cached_property
    def given_h(self) -> Spec:
        """The same neuron with a backward pass that is given h[t]."""
        return self.shaped(given_h=True)

    @cached_property
    def behind_a_synapse(self) -> Spec:
        """The same neuron with a synaptic current in front of it."""
        return self.shaped(synapse=True)


@cache
def spec_of(charge: Callable[..., Any], reset: Reset, form: Form) -> Spec:
    """The unique :class:`Spec` for these arguments."""
    return Spec(charge, reset, form)


class BackForm(NamedTuple):
    """The compile-time constants of a backward pass, besides the neuron.

    Attributes:
        output: whether the output has a gradient.
        learns: whether gradient sums for the neuron's own numbers are wanted.
        membrane: whether there is an adjoint of a loss on the membrane potential; without it
            c[t] and mu[t] are 0.
        detached: whether the library cuts the gradient through the reset.
        rule: the learning rule.
        ends: whether its last step is the window's last, for ``windowed`` rules.
    """

    output: bool
    learns: bool
    membrane: bool
    detached: bool
    rule: Rule
    ends: bool = False


def link_rows(timing: Timing, rule: Rule) -> int:
    """How many rows a link has, if there is one: the leading fields of
    :class:`tssl_adapters.engine.step.recursion.Carried`. Without a delay the third stays zero.
    """
    if rule.looks_ahead:
        return 4
    return 3 if timing == "delayed" else 2


def link_size(neuron: Neuron, rule: Rule) -> int:
    """How many tensors the link between two calls needs: 0, 2, 3 or 4.

    They carry lambda[t+1] and F_v lambda[t+1]; if the layer hands on h, also F_v mu[t+1], as the
    reset then belongs to the previous call; and G[t+1] if the rule asks for it.
    """
    delayed = neuron.timing == "delayed"
    needed = rule.looks_ahead or rule.splits_adjoint(neuron.detached)
    needed = needed or (delayed and rule.resets_membrane(neuron.detached))
    return link_rows(neuron.timing, rule) if rule.chain and needed else 0


def looks_around(rule: Rule, per_step: bool, sequence: bool, alone: bool) -> bool:
    """Whether the rule is given the gradient of a loss on the potential around a spike: the
    sequence must have a gradient at every step and be linked to no other call.
    """
    return rule.looks_around and per_step and sequence and alone
