"""Random spiking layers of every library, supported or not, and how a user's loop drives them.

A layer is drawn as a :class:`Layer`, plain data from which the same module can be made again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import norse.torch as norse
import snntorch
import torch
from hypothesis import strategies as st
from neurons_norse import FORMS, parameters
from norse.torch.functional.izhikevich import IzhikevichSpikingBehavior, IzhikevichState
from norse.torch.functional.lif import LIFParameters
from norse.torch.functional.lif_box import LIFBoxParameters
from norse.torch.functional.reset import reset_subtract, reset_value
from norse.torch.module.snn import SNN, SNNRecurrent, SNNRecurrentCell
from snntorch import surrogate as snn_surrogate
from snntorch.functional import quant
from spikingjelly.activation_based import layer as sj_layer
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor, nn

WIDTH = 4
Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(frozen=True)
class Layer:
    """A layer as plain data: its library, its class, its settings."""

    library: str
    name: str
    settings: dict[str, Any]

    def make(self) -> nn.Module:
        return MAKERS[self.library](self.name, dict(self.settings))

    @property
    def hidden(self) -> bool:
        """Whether the layer keeps its state."""
        return self.library == "spikingjelly" or bool(self.settings.get("init_hidden"))


def pick(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


flags = st.booleans()
seldom = pick(*[False] * 19, True)

# --- snnTorch ---------------------------------------------------------------------------------

_SECOND_ORDER = ("Synaptic", "Alpha", "RSynaptic")
_DELAYS = ("Leaky", "Synaptic", "RLeaky", "RSynaptic")
_SNNTORCH = ("Leaky", "Leaky", "Lapicque", "Synaptic", "Alpha", "RLeaky", "RSynaptic")


def number_or_vector(draw: Draw, *values: float) -> float | list[float]:
    value = draw(pick(*values))
    return [value + 0.01 * i for i in range(WIDTH)] if draw(flags) and 0 < value < 1 else value


def snntorch_layer(draw: Draw) -> Layer:
    if draw(seldom):
        name = draw(pick("SLSTM", "DeltaLeaky", "OwnLeaky"))
        return Layer("snntorch", name, {})
    name = draw(pick(*_SNNTORCH))
    settings: dict[str, Any] = {
        "threshold": number_or_vector(draw, 0.1, 0.3, 0.5, 1.0),
        "learn_threshold": draw(flags),
        "init_hidden": draw(flags),
        "reset_mechanism": draw(pick("subtract", "zero", "none")),
        "spike_grad": draw(pick(None, "fast_sigmoid", "straight_through_estimator")),
        "state_quant": draw(pick(False, False, False, 4)),
        "inhibition": draw(seldom),
    }
    settings["output"] = settings["init_hidden"] and draw(flags)
    settings["beta"] = number_or_vector(draw, 0.0, 0.3, 0.7, 0.9, 1.0, 1.3)
    settings["learn_beta"] = draw(flags)
    if name in _SECOND_ORDER:
        settings["alpha"] = number_or_vector(draw, 0.5, 0.8, 0.95)
        settings["learn_alpha"] = draw(flags)
    if name == "Alpha":  # which has to decay more slowly than beta, and fails if it learns
        settings |= {"alpha": draw(pick(0.9, 0.95)), "learn_alpha": False}
        settings["beta"] = number_or_vector(draw, 0.3, 0.7, 0.8)
    if name == "Lapicque":
        settings["beta"] = draw(pick(0.3, 0.7, 0.9))
    if name in _DELAYS:
        settings["reset_delay"] = draw(flags)
    if name == "Leaky":
        settings["graded_spikes_factor"] = draw(pick(1.0, 1.0, 0.5))
        settings["learn_graded_spikes_factor"] = draw(flags)
    if name.startswith("R"):
        settings["learn_recurrent"] = draw(flags)
        kind = {"all_to_all": False, "V": 0.4}
        settings |= draw(pick(kind, {"linear_features": WIDTH}))
    return Layer("snntorch", name, settings)


class OwnLeaky(snntorch.Leaky):  # type: ignore[misc]
    """A user's class, which is refused."""


def make_snntorch(name: str, settings: dict[str, Any]) -> nn.Module:
    if name == "SLSTM":
        return snntorch.SLSTM(WIDTH, WIDTH, threshold=0.1, init_hidden=True)  # type: ignore[no-any-return]
    if name == "DeltaLeaky":
        return snntorch.DeltaLeaky(0.1, beta=0.9, init_hidden=True)  # type: ignore[no-any-return]
    if name == "OwnLeaky":
        return OwnLeaky(beta=0.9, threshold=0.3)
    for key in ("alpha", "beta", "threshold"):
        if isinstance(settings.get(key), list):
            settings[key] = torch.tensor(settings[key])
    if settings["spike_grad"] is not None:
        settings["spike_grad"] = getattr(snn_surrogate, settings["spike_grad"])()
    if settings["state_quant"]:
        settings["state_quant"] = quant.state_quant(settings["state_quant"], threshold=1.0)
    return getattr(snntorch, name)(**settings)  # type: ignore[no-any-return]


# --- SpikingJelly -----------------------------------------------------------------------------

_TAU = {"tau": pick(1.5, 2.0, 3.0, 20.0)}
_DECAY = {**_TAU, "decay_input": flags}
_SPIKINGJELLY: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "LIFNode": _DECAY,
    "IFNode": {},
    "ParametricLIFNode": {"init_tau": pick(1.5, 2.0, 5.0), "decay_input": flags},
    "HalfThresholdIFNode": {},
    "KLIFNode": {**_DECAY, "scale_reset": flags},
    "QIFNode": {**_TAU, "v_c": pick(0.4, 0.8)},
    "EIFNode": {"tau": pick(3.0, 5.0), "delta_T": pick(1.0, 2.0)},
    "IzhikevichNode": {**_TAU, "a": pick(0.0, 0.4), "b": pick(0.0, 0.3)},
    "ComplementaryLIFNode": {**_TAU, "store_state_seqs": flags},
    "CUBALIFNode": {"c_decay": pick(0.5, 0.9), "v_decay": pick(0.5, 0.75)},
    "RAFNode": {"b": pick(-0.2, -0.1), "omega": pick(0.5, 1.0)},
    "SimpleIFNode": {},
    "SimpleLIFNode": _DECAY,
}
_REFUSED = {
    "OTTTLIFNode": {"tau": pick(2.0)},
    "TernaryIFNode": {},
    "NonSpikingLIFNode": {"tau": pick(2.0)},
}
_NO_RESET = ("HalfThresholdIFNode", "ComplementaryLIFNode")
_NO_DETACH = ("ComplementaryLIFNode", "CUBALIFNode")
_UNSEEN = (*_NO_DETACH, "SimpleIFNode", "SimpleLIFNode")


def spikingjelly_layer(draw: Draw) -> Layer:
    if draw(seldom):
        name = draw(pick(*_REFUSED))
        return Layer(
            "spikingjelly", name, {key: draw(value) for key, value in _REFUSED[name].items()}
        )
    name = draw(pick(*_SPIKINGJELLY))
    settings = {key: draw(value) for key, value in _SPIKINGJELLY[name].items()}
    settings["v_threshold"] = draw(pick(0.1, 0.3, 0.5, 1.0))
    settings["step_mode"] = draw(pick("s", "m"))
    if name not in _NO_RESET:
        settings["v_reset"] = draw(pick(None, 0.0, -0.2))
    if name not in _NO_DETACH:
        settings["detach_reset"] = draw(flags)
    if name not in _UNSEEN:
        settings["store_v_seq"] = draw(flags)
    settings["surrogate_function"] = draw(pick(None, None, "ATan", "Sigmoid", "not spiking"))
    if settings["surrogate_function"] == "not spiking" and not draw(seldom):
        settings["surrogate_function"] = None
    return Layer("spikingjelly", name, settings)


def make_spikingjelly(name: str, settings: dict[str, Any]) -> nn.Module:
    kind = settings.pop("surrogate_function", None)
    if kind == "not spiking":
        settings["surrogate_function"] = surrogate.Sigmoid(spiking=False)
    elif kind is not None:
        settings["surrogate_function"] = getattr(surrogate, kind)()
    mode = settings.pop("step_mode", "s")
    made = getattr(neuron, name)(**settings)
    if name != "NonSpikingLIFNode":  # which takes sequences only
        made.step_mode = mode
    return made  # type: ignore[no-any-return]


# --- Norse ------------------------------------------------------------------------------------

_NORSE = {**FORMS, "LIF": ("Cell", "", "RecurrentCell", "Recurrent"), "LIFBox": ("Cell",)}


def norse_layer(draw: Draw) -> Layer:
    if draw(seldom):
        return Layer("norse", draw(pick("LIFMCRecurrentCell", "LICell", "LI")), {})
    name = draw(pick("LIF", "LIF", "LIFBox", *_NORSE))
    form = draw(pick(*_NORSE[name]))
    settings: dict[str, Any] = {
        "neuron": name,
        "learn": draw(flags),
        "vector": draw(flags),
        "scale": draw(pick(0.3, 1.0)),
        "dt": draw(pick(0.001, 0.0005)),
    }
    if name == "LIFBox":
        settings["subtract"] = draw(flags)
    if form == "" and name != "IAF":
        settings["record_states"] = draw(flags)
    if "Recurrent" in form:
        settings["autapses"] = draw(flags)
    if name == "LIF":
        settings["method"] = "adjoint" if draw(seldom) else draw(pick("super", "tanh", "circ"))
    return Layer("norse", name + form, settings)


def make_norse(name: str, settings: dict[str, Any]) -> nn.Module:
    cls = getattr(norse, name)
    if not settings:
        return cls(WIDTH, WIDTH) if "Recurrent" in name else cls()  # type: ignore[no-any-return]

    def value(number: float, scalar: bool = False) -> Tensor:
        shape = (WIDTH,) if settings["vector"] and not scalar else ()
        return torch.full(shape, number).requires_grad_(settings["learn"])

    scaled: Callable[..., Tensor] = lambda number, scalar=False: value(  # noqa: E731
        number * (settings["scale"] if number == 0.4 else 1.0), scalar
    )
    options = {k: settings[k] for k in ("dt", "record_states", "autapses") if k in settings}
    if settings["neuron"] == "LIFBox":
        p: Any = LIFBoxParameters(
            tau_mem_inv=value(300.0),
            v_th=scaled(0.4),
            reset_method=reset_subtract if settings["subtract"] else reset_value,
        )
    elif settings["neuron"] == "LIF":
        p = LIFParameters(
            tau_syn_inv=value(400.0),
            tau_mem_inv=value(300.0),
            v_th=scaled(0.4),
            v_reset=value(-0.2),
            method=settings["method"],
        )
    else:
        p = parameters(settings["neuron"], scaled)
    if settings["neuron"] == "Izhikevich":
        p = IzhikevichSpikingBehavior(p, IzhikevichState(value(0.05, scalar=True), value(0.02)))
    if issubclass(cls, SNNRecurrent | SNNRecurrentCell):
        return cls(WIDTH, WIDTH, p, **options)  # type: ignore[no-any-return]
    return cls(p, **options)  # type: ignore[no-any-return]


MAKERS: dict[str, Callable[[str, dict[str, Any]], nn.Module]] = {
    "snntorch": make_snntorch,
    "spikingjelly": make_spikingjelly,
    "norse": make_norse,
}


@st.composite
def layers(draw: Draw, libraries: tuple[str, ...] = tuple(MAKERS)) -> Layer:
    """A layer of any of these libraries."""
    library = draw(pick(*libraries))
    return {
        "snntorch": snntorch_layer,
        "spikingjelly": spikingjelly_layer,
        "norse": norse_layer,
    }[library](draw)


# --- loops ------------------------------------------------------------------------------------


def in_sequence(layer: Any) -> bool:
    """Whether a call brings all time steps."""
    if isinstance(layer, norse.Lift | sj_layer.MultiStepContainer):
        return True
    if isinstance(layer, norse.SequentialState):
        return in_sequence(layer[-1])
    return isinstance(layer, SNN | SNNRecurrent) or getattr(layer, "step_mode", "s") == "m"


def beginning(layer: Any, x: Tensor) -> tuple[Any, ...]:
    """The states that a loop over inputs like ``x`` starts with, as arguments."""
    if isinstance(layer, snntorch.SpikingNeuron):
        states = layer.reset_mem()
        if layer.init_hidden:
            return ()
        if isinstance(layer, snntorch.RSynaptic):  # without delay it needs spikes of its shape
            return tuple(torch.zeros_like(x) for _ in states)
        return states if isinstance(states, tuple) else (states,)
    if isinstance(layer, neuron.BaseNode | neuron.SimpleBaseNode | sj_layer.MultiStepContainer):
        return ()
    return (None,)


def called(layer: Any, x: Tensor, states: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
    """One call: what the layer emits, and the states for the next one."""
    result = layer(x) if isinstance(layer, norse.Lift) else layer(x, *states)
    if isinstance(result, Tensor):
        return result, ()
    out, *after = result
    if not states:  # hidden, and the potential comes beside the spikes
        return out, ()
    if isinstance(layer, snntorch.RLeaky | snntorch.RSynaptic):
        after = [layer.spk, *after]
    return out, tuple(after)


def kept(layer: Any, states: tuple[Any, ...]) -> list[Tensor]:
    """All tensors of the states after the last step, whoever has them."""
    if isinstance(layer, snntorch.SpikingNeuron):
        found: Any = [getattr(layer, name, None) for name in ("spk", "syn", "syn_exc", "mem")]
    elif hasattr(layer, "_memories"):
        found = [value for name, value in layer._memories.items() if name != "tssl_psc"]
        found.append(getattr(layer, "v_seq", None))
    else:
        found = states
    return list(tensors(found))


def tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        yield value.to_dense() if value.is_sparse else value
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from tensors(inner)
