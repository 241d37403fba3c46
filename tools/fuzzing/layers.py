"""Every spiking class of the libraries with all settings of its constructor, drawn as code."""

from __future__ import annotations

from dataclasses import dataclass, field

from fuzzing.chance import Chance

WIDTH = 4

SNNTORCH = ("Leaky", "Lapicque", "Synaptic", "Alpha", "RLeaky", "RSynaptic")
SPIKINGJELLY = (
    *("LIFNode", "IFNode", "ParametricLIFNode", "HalfThresholdIFNode", "KLIFNode", "QIFNode"),
    *("EIFNode", "IzhikevichNode", "ComplementaryLIFNode", "CUBALIFNode", "RAFNode"),
    *("SimpleIFNode", "SimpleLIFNode", "GatedLIFNode"),
)
_FORMS = ("Cell", "", "RecurrentCell", "Recurrent")
NORSE = (
    *("LIFBoxCell", "IAFCell", "IAF"),
    *(n + f for n in ("LIF", "LIFEx", "LIFAdEx", "LSNN", "Izhikevich") for f in _FORMS),
    *(
        n + f
        for n in ("LIFRefrac", "LIFAdExRefrac")
        for f in ("Cell", "RecurrentCell", "Recurrent")
    ),
)
CLASSES = {"snntorch": SNNTORCH, "spikingjelly": SPIKINGJELLY, "norse": NORSE}
MODULES = {
    "snntorch": "snntorch",
    "spikingjelly": "spikingjelly.activation_based.neuron",
    "norse": "norse.torch",
}
ELSEWHERE = {"step_mode", "p", "spiking_method", "input_size", "hidden_size"}
"""Settings that are not in the tables below: of the loop, the parameters, the width."""


@dataclass(frozen=True)
class Layer:
    """A layer as code, and what is known about it in advance."""

    library: str
    name: str
    settings: dict[str, str]
    code: str
    states: tuple[str, ...]
    """The states passed from step to step, in the library's order."""
    sequence: bool = False
    hidden: bool = False
    facts: dict[str, object] = field(default_factory=dict)

    @property
    def linear(self) -> bool:
        return self.name in LINEAR

    @property
    def recurrent(self) -> bool:
        return "Recurrent" in self.name or self.name in ("RLeaky", "RSynaptic")


LINEAR = {
    *("Leaky", "Lapicque", "Synaptic", "RLeaky", "RSynaptic"),
    *("LIFNode", "IFNode", "ParametricLIFNode", "HalfThresholdIFNode", "CUBALIFNode"),
    *("SimpleIFNode", "SimpleLIFNode", "LIFBoxCell", "IAFCell", "IAF"),
    *("LIFCell", "LIF", "LIFRecurrentCell", "LIFRecurrent"),
}
"""Layers that every rule supports, as far as their other settings allow."""


# --- snnTorch --------------------------------------------------------------------------------


def _number(chance: Chance, vectors: bool, *values: float) -> str:
    value = chance.pick(*values)
    kind = chance.whole(0, 5)
    if vectors and kind < 2 and 0 < value < 1:
        return f"torch.tensor({[round(value + 0.01 * i, 3) for i in range(WIDTH)]}, dtype=D)"
    return f"torch.tensor({value}, dtype=D)" if kind == 2 else str(value)


def snntorch(chance: Chance, name: str, vectors: bool, dtype: str) -> Layer:
    """A layer of snnTorch; ``vectors``: whether its input's last dimension is :data:`WIDTH`."""
    recurrent, second = name.startswith("R"), name in ("Synaptic", "Alpha", "RSynaptic")
    settings = {  # thresholds exact in float32, as the library rounds scalars to it
        "threshold": _number(chance, vectors, 0.125, 0.3125, 0.5, 1.0),
        "learn_threshold": str(chance.flag()),
        "init_hidden": str(chance.one_in(3)),
        "reset_mechanism": repr(chance.pick("subtract", "subtract", "zero", "none")),
        "spike_grad": chance.pick(
            "None", "None", "surrogate.fast_sigmoid()", "surrogate.sigmoid()", "EXACT"
        ),
        "surrogate_disable": str(chance.one_in(30)),
        "inhibition": str(chance.one_in(40)),
        "state_quant": "quant.state_quant(4, threshold=1.0)" if chance.one_in(12) else "False",
        "beta": _number(chance, vectors, 0.3, 0.7, 0.7, 0.9, 0.9, 0.0, 1.0, 1.3),
        "learn_beta": str(chance.flag()),
    }
    if recurrent and dtype != "torch.float32" and not chance.one_in(4):
        settings["spike_grad"] = "EXACT"  # the layer's own weights take these spikes
    settings["output"] = str(settings["init_hidden"] == "True" and chance.flag())
    if chance.one_in(30):
        settings["threshold"] = chance.pick("float('inf')", "1e9", "0.0")
    if second:
        settings["alpha"] = _number(chance, vectors, 0.5, 0.8, 0.95)
        settings["learn_alpha"] = str(chance.flag())
    if name == "Alpha":  # which must decay more slowly than beta
        settings["alpha"] = _number(chance, False, 0.9, 0.95)
        settings["beta"] = _number(chance, vectors, 0.3, 0.7, 0.8)
        settings["learn_alpha"] = str(chance.one_in(20))  # fails natively
    if name == "Lapicque":
        settings["beta"] = _number(chance, False, 0.3, 0.7, 0.9)
        settings["time_step"] = chance.pick("1", "1", "0.5")
        for given in chance.pick((), (), ("R",), ("C",), ("R", "C")):
            settings[given] = chance.pick("2.0", "3.0")
        if "R" in settings and "C" in settings:
            settings["beta"] = "False"
            settings["learn_beta"] = "False"
    if name in ("Leaky", "Synaptic", "RLeaky", "RSynaptic"):
        settings["reset_delay"] = str(chance.flag())
    if name == "Leaky":
        settings["graded_spikes_factor"] = chance.pick("1.0", "1.0", "0.5", "torch.tensor(1.5)")
        settings["learn_graded_spikes_factor"] = str(chance.one_in(4))
    if recurrent:
        settings["learn_recurrent"] = str(chance.flag())
        settings |= chance.pick(
            {"all_to_all": "False", "V": _number(chance, vectors, 0.4, 0.6)},
            {"linear_features": str(WIDTH)},
            {"conv2d_channels": "1", "kernel_size": chance.pick("3", "(1, 3)")},
        )
    states = {
        "Synaptic": ("syn", "v"),
        "Alpha": ("syn_exc", "syn_inh", "v"),
        "RLeaky": ("spk", "v"),
        "RSynaptic": ("spk", "syn", "v"),
    }.get(name, ("v",))
    return Layer(
        "snntorch",
        name,
        settings,
        f"snn.{name}({_given(settings, 'snntorch', name)})",
        states,
        hidden=settings["init_hidden"] == "True",
        facts={"conv": "conv2d_channels" in settings},
    )


# --- SpikingJelly ----------------------------------------------------------------------------

Values = tuple[str, ...]
_FLAGS = ("True", "False")
_TAU: Values = ("1.5", "2.0", "2.0", "3.0", "20.0", "1.005")
_NODES: dict[str, dict[str, Values]] = {
    "LIFNode": {"tau": _TAU, "decay_input": _FLAGS},
    "IFNode": {},
    "ParametricLIFNode": {"init_tau": ("1.5", "2.0", "5.0"), "decay_input": _FLAGS},
    "HalfThresholdIFNode": {},
    "KLIFNode": {"tau": _TAU[:5], "decay_input": _FLAGS, "scale_reset": _FLAGS},
    "QIFNode": {
        **{"tau": _TAU[:5], "v_c": ("0.4", "0.8"), "a0": ("1.0", "0.5")},
        "v_rest": ("0.0", "0.1"),
    },
    "EIFNode": {
        **{"tau": ("3.0", "5.0"), "delta_T": ("1.0", "2.0"), "theta_rh": ("0.8", "2.0")},
        "v_rest": ("0.0", "0.1"),
    },
    "IzhikevichNode": {
        **{"tau": _TAU[:5], "v_c": ("0.5", "0.8"), "a0": ("1.0", "0.5"), "v_rest": ("-0.1", "0.1")},
        **{"w_rest": ("0.0", "0.1"), "tau_w": ("2.0", "5.0"), "a": ("0.0", "0.4")},
        "b": ("0.0", "0.3"),
    },
    "ComplementaryLIFNode": {"tau": _TAU[:5], "store_state_seqs": _FLAGS},
    "CUBALIFNode": {"c_decay": ("0.5", "0.9"), "v_decay": ("0.5", "0.75")},
    "RAFNode": {"b": ("-0.2", "-0.1"), "omega": ("0.5", "1.0"), "dt": ("1.0", "0.5")},
    "SimpleIFNode": {},
    "SimpleLIFNode": {"tau": _TAU[:5], "decay_input": _FLAGS},
    "GatedLIFNode": {
        **{"inplane": ("None", "2"), "init_linear_decay": ("None", "0.1")},
        **{"init_v_subreset": ("None", "0.4"), "init_tau": ("0.25", "0.5")},
        **{"init_v_threshold": ("0.3", "0.6"), "init_conduct": ("0.5", "0.8")},
    },
}
_OTHER_STATES = {
    "IzhikevichNode": ("w",),
    "ComplementaryLIFNode": ("m",),
    "CUBALIFNode": ("c",),
    "RAFNode": ("u",),
}


def spikingjelly(chance: Chance, name: str, steps: int) -> Layer:
    """A node of SpikingJelly, for sequences of ``steps`` steps."""
    settings = {key: chance.pick(*values) for key, values in _NODES[name].items()}
    settings["surrogate_function"] = chance.pick(
        "", "", "surrogate.ATan()", "surrogate.Sigmoid(alpha=2.0)", "surrogate.Rect()"
    )
    if chance.one_in(40):
        settings["surrogate_function"] = "surrogate.Sigmoid(spiking=False)"
    sequence = chance.flag() or name == "GatedLIFNode"
    after = {"step_mode": repr("m" if sequence else "s")}
    if name == "GatedLIFNode":
        settings |= {"T": str(steps), "step_mode": "'m'"}
        after = {}
    else:
        settings["v_threshold"] = chance.pick("0.1", "0.3", "0.5", "1.0")
        if chance.one_in(25):
            settings["v_threshold"] = chance.pick("float('inf')", "1e9", "1e4")
    if name not in ("HalfThresholdIFNode", "ComplementaryLIFNode", "GatedLIFNode"):
        settings["v_reset"] = chance.pick("None", "0.0", "0.0", "-0.2")
        if chance.one_in(40):
            settings["v_reset"] = "-1e9"
    if name not in ("ComplementaryLIFNode", "CUBALIFNode", "GatedLIFNode"):
        settings["detach_reset"] = chance.pick(*_FLAGS)
    elif name == "CUBALIFNode":
        after["detach_reset"] = chance.pick(*_FLAGS)
    if name not in (*_SIMPLE, "ComplementaryLIFNode", "CUBALIFNode", "GatedLIFNode"):
        settings["store_v_seq"] = chance.pick(*_FLAGS)
    elif name == "CUBALIFNode":
        after["store_v_seq"] = chance.pick(*_FLAGS)
    code = f"neuron.{name}({_given(settings, 'spikingjelly', name)})"
    if after:
        code = f"having({code}, {_arguments(after)})"
    if name == "KLIFNode" and chance.flag():
        code = f"filled({code}, k=1.3)"
    states = ("v", *_OTHER_STATES.get(name, ()))
    return Layer(
        "spikingjelly", name, settings | after, code, states, sequence=sequence, hidden=True
    )


_SIMPLE = ("SimpleIFNode", "SimpleLIFNode")


def _given(settings: dict[str, str], library: str, name: str) -> str:
    return _arguments({key: value for key, value in settings.items() if value})


def _arguments(settings: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())


# --- Norse -----------------------------------------------------------------------------------

_LEAKY = {"tau_mem_inv": 300.0, "v_leak": 0.125, "v_th": 0.4, "v_reset": -0.2}
_CURRENT = {**_LEAKY, "tau_syn_inv": 400.0}
_ADAPTIVE = {**_CURRENT, "delta_T": 0.5, "adaptation_current": 0.7, "adaptation_spike": 0.3}
_ADAPTIVE["tau_ada_inv"] = 200.0
PARAMETERS: dict[str, dict[str, float]] = {
    "LIF": _CURRENT,
    "LIFBox": _LEAKY,
    "IAF": {"v_th": 0.9, "v_reset": -0.2},
    "LIFEx": {**_CURRENT, "delta_T": 0.5},
    "LIFAdEx": _ADAPTIVE,
    "LSNN": {**_CURRENT, "tau_adapt_inv": 150.0, "beta": 0.3},
    "Izhikevich": {
        **{"a": 0.3, "b": 0.25, "c": -0.3, "d": 0.3, "sq": 0.4, "mn": -0.8, "bias": 0.1},
        **{"v_th": 0.4, "tau_inv": 500.0},
    },
}
_STATES = {
    "LIF": ("v", "i"),
    "LIFBox": ("v",),
    "IAF": ("v",),
    "LIFEx": ("v", "i"),
    "LIFAdEx": ("v", "i", "a"),
    "LSNN": ("v", "i", "b"),
    "Izhikevich": ("v", "u"),
}
_METHODS = ("super", "super", "super", "tanh", "circ", "triangle", "heavi_erfc")


def norse(chance: Chance, name: str, vectors: bool) -> Layer:
    """A cell or a module of Norse."""
    form = next(f for f in ("RecurrentCell", "Recurrent", "Cell", "") if name.endswith(f))
    base = name.removesuffix(form)
    inner = base.removesuffix("Refrac")
    recurrent, sequence = "Recurrent" in form, not form.endswith("Cell")
    learns, vector, half = chance.flag(), vectors and chance.one_in(3), chance.flag()
    numbers = dict(PARAMETERS[inner])
    numbers["v_th"] *= chance.pick(0.3, 1.0)
    if chance.one_in(30):
        numbers["v_th"] = chance.pick(1e9, float("inf"))
    if inner not in ("IAF", "Izhikevich") and chance.flag():
        numbers["v_leak"] = 0.0

    def value(key: str, number: float) -> str:
        # States start at the leak, and Norse itself does not support a vector there.
        still = key == "v_leak" or (inner == "LSNN" and key == "v_th")
        still = still or (inner == "IAF" and key == "v_reset")
        number_text = "float('inf')" if number == float("inf") else f"{round(number, 4)}"
        if not learns and not vector and half and not still:
            return number_text
        text = f"torch.full(({WIDTH},), {number_text}, dtype=P)"
        if not vector or still:
            text = f"torch.tensor({number_text}, dtype=P)"
        return f"{text}.requires_grad_()" if learns else text

    arguments = {key: value(key, number) for key, number in numbers.items()}
    method = "super" if base != inner else chance.pick(*_METHODS)
    if chance.one_in(40) and inner == "LIF":
        method = "adjoint"
    if method != "super":
        arguments["method"] = repr(method)
    if inner == "LIFBox":
        arguments["reset_method"] = chance.pick("norse.reset_value", "norse.reset_subtract")
    p = f"norse.{inner}Parameters({_arguments(arguments)})"
    if base != inner:
        outer = "lif" if inner == "LIF" else "lif_adex"
        p = f"norse.{base}Parameters({outer}={p}, rho_reset={value('rho_reset', 2.0)})"
    settings: dict[str, str] = {}
    if not half or chance.one_in(3):
        settings["dt"] = chance.pick("0.001", "0.0005")
    if inner == "Izhikevich":
        at = [f"torch.tensor({number}, dtype=P, requires_grad=True)" for number in (0.05, 0.02)]
        p = f"norse.IzhikevichSpikingBehavior({p}, norse.IzhikevichState({', '.join(at)}))"
        settings["spiking_method"] = p
    else:
        settings["p"] = p
    if inner == "LSNN":
        settings["adjoint"] = str(chance.one_in(30))
    if sequence and inner != "IAF":
        settings["record_states"] = str(chance.flag())
    sizes = f"{WIDTH}, {WIDTH}, " if recurrent else ""
    if recurrent:
        settings["autapses"] = str(chance.flag())
        if chance.one_in(4):
            settings["input_weights"] = f"weight({WIDTH}, {WIDTH})"
            settings["recurrent_weights"] = f"weight({WIDTH}, {WIDTH})"
    states = (*(("z",) if recurrent else ()), *_STATES[inner])
    if base != inner:
        states = (*states, "rho")
    return Layer(
        "norse",
        name,
        settings,
        f"norse.{name}({sizes}{_arguments(settings)})",
        states,
        sequence=sequence,
        facts={"inner": inner, "base": base, "method": method, "learns": learns},
    )
