"""What all wrapped layers share: ``[batch, T, ...]``, states in buffers, sequences and steps.

A layer that emits at most one spike per step and has no feedback goes through the engine as a
sequence. Any other goes step by step, with the library's own function for one step: recurrent
layers, and those with an adaptive threshold, a clipped potential, or several spikes per step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from sinabs import activation
from sinabs.layers import ALIF, SqueezeMixin
from sinabs.layers.functional import lif_forward
from sinabs.layers.functional.alif import alif_forward_single
from sinabs.layers.functional.lif import lif_forward_single
from torch import Tensor

from adapter_for_sinabs import neurons, surrogates
from tssl_adapters.adapters import (
    LinearCharge,
    NativeForward,
    Neuron,
    Reset,
    Result,
    Surrogate,
    Traits,
    Value,
    Wrapped,
    attach,
    attach_smooth,
    eager,
    emitted,
    exporting,
    trace_of,
    valued,
)

States = dict[str, Tensor]


class Layer(Wrapped):
    """Mixed in before the library's class."""

    _tssl_free = frozenset(
        {"training", "v_mem", "i_syn", "b", "spike_threshold", "recordings", "firing_rate"}
    )
    _tssl_recurs: ClassVar[bool] = False
    """Whether its own spikes are fed back to it."""

    @classmethod
    def _tssl_theta(cls, layer: Any) -> Tensor:
        """The threshold of a layer at rest."""
        return torch.as_tensor(layer.spike_threshold)

    @classmethod
    def _tssl_traits(cls, layer: Any) -> Traits:
        theta = cls._tssl_theta(layer)
        return Traits(
            nonlinear=_nonlinear(layer),
            reset=neurons.reset(layer.reset_fn, theta),
            decay=layer.alpha_mem_calculated,
            threshold=theta,
            synapse=layer.alpha_syn_calculated,
            recurrent=cls._tssl_recurs,
            sequence=cls._tssl_whole(layer),
            several=_several(layer),
        )

    @classmethod
    def _tssl_whole(cls, layer: Any) -> bool:
        """Whether the engine gets the whole sequence in one call."""
        steps = cls._tssl_recurs or layer.min_v_mem is not None or isinstance(layer, ALIF)
        return not (steps or _several(layer))

    @classmethod
    def _tssl_spikes(cls, layer: Any) -> Callable[[Tensor], Tensor]:
        return surrogates.spikes(layer.surrogate_grad_fn, cls._tssl_theta(layer))

    @classmethod
    def _tssl_own(cls, layer: Any) -> tuple[Any, ...]:
        return surrogates.own(layer.surrogate_grad_fn, cls._tssl_theta(layer))

    @classmethod
    def _tssl_surrogate(cls, layer: Any) -> Surrogate:
        return surrogates.surrogate(layer.surrogate_grad_fn, cls._tssl_theta(layer))

    def _tssl_parts(self: Any) -> tuple[Any, ...]:
        functions = (self.spike_fn, self.reset_fn, self.surrogate_grad_fn)
        return tuple(made for function in functions for made in surrogates.made_of(function))

    def __deepcopy__(self, memo: Any = None) -> Any:
        """The library makes a new layer of the class, without what ``wrap`` added to it."""
        made = super().__deepcopy__(memo)  # type: ignore[misc]
        made._tssl_settings = copy.deepcopy(self._tssl_settings, memo)
        return made

    @eager
    def forward(self: Any, input_data: Tensor) -> Tensor:
        if exporting():
            return self._tssl_emitted(input_data)  # type: ignore[no-any-return]
        if _squeezes(self):
            return self.squeeze_forward(input_data, self._tssl_run)  # type: ignore[no-any-return]
        return self._tssl_run(input_data)  # type: ignore[no-any-return]

    def _tssl_emitted(self, input_data: Tensor) -> Tensor:
        layer: Any = self
        cls = self._tssl_native.__mro__[1] if _squeezes(self) else self._tssl_native

        def run(x: Tensor) -> Tensor:
            before = None if layer._tssl_enter(x) else layer.v_mem
            spikes = cls.forward(layer, x).transpose(0, 1)
            settings = self._tssl_settings
            out = emitted(settings, spikes, before, layer.v_mem, (0.0,), sequence=True)
            return out.transpose(0, 1).contiguous()

        out: Tensor = layer.squeeze_forward(input_data, run) if _squeezes(self) else run(input_data)
        return out

    def _tssl_altered(self) -> str | None:
        return problem(type(self), self) or super()._tssl_altered()

    def _tssl_enter(self: Any, x: Tensor) -> bool:
        """Give the layer states of an input's shape, as the library does. True if they are new."""
        batch, _, *rest = x.shape
        if self.state_has_shape((batch, *rest)):
            return False
        kept = self.is_state_initialised() and self.has_trailing_dimension(rest)
        if kept and not self._tssl_recurs and not isinstance(self, ALIF):
            self.handle_state_batch_size_mismatch(batch)
            return False
        self.init_state_with_shape((batch, *rest))
        return True

    def _tssl_run(self: Any, x: Tensor) -> Tensor:
        """The layer's output ``[batch, T, ...]``; its states go to its buffers."""
        fresh = self._tssl_enter(x)
        whole = self._tssl_whole(self)
        out, states = (self._tssl_sequence if whole else self._tssl_steps)(x, fresh)
        for name, seen in states.items():
            if name != "i_syn" or not isinstance(self, ALIF):  # which the library does not keep
                setattr(self, name, seen[-1])
        if self.alpha_syn_calculated is None and not isinstance(self, ALIF):
            self.i_syn = None
        self.recordings = {}
        if self.record_states:
            self.recordings = {name: torch.stack(seen, 1) for name, seen in states.items()}
        self.firing_rate = out.mean() if _averages(self) else out.sum() / out.numel()
        return out  # type: ignore[no-any-return]

    def _tssl_currents(self: Any, x: Tensor, current: Tensor | None) -> list[Tensor]:
        """The synaptic current after each step of ``x [T, batch, ...]``, or the input if none."""
        alpha = self.alpha_syn_calculated
        if alpha is None:
            return list(x.unbind(0))
        assert current is not None
        seen = []
        for step in x.unbind(0):
            current = alpha * (current + step)
            seen.append(current)
            current = current if self._tssl_settings.rule.chain else current.detach()
        return seen

    # --- all steps at once ---------------------------------------------------------------------

    def _tssl_sequence(self: Any, x: Tensor, fresh: bool) -> tuple[Tensor, dict[str, list[Tensor]]]:
        settings, keep = self._tssl_settings, bool(self.record_states)
        v, current = self.v_mem, getattr(self, "i_syn", None)
        given = x.transpose(0, 1)
        currents = self._tssl_currents(given, current)
        drive = given if self.alpha_syn_calculated is None else torch.stack(currents)

        @torch.no_grad()
        def natively(x: Tensor, v: Tensor, current: Tensor | None) -> tuple[Tensor, Tensor]:
            states = {"v_mem": v} | ({} if current is None else {"i_syn": current})
            spikes, after, seen = lif_forward(
                input_data=x.transpose(0, 1), state=states, record_states=keep, **self._tssl_told()
            )
            v = seen["v_mem"].transpose(0, 1) if keep else after["v_mem"]
            return spikes.transpose(0, 1), v

        def probe(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            rest = None if current is None else torch.zeros_like(v)
            seen = self._tssl_currents(x, rest)
            return (x if rest is None else torch.stack(seen), *natively(x, v, rest))

        result = attach(
            settings,
            self._tssl_neuron(self._tssl_theta(self)),
            drive,
            v,
            trace_of(settings, None if fresh else v, (0.0,)),
            NativeForward(given, lambda: natively(given, v, current), probe),
            sequence=True,
            keep_states=keep,
            fresh=fresh,
        )
        seen = [result.state]
        if result.states is not None:
            seen = [*result.states[:-1], result.state]
        states = {"v_mem": seen}
        if current is not None:
            states["i_syn"] = currents
        return result.out.transpose(0, 1).contiguous(), states

    def _tssl_told(self: Any) -> dict[str, Any]:
        """The layer's settings, as arguments of the library's functions."""
        names = ("spike_fn", "reset_fn", "surrogate_grad_fn", "min_v_mem", "norm_input")
        told = {name: getattr(self, name) for name in names}
        told |= {"alpha_mem": self.alpha_mem_calculated, "alpha_syn": self.alpha_syn_calculated}
        return told | {"spike_threshold": self.spike_threshold}

    def _tssl_neuron(self: Any, threshold: Tensor) -> Neuron:
        return Neuron(
            self._tssl_charge(),
            neurons.reset(self.reset_fn, threshold),
            _number(threshold),
            strict=False,
            detached=_detached(self),
        )

    def _tssl_charge(self: Any) -> LinearCharge:
        return neurons.charge(self.alpha_mem_calculated, self.norm_input)

    # --- step by step --------------------------------------------------------------------------

    def _tssl_steps(self: Any, x: Tensor, fresh: bool) -> tuple[Tensor, dict[str, list[Tensor]]]:
        settings = self._tssl_settings
        states: States = dict(self.named_buffers(recurse=False))
        seen: dict[str, list[Tensor]] = {name: [] for name in states}
        outs, within = [], []
        back = torch.zeros(x[:, 0].shape, device=x.device) if self._tssl_recurs else None
        for t, step in enumerate(x.unbind(1)):
            arriving = step if back is None else step + back
            result, states = self._tssl_step(arriving, states, fresh and t == 0)
            outs.append(result.out)
            within.append(result.charged)
            for name, state in states.items():
                seen[name].append(state)
            if back is not None:
                cuts = settings.rule.cuts_feedback or not settings.rule.chain
                sent = result.fired.detach() if cuts else result.fired
                back = self.rec_connect(sent).reshape(back.shape)
        if self._tssl_recurs or isinstance(self, ALIF):
            # The library's record of a step is overwritten by the next step, up to its spike.
            seen["v_mem"] = [*within[1:], seen["v_mem"][-1]]
            if "i_syn" in seen:
                seen["i_syn"] = [*seen["i_syn"][1:], seen["i_syn"][-1]]
        return torch.stack(outs, 1), seen

    def _tssl_step(self: Any, x: Tensor, states: States, fresh: bool) -> tuple[Result, States]:
        """The result of a step, and the states after it."""
        settings, v = self._tssl_settings, states["v_mem"]
        others = {name: state for name, state in states.items() if name != "v_mem"}
        if not settings.rule.chain:
            others = {name: state.detach() for name, state in others.items()}
        threshold = self._tssl_now(others)
        drive, after = self._tssl_drive(x, others)
        charge = self._tssl_charge()
        theirs: States = {}

        @torch.no_grad()
        def natively() -> tuple[Tensor, Tensor]:
            spikes, found = self._tssl_natively(x, {**others, "v_mem": v})
            theirs.update(found)
            return spikes, found["v_mem"]

        @torch.no_grad()
        def probe(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            rest = {**others, "v_mem": v}
            if "i_syn" in rest:
                rest["i_syn"] = torch.zeros_like(v)
            charged = charge.formula(v, self._tssl_drive(x, rest)[0], *charge.raw)
            spikes, found = self._tssl_natively(x, rest)
            left = found["v_mem"]
            if _several(self):
                left = neurons.one_spike(self.reset_fn, threshold, spikes, left)
            return charged, spikes.clamp(max=1.0), left

        rule = settings.rule
        if rule.follows and isinstance(self, ALIF):
            settings.rule = rule.following(surrogates.surrogate(self.surrogate_grad_fn, threshold))
        try:
            result = attach_smooth(
                settings,
                lambda v: charge.formula(v, drive, *charge.raw),
                v,
                trace_of(settings, None if fresh else v, (0.0,)),
                NativeForward(x, natively, probe),
                reset=self._tssl_left(threshold),
                threshold=_number(threshold),
                strict=False,
                detached=_detached(self),
                slope=self.alpha_mem_calculated.detach(),
                fresh=fresh,
            )
        finally:
            settings.rule = rule
        after |= self._tssl_adapted(others, result.fired)
        after = {name: valued(theirs[name], state) for name, state in after.items()}
        return result, {**states, **after, "v_mem": result.state}

    def _tssl_left(self: Any, threshold: Tensor) -> Reset:
        """What a step's spikes, and the clipping after them, do to the potential."""
        if _several(self) or self.min_v_mem is not None:
            return neurons.several(self.reset_fn, threshold, self.min_v_mem)
        return neurons.reset(self.reset_fn, threshold)

    def _tssl_now(self: Any, states: States) -> Tensor:
        """The threshold in a step."""
        threshold: Tensor = self._tssl_theta(self)
        return threshold

    def _tssl_drive(self: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        """The drive of the potential in a step, and the synaptic current after it."""
        (current,) = self._tssl_currents(x[None], states.get("i_syn"))
        return current, ({"i_syn": current} if "i_syn" in states else {})

    def _tssl_adapted(self: Any, states: States, fired: Tensor) -> States:
        """The other states after a step."""
        return {}

    def _tssl_natively(self: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        """The library's spikes and states of one step."""
        found: tuple[Tensor, States] = lif_forward_single(
            input_data=x, state=states, **self._tssl_told()
        )
        return found


class Adaptive(Layer):
    """With a threshold that rises with every spike; its current is stored normed."""

    @classmethod
    def _tssl_theta(cls, layer: Any) -> Tensor:
        return torch.as_tensor(layer.b0)

    def _tssl_now(self: Any, states: States) -> Tensor:
        raised: Tensor = self.b0 + self.adapt_scale * states["b"]
        return raised

    def _tssl_charge(self: Any) -> LinearCharge:
        return neurons.charge(self.alpha_mem_calculated, False)  # the current is normed already

    def _tssl_drive(self: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        current, _ = super()._tssl_drive(x, states)
        if self.norm_input:
            current = (1 - self.alpha_mem_calculated) * current
        return current, ({"i_syn": current} if "i_syn" in states else {})

    def _tssl_adapted(self: Any, states: States, fired: Tensor) -> States:
        alpha = self.alpha_adapt_calculated
        b = alpha * states["b"] + (1 - alpha) * fired
        return {"b": b, "spike_threshold": self.b0 + self.adapt_scale * b}

    def _tssl_natively(self: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        told = self._tssl_told()
        del told["spike_threshold"]
        found: tuple[Tensor, States] = alif_forward_single(
            input_data=x,
            state=states,
            alpha_adapt=self.alpha_adapt_calculated,
            adapt_scale=self.adapt_scale,
            b0=self.b0,
            **told,
        )
        return found


def _number(threshold: Tensor) -> Value:
    """The threshold for the comparison, through which the library gives it no gradient."""
    compared = threshold.detach()
    return float(compared) if not compared.ndim and compared.is_cpu else compared


def _detached(layer: Any) -> bool:
    """Whether the library cuts the gradient through the reset's spike."""
    return isinstance(layer.reset_fn, activation.MembraneReset)


def _squeezes(layer: Any) -> bool:
    """Whether batch and time are one dimension."""
    return isinstance(layer, SqueezeMixin)


def _several(layer: Any) -> bool:
    return layer.spike_fn is not activation.SingleSpike


def _averages(layer: Any) -> bool:
    """Whether the library computes the rate as a mean rather than as a sum over a count."""
    return not layer._tssl_recurs and not isinstance(layer, ALIF)


def _nonlinear(layer: Any) -> str | None:
    if isinstance(layer, ALIF):
        return "its threshold adapts"
    return None if layer.min_v_mem is None else "its potential is clipped at min_v_mem"


def problem(wrapped: Any, layer: Any) -> str | None:
    """Which of a layer's settings cannot be wrapped, or ``None``."""
    counts = isinstance(layer.spike_fn, activation.MaxSpike) or layer.spike_fn in neurons.SPIKES
    if not counts:
        return (
            "its spike_fn is a function of your own; use sinabs.activation's SingleSpike, "
            "MultiSpike or MaxSpike"
        )
    if type(layer.reset_fn) not in neurons.RESETS:
        return (
            "its reset_fn is a function of your own; use sinabs.activation's MembraneReset or "
            "MembraneSubtract"
        )
    return None
