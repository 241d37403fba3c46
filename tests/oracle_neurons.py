"""A float64 numpy oracle of the gradients of neurons beyond the linear one.

A neuron is given by its published equations (:class:`Neuron`); every partial derivative is taken by
a complex step, and one reverse recursion, written from the method's specification alone, serves
them all. It shares no code with the package, nor with tests/oracle.py.

Symbols: v the carried potential, x the input, w other states, p parameters; h the charged
potential, s the spike, a the PSC, G the gradient with respect to the spike, phi its slope,
lambda the spike-time chain, mu the membrane's ordinary adjoint, e what is emitted.

Readings chosen where the specification leaves room:

 1. What a state w' owes to the spike adds to G, what it owes to h or v to mu: so it passes on the
    full adjoint of w'. An adaptive threshold is reached by p[t], as a learnable one is.
 2. Whatever stands in the equation of v' but v, h and s (a state that enters the reset, its
    parameters) is reached by dE/dv' = lambda's and mu's part together, at fixed s.
 3. The reset is a function of h, s and the states before the step: R = -dv'/ds and du/dh are whole,
    so that CLIF's new m, which enters its reset, is no way around reset_path="none".
 4. A v' that depends on v beside the charge (a refractory step keeps v) passes lambda and mu on.
    The reference reset term uses lambda[t+1] of the charge alone: zero before a refractory step.
 5. snnTorch computes its delayed reset r from the incoming potential, detached. It is a constant
    wherever it stands, but for u(v, r), through which alone the reset paths go: F_v is that of
    r = 0 there, R = -du/dr. So where "zero" masks the input too, that mask has no gradient.
 6. The threshold within snnTorch's charge gets lambda + mu, every other parameter of a charge e.
 7. Where the carried potential is in other units than h (KLIF with scale_reset, v = h/k) the
    increment, the leak and R are taken in those of h: d = h - k v, F_v/k and k R. A parameter still
    takes e dh/dp at a fixed state as the library carries it, v.
 8. snnTorch's Alpha does not carry its potential (F_v = 0): it has no chain through it, R = 0, and
    the increment is that of the returned potential.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Values = Mapping[str, Array]
Equation = Callable[[Values], Array]

TINY = 1e-40


@dataclass(frozen=True)
class Neuron:
    """One step's equations. Each reads what is known by then, by name, elementwise.

    In this order: ``charge`` reads v, x, r, other states and parameters; ``threshold`` other
    states and parameters; ``others`` also h and s; ``potential`` (the v' that is handed on) also
    the new states, as ``new_<name>``; ``output`` (what the PSC filters) s and other states.
    """

    charge: Equation
    threshold: Equation
    potential: Equation
    others: Mapping[str, Equation] = field(default_factory=dict)
    output: Equation = lambda q: q["s"]
    strict: bool = True
    arriving: bool = False
    """Whether a reset r comes with the incoming potential."""
    kept: Equation | None = None
    """u(v, r), where the potential is handed on before its reset."""
    in_full: frozenset[str] = frozenset()
    """Parameters of the charge that take lambda + mu instead of e."""
    scale: Equation = lambda q: np.ones_like(q["v"])
    """h's unit over the carried potential's."""
    feedback: str | None = None
    """A state that is the output of the step before, as the user hands it back."""


def partial(equation: Equation, q: Values, name: str) -> Array:
    """The derivative of an equation with respect to one of its quantities."""
    moved = {**q, name: np.asarray(q[name]) + 1j * TINY}
    return np.asarray(np.imag(equation(moved))) / TINY


def _sum_to_shape(full: Array, shape: tuple[int, ...]) -> Array:
    full = full.sum(axis=tuple(range(full.ndim - len(shape))))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and full.shape[i] != 1)
    return np.asarray(full.sum(axis=stretched, keepdims=True) if stretched else full)


def forward(
    neuron: Neuron,
    x: Array,
    start: Mapping[str, Array],
    parameters: Mapping[str, Array],
    tau_s: float,
) -> list[dict[str, Array]]:
    """Everything there is to know of every step; the new states as ``new_<name>``."""
    shape = x.shape[1:]
    now = {name: np.broadcast_to(value, shape) for name, value in start.items()}
    fixed = {name: np.broadcast_to(value, shape) for name, value in parameters.items()}
    trace = np.zeros(shape)
    steps = []

    def above(potential: Array, threshold: Array) -> Array:
        hit = potential > threshold if neuron.strict else potential >= threshold
        return hit.astype(np.float64)

    for drive in x:
        q: dict[str, Array] = {**fixed, **now, "x": drive, "r": np.zeros(shape)}
        theta = neuron.threshold(q)
        if neuron.arriving:
            q["r"] = above(q["v"], theta)
        q["h"] = neuron.charge(q)
        q["theta"] = theta
        q["s"] = above(q["h"], theta)
        fired = neuron.output(q)
        trace = fired if tau_s == 1.0 else trace + (fired - trace) / tau_s
        q["out"] = trace
        for name, equation in neuron.others.items():
            q[f"new_{name}"] = equation(q)
        if neuron.feedback:
            q[f"new_{neuron.feedback}"] = trace
        q["new_v"] = neuron.potential(q)
        now = {name: q[f"new_{name}"] for name in now}
        steps.append(q)
    return steps


def run(
    neuron: Neuron,
    *,
    drive: npt.ArrayLike,
    start: Mapping[str, npt.ArrayLike],
    parameters: Mapping[str, npt.ArrayLike],
    grad_out: npt.ArrayLike,
    grad_states: Mapping[str, npt.ArrayLike],
    tau_s: float = 1.0,
    reset_path: str = "reference",
    max_slope: float = 8.0,
    fallback_width: float = 0.2,
    fallback: bool = True,
    derivative: Callable[[Array], Array] | None = None,
) -> dict[str, Any]:
    """Run the neuron over ``drive`` [T, B, ...], and the recursion back.

    ``start`` holds v and every other state, ``grad_states`` a loss's derivative with respect to
    each of them after every step. With ``derivative`` the rule is that surrogate, without
    fallback. Returns ``out`` and ``states`` of the forward pass, and the gradients ``x``,
    ``start``, ``parameters``; for a closer look, ``G``, ``lambda``, ``mu`` and ``emitted`` too.
    """
    if reset_path not in ("reference", "complete", "none"):
        raise ValueError(f"unknown reset_path {reset_path!r}")
    x = np.asarray(drive, dtype=np.float64)
    shape = x.shape[1:]
    begin = {name: np.asarray(value, dtype=np.float64) for name, value in start.items()}
    given = {name: np.asarray(value, dtype=np.float64) for name, value in parameters.items()}
    steps = forward(neuron, x, begin, given, tau_s)
    g = np.asarray(grad_out, dtype=np.float64)
    losses = {name: np.asarray(value, dtype=np.float64) for name, value in grad_states.items()}
    other = [name for name in begin if name != "v"]

    zero = np.zeros(shape)
    # The cotangents of the states after the step at hand, from later steps.
    chain_v, ordinary_v, filtered = zero, zero, zero
    states_back = dict.fromkeys(other, zero)
    # lambda, mu and F_v of the step after it.
    lambda_next, mu_next, slope_next, scale_next = zero, zero, zero, zero
    found = {name: np.zeros(shape) for name in given}
    grad_x = np.zeros_like(x)
    seen: dict[str, list[Array]] = {"G": [], "lambda": [], "mu": [], "emitted": []}

    for t in reversed(range(len(x))):
        q = steps[t]
        in_potential = {n: partial(neuron.potential, q, n) for n in q if n != "theta"}
        loss_v = losses["v"][t]
        ordinary = loss_v + ordinary_v
        dE_dv = chain_v + ordinary

        # The other states after the step: their losses, later steps, and this step's reset.
        adjoint = {
            name: losses[name][t] + states_back[name] + dE_dv * in_potential[f"new_{name}"]
            for name in other
        }

        def through_states(name: str, q: Values = q, adjoint: Values = adjoint) -> Array:
            return sum(
                (adjoint[key] * partial(eq, q, name) for key, eq in neuron.others.items()), zero
            )

        # The spike.
        sent = g[t] + (adjoint[neuron.feedback] if neuron.feedback else 0.0)
        filtered = sent / tau_s + (1.0 - 1.0 / tau_s) * filtered
        G = filtered * partial(neuron.output, q, "s") + through_states("s")
        if derivative is None:
            phi, silent = _phi(neuron, q, max_slope), fallback & (q["out"] < 1 / (4 * tau_s))
        else:
            phi, silent = derivative(q["h"] - q["theta"]), np.zeros(shape, dtype=bool)
        f = _fallback(q["h"], q["theta"], fallback_width)

        # The reset, which a delayed neuron meets at the next charge.
        if neuron.kept is None:
            R = -in_potential["s"]
            lambda_through, mu_through = chain_v, ordinary
        else:
            R = -partial(neuron.kept, {**q, "v": q["h"], "r": q["s"]}, "r")
            lambda_through, mu_through = slope_next * lambda_next, slope_next * mu_next
        if reset_path == "reference":
            chain_reset = (scale_next - slope_next) * R * phi * lambda_next
        elif reset_path == "complete":
            chain_reset = -R * phi * lambda_through
        else:
            chain_reset = zero
        membrane_reset = -R * phi * mu_through if reset_path == "complete" else zero

        lam = phi * G + chain_v * in_potential["h"] + chain_reset
        mu = ordinary * in_potential["h"] + membrane_reset + through_states("h")
        emitted = np.where(silent, G * f, lam) + mu
        p = np.where(silent, G * f, phi * G + chain_reset) + membrane_reset

        # What the step's own quantities get: through charge, threshold, reset, states, output.
        def reached(
            name: str,
            q: Values = q,
            charge: Array = emitted,
            p: Array = p,
            dE_dv: Array = dE_dv,
            in_potential: Values = in_potential,
            through_states: Callable[[str], Array] = through_states,
            filtered: Array = filtered,
        ) -> Array:
            return (
                charge * partial(neuron.charge, q, name)
                - p * partial(neuron.threshold, q, name)
                + dE_dv * in_potential[name]
                + through_states(name)
                + filtered * partial(neuron.output, q, name)
            )

        grad_x[t] = reached("x")
        for name in given:
            charge = lam + mu if name in neuron.in_full else emitted
            found[name] += reached(name, charge=charge)
        states_back = {name: reached(name) for name in other}
        F_v = partial(neuron.charge, q, "v")
        chain_v = F_v * lam + in_potential["v"] * chain_v
        ordinary_v = F_v * mu + in_potential["v"] * ordinary + through_states("v")
        lambda_next, mu_next, scale_next = lam, mu, neuron.scale(q)
        delayed = neuron.kept is not None
        slope_next = partial(neuron.charge, {**q, "r": zero}, "v") if delayed else F_v
        for key, value in zip(seen, (G, lam, mu, emitted), strict=True):
            seen[key].insert(0, value)

    back = {"v": chain_v + ordinary_v, **states_back}
    return {
        "out": np.stack([q["out"] for q in steps]),
        "spikes": np.stack([q["s"] for q in steps]),
        "states": {name: np.stack([q[f"new_{name}"] for q in steps]) for name in begin},
        "x": grad_x,
        "start": {name: _sum_to_shape(back[name], begin[name].shape) for name in begin},
        "parameters": {name: _sum_to_shape(found[name], given[name].shape) for name in given},
        **{key: np.stack(values) for key, values in seen.items()},
    }


def _phi(neuron: Neuron, q: Values, max_slope: float) -> Array:
    """s clip(1/d, 0, max_slope), with 1/0 the upper bound."""
    d = q["h"] - (q["v"] * neuron.scale(q) if neuron.kept is None else neuron.kept(q))
    inverse = np.full_like(d, np.inf)
    np.divide(1.0, d, out=inverse, where=d != 0)
    return q["s"] * np.clip(inverse, 0.0, max_slope)


def _fallback(h: Array, threshold: Array, width: float) -> Array:
    z = np.exp(np.clip((threshold - h) / width, -8.0, 8.0))
    return z / (width * (1.0 + z) ** 2)


# ------------------------------------------------------------------ complex-safe functions


def relu(z: Array) -> Array:
    return np.where(np.real(z) > 0, z, 0.0)


def sigmoid(z: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-z)))


def clamped(z: Array) -> Array:
    """To [0, 1], with the gradient that PyTorch's clamp has."""
    inside = (np.real(z) >= 0) & (np.real(z) <= 1)
    return np.where(inside, z, np.clip(np.real(z), 0.0, 1.0))


def superspike_step(z: Array) -> Array:
    """1(z > 0) with the derivative of Norse's default surrogate."""
    return np.where(np.real(z) > 0, 1.0, 0.0) + 1j * np.imag(z) / (np.abs(np.real(z)) + 1.0) ** 2


# ------------------------------------------------------------------ resets


def to_value(q: Values) -> Array:
    return (1.0 - q["s"]) * q["h"] + q["s"] * q["v_reset"]


def subtracted(q: Values) -> Array:
    return q["h"] - q["s"] * q["v_th"]


def threshold(q: Values) -> Array:
    return q["v_th"]


# ------------------------------------------------------------------ Norse, dt = 1 ms

DT = 0.001


def _norse_current(q: Values) -> Array:
    jump = q["i"] + q["x"]
    return np.asarray(jump - DT * q["tau_syn_inv"] * jump)


def _norse_leak(q: Values) -> Array:
    return np.asarray(q["v_leak"] - q["v"])


def _norse_exponential(q: Values) -> Array:
    return np.asarray(q["delta_T"] * np.exp((q["v"] - q["v_th"]) / q["delta_T"]))


def _norse_lif(q: Values) -> Array:
    return np.asarray(q["v"] + DT * q["tau_mem_inv"] * (_norse_leak(q) + q["i"] + q["x"]))


def norse_lif_ex() -> Neuron:
    def charge(q: Values) -> Array:
        dv = _norse_leak(q) + _norse_exponential(q) + q["i"] + q["x"]
        return np.asarray(q["v"] + DT * q["tau_mem_inv"] * dv)

    return Neuron(charge, threshold, to_value, {"i": _norse_current})


def norse_lif_adex() -> Neuron:
    def charge(q: Values) -> Array:
        dv = _norse_leak(q) + _norse_exponential(q) + q["i"] + q["x"] - q["a"]
        return np.asarray(q["v"] + DT * q["tau_mem_inv"] * dv)

    def adaptation(q: Values) -> Array:
        da = q["adaptation_current"] * (q["v"] - q["v_leak"]) - q["a"]
        return np.asarray(q["a"] + DT * q["tau_ada_inv"] * da + q["s"] * q["adaptation_spike"])

    return Neuron(charge, threshold, to_value, {"i": _norse_current, "a": adaptation})


def norse_lsnn() -> Neuron:
    def charge(q: Values) -> Array:
        return np.asarray(q["v"] + DT * q["tau_mem_inv"] * (_norse_leak(q) + q["i"]))

    def decayed(q: Values) -> Array:
        return np.asarray(q["b"] + DT * q["tau_adapt_inv"] * (q["v_th"] - q["b"]))

    return Neuron(
        charge,
        decayed,
        to_value,
        {
            "i": lambda q: q["i"] - DT * q["tau_syn_inv"] * q["i"] + q["x"],
            "b": lambda q: decayed(q) + q["s"] * q["beta"],
        },
    )


def norse_lif_refrac() -> Neuron:
    def fired(q: Values) -> Array:
        return np.asarray((1.0 - superspike_step(q["rho"])) * q["s"])

    def counter(q: Values) -> Array:
        left = relu(q["rho"] - superspike_step(q["rho"]))
        return np.asarray((1.0 - fired(q)) * left + fired(q) * q["rho_reset"])

    def potential(q: Values) -> Array:
        mask = superspike_step(q["rho"])
        return np.asarray((1.0 - mask) * to_value(q) + mask * q["v"])

    return Neuron(
        _norse_lif,
        threshold,
        lambda q: _real(potential(q)),
        {"i": _norse_current, "rho": lambda q: _real(counter(q))},
        lambda q: _real(fired(q)),
    )


def _real(z: Array) -> Array:
    """Without an imaginary part that is zero, so that forward values stay real."""
    return np.real(z) if not np.any(np.imag(z)) else z


def norse_izhikevich() -> Neuron:
    def charge(q: Values) -> Array:
        dv = q["sq"] * q["v"] ** 2 + q["mn"] * q["v"] + q["bias"] - q["u"] + q["x"]
        return np.asarray(q["v"] + q["tau_inv"] * DT * dv)

    def recovery(q: Values) -> Array:
        u = q["u"] + q["tau_inv"] * DT * q["a"] * (q["b"] * q["v"] - q["u"])
        return np.asarray(u + q["s"] * q["d"])

    return Neuron(
        charge,
        threshold,
        lambda q: (1.0 - q["s"]) * q["h"] + q["s"] * q["c"],
        {"u": recovery},
    )


# ------------------------------------------------------------------ SpikingJelly


def _spikingjelly(charge: Equation, soft: bool, **others: Equation) -> Neuron:
    return Neuron(charge, threshold, subtracted if soft else to_value, others, strict=False)


def _quadratic(q: Values) -> Array:
    return np.asarray(q["a0"] * (q["v"] - q["v_rest"]) * (q["v"] - q["v_c"]))


def spikingjelly_qif(soft: bool) -> Neuron:
    return _spikingjelly(lambda q: q["v"] + (q["x"] + _quadratic(q)) / q["tau"], soft)


def spikingjelly_eif(soft: bool) -> Neuron:
    def charge(q: Values) -> Array:
        exponential = q["delta_T"] * np.exp((q["v"] - q["theta_rh"]) / q["delta_T"])
        return np.asarray(q["v"] + (q["x"] + q["v_rest"] - q["v"] + exponential) / q["tau"])

    return _spikingjelly(charge, soft)


def spikingjelly_izhikevich(soft: bool) -> Neuron:
    return _spikingjelly(
        lambda q: q["v"] + (q["x"] + _quadratic(q) - q["w"]) / q["tau"],
        soft,
        w=lambda q: (
            q["w"] + (q["a"] * (q["h"] - q["v_rest"]) - q["w"]) / q["tau_w"] + q["b"] * q["s"]
        ),
    )


def spikingjelly_klif(soft: bool, decay_input: bool, scale_reset: bool) -> Neuron:
    def charge(q: Values) -> Array:
        rest = 0.0 if soft else q["v_reset"]
        gain = 1.0 / q["tau"] if decay_input else 1.0
        return relu(q["k"] * (q["v"] - (q["v"] - rest) / q["tau"] + gain * q["x"]))

    def potential(q: Values) -> Array:
        scale = q["k"] if scale_reset else 1.0
        h = q["h"] / scale
        if soft:
            return np.asarray(h - q["s"] * q["v_th"] / scale)
        return np.asarray((1.0 - q["s"]) * h + q["s"] * q["v_reset"])

    def scale(q: Values) -> Array:
        return q["k"] if scale_reset else np.ones_like(q["v"])

    return Neuron(charge, threshold, potential, strict=False, scale=scale)


def spikingjelly_clif() -> Neuron:
    def complementary(q: Values) -> Array:
        return np.asarray(q["m"] * sigmoid(q["h"] / q["tau"]) + q["s"])

    return Neuron(
        lambda q: q["v"] - q["v"] / q["tau"] + q["x"],
        threshold,
        lambda q: q["h"] - q["s"] * (q["v_th"] + sigmoid(complementary(q))),
        {"m": complementary},
        strict=False,
    )


def spikingjelly_cubalif(soft: bool) -> Neuron:
    def current(q: Values) -> Array:
        return np.asarray(q["c"] * q["c_decay"] + q["x"])

    return _spikingjelly(lambda q: q["v"] * q["v_decay"] + current(q), soft, c=current)


# ------------------------------------------------------------------ snnTorch


def _snntorch_leaky(drive: Equation, reset: str, delayed: bool, masks: bool) -> dict[str, Any]:
    """Leaky's membrane over some drive; ``masks``: a reset to zero takes the drive as well."""

    def charge(q: Values) -> Array:
        beta, r = clamped(q["beta"]), q["r"]
        if reset == "zero":
            gain = 1.0 - r if masks else 1.0
            return np.asarray((1.0 - r) * beta * q["v"] + gain * drive(q))
        taken = q["threshold"] * r if reset == "subtract" else 0.0
        return np.asarray(beta * q["v"] + drive(q) - taken)

    def kept(q: Values) -> Array:
        if reset == "zero":
            return np.asarray((1.0 - q["r"]) * q["v"])
        taken = q["threshold"] / clamped(q["beta"]) * q["r"] if reset == "subtract" else 0.0
        return np.asarray(q["v"] - taken)

    def potential(q: Values) -> Array:
        if delayed or reset == "none":
            return q["h"]
        return np.asarray(
            q["h"] - (q["s"] - q["r"]) * (q["h"] if reset == "zero" else q["threshold"])
        )

    return {
        "charge": charge,
        "threshold": lambda q: q["threshold"],
        "potential": potential,
        "kept": kept if delayed else None,
        "arriving": True,
        "in_full": frozenset({"threshold"}),
    }


def snntorch_leaky(reset: str, delayed: bool) -> Neuron:
    return Neuron(**_snntorch_leaky(lambda q: q["x"], reset, delayed, masks=False))


def snntorch_rleaky(reset: str, delayed: bool) -> Neuron:
    """One-to-one, the output handed back by the user."""
    return Neuron(
        **_snntorch_leaky(lambda q: q["x"] + q["V"] * q["spk"], reset, delayed, masks=True),
        feedback="spk",
    )


def snntorch_synaptic(reset: str, delayed: bool) -> Neuron:
    def current(q: Values) -> Array:
        return np.asarray(clamped(q["alpha"]) * q["syn"] + q["x"])

    return Neuron(**_snntorch_leaky(current, reset, delayed, masks=True), others={"syn": current})


def snntorch_alpha(reset: str) -> Neuron:
    def excitatory(q: Values) -> Array:
        return np.asarray(clamped(q["alpha"]) * q["syn_exc"] + q["x"])

    def inhibitory(q: Values) -> Array:
        return np.asarray(clamped(q["beta"]) * q["syn_inh"] - q["x"])

    def charge(q: Values) -> Array:
        log_alpha, log_beta = np.log(clamped(q["alpha"])), np.log(clamped(q["beta"]))
        tau_alpha = log_alpha / (log_beta - log_alpha) + 1.0
        h = tau_alpha * (excitatory(q) + inhibitory(q))
        if reset == "subtract":
            return np.asarray(h + q["syn_inh"] * q["r"])
        return np.asarray(h * (1.0 - q["r"] if reset == "zero" else 1.0))

    def new_excitatory(q: Values) -> Array:
        if reset == "subtract":
            return np.asarray(excitatory(q) - q["threshold"] * q["r"])
        return np.asarray(excitatory(q) * (1.0 - q["r"] if reset == "zero" else 1.0))

    def new_inhibitory(q: Values) -> Array:
        return np.asarray(inhibitory(q) * (1.0 if reset == "none" else 1.0 - q["r"]))

    return Neuron(
        charge,
        lambda q: q["threshold"],
        lambda q: q["h"],
        {"syn_exc": new_excitatory, "syn_inh": new_inhibitory},
        arriving=True,
        kept=lambda q: q["v"] + 0.0 * q["r"],
    )
