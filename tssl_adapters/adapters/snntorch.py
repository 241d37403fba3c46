"""snnTorch: ``Leaky``.

The layer compares ``mem > threshold``. With ``reset_delay=True`` the returned ``mem`` is h[t] and
the reset happens in the next call, from the incoming ``mem``; with ``reset_delay=False`` the
layer resets before it returns as well.
"""

from __future__ import annotations

from typing import Any

import snntorch
import torch
from torch import Tensor, nn

from tssl_adapters.adapters.base import Adapter, Kind, Wrapped, defined_by, eager
from tssl_adapters.engine.attach import Native, attach
from tssl_adapters.engine.state import trace_of, untag
from tssl_adapters.errors import UnsupportedConfigError
from tssl_adapters.neuron import LinearCharge, Neuron, Never, Reset, Subtract, ToValue, Value


def _to_zero(charged: Tensor, due: Tensor, _: Value) -> Tensor:
    return charged - due * charged


_RESETS: dict[str, Reset] = {
    "_base_sub": Subtract(),
    "_base_zero": ToValue(0.0, _to_zero),
    "_base_int": Never(),
}
_RESET_CODES = {"_base_sub": 0, "_base_zero": 1, "_base_int": 2}


def _charge(mem: Tensor, drive: Tensor, beta: Tensor) -> Tensor:
    return beta * mem + drive


def _bound_reset(layer: snntorch.Leaky) -> str:
    """The reset that the layer computes: bound when it was made, whatever was set since."""
    return str(layer.state_function.__name__)


class WrappedLeaky(Wrapped, snntorch.Leaky):  # type: ignore[misc]
    """``snntorch.Leaky`` with the gradient of a rule."""

    _tssl_native = snntorch.Leaky
    mem: Tensor

    @eager
    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        misuse = self.init_hidden and mem is not None  # the library's own error says it best
        if misuse or self._tssl_runs_native():
            return self._tssl_native.forward(self, input_, mem)
        given = self.mem if mem is None else mem
        fits = given.shape == input_.shape
        state = given if fits else torch.zeros_like(input_, device=self.mem.device)
        trace = trace_of(self._tssl_settings, state if fits else None, (0.0,))
        neuron = self._tssl_neuron()
        graded = self._tssl_graded()

        def run(drive: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                self.mem = mem
                output = self._tssl_native.forward(self, drive)
                spikes = output[0] if isinstance(output, tuple) else output
                return (spikes.ne(0).to(spikes.dtype) if graded else spikes), self.mem

        native = Native(input_, lambda: run(input_, state), lambda x, mem: (x, *run(x, mem)))
        result = attach(self._tssl_settings, neuron, input_, state, trace, native, sequence=False)
        self.mem = result.state
        if result.before is not None:
            self.reset = result.before
        spikes = result.out * self.graded_spikes_factor if graded else result.out
        return spikes if self.init_hidden and not self.output else (spikes, self.mem)

    def _tssl_graded(self) -> bool:
        """Whether the output spikes are scaled; looked up where that costs nothing."""
        factor = self.graded_spikes_factor
        known = factor.ndim == 0 and factor.device.type == "cpu" and not factor.requires_grad
        return not known or factor.item() != 1.0

    def _tssl_neuron(self) -> Neuron:
        beta = self.beta.clamp(0, 1)
        reset = _RESETS[_bound_reset(self)]
        if beta.requires_grad and _zero_beta(self):
            raise UnsupportedConfigError(f"Layer '{self._tssl_settings.path}': {_ZERO_BETA}.")
        return Neuron(
            charge=LinearCharge(beta, 1.0, 0.0, _charge, (beta,)),
            reset=reset,
            threshold=self.threshold,
            timing="delayed" if self.reset_delay else "both",
            strict=True,
            detached=self.reset_delay,
        )


def _zero_beta(layer: snntorch.Leaky) -> bool:
    delayed_subtract = layer.reset_delay and _bound_reset(layer) == "_base_sub"
    return delayed_subtract and bool((layer.beta <= 0).any())


_ZERO_BETA = (
    "beta is 0 somewhere, and with reset_mechanism='subtract' and reset_delay=True the potential "
    "that a spike removes is threshold/beta; use beta > 0, reset_mechanism='zero' or "
    "reset_delay=False"
)


def _problem(layer: snntorch.Leaky) -> str | None:
    if layer.inhibition:
        return "inhibition=True is a winner-take-all layer; use inhibition=False"
    if layer.state_quant:
        return "state_quant is not supported yet; use state_quant=False"
    bound = _bound_reset(layer)
    if not layer.reset_delay and int(layer.reset_mechanism_val) != _RESET_CODES[bound]:
        return (
            "reset_mechanism was changed after the layer was made, and with reset_delay=False the "
            "layer then mixes two resets; make a new layer with the reset that you want"
        )
    return _ZERO_BETA if _zero_beta(layer) else None


def _spiking(module: nn.Module) -> bool:
    return isinstance(module, (snntorch.SpikingNeuron, *_OTHER_SPIKING))


_OTHER_SPIKING = tuple(
    getattr(snntorch, name)
    for name in ("LeakyParallel", "AssociativeLeaky")
    if isinstance(getattr(snntorch, name, None), type)
)

ADAPTER = Adapter(
    library="snntorch",
    kinds={
        snntorch.Leaky: Kind(WrappedLeaky, _problem, detach=lambda layer: untag(layer.mem)),
    },
    spiking=_spiking,
    native=lambda module: defined_by("snntorch", module),
    mode=lambda module: "step",
    reasons={
        "SLSTM": "an LSTM cell has gates, not a leaky potential with a reset",
        "SConv2dLSTM": "an LSTM cell has gates, not a leaky potential with a reset",
        "DeltaLeaky": "it spikes on a change of the potential, not on the potential",
        "LeakyParallel": "it has no state that a rule could follow step by step",
        "StateLeaky": "it has no reset and is computed for all steps at once",
        "AssociativeLeaky": "it has no reset and is computed for all steps at once",
    },
)
