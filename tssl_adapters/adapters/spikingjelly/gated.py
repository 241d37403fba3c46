"""``GatedLIFNode``: whole sequences only, and a reset that the library applies a step later.

Within a call the neuron is equivalent to one that resets at once: what the library subtracts at
step t + 1, ((1 - alpha (1 - tau)) gamma v + (1 - gamma) v_subreset) s[t], leaves the potential at
step t. From one call to the next the library discards the last spike, and its reset with it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from spikingjelly.activation_based import functional
from torch import Tensor

from tssl_adapters.adapters import (
    ByFormula,
    Cell,
    Described,
    NativeForward,
    Result,
    Settings,
    Stepped,
    Subtract,
    Tensors,
    Traits,
    attach_smooth,
    compiled_step,
    may_compile,
    on_graph_of,
    tag,
    valued,
)
from tssl_adapters.adapters.spikingjelly.node import Node, Ran

_PARAMETERS = "alpha beta gamma tau v_threshold linear_decay v_subreset".split()


class _Gates(NamedTuple):
    """The parameters as the library's step takes them, with their graph."""

    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    tau: Tensor
    threshold: Tensor
    linear_decay: Tensor
    subreset: Tensor


class _Numbers(NamedTuple):
    """What the gates make of a step: h = decay v - leak + current, and a spike then takes the share
    gamma of h and, of decay v, the amount.
    """

    leak: Tensor
    decay: Tensor
    gamma: Tensor
    amount: Tensor
    threshold: Tensor

    @classmethod
    def of(cls, gates: _Gates) -> _Numbers:
        return cls(
            (1 - gates.alpha) * gates.linear_decay,
            1 - gates.alpha * (1 - gates.tau),
            gates.gamma,
            (1 - gates.gamma) * gates.subreset,
            gates.threshold,
        )


def _gate(parameter: Tensor) -> Tensor:
    return parameter.view(1, -1, 1, 1).sigmoid()


def _charge(inputs: Tensors, states: Tensors) -> Tensor:
    """h of the equivalent neuron."""
    current, leak, decay, *_ = inputs
    return decay * states[0] - leak + current


def _charged(inputs: Tensors, states: Tensors) -> Tensor:
    """h in the library's order of operations, from h and the spike of the step before."""
    current, leak, decay, gamma, amount, _ = inputs
    _, h, spike = states
    return decay * h - leak + current - decay * h * gamma * spike - amount * spike


def _fires(inputs: Tensors, h: Tensor) -> Tensor:
    return (h - inputs[-1] >= 0).to(h)


def _after(h: Tensor, s: Tensor, gamma: Tensor, amount: Tensor, decay: Tensor) -> Tensor:
    return h - s * (gamma * h + amount / decay)


def _cell() -> Cell:
    """A step: the current and :class:`_Numbers` come in; of the states, the equivalent neuron's
    potential carries the gradient, and the library's h and spike the values.
    """
    return Cell(
        _charge,
        lambda inputs, states, spike: [_charge(inputs, states), spike],
        lambda inputs, states: inputs[-1],
        ByFormula(_after),
        timing="immediate",
        strict=False,
        detached=False,
        inputs=1 + len(_Numbers._fields),
        states=3,
        after=lambda inputs, states, h, s: _after(h, s, inputs[3], inputs[4], inputs[2]),
        value=_charged,
        gates=len(_Numbers._fields),
    )


def _reset(inputs: Tensors) -> ByFormula:
    _, _, decay, gamma, amount, _ = inputs
    return ByFormula(_after, (gamma, amount, decay))


def _attached(
    settings: Settings, inputs: Tensors, state: Tensor, trace: Tensor | None, native: NativeForward,
    fresh: bool, h: Tensor | None = None,
) -> Result:  # fmt: skip
    """A step of the equivalent neuron in torch; ``h``: its value, if it is known."""
    decay = inputs[2]

    def charge(v: Tensor) -> Tensor:
        charged = _charge(inputs, (v,))
        return charged if h is None else valued(h, charged)

    return attach_smooth(
        settings,
        charge,
        state,
        trace,
        native,
        reset=_reset(inputs),
        threshold=inputs[-1],
        strict=False,
        detached=False,
        slope=decay,
        fresh=fresh,
    )


def _in_torch(
    settings: Settings, inputs: Tensors, states: Tensors, trace: Tensor | None
) -> Stepped:
    """The same with the library's values, computed from :func:`_charged`."""
    with torch.no_grad():
        h = _charged(inputs, states)
        spike = _fires(inputs, h)
        after = _reset(inputs).apply(h, spike)

    def probe(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return h, spike, after

    native = NativeForward(inputs[0], lambda: (spike, after), probe)
    result = _attached(settings, inputs, states[0], trace, native, False, h)
    assert result.charged is not None
    assert result.fired is not None
    return Stepped(
        result.out, [result.state, valued(h, result.charged), result.fired], result.trace
    )


class _Sequence(NamedTuple):
    """What comes in: the library's numbers, and for each step the current."""

    gates: _Gates
    conducts: Tensor
    numbers: _Numbers
    currents: Tensor

    @classmethod
    def of(cls, node: Any, x: Tensor) -> _Sequence:
        gates = _Gates(*(_gate(getattr(node, name)) for name in _PARAMETERS))
        conducts = torch.stack([_gate(conduct) for conduct in node.conduct[: len(x)]])
        share, missing = 1 - gates.beta * (1 - conducts), x.ndim - conducts.ndim
        # Step by step, as the library does it: time is no dimension to broadcast.
        share = share.reshape(len(x), *(1,) * missing, *share.shape[1:])
        each = x.reshape(len(x), *(1,) * -missing, *x.shape[1:])
        numbers, currents = _Numbers.of(gates), each * share
        if len(x) == 1:  # natively what follows a step has a gradient too, which is zero
            currents = on_graph_of(currents, numbers.decay + numbers.gamma + numbers.amount)
        return cls(gates, conducts, numbers, currents)


class GatedLIF(Node):
    """``GatedLIFNode``, with the gradient for all its parameters."""

    _tssl_nonlinear = "its gates change the charge from step to step"

    @classmethod
    def _tssl_traits(cls, layer: Any) -> Traits:
        return Traits(nonlinear=cls._tssl_nonlinear, reset=Subtract(), written=True)

    def _tssl_as_decided(self, decided: Any, *args: Any) -> None:
        """A sequence looks at its input first."""

    def _tssl_compute(
        self: Any, x: Tensor, states: tuple[Any, ...], trace: Tensor | None, keep: bool
    ) -> Ran:
        x = x[: self.T]  # the library, too, uses that many steps of the input
        given = _Sequence.of(self, x)
        ran = self._tssl_compiled(x, given, states[0], trace)
        outs, v, trace = ran or self._tssl_by_torch(x, given, states, trace)
        tag(v, (), trace)
        return Ran(torch.stack(outs), (v, v), trace, None)

    def _tssl_compiled(
        self: Any, x: Tensor, given: _Sequence, v: Tensor, trace: Tensor | None
    ) -> tuple[list[Tensor], Tensor, Tensor | None] | None:
        """Outputs, potential and trace; ``None`` if torch is to compute them."""
        settings, shape = self._tssl_settings, given.currents.shape[1:]
        # Fewer steps are an error, which is the library's; whole numbers turn into a state's dtype.
        if len(x) < self.T or not x.is_floating_point():
            return None
        if not (may_compile(settings, given.currents) and self._tssl_rounds_alike(x)):
            return None
        numbers = [number.expand(shape).contiguous() for number in given.numbers]
        currents, v = given.currents.unbind(), v.expand(shape)
        states: Tensors = v, v, torch.zeros_like(currents[0])
        described, outs = Described(_cell, (), _in_torch), []
        for t, current in enumerate(currents):
            inputs = (current, *numbers)
            ran = compiled_step(settings, described, inputs, states, trace, fresh=t == 0)
            if ran is None:
                return None
            states, trace = ran.states, ran.trace
            outs.append(ran.out)
        return outs, states[1], trace

    @torch.no_grad()
    def _tssl_rounds_alike(self: Any, x: Tensor) -> bool:
        """Whether :func:`_charged` gives the library's values, found out once on noise."""
        known, key = self._tssl_settings.reproduces, (_charged, x.dtype, x.device)
        if key not in known and x.numel():
            generator = torch.Generator(x.device).manual_seed(0)
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            h = spike = torch.zeros_like(noise[0])
            theirs, (last, _) = self.multi_step_functional_forward((noise,), (h, h))
            given, ours = _Sequence.of(self, noise), []
            for current in given.currents:
                inputs = (current, *given.numbers)
                h = _charged(inputs, (h, h, spike))
                spike = _fires(inputs, h)
                ours.append(spike)
            known[key] = torch.equal(torch.stack(ours), *theirs) and torch.equal(h, last)
        return bool(known.get(key))

    def _tssl_by_torch(
        self: Any, x: Tensor, given: _Sequence, states: tuple[Any, ...], trace: Tensor | None
    ) -> tuple[list[Tensor], Tensor, Tensor | None]:
        with torch.no_grad():
            (spikes,), (last, _) = self.multi_step_functional_forward((x,), states)
        state, outs = states[0], []
        for t in range(self.T):
            native = self._tssl_native_step(x[t], spikes[t].clone(), state, given, t)
            inputs = given.currents[t], *given.numbers
            result = _attached(self._tssl_settings, inputs, state, trace, native, t == 0)
            state, trace = result.state, result.trace
            outs.append(result.out)
        assert result.charged is not None
        return outs, valued(last, result.charged), trace

    def _tssl_native_step(
        self: Any, x: Tensor, spike: Tensor, state: Tensor, given: _Sequence, t: int
    ) -> NativeForward:
        def entering(current: Tensor, v: Tensor) -> Tensor:
            return _charge((current, *given.numbers), (v,))

        reset = _reset((x, *given.numbers))

        def values() -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                return spike, reset.apply(entering(given.currents[t], state), spike)

        def probe(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            conduct, still = given.conducts[t], torch.zeros_like(x)
            with torch.no_grad():
                fired, h = functional.gated_lif_step(
                    x, v, still, *given.gates, conduct, self.surrogate_function
                )
                current = x * (1 - given.gates.beta * (1 - conduct))
                return entering(current, v), fired, reset.apply(h, fired)

        return NativeForward(x, values, probe)

    def _tssl_keeps(self) -> bool:
        return False

    def _tssl_store(self, ran: Ran) -> None:
        """These nodes keep no sequence of states."""
