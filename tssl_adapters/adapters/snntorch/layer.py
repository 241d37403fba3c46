"""What all wrapped snnTorch layers share: states, reset, spikes, and the call of the engine.

The layers compare ``mem > threshold``. With ``reset_delay=True`` the returned ``mem`` is h[t] and
the reset happens in the next call, from the incoming ``mem``; with ``reset_delay=False`` the
layer resets before it returns as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tssl_adapters.adapters import (
    SAME_NEURON,
    LinearCharge,
    NativeForward,
    Neuron,
    Never,
    OtherNeuronError,
    Reset,
    Subtract,
    Surrogate,
    ToValue,
    Traits,
    Value,
    Wrapped,
    apart,
    attach,
    emitted,
    exporting,
    greater,
    on_graph_of,
    operand,
    trace_of,
    untouched,
)
from tssl_adapters.adapters.snntorch.surrogates import surrogate
from tssl_adapters.arithmetic import arithmetic

States = dict[str, Tensor]


@arithmetic
def _to_zero(charged: Tensor, due: Tensor, _: Value) -> Tensor:
    return charged - due * charged


RESETS: dict[str, Reset] = {
    "_base_sub": Subtract(),
    "_base_zero": ToValue(0.0, _to_zero),
    "_base_int": Never(),
}
RESET_CODES = {"_base_sub": 0, "_base_zero": 1, "_base_int": 2}


def bound_reset(layer: Any) -> str:
    """The reset that the layer applies: the one bound at construction, whatever was set since.

    Up to 0.7 nothing is bound, and the current setting applies.
    """
    bound = getattr(layer, "state_function", None)
    if bound is None:
        return list(RESETS)[int(layer.reset_mechanism_val)]
    return str(bound.__name__)


@contextmanager
def unquantised(layer: nn.Module) -> Iterator[None]:
    """Have a layer compute without its quantiser, which would hide how sums are rounded, and leave
    it as it was.
    """
    with untouched(layer):
        vars(layer)["state_quant"] = False
        yield


class Layer(Wrapped):
    """A wrapped layer. Mixed in before the library's class."""

    _tssl_states: ClassVar[tuple[str, ...]] = ("mem",)
    """Names of the states, in the order of the library's arguments. The layer holds them too."""
    _tssl_free = frozenset({"training", "spk", "syn", "syn_exc", "syn_inh", "mem", "reset"})
    _tssl_resets: ClassVar[Mapping[str, Reset]] = RESETS
    """The reset, by the name of the library's function."""
    _tssl_zero_decay: ClassVar[str] = (
        "beta is 0 somewhere, and with reset_mechanism='subtract' and reset_delay=True the "
        "potential that a spike removes is threshold/beta; use beta > 0, reset_mechanism='zero' "
        "or reset_delay=False"
    )

    _tssl_nonlinear: ClassVar[str | None] = None
    """Why it is not an integrate-and-fire neuron."""
    _tssl_recurs: ClassVar[bool] = False
    """Whether its own spikes are fed back to it."""

    @classmethod
    def _tssl_traits(cls, layer: Any) -> Traits:
        return Traits(
            nonlinear=cls._tssl_nonlinear,
            reset=cls._tssl_reset(layer),
            decay=cls._tssl_charge(layer).decay,
            threshold=layer.threshold,
            synapse=cls._tssl_synapse(layer),
            recurrent=cls._tssl_recurs,
            graded=cls._tssl_graded(layer),
            delayed=cls._tssl_delayed(layer),
        )

    @classmethod
    def _tssl_spikes(cls, layer: Any) -> Callable[[Tensor], Tensor]:
        return layer.spike_grad  # type: ignore[no-any-return]

    @classmethod
    def _tssl_own(cls, layer: Any) -> tuple[Any, ...]:
        return (layer.spike_grad,)

    @classmethod
    def _tssl_surrogate(cls, layer: Any) -> Surrogate:
        return surrogate(layer.spike_grad)

    @classmethod
    def _tssl_synapse(cls, layer: Any) -> Value | None:
        """The decay of its synaptic current, where it has one."""
        return None

    @classmethod
    def _tssl_charge(cls, layer: Any) -> LinearCharge:
        """How the drive charges the potential of a layer, wrapped or not."""
        raise NotImplementedError

    @classmethod
    def _tssl_reset(cls, layer: Any) -> Reset:
        """What a spike does to the potential of a layer, wrapped or not."""
        return cls._tssl_resets[bound_reset(layer)]

    def _tssl_rounds_alike(self) -> bool:
        """Whether the drive is a term of the library's own sum, so that h can be made of it."""
        return True

    def _tssl_foreseen(self) -> bool:
        """Whether the drive is independent of the potential, and so known for all time steps."""
        return False

    def _tssl_charge_from(self, states: States) -> LinearCharge:
        """How the drive charges the potential in a call that starts from these states."""
        return self._tssl_charge(self)

    def _tssl_step(self: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        """The drive, and the other states after the step, with their autograd graph."""
        return x, {}

    @classmethod
    def _tssl_delayed(cls, layer: Any) -> bool:
        """Whether the reset is applied in the next call."""
        return bool(getattr(layer, "reset_delay", True))

    @classmethod
    @torch.no_grad()  # a checkpoint compares what is saved, however often this is asked
    def _tssl_decayless(cls, layer: Any) -> bool:
        """Whether a decay of 0 makes the amount that a spike removes infinite."""
        if not (cls._tssl_reset(layer).follows_charge and cls._tssl_delayed(layer)):
            return False
        decay = cls._tssl_charge(layer).decay
        if isinstance(decay, Tensor):
            return not decay.is_meta and bool((decay == 0).any())
        return decay == 0.0

    def _tssl_call(self: Any, x: Tensor, *given: Tensor | None) -> Any:
        """The layer's forward pass; ``given`` are the states that the user passed."""
        misuse = self.init_hidden and any(state is not None for state in given)
        if misuse:  # the library's own error says it best
            return self._tssl_native.forward(self, x, *given)
        if exporting():
            return self._tssl_emitted(x, *given)
        states, fresh = self._tssl_incoming(x, given)
        return self._tssl_run(x, states, fresh)

    def _tssl_size(self) -> int:
        own = self.__dict__
        return len(own) - ("reset" in own)

    def _tssl_parts(self: Any) -> tuple[Any, ...]:
        own = self.__dict__
        surrogate = own.get("spike_grad") or self._modules.get("spike_grad")
        return surrogate, own.get("state_function")

    def _tssl_altered(self) -> str | None:
        return setting_problem(self) or super()._tssl_altered()

    def _tssl_emitted(self: Any, x: Tensor, *given: Tensor | None) -> Any:
        """The PSC of the library's spikes, and its states."""
        before = self.mem if given[-1] is None else given[-1]
        fresh = before.shape != x.shape
        output = self._tssl_native.forward(self, x, *given)
        shows = isinstance(output, tuple)
        spikes, *states = output if shows else (output, self.mem)
        before = None if fresh else before
        out = emitted(self._tssl_settings, spikes, before, states[-1], (0.0,), sequence=False)
        return (out, *states) if shows else out

    def _tssl_incoming(self: Any, x: Tensor, given: Sequence[Tensor | None]) -> tuple[States, bool]:
        """The states that the step starts from, and whether the potential is newly made."""
        states, fresh = {}, False
        for name, passed in zip(self._tssl_states, given, strict=True):
            state = getattr(self, name) if passed is None else passed
            fresh = state.shape != x.shape  # mem is the last, so its value remains
            if fresh:
                state = torch.zeros_like(x, device=state.device)
            elif name != "mem" and not self._tssl_settings.rule.chain:
                state = state.detach()
            states[name] = state
        return states, fresh

    def _tssl_run(self: Any, x: Tensor, states: States, fresh: bool) -> Any:
        return self._tssl_by_engine(x, states, self._tssl_trace(states, fresh), fresh)

    def _tssl_trace(self, states: States, fresh: bool) -> Tensor | None:
        """The PSC before a step."""
        return trace_of(self._tssl_settings, None if fresh else states["mem"], (0.0,))

    def _tssl_by_engine(
        self: Any, x: Tensor, states: States, trace: Tensor | None, fresh: bool
    ) -> Any:
        settings = self._tssl_settings
        neuron = self._tssl_neuron(states)
        graded = self._tssl_graded()
        drive, others = self._tssl_step(x, states)
        drive = self._tssl_factored(neuron, drive, states["mem"])
        theirs: States = {}

        def run(x: Tensor, states: States) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                spikes, after = self._tssl_natively(x, states)
                theirs.update(after)
                return (spikes.ne(0).to(spikes.dtype) if graded else spikes), after["mem"]

        def probe(x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            incoming = {**states, "mem": mem}
            with unquantised(self):
                drive, expected = self._tssl_step(x, incoming)
                spikes, potential = run(x, incoming)
                self._tssl_check(expected, theirs, spikes)
                return drive, spikes, potential

        native = NativeForward(x, lambda: run(x, states), probe)
        recurrent = "spk" in states
        split = recurrent and settings.tau_s != 1.0  # what is fed back is not what is emitted
        result = attach(
            settings,
            neuron,
            drive,
            states["mem"],
            trace,
            native,
            sequence=False,
            exposed=split or not self._tssl_rounds_alike(),
        )
        after = {**others, "mem": result.state}
        if result.before is not None:
            leave(self, "reset", result.before)
        out = self._tssl_scaled(result.out, graded)
        # The layer feeds back its spike, whatever it emits.
        self._tssl_keep(after, self._tssl_scaled(result.fired, graded) if split else out)
        if self.init_hidden and not self.output:
            return out
        return (out, *(after[name] for name in self._tssl_states if name != "spk"))

    def _tssl_keep(self, after: States, spikes: Tensor) -> None:
        """Store on the layer what the library stores there."""
        for name in self._tssl_states:
            leave(self, name, spikes if name == "spk" else after[name])

    def _tssl_natively(self: Any, x: Tensor, states: States) -> tuple[Tensor, States]:
        """The library's spikes and states."""
        if self.init_hidden:
            output = self._tssl_from_itself(x, states)
        else:
            output = self._tssl_native.forward(self, x, *states.values())
        spikes: Tensor = output[0] if isinstance(output, tuple) else output
        return spikes, {name: getattr(self, name) for name in self._tssl_states}

    def _tssl_from_itself(self: Any, x: Tensor, states: States) -> Any:
        """The library's output, with the states set on the layer."""
        for name, state in states.items():
            setattr(self, name, state)
        return self._tssl_native.forward(self, x)

    def _tssl_check(self: Any, expected: States, native: States, spikes: Tensor) -> None:
        """Check the library's other states against ours, to the precision of its spikes, which may
        be float32 where the rest is not.
        """
        for name, ours in expected.items():
            theirs = native[name]
            rounding = 64.0 * max(torch.finfo(t.dtype).eps for t in (ours, theirs, spikes))
            if (share := apart(ours, theirs, rounding)) > SAME_NEURON:
                raise OtherNeuronError(
                    f"Layer '{self._tssl_settings.path}' does not compute the neuron that its "
                    f"adapter knows: on a probe {share:.1%} of its state '{name}' differs. Take "
                    "back what was changed of it since it was wrapped, use a version of the "
                    "library that tssl_adapters was tested with, or skip this layer."
                )

    def _tssl_scaled(self: Any, spikes: Tensor, graded: bool) -> Tensor:
        return spikes * self.graded_spikes_factor if graded else spikes

    def _tssl_factored(self: Any, neuron: Neuron, drive: Tensor, mem: Tensor) -> Tensor:
        """The drive, on the graph of a learned factor of the spikes where the potential is: without
        delay the library takes off ``spk / factor``, whose gradient by the factor is zero.
        """
        factor = held(self, "graded_spikes_factor")
        if not factor.requires_grad or neuron.timing != "both" or not neuron.reset.happens:
            return drive
        dtype = drive.dtype if drive.is_floating_point() else torch.result_type(drive, mem)
        return on_graph_of(drive.to(dtype), factor.sum().to(dtype))

    def _tssl_graded(self: Any) -> bool:
        """Whether the output spikes are scaled; assumed so where checking would be costly."""
        factor = held(self, "graded_spikes_factor")
        return factor.requires_grad or not at_hand(factor) or factor.item() != 1.0

    def _tssl_neuron(self: Any, states: States) -> Neuron:
        charge = self._tssl_charge_from(states)
        decay = charge.decay
        settings = self._tssl_settings
        if isinstance(decay, Tensor) and (decay.requires_grad or settings.unseen):
            if self._tssl_decayless(self):
                raise self._tssl_refusal(self._tssl_zero_decay)
            settings.unseen = decay.is_meta
        quantiser = self.state_quant or None
        if self.inhibition or quantiser is not None:
            why = setting_problem(self)
            if why is not None:
                raise self._tssl_refusal(why)
        delayed = self._tssl_delayed(self)
        reset, threshold = self._tssl_reset(self), held(self, "threshold")
        if reset.follows_charge and threshold.dtype is torch.float64:
            reset = self._tssl_rounded(reset, states["mem"])
        return Neuron(
            charge=charge,
            reset=reset,
            threshold=threshold,
            timing="delayed" if delayed else "both",
            strict=True,
            detached=delayed,
            quantiser=quantiser,
        )

    def _tssl_rounded(self: Any, reset: Reset, mem: Tensor) -> Reset:
        """The reset by a 0-dimensional float64 threshold: the library multiplies it by float32
        spikes, and so subtracts it rounded to float32.
        """
        if self.threshold.ndim or mem.dtype is not torch.float64:
            return reset
        with torch.no_grad():
            due = self.mem_reset(mem)
        amount = torch.ones_like(due) * self.threshold
        if amount.dtype == mem.dtype:
            return reset
        return reset.taking(amount.to(mem.dtype))

    def _tssl_refusal(self, why: str) -> OtherNeuronError:
        return OtherNeuronError(f"Layer '{self._tssl_settings.path}': {why}.")

    def _tssl_due(self: Any, mem: Tensor) -> Tensor:
        """The reset due for the incoming potential, detached as in the library."""
        with torch.no_grad():
            due: Tensor = greater(mem, self.threshold)
            return due

    def _tssl_kept(self: Any, drive: Tensor, mem: Tensor) -> Tensor:
        """The drive, which the library's reset to zero clears as well."""
        if bound_reset(self) != "_base_zero":
            return drive
        kept: Tensor = (operand(1.0, drive) - self._tssl_due(mem)) * drive
        return kept

    def _tssl_quantised(self: Any, state: Tensor) -> Tensor:
        """A state quantised as the library does it, with a straight-through gradient."""
        if not self.state_quant:
            return state
        quantised: Tensor = self.state_quant(state)
        return quantised


def at_hand(number: Tensor) -> bool:
    """Whether a number is cheap to read: 0-dimensional and on the CPU."""
    return number.ndim == 0 and number.is_cpu


def held(layer: Any, name: str) -> Tensor:
    """One of a layer's numbers; torch's own lookup takes several times as long, at every step."""
    buffer: Tensor | None = layer._buffers.get(name)
    if buffer is not None:
        return buffer
    number: Tensor = getattr(layer, name)
    return number


def leave(layer: Any, name: str, state: Tensor) -> None:
    """Set a state on a layer; torch's own way takes several times as long, at every step."""
    if name in layer._buffers:
        layer._buffers[name] = state
    else:
        object.__setattr__(layer, name, state)


def setting_problem(layer: Any) -> str | None:
    """Which setting, of those common to all classes, cannot be wrapped, or ``None``."""
    bound = bound_reset(layer)
    if bound not in RESETS:
        return f"its state_function is not one of the library's, but {bound!r}; make a new layer"
    if layer.inhibition:
        return "inhibition=True is a winner-take-all layer; use inhibition=False"
    if layer.state_quant and not _straight_through(layer.state_quant):
        return (
            "its state_quant is a function of your own, whose gradient is not known; use "
            "snntorch.functional.quant.state_quant(...) or state_quant=False"
        )
    return None


def _straight_through(quantiser: Any) -> bool:
    """Whether a quantiser is the library's, whose gradient is that of the identity."""
    module, name = (getattr(quantiser, key, None) or "" for key in ("__module__", "__qualname__"))
    return (
        f".{module}".endswith(".snntorch.functional.quant") and name == "state_quant.<locals>.inner"
    )
