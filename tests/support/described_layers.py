"""Layers of every library beside their description in tests/support/oracle_neurons.py."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import norse.torch as norse
import numpy as np
import numpy.typing as npt
import oracle_neurons
import snntorch
import torch
from norse.torch.functional.izhikevich import (
    IzhikevichParameters,
    IzhikevichSpikingBehavior,
    IzhikevichState,
)
from norse.torch.functional.lif import LIFFeedForwardState, LIFParameters
from norse.torch.functional.lif_adex import LIFAdExFeedForwardState, LIFAdExParameters
from norse.torch.functional.lif_ex import LIFExFeedForwardState, LIFExParameters
from norse.torch.functional.lif_refrac import LIFRefracFeedForwardState, LIFRefracParameters
from norse.torch.functional.lsnn import LSNNFeedForwardState, LSNNParameters
from oracle_neurons import Neuron
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor

BATCH, NEURONS = 3, 5
Array = npt.NDArray[np.float64]


class Run(NamedTuple):
    """Outputs, and every state after every step, under the oracle's names."""

    out: Tensor
    states: dict[str, Tensor]


@dataclass(frozen=True)
class Described:
    """A layer, and what the oracle has to know of it."""

    name: str
    layer: str
    """The class as ``supported()`` has it."""
    make: Callable[[], Any]
    neuron: Neuron
    values: Callable[[Any], Mapping[str, Any]]
    """All the parameters, under the oracle's names; those that learn are tensors that do."""
    run: Callable[[Any, Tensor, Mapping[str, Tensor] | None], Run]
    rest: Mapping[str, float]
    """Every state at the library's own start."""
    derivative: Callable[[Array], Array]
    native_path: str
    """What the native gradient does with the reset, in TSSL-BP's words."""
    incoming: Callable[[str, Array], Array] = lambda name, noise: 0.3 + 0.4 * noise

    def __str__(self) -> str:
        return self.name

    @property
    def tolerance(self) -> float:
        """SnnTorch's spikes are float32 whatever the input, and so are their cotangents."""
        return 5e-6 if self.layer.startswith("snntorch") else 1e-9


def parameter(value: float, vector: bool = False) -> Tensor:
    # Numbers that float32 has: snnTorch rounds a float64 threshold of no dimension to it.
    spread = torch.linspace(0.95, 1.05, NEURONS, dtype=torch.float64) if vector else 1.0
    return (torch.tensor(value, dtype=torch.float32).double() * spread).requires_grad_()


def superspike(x: Array) -> Array:
    return np.asarray(1.0 / (np.abs(x) + 1.0) ** 2)


def atan(x: Array) -> Array:
    return np.asarray(1.0 / (1.0 + (math.pi * x) ** 2))


def sigmoid(x: Array) -> Array:
    s = 1.0 / (1.0 + np.exp(-4.0 * x))
    return np.asarray((1.0 - s) * s * 4.0)


# --- Norse -----------------------------------------------------------------------------------


def _plain(state: Any) -> dict[str, Tensor]:
    """A state's fields by name, those of a state within it too."""
    found: dict[str, Tensor] = {}
    for name, value in state._asdict().items():
        found |= {name: value} if isinstance(value, Tensor) else _plain(value)
    return found


def _run_norse(state: Callable[..., Any]) -> Callable[..., Run]:
    def run(layer: Any, x: Tensor, start: Mapping[str, Tensor] | None) -> Run:
        now = None if start is None else state(**start)
        if getattr(layer, "record_states", False):
            out, states = layer(x, now)
            return Run(out, _plain(states))
        outs, steps = [], []
        for drive in x:
            out, now = layer(drive, now)
            outs.append(out)
            steps.append(_plain(now))
        return Run(torch.stack(outs), {n: torch.stack([s[n] for s in steps]) for n in steps[0]})

    return run


def _refractory(v: Tensor, i: Tensor, rho: Tensor) -> Any:
    return LIFRefracFeedForwardState(LIFFeedForwardState(v, i), rho)


def _norse_incoming(name: str, noise: Array) -> Array:
    # A counter: the neuron is refractory for none, one or two steps yet.
    return np.floor(np.abs(noise) * 1.5) if name == "rho" else 0.3 + 0.4 * noise


EXPONENTIAL = {"delta_T": 0.5, "tau_syn_inv": 400.0, "tau_mem_inv": 300.0, "v_leak": 0.125}
EXPONENTIAL |= {"v_th": 0.5, "v_reset": -0.2}
ADAPTIVE = {**EXPONENTIAL, "adaptation_current": 0.8, "adaptation_spike": 0.3}
ADAPTIVE |= {"tau_ada_inv": 200.0}
LIF = {n: EXPONENTIAL[n] for n in ("tau_syn_inv", "tau_mem_inv", "v_leak", "v_th", "v_reset")}
LSNN = {**LIF, "tau_adapt_inv": 150.0, "beta": 0.3}
IZHIKEVICH = {"a": 0.3, "b": 0.25, "c": -0.3, "d": 0.3, "sq": 0.4, "mn": -0.8, "bias": 0.1}
IZHIKEVICH |= {"v_th": 0.4, "tau_inv": 500.0}


def _tensors(values: Mapping[str, float], vectors: bool) -> dict[str, Tensor]:
    # The leak is where a state starts: a vector of them is more than Norse itself takes.
    return {n: parameter(v, vectors and n != "v_leak") for n, v in values.items()}


def _given(layer: Any) -> dict[str, Any]:
    """Norse's own parameters by name, those of a neuron within it too."""
    found: dict[str, Any] = {}
    for name, value in layer.p._asdict().items():
        found |= value._asdict() if isinstance(value, tuple) else {name: value}
    return {n: v for n, v in found.items() if n not in ("method", "alpha")}


def norse_layers() -> Iterator[Described]:
    made: dict[str, tuple[Any, ...]] = {
        "LIFEx": (
            lambda q: LIFExParameters(**q),
            EXPONENTIAL,
            oracle_neurons.norse_lif_ex(),
            LIFExFeedForwardState,
            {"v": 0.125, "i": 0.0},
        ),
        "LIFAdEx": (
            lambda q: LIFAdExParameters(**q),
            ADAPTIVE,
            oracle_neurons.norse_lif_adex(),
            LIFAdExFeedForwardState,
            {"v": 0.125, "i": 0.0, "a": 0.0},
        ),
        "LSNN": (
            lambda q: LSNNParameters(**q),
            LSNN,
            oracle_neurons.norse_lsnn(),
            LSNNFeedForwardState,
            {"v": 0.125, "i": 0.0, "b": 0.5},
        ),
        "LIFRefrac": (
            lambda q: LIFRefracParameters(
                LIFParameters(**{n: v for n, v in q.items() if n != "rho_reset"}), q["rho_reset"]
            ),
            {**LIF, "rho_reset": 2.0},
            oracle_neurons.norse_lif_refrac(),
            _refractory,
            {"v": 0.125, "i": 0.0, "rho": 0.0},
        ),
    }
    for name, (parameters, values, described, state, rest) in made.items():
        for sequence, vectors in itertools.product((False, True), (False, True)):
            cls = name if sequence else f"{name}Cell"
            # Norse has no LIFRefrac for sequences, and starts LSNN's b from a number.
            if not hasattr(norse, cls) or (vectors and name == "LSNN"):
                continue

            def make(
                cls: str = cls,
                parameters: Any = parameters,
                values: Any = values,
                sequence: bool = sequence,
                vectors: bool = vectors,
            ) -> Any:
                settings = {"record_states": True} if sequence else {}
                return getattr(norse, cls)(parameters(_tensors(values, vectors)), **settings)

            yield Described(
                f"norse-{cls}" + ("-vector" if vectors else ""),
                f"norse.torch.{cls}",
                make,
                described,
                _given,
                _run_norse(state),
                rest,
                superspike,
                "complete",
                _norse_incoming,
            )
    for cls, learns in itertools.product(("IzhikevichCell", "Izhikevich"), (False, True)):

        def make_izhikevich(cls: str = cls, learns: bool = learns) -> Any:
            values = {n: parameter(v) if learns else v for n, v in IZHIKEVICH.items()}
            start = IzhikevichState(
                v=torch.full((BATCH, NEURONS), -0.1, dtype=torch.float64, requires_grad=True),
                u=torch.full((BATCH, NEURONS), 0.05, dtype=torch.float64),
            )
            behaviour = IzhikevichSpikingBehavior(p=IzhikevichParameters(**values), s=start)
            settings = {} if cls.endswith("Cell") else {"record_states": True}
            return getattr(norse, cls)(behaviour, **settings)

        yield Described(
            f"norse-{cls}" + ("-learnable" if learns else ""),
            f"norse.torch.{cls}",
            make_izhikevich,
            oracle_neurons.norse_izhikevich(),
            _given,
            _run_norse(IzhikevichState),
            {"v": -0.1, "u": 0.05},
            superspike,
            "complete",
        )


# --- SpikingJelly ----------------------------------------------------------------------------


def _run_spikingjelly(layer: Any, x: Tensor, start: Mapping[str, Tensor] | None) -> Run:
    layer.reset()
    for name, value in (start or {}).items():
        setattr(layer, name, value)
    if layer.step_mode == "m":
        out = layer(x)
        if isinstance(layer, neuron.ComplementaryLIFNode):
            return Run(out, dict(zip("vm", layer.state_seqs, strict=True)))
        return Run(out, {"v": layer.v_seq})
    names = [name for name in "vwmc" if name in layer._memories]
    outs: list[Tensor] = []
    states: dict[str, list[Tensor]] = {name: [] for name in names}
    for drive in x:
        outs.append(layer(drive))
        for name in names:
            states[name].append(getattr(layer, name))
    return Run(torch.stack(outs), {name: torch.stack(values) for name, values in states.items()})


SPIKINGJELLY_NAMES = "tau v_reset v_rest v_c a0 delta_T theta_rh tau_w a b k c_decay v_decay"


def _spikingjelly_values(layer: Any) -> dict[str, Any]:
    found = {name: getattr(layer, name, None) for name in SPIKINGJELLY_NAMES.split()}
    return {"v_th": layer.v_threshold} | {n: v for n, v in found.items() if v is not None}


def _described_node(
    name: str, cls: str, described: Neuron, rest: Mapping[str, float], detach: bool, **settings: Any
) -> Described:
    def make() -> Any:
        node = getattr(neuron, cls)(surrogate_function=surrogate.Sigmoid(), **settings)
        node.detach_reset = detach
        if cls == "KLIFNode":
            node.k.data.fill_(1.3)
        return node.double()

    return Described(
        f"spikingjelly-{cls}-{name}" + ("-detached" if detach else ""),
        f"spikingjelly.activation_based.neuron.{cls}",
        make,
        described,
        _spikingjelly_values,
        _run_spikingjelly,
        rest,
        sigmoid,
        "none" if detach else "complete",
    )


def spikingjelly_layers() -> Iterator[Described]:
    o = oracle_neurons
    for soft, mode, detach in itertools.product((False, True), ("s", "m"), (False, True)):
        common = {"v_threshold": 0.6, "v_reset": None if soft else -0.2}
        stepped = {**common, "step_mode": mode, "store_v_seq": mode == "m"}
        rest, name = {"v": 0.0 if soft else -0.2}, f"{mode}-{'soft' if soft else 'hard'}"
        yield _described_node(
            name, "QIFNode", o.spikingjelly_qif(soft), rest, detach, tau=1.6, v_c=0.5, **stepped
        )
        yield _described_node(
            name,
            "EIFNode",
            o.spikingjelly_eif(soft),
            rest,
            detach,
            tau=1.6,
            theta_rh=2.0,
            **stepped,
        )
        yield _described_node(
            name,
            "IzhikevichNode",
            o.spikingjelly_izhikevich(soft),
            {**rest, "w": 0.1},
            detach,
            **{"tau": 1.6, "v_c": 0.5, "w_rest": 0.1, "a": 0.2, "b": 0.3, **stepped},
        )
        for decay, scale in itertools.product((True, False), (True, False)):
            yield _described_node(
                f"{name}-decay{decay:d}-scale{scale:d}",
                "KLIFNode",
                o.spikingjelly_klif(soft, decay, scale),
                rest,
                detach,
                tau=1.7,
                decay_input=decay,
                scale_reset=scale,
                **stepped,
            )
        if mode == "s":
            yield _described_node(
                name,
                "CUBALIFNode",
                o.spikingjelly_cubalif(soft),
                {**rest, "c": 0.0},
                detach,
                **common,
            )
    for mode in "sm":
        yield _described_node(
            mode,
            "ComplementaryLIFNode",
            o.spikingjelly_clif(),
            {"v": 0.0, "m": 0.0},
            False,
            v_threshold=0.6,
            step_mode=mode,
            store_state_seqs=mode == "m",
        )


# --- snnTorch --------------------------------------------------------------------------------


def _run_snntorch(*names: str) -> Callable[..., Run]:
    """``names``: the layer's states in its own order, the potential as ``v``."""

    def run(layer: Any, x: Tensor, start: Mapping[str, Tensor] | None) -> Run:
        layer.reset_mem()
        # Without a state the layer makes its own.
        now: tuple[Any, ...] = () if start is None else tuple(start[name] for name in names)
        outs, steps = [], []
        for drive in x:
            out, *states = layer(drive, *now)
            # RLeaky's first state is its output.
            now = (out, *states) if names[0] == "spk" else tuple(states)
            outs.append(out)
            steps.append(dict(zip(names, now, strict=True)))
        return Run(torch.stack(outs), {n: torch.stack([s[n] for s in steps]) for n in names})

    return run


def _snntorch_values(layer: Any) -> dict[str, Any]:
    names = ("alpha", "beta", "threshold", "V")
    return {name: getattr(layer, name) for name in names if hasattr(layer, name)}


def _settings(vector: bool, **values: float) -> dict[str, Tensor]:
    return {name: parameter(value, vector).detach() for name, value in values.items()}


def snntorch_layers() -> Iterator[Described]:
    learnt = {"learn_beta": True, "learn_threshold": True}
    for reset, vector in itertools.product(("subtract", "zero", "none"), (False, True)):
        suffix = f"{reset}{'-vector' if vector else ''}"
        for delayed in (True, False):

            def make_synaptic(
                vector: bool = vector, reset: str = reset, delayed: bool = delayed
            ) -> Any:
                return snntorch.Synaptic(
                    **_settings(vector, alpha=0.6, beta=0.7, threshold=0.8),
                    learn_alpha=True,
                    reset_mechanism=reset,
                    reset_delay=delayed,
                    **learnt,
                )

            def make_rleaky(
                vector: bool = vector, reset: str = reset, delayed: bool = delayed
            ) -> Any:
                return snntorch.RLeaky(
                    **_settings(vector, beta=0.7, V=0.4, threshold=0.6),
                    all_to_all=False,
                    reset_mechanism=reset,
                    reset_delay=delayed,
                    **learnt,
                )

            timing = "delay" if delayed else "nodelay"
            native = "none" if delayed or reset == "none" else "complete"
            yield Described(
                f"snntorch-Synaptic-{timing}-{suffix}",
                "snntorch.Synaptic",
                make_synaptic,
                oracle_neurons.snntorch_synaptic(reset, delayed),
                _snntorch_values,
                _run_snntorch("syn", "v"),
                {"v": 0.0, "syn": 0.0},
                atan,
                native,
            )
            yield Described(
                f"snntorch-RLeaky-{timing}-{suffix}",
                "snntorch.RLeaky",
                make_rleaky,
                oracle_neurons.snntorch_rleaky(reset, delayed),
                _snntorch_values,
                _run_snntorch("spk", "v"),
                {"v": 0.0, "spk": 0.0},
                atan,
                native,
            )

        def make_alpha(vector: bool = vector, reset: str = reset) -> Any:
            # learn_alpha=True is broken in the library itself.
            return snntorch.Alpha(
                **_settings(vector, alpha=0.8, beta=0.5, threshold=0.3),
                reset_mechanism=reset,
                **learnt,
            )

        yield Described(
            f"snntorch-Alpha-{suffix}",
            "snntorch.Alpha",
            make_alpha,
            oracle_neurons.snntorch_alpha(reset),
            _snntorch_values,
            _run_snntorch("syn_exc", "syn_inh", "v"),
            {"v": 0.0, "syn_exc": 0.0, "syn_inh": 0.0},
            atan,
            "none",
        )


LAYERS = [*snntorch_layers(), *spikingjelly_layers(), *norse_layers()]


# --- a layer's gradients beside the oracle's --------------------------------------------------


def disagreements(
    described: Described,
    layer: Any,
    *,
    tau_s: float,
    incoming: bool,
    losses: str,
    steps: int = 8,
    **rule: Any,
) -> tuple[list[str], float]:
    """What differs from the oracle, with by how much, and the spike rate."""
    generator = np.random.default_rng(3)
    shape = (steps, BATCH, NEURONS)
    x = 0.6 + generator.standard_normal(shape)
    noise = {n: generator.standard_normal(shape[1:]) for n in described.rest}
    weights = {n: generator.standard_normal(shape) for n in ("out", *described.rest)}

    drive = torch.tensor(x, requires_grad=True)
    begin = {
        n: described.incoming(n, noise[n]) if incoming else np.full(shape[1:], value)
        for n, value in described.rest.items()
    }
    start = {n: torch.tensor(v, requires_grad=True) for n, v in begin.items()}
    run = described.run(layer, drive, start if incoming else None)
    for name in weights:
        # A state that the layer keeps to itself has no loss; nor has an output twice.
        seen = name == "out" or (name in run.states and name != "spk")
        if not seen or (losses != "all" and (name == "out") != (losses == "out")):
            weights[name] = np.zeros(shape)
    loss = (run.out * torch.tensor(weights["out"])).sum()
    for name, values in run.states.items():
        loss = loss + (values * torch.tensor(weights[name])).sum()
    given = described.values(layer)
    learnt = {n: v for n, v in given.items() if isinstance(v, Tensor) and v.requires_grad}
    wanted = {"x": drive, **({f"start {n}": v for n, v in start.items()} if incoming else {})}
    wanted |= learnt
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    ours = {
        name: np.zeros(tuple(value.shape)) if grad is None else grad.numpy()
        for (name, value), grad in zip(wanted.items(), found, strict=True)
    }

    expected = oracle_neurons.run(
        described.neuron,
        drive=x,
        start=begin,
        parameters={
            n: v.detach().numpy() if isinstance(v, Tensor) else v for n, v in given.items()
        },
        grad_out=weights["out"],
        grad_states=weights,
        tau_s=tau_s,
        **rule,
    )
    theirs = {"x": expected["x"], **expected["parameters"]}
    theirs |= {f"start {n}": v for n, v in expected["start"].items()}
    pairs = {f"gradient of {n}": (ours[n], theirs[n], described.tolerance) for n in ours}
    pairs["out"] = (run.out.detach().numpy(), expected["out"], 1e-6)
    forward = 1e-6 if described.tolerance > 1e-9 else 1e-12
    for name, values in run.states.items():
        pairs[f"state {name}"] = (values.detach().numpy(), expected["states"][name], forward)
    return list(_differences(pairs)), float(expected["spikes"].mean())


def _differences(pairs: Mapping[str, tuple[Any, Any, float]]) -> Iterator[str]:
    for name, (actual, expected, tolerance) in pairs.items():
        if actual.shape != expected.shape:
            yield f"{name}: shape {actual.shape}, not {expected.shape}"
            continue
        scale = max(1.0, float(np.abs(expected).max()))
        worst = float(np.abs(actual - expected).max())
        if not worst <= tolerance * scale:
            yield f"{name}: {worst:.3g} off, scale {scale:.3g}"
