"""A drawn layer's description, in the terms of ``tests/support/oracle_neurons.py``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import oracle_neurons as o
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import linear

from fuzzing.case import Case

Array = npt.NDArray[np.float64]


@dataclass
class Described:
    """A layer's neuron, its values, and its learned tensors.

    Attributes:
        leaves: for each learned tensor, by its code, which of the oracle's results has its
            gradient, and under what name.
        native_path: how the library's own gradient treats the reset.
        factor: the factor of the output spikes.
        rest: every state at the library's own initial value.
        moved: converts a given state; ``None`` where the layer starts anew.
        v_reset: the reset potential; 0 where the reset has none.
    """

    neuron: o.Neuron
    values: dict[str, Array]
    leaves: dict[str, tuple[str, str]]
    native_path: str
    rest: dict[str, Array]
    factor: float = 1.0
    stepped: dict[str, Array] = field(default_factory=dict)
    moved: Callable[[str, Tensor], Tensor | None] = lambda name, state: state
    v_reset: Array | float = 0.0
    autapses: bool = True


class Weights:
    """A layer's own weights, in float64."""

    def __init__(
        self, sent: str, apply: Callable[..., Tensor], parameters: Mapping[str, Tensor]
    ) -> None:
        self.sent = sent
        self._apply = apply
        self._parameters = {n: p.detach().double().requires_grad_() for n, p in parameters.items()}

    def drive(self, x: Array, sent: Array) -> Array:
        with torch.no_grad():
            arrived = self._apply(self._parameters, torch.tensor(x), torch.tensor(sent))
        return np.asarray(arrived.numpy())

    def back(self, x: Array, sent: Array, grad: Array) -> tuple[Array, Array, dict[str, Array]]:
        given = [torch.tensor(x).requires_grad_(), torch.tensor(sent).requires_grad_()]
        arrived = self._apply(self._parameters, *given)
        wanted = [*given, *self._parameters.values()]
        found = torch.autograd.grad(arrived, wanted, torch.tensor(grad), materialize_grads=True)
        of_x, of_sent, *of_weights = (np.asarray(g.numpy()) for g in found)
        return of_x, of_sent, dict(zip(self._parameters, of_weights, strict=True))


def described(case: Case, layer: Any, step: Tensor) -> Described:
    """The description of a native layer, made by ``case``, that gets ``step`` at each time step."""
    return {"snntorch": _snntorch, "spikingjelly": _spikingjelly, "norse": _norse}[
        case.layer.library
    ](case, layer, step)


def as_array(value: Any) -> Array:
    """A tensor or a number in float64."""
    if isinstance(value, Tensor):
        return np.asarray(value.detach().double().numpy())
    return np.asarray(value, dtype=np.float64)


# --- snnTorch --------------------------------------------------------------------------------


def _snntorch(case: Case, layer: Any, step: Tensor) -> Described:
    settings, name = case.layer.settings, case.layer.name
    reset = settings["reset_mechanism"].strip("'")
    delayed = settings.get("reset_delay", "True") == "True" or name == "RSynaptic"
    names = ["beta", "threshold", "alpha", "V", "R", "C", "time_step"]
    values = {n: as_array(getattr(layer, n)) for n in names if hasattr(layer, n)}
    leaves = {f"layer.{n}": ("parameters", n) for n, _ in layer.named_parameters()}
    leaves = {code: where for code, where in leaves.items() if "graded" not in code}
    if name == "Leaky":
        neuron = o.snntorch_leaky(reset, delayed)
        if layer.graded_spikes_factor.requires_grad:
            leaves["layer.graded_spikes_factor"] = ("graded", "")
    elif name == "Lapicque":
        neuron = _lapicque(settings, values, reset)
    elif name == "Synaptic":
        neuron = o.snntorch_synaptic(reset, delayed)
    elif name == "Alpha":
        neuron = o.snntorch_alpha(reset)
    else:
        neuron, of_weights = _snntorch_recurrent(layer, reset, delayed, name == "RSynaptic")
        leaves |= of_weights
    if layer.state_quant:
        neuron = replace(neuron, quantise=lambda value: _quantised(layer, value))
    given = settings["beta"].startswith("torch.tensor")
    if name == "Lapicque" and case.dtype != "torch.float32" and not given:
        leaves.pop("layer.beta", None)  # the library derived the others from it in another dtype
    return Described(
        neuron=neuron,
        values=values,
        leaves=leaves,
        native_path="none" if delayed or reset == "none" else "complete",
        rest={n: np.asarray(0.0) for n in case.layer.states},
        factor=float(layer.graded_spikes_factor),
        moved=lambda _, state: state if state.shape == step.shape else None,
    )


def _quantised(layer: Any, value: Array) -> Array:
    return as_array(layer.state_quant(torch.tensor(value)))


def _lapicque(settings: Mapping[str, str], values: dict[str, Array], reset: str) -> o.Neuron:
    neuron = o.snntorch_lapicque(reset)
    beta = values["beta"]
    made = "R" if "C" in settings else "C"
    if {"R", "C"} <= set(settings):
        del values["beta"]  # it has no effect
        return neuron
    if settings["learn_beta"] != "True":
        return neuron

    # The library derives R or C from beta once, with its graph.
    def resolved(q: o.Values) -> o.Values:
        return {**q, made: q[made] * (np.log(1.0 / beta) / np.log(1.0 / q["beta"]))}

    charge, kept = neuron.charge, neuron.kept
    assert kept is not None
    return replace(neuron, charge=lambda q: charge(resolved(q)), kept=lambda q: kept(resolved(q)))


def _snntorch_recurrent(
    layer: Any, reset: str, delayed: bool, synaptic: bool
) -> tuple[o.Neuron, dict[str, tuple[str, str]]]:
    module = copy.deepcopy(layer.recurrent).double()
    learns = {n: p for n, p in layer.recurrent.named_parameters() if p.requires_grad}
    fixed = {n: p.detach().double() for n, p in layer.recurrent.state_dict().items()}
    if not isinstance(layer.recurrent, torch.nn.Linear | torch.nn.Conv2d):
        fixed = {"V": layer.V.detach().double()}

    def apply(parameters: Mapping[str, Tensor], x: Tensor, sent: Tensor) -> Tensor:
        given = {**fixed, **parameters}
        if "V" in given:
            return x + sent * given["V"]
        return x + functional_call(module, given, (sent,))

    neuron = o.snntorch_recurrent(reset, delayed, Weights("spk", apply, learns), synaptic)
    codes = {n: "layer.V" if n == "V" else f"layer.recurrent.{n}" for n in learns}
    return neuron, {code: ("weights", n) for n, code in codes.items()}


# --- SpikingJelly ----------------------------------------------------------------------------


def _spikingjelly(case: Case, layer: Any, step: Tensor) -> Described:
    settings, name = case.layer.settings, case.layer.name
    layer.reset()
    rest = {n: as_array(getattr(layer, n)) for n in case.layer.states}
    if name == "GatedLIFNode":
        return _gated(case, layer, rest)
    soft = layer.v_reset is None
    decays_input = settings.get("decay_input") == "True"
    values = {"v_th": as_array(layer.v_threshold)}
    if not soft:
        values["v_reset"] = as_array(layer.v_reset)
    names = "tau v_rest v_c a0 delta_T theta_rh tau_w a b c_decay v_decay k w"
    for n in names.split():
        value = getattr(layer, n, None)
        if value is not None and n not in case.layer.states:
            values[n] = as_array(value)
    if name in ("LIFNode", "SimpleLIFNode"):
        neuron = o.spikingjelly_lif(soft, decays_input)
        values["rate"] = 1.0 / as_array(layer.tau)
    elif name == "ParametricLIFNode":
        neuron = o.spikingjelly_plif(soft, decays_input)
    elif name in ("IFNode", "SimpleIFNode", "HalfThresholdIFNode"):
        neuron = o.spikingjelly_if(soft)
    elif name == "KLIFNode":
        neuron = o.spikingjelly_klif(soft, decays_input, settings["scale_reset"] == "True")
    elif name == "RAFNode":
        neuron = o.spikingjelly_raf(soft)
        values["radius"] = np.exp(as_array(layer.b * layer.dt))
        values["angle"] = as_array(layer.omega * layer.dt)
    elif name == "ComplementaryLIFNode":
        neuron = o.spikingjelly_clif()
    elif name == "CUBALIFNode":
        neuron = o.spikingjelly_cubalif(soft)
    else:
        make = {
            "QIFNode": o.spikingjelly_qif,
            "EIFNode": o.spikingjelly_eif,
            "IzhikevichNode": o.spikingjelly_izhikevich,
        }[name]
        neuron = make(soft)
    scaled = settings.get("scale_reset") == "True"
    detached = settings.get("detach_reset") == "True" and name != "ComplementaryLIFNode"

    def moved(which: str, state: Tensor) -> Tensor | None:
        if name.startswith("Simple"):
            return state
        if name == "ComplementaryLIFNode" and which == "m" and not state.ndim:
            return state.to(step.dtype)
        # With another shape it starts anew; another dtype is converted to the input's.
        return state.to(step.dtype) if state.shape == step.shape else None

    return Described(
        neuron=neuron,
        values=values,
        leaves={f"layer.{n}": ("parameters", n) for n, _ in layer.named_parameters()},
        native_path="none" if detached else "complete",
        rest=rest,
        moved=moved,
        v_reset=values.get("v_reset", 0.0) * (values["k"] if scaled else 1.0),
    )


def _gated(case: Case, layer: Any, rest: dict[str, Array]) -> Described:
    def shaped(parameter: Tensor) -> Array:
        return as_array(parameter).reshape(-1, 1, 1)

    names = ("alpha", "beta", "gamma", "tau", "v_threshold", "linear_decay", "v_subreset")
    last = np.zeros((layer.T, 1, 1, 1))
    last[-1] = 1.0
    return Described(
        neuron=o.spikingjelly_gated(),
        values={n: shaped(getattr(layer, n)) for n in names},
        leaves={
            **{f"layer.{n}": ("parameters", n) for n in names},
            "layer.conduct": ("stepped", "conduct"),
        },
        native_path="complete",
        rest=rest,
        stepped={
            "conduct": np.stack([shaped(row) for row in layer.conduct]),
            "last": last,
        },
    )


# --- Norse -----------------------------------------------------------------------------------


def _fields(state: Any, prefix: str = "") -> dict[str, tuple[str, Any]]:
    """Values by name, with their paths, including those in nested tuples."""
    found: dict[str, tuple[str, Any]] = {}
    for name, value in state._asdict().items():
        if isinstance(value, tuple):
            found |= _fields(value, f"{prefix}{name}.")
        else:
            found[name] = (f"{prefix}{name}", value)
    return found


def _norse(case: Case, layer: Any, step: Tensor) -> Described:
    settings, facts = case.layer.settings, case.layer.facts
    inner, recurrent = facts["inner"], case.layer.recurrent
    values: dict[str, Array] = {"dt": as_array(layer.dt)}
    leaves: dict[str, tuple[str, str]] = {}
    for name, (path, value) in _fields(layer.p).items():
        if not isinstance(value, Tensor | float | int):
            continue
        values[name] = as_array(value)
        if isinstance(value, Tensor) and name != "alpha":
            leaves[f"layer.p.{path}"] = ("parameters", name)
    # Recurrent layers fill their states with it, without a gradient.
    if inner == "Izhikevich" and not recurrent:
        leaves |= {f"layer.spiking_method.s.{name}": ("start", name) for name in ("v", "u")}
    values = {n: v for n, v in values.items() if n != "alpha"}
    neuron = {
        "LIF": o.norse_lif,
        "LIFBox": lambda: o.norse_lif_box("subtract" in settings["p"]),
        "IAF": o.norse_iaf,
        "LIFEx": o.norse_lif_ex,
        "LIFAdEx": o.norse_lif_adex,
        "LSNN": o.norse_lsnn,
        "Izhikevich": o.norse_izhikevich,
    }[str(inner)]()
    if inner == "LSNN":
        neuron = replace(neuron, late=frozenset({"i"}))
        if recurrent:
            neuron = replace(neuron, cut=frozenset({"b"}))
    if facts["base"] != inner:
        neuron = o.norse_refractory(neuron)
    if recurrent:
        weights = {n: getattr(layer, n) for n in ("input_weights", "recurrent_weights")}
        neuron = o.fed_back(neuron, Weights("z", _through, weights))
        leaves |= {f"layer.{n}": ("weights", n) for n in weights}
    rest = {}
    if case.state == "none":
        given = step.unsqueeze(0) if case.layer.sequence else step
        with torch.no_grad():
            begin = {n: value for n, (_, value) in _fields(layer.state_fallback(given)).items()}
        rest = {n: as_array(_dense(begin[n])) for n in case.layer.states}
    detached = recurrent and inner in ("LIF", "LSNN")
    subtracts = inner == "LIFBox" and "subtract" in settings["p"]
    reset = 0.0 if subtracts else values.get("v_reset", values.get("c", np.asarray(0.0)))
    return Described(
        neuron=neuron,
        values=values,
        leaves=leaves,
        native_path="none" if detached else "complete",
        rest=rest,
        v_reset=reset,
        autapses=settings.get("autapses") != "False",
    )


def _dense(value: Any) -> Any:
    return value.to_dense() if isinstance(value, Tensor) and value.is_sparse else value


def _through(parameters: Mapping[str, Tensor], x: Tensor, sent: Tensor) -> Tensor:
    arriving = linear(x, parameters["input_weights"])
    return arriving + linear(sent, parameters["recurrent_weights"])
