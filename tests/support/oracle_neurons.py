"""A float64 numpy oracle of the gradients of neurons beyond the linear one.

A neuron is given by its published equations (:class:`Neuron`); every partial derivative is taken by
a complex step, and one reverse recursion, written from the method's specification alone, serves
them all. It shares no code with the package, nor with tests/support/oracle.py.

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
 9. A refractory neuron counts as active where its own step spikes, though the spike is held back:
    it drives the adaptation current.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

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
    quantise: Callable[[Array], Array] | None = None
    """What h and the new states are rounded to; the gradient goes straight through."""
    cut: frozenset[str] = frozenset()
    """States whose equations see the spike without its gradient."""
    late: frozenset[str] = frozenset()
    """States through which the input reaches the potential one step later."""
    held: bool = False
    """Whether spikes are held back that its own step made."""
    mix: Mix | None = None
    """What becomes the neurons' drive of the input and of the spikes that come back."""


class Mix(Protocol):
    """A layer's own weights."""

    def drive(self, x: Array, sent: Array) -> Array:
        """What arrives of an input and of the spikes of the step before."""

    def back(self, x: Array, sent: Array, grad: Array) -> tuple[Array, Array, Mapping[str, Array]]:
        """The gradients of both and of the weights, from that of what arrived."""

    @property
    def sent(self) -> str:
        """The state that comes back."""


def partial(equation: Equation, q: Values, name: str) -> Array:
    """The derivative of an equation with respect to one of its quantities."""
    moved = {**q, name: np.asarray(q[name]) + 1j * TINY}
    return np.asarray(np.imag(equation(moved))) / TINY


def _sum_to_shape(full: Array, shape: tuple[int, ...]) -> Array:
    full = full.sum(axis=tuple(range(full.ndim - len(shape))))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and full.shape[i] != 1)
    return np.asarray(full.sum(axis=stretched, keepdims=True) if stretched else full)


class Seen(NamedTuple):
    """What a layer itself did, for the recursion to go along, as where its precision is low.

    Arrays are ``[T, ...]``; ``out`` is the PSC. Spikes that are not known are NaN.
    """

    spikes: Array
    out: Array
    states: Mapping[str, Array]
    """Those that are not known are computed."""


def forward(
    neuron: Neuron,
    x: Array,
    start: Mapping[str, Array],
    parameters: Mapping[str, Array],
    tau_s: float,
    trace: npt.ArrayLike = 0.0,
    stepped: Mapping[str, Array] | None = None,
    seen: Seen | None = None,
    blur: Callable[..., Array] = lambda value, *beside: value,
) -> list[dict[str, Array]]:
    """Everything there is to know of every step; the new states as ``new_<name>``."""
    stepped = stepped or {}
    arriving = neuron.mix.drive(x[0], start[neuron.mix.sent]) if neuron.mix else x[0]
    shape = np.broadcast_shapes(arriving.shape, *(value.shape for value in start.values()))
    now = {name: np.broadcast_to(value, shape) for name, value in start.items()}
    # What is made of a number, as 1 - 1/tau, may have lost its digits.
    fixed = {name: np.broadcast_to(blur(value), shape) for name, value in parameters.items()}
    trace = np.broadcast_to(trace, shape)
    steps = []

    def above(potential: Array, threshold: Array) -> Array:
        hit = potential > threshold if neuron.strict else potential >= threshold
        return hit.astype(np.float64)

    def rounded(value: Array) -> Array:
        return value if neuron.quantise is None else neuron.quantise(value)

    for t, given in enumerate(x):
        drive = neuron.mix.drive(given, now[neuron.mix.sent]) if neuron.mix else given
        q: dict[str, Array] = {**fixed, **now, "x": drive, "r": np.zeros(shape)}
        q |= {name: np.broadcast_to(value[t], shape) for name, value in stepped.items()}
        theta = neuron.threshold(q)
        if neuron.arriving:
            q["r"] = above(q["v"], theta)
        # Before it is compared or quantised: what comes of that may hang on its rounding.
        q["h"] = rounded(blur(neuron.charge(q), q["v"], q["x"]))
        q["theta"] = theta
        q["s"] = above(q["h"], theta)
        if seen is not None:
            q["s"] = np.where(np.isnan(seen.spikes[t]), q["s"], seen.spikes[t])
        fired = neuron.output(q)
        before = trace
        trace = fired if tau_s == 1.0 else before + (fired - before) / tau_s
        trace = q["out"] = trace if seen is None else seen.out[t]
        q["active"] = trace
        if neuron.held:
            q["active"] = q["s"] if tau_s == 1.0 else before + (q["s"] - before) / tau_s
        for name, equation in neuron.others.items():
            new, came_back = equation(q), neuron.mix is not None and name == neuron.mix.sent
            if neuron.quantise is not None and not came_back:
                new = neuron.quantise(blur(new, q[name], q["x"]))
            q[f"new_{name}"] = new
        if neuron.feedback:
            q[f"new_{neuron.feedback}"] = q["out"]
        q["new_v"] = neuron.potential(q)
        now = {name: q[f"new_{name}"] for name in now}
        if seen is not None:
            now |= {name: value[t] for name, value in seen.states.items()}
        steps.append(q)
    return steps


_DERIVED = ("theta", "increment", "removed", "out", "active", "F_v")
"""What of a step no equation reads."""


class Rule:
    """What a rule says, in the oracle's terms; by itself that spikes have no gradient.

    ``q`` is a step's quantities, its ``increment`` and what a spike ``removed`` among them.
    """

    reset_path: str = "none"
    chain = True
    spike_chain = True
    ends_at_spikes = False
    counts_reset = False
    cuts_feedback = False

    def begin(self, steps: list[dict[str, Array]], filtered: Array) -> None:
        """Told of the forward pass, and of G but for what later steps send back through states."""

    def told(self, t: int, G: Array) -> Array:
        """What takes the place of G; steps come last to first."""
        return G

    def slope(self, t: int, q: Values) -> Array:
        """phi."""
        return np.zeros_like(q["h"])

    def instead(self, t: int, q: Values, told: Array) -> tuple[Array, Array] | None:
        """Where something else than lambda is emitted, and what."""
        return None


@dataclass
class TSSLBP(Rule):
    """The paper's."""

    tau_s: float
    reset_path: str = "reference"
    max_slope: float = 8.0
    fallback_width: float = 0.2
    fallback: bool = True

    def slope(self, t: int, q: Values) -> Array:
        return q["s"] * inverse(q["increment"], self.max_slope)

    def instead(self, t: int, q: Values, told: Array) -> tuple[Array, Array] | None:
        if not self.fallback:
            return None
        smooth = told * _fallback(q["h"], q["theta"], self.fallback_width)
        return q["active"] < 1 / (4 * self.tau_s), smooth


@dataclass
class SmoothTSSLBP(Rule):
    """The default: a kernel on the neuron's scales of potential and of time."""

    v_reset: npt.ArrayLike
    """Where a spike sets the potential; 0 where it takes the threshold away, or nothing."""
    steps: float
    reset_path: str = "none"
    memory: float | None = None

    def slope(self, t: int, q: Values) -> Array:
        drop = np.abs(q["theta"] - self.v_reset)
        drop = np.where(drop == 0.0, 1.0, drop)
        memory = np.minimum(inverse(1.0 - q["F_v"], np.inf), self.steps)
        memory = np.where(q["F_v"] >= 1.0, self.steps, memory)
        if self.memory is not None:
            memory = np.full_like(drop, self.memory)
        cusp = np.minimum(np.maximum(memory - 6.0, 0.0) ** 2 / 16.0, 20.0)
        z = np.pi * (q["h"] - q["theta"]) / drop
        slope = 1.0 / (drop * (1.0 + cusp * np.abs(z) + z**2))
        return np.where(np.isfinite(q["theta"]), slope, 0.0)


@dataclass
class Surrogate(Rule):
    """The spike's derivative replaced."""

    derivative: Callable[[Array], Array]
    reset_path: str = "none"
    chain: bool = True

    def slope(self, t: int, q: Values) -> Array:
        return self.derivative(q["h"] - q["theta"])


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
    rule: Rule | None = None,
    trace: npt.ArrayLike = 0.0,
    stepped: Mapping[str, Array] | None = None,
    seen: Seen | None = None,
    blur: Callable[..., Array] = lambda value, *beside: value,
) -> dict[str, Any]:
    """Run the neuron over ``drive`` [T, B, ...], and the recursion back.

    ``start`` holds v and every other state, ``grad_states`` a loss's derivative with respect to
    each of them after every step. With ``derivative`` the rule is that surrogate, without
    fallback; ``rule`` is any other. ``stepped`` are parameters with a value for each step,
    ``trace`` the PSC before the first, ``seen`` what the layer itself did. ``blur`` moves every
    intermediate value by its rounding, ``beside`` others that it is a sum of.

    Returns ``out`` and ``states`` of the forward pass, and the gradients ``x``, ``start``,
    ``parameters``, ``stepped``, ``weights`` and ``trace``; for a closer look, ``G``, ``lambda``,
    ``mu`` and ``emitted`` too. ``terms`` are sums of what each parameter's gradient is a sum of,
    without signs.
    """
    if reset_path not in ("reference", "complete", "none"):
        raise ValueError(f"unknown reset_path {reset_path!r}")
    if rule is None and derivative is not None:
        rule = Surrogate(derivative, reset_path)
    elif rule is None:
        rule = TSSLBP(tau_s, reset_path, max_slope, fallback_width, fallback)
    x = np.asarray(drive, dtype=np.float64)
    begin = {name: np.asarray(value, dtype=np.float64) for name, value in start.items()}
    given = {name: np.asarray(value, dtype=np.float64) for name, value in parameters.items()}
    stepped = stepped or {}
    steps = forward(neuron, x, begin, given, tau_s, trace, stepped, seen, blur)
    g = np.asarray(grad_out, dtype=np.float64)
    losses = {name: np.asarray(value, dtype=np.float64) for name, value in grad_states.items()}
    other = [name for name in begin if name != "v"]
    shape = steps[0]["h"].shape

    zero = np.zeros(shape)
    for q in steps:
        q["F_v"] = partial(neuron.charge, {**q, "r": zero}, "v") / neuron.scale(q)
        q["increment"] = q["h"] - (
            q["v"] * neuron.scale(q) if neuron.kept is None else neuron.kept(q)
        )
        if neuron.kept is None:
            q["removed"] = -partial(neuron.potential, q, "s")
        else:
            q["removed"] = -partial(neuron.kept, {**q, "v": q["h"], "r": q["s"]}, "r")
    known = _through_psc(g, tau_s)
    if neuron.mix is not None:  # the state that comes back is the spike
        known = known + losses[neuron.mix.sent]
    rule.begin(steps, known)
    # The cotangents of the states after the step at hand, from later steps.
    chain_v, ordinary_v, filtered = zero, zero, zero
    states_back = dict.fromkeys(other, zero)
    # lambda, mu and F_v of the step after it.
    lambda_next, mu_next, slope_next, scale_next = zero, zero, zero, zero
    found = {name: np.zeros(shape) for name in given}
    terms = {name: np.zeros(shape) for name in given}
    found_steps = {name: np.zeros((len(x), *shape)) for name in stepped}
    weights: dict[str, Array] = {}
    grad_x = np.zeros_like(x)
    seen_back: dict[str, list[Array]] = {"G": [], "lambda": [], "mu": [], "emitted": []}

    for t in reversed(range(len(x))):
        q = steps[t]
        names = [n for n in q if n not in _DERIVED]
        in_potential = {n: partial(neuron.potential, q, n) for n in names}
        if not rule.chain:
            chain_v, ordinary_v, lambda_next, mu_next = zero, zero, zero, zero
        ordinary = losses["v"][t] + ordinary_v
        # What a rule's crossing has counted already is not the reset's again.
        dE_dv = ordinary if rule.counts_reset else chain_v + ordinary

        # The other states after the step: their losses, later steps, and this step's reset.
        adjoint = {
            name: blur(losses[name][t] + states_back[name] + dE_dv * in_potential[f"new_{name}"])
            for name in other
        }

        def through_states(name: str, q: Values = q, adjoint: Values = adjoint) -> Array:
            equations = neuron.others.items()
            if name == "s":
                equations = [(key, eq) for key, eq in equations if key not in neuron.cut]
            return sum((adjoint[key] * partial(eq, q, name) for key, eq in equations), zero)

        # The spike.
        sent = g[t] + (adjoint[neuron.feedback] if neuron.feedback else 0.0)
        filtered = blur(sent / tau_s + (1.0 - 1.0 / tau_s) * filtered)
        G = filtered * partial(neuron.output, q, "s") + through_states("s")
        told = rule.told(t, G)
        phi, instead, R = rule.slope(t, q), rule.instead(t, q, told), q["removed"]
        phi = blur(phi)
        silent, fallback_value = (np.zeros(shape, dtype=bool), zero) if instead is None else instead

        # The reset, which a delayed neuron meets at the next charge.
        if neuron.kept is None:
            lambda_through, mu_through = chain_v, ordinary
        else:
            lambda_through, mu_through = slope_next * lambda_next, slope_next * mu_next
        if rule.reset_path == "reference":
            chain_reset = (scale_next - slope_next) * R * phi * lambda_next
        elif rule.reset_path == "complete":
            chain_reset = -R * phi * lambda_through
        else:
            chain_reset = zero
        membrane_reset = -R * phi * mu_through if rule.reset_path == "complete" else zero

        stays = 1.0 - q["s"] if rule.ends_at_spikes else in_potential["h"]
        lam = blur(phi * told + chain_v * stays + chain_reset, phi * told, chain_reset)
        mu = blur(ordinary * in_potential["h"] + membrane_reset + through_states("h"))
        emitted = blur(np.where(silent, fallback_value, lam) + mu, lam, mu)
        p = np.where(silent, fallback_value, phi * told + chain_reset)
        p = (p * q["s"] if rule.counts_reset else p) + membrane_reset

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

        grad_drive = reached("x")
        # A layer takes v times an adjoint, then an offset's share off it: v_reset may be -1e9.
        moved = {**q, "v": blur(q["v"])}
        for name in given:
            full = mu if rule.counts_reset else lam + mu
            grad = reached(name, moved, charge=full if name in neuron.in_full else emitted)
            found[name] += grad
            terms[name] += np.abs(grad)
        for name in stepped:
            found_steps[name][t] = reached(name)
        if rule.chain:
            states_back = {name: reached(name) for name in other}
        else:
            late = {n: emitted * partial(neuron.charge, q, n) for n in other if n in neuron.late}
            states_back = {name: late.get(name, zero) for name in other}
        if neuron.mix is None:
            grad_x[t] = grad_drive
        else:
            key = neuron.mix.sent
            into_x, back, of_weights = neuron.mix.back(x[t], q[key], grad_drive)
            terms_of = np.abs(grad_drive).max(initial=0.0)  # may cancel
            grad_x[t], back = blur(into_x, terms_of), blur(back, terms_of)
            if rule.chain and not rule.cuts_feedback:
                states_back[key] = states_back[key] + back
            for name, grad in of_weights.items():
                weights[name] = weights.get(name, 0.0) + grad
        carried = lam if rule.spike_chain else zero
        F_v = partial(neuron.charge, q, "v")
        chain_v = F_v * carried + in_potential["v"] * chain_v
        ordinary_v = F_v * mu + in_potential["v"] * ordinary + through_states("v")
        lambda_next, mu_next, scale_next = carried, mu, neuron.scale(q)
        delayed = neuron.kept is not None
        slope_next = partial(neuron.charge, {**q, "r": zero}, "v") if delayed else F_v
        for key, value in zip(seen_back, (G, lam, mu, emitted), strict=True):
            seen_back[key].insert(0, value)

    back = {"v": chain_v + ordinary_v, **states_back}
    if not rule.chain:
        back = {name: value if name in neuron.late else zero for name, value in back.items()}
    return {
        "out": np.stack([q["out"] for q in steps]),
        "spikes": np.stack([q["s"] for q in steps]),
        "states": {name: np.stack([q[f"new_{name}"] for q in steps]) for name in begin},
        "x": grad_x,
        "start": {name: _sum_to_shape(back[name], begin[name].shape) for name in begin},
        "parameters": {name: _sum_to_shape(found[name], given[name].shape) for name in given},
        "terms": {name: _sum_to_shape(terms[name], given[name].shape) for name in given},
        "stepped": {
            name: np.stack([_sum_to_shape(row, stepped[name].shape[1:]) for row in rows])
            for name, rows in found_steps.items()
        },
        "weights": weights,
        "trace": (tau_s - 1.0) * filtered,
        **{key: np.stack(values) for key, values in seen_back.items()},
    }


def _through_psc(g: Array, tau_s: float) -> Array:
    """G[t] = g[t] / tau_s + (1 - 1/tau_s) G[t+1]."""
    G = np.zeros_like(g)
    after = np.zeros_like(g[0])
    for t in reversed(range(len(g))):
        G[t] = after = g[t] / tau_s + (1.0 - 1.0 / tau_s) * after
    return G


def inverse(d: Array, bound: float) -> Array:
    """clip(1/d, 0, bound), with 1/0 the bound."""
    found = np.full_like(d, np.inf)
    np.divide(1.0, d, out=found, where=d != 0)
    return np.clip(found, 0.0, bound)


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


# ------------------------------------------------------------------ Norse


def _dt(q: Values) -> Array:
    """The library's own time step, where it is not said otherwise."""
    return q.get("dt", np.asarray(0.001))


def _norse_current(q: Values) -> Array:
    jump = q["i"] + q["x"]
    return np.asarray(jump - _dt(q) * q["tau_syn_inv"] * jump)


def _norse_leak(q: Values) -> Array:
    return np.asarray(q["v_leak"] - q["v"])


def _norse_exponential(q: Values) -> Array:
    return np.asarray(q["delta_T"] * np.exp((q["v"] - q["v_th"]) / q["delta_T"]))


def _norse_lif(q: Values) -> Array:
    return np.asarray(q["v"] + _dt(q) * q["tau_mem_inv"] * (_norse_leak(q) + q["i"] + q["x"]))


def norse_lif_ex() -> Neuron:
    def charge(q: Values) -> Array:
        dv = _norse_leak(q) + _norse_exponential(q) + q["i"] + q["x"]
        return np.asarray(q["v"] + _dt(q) * q["tau_mem_inv"] * dv)

    return Neuron(charge, threshold, to_value, {"i": _norse_current})


def norse_lif_adex() -> Neuron:
    def charge(q: Values) -> Array:
        dv = _norse_leak(q) + _norse_exponential(q) + q["i"] + q["x"] - q["a"]
        return np.asarray(q["v"] + _dt(q) * q["tau_mem_inv"] * dv)

    def adaptation(q: Values) -> Array:
        da = q["adaptation_current"] * (q["v"] - q["v_leak"]) - q["a"]
        return np.asarray(q["a"] + _dt(q) * q["tau_ada_inv"] * da + q["s"] * q["adaptation_spike"])

    return Neuron(charge, threshold, to_value, {"i": _norse_current, "a": adaptation})


def norse_lsnn() -> Neuron:
    def charge(q: Values) -> Array:
        return np.asarray(q["v"] + _dt(q) * q["tau_mem_inv"] * (_norse_leak(q) + q["i"]))

    def decayed(q: Values) -> Array:
        return np.asarray(q["b"] + _dt(q) * q["tau_adapt_inv"] * (q["v_th"] - q["b"]))

    return Neuron(
        charge,
        decayed,
        to_value,
        {
            "i": lambda q: q["i"] - _dt(q) * q["tau_syn_inv"] * q["i"] + q["x"],
            "b": lambda q: decayed(q) + q["s"] * q["beta"],
        },
    )


def norse_lif_refrac() -> Neuron:
    return norse_refractory(norse_lif())


def _real(z: Array) -> Array:
    """Without an imaginary part that is zero, so that forward values stay real."""
    return np.real(z) if not np.any(np.imag(z)) else z


def norse_izhikevich() -> Neuron:
    def charge(q: Values) -> Array:
        dv = q["sq"] * q["v"] ** 2 + q["mn"] * q["v"] + q["bias"] - q["u"] + q["x"]
        return np.asarray(q["v"] + q["tau_inv"] * _dt(q) * dv)

    def recovery(q: Values) -> Array:
        u = q["u"] + q["tau_inv"] * _dt(q) * q["a"] * (q["b"] * q["v"] - q["u"])
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


def _snntorch_leaky(
    drive: Equation, reset: str, delayed: bool, masks: bool, clamps: bool = True
) -> dict[str, Any]:
    """Leaky's membrane over some drive; ``masks``: a reset to zero takes the drive as well."""

    def decay(q: Values) -> Array:
        return clamped(q["beta"]) if clamps else q["beta"]

    def charge(q: Values) -> Array:
        beta, r = decay(q), q["r"]
        if reset == "zero":
            gain = 1.0 - r if masks else 1.0
            return np.asarray((1.0 - r) * beta * q["v"] + gain * drive(q))
        taken = q["threshold"] * r if reset == "subtract" else 0.0
        return np.asarray(beta * q["v"] + drive(q) - taken)

    def kept(q: Values) -> Array:
        if reset == "zero":
            return np.asarray((1.0 - q["r"]) * q["v"])
        taken = q["threshold"] / decay(q) * q["r"] if reset == "subtract" else 0.0
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


# ------------------------------------------------------------------ the linear ones


def norse_lif() -> Neuron:
    return Neuron(_norse_lif, threshold, to_value, {"i": _norse_current})


def norse_lif_box(subtract: bool) -> Neuron:
    def charge(q: Values) -> Array:
        return np.asarray(q["v"] + _dt(q) * q["tau_mem_inv"] * (_norse_leak(q) + q["x"]))

    return Neuron(charge, threshold, subtracted if subtract else to_value)


def norse_iaf() -> Neuron:
    return Neuron(lambda q: q["v"] + q["x"], threshold, to_value)


def norse_refractory(inner: Neuron) -> Neuron:
    """A neuron that keeps its potential, and sends nothing, while its counter runs."""

    def fired(q: Values) -> Array:
        return np.asarray((1.0 - superspike_step(q["rho"])) * q["s"])

    def counter(q: Values) -> Array:
        left = relu(q["rho"] - superspike_step(q["rho"]))
        return np.asarray((1.0 - fired(q)) * left + fired(q) * q["rho_reset"])

    def potential(q: Values) -> Array:
        mask = superspike_step(q["rho"])
        return np.asarray((1.0 - mask) * inner.potential(q) + mask * q["v"])

    others = {**inner.others, "rho": lambda q: _real(counter(q))}
    return replace(
        inner,
        potential=lambda q: _real(potential(q)),
        others=others,
        output=lambda q: _real(fired(q)),
        held=True,
    )


def fed_back(inner: Neuron, mix: Mix) -> Neuron:
    """A layer that its own spikes come back to, as a state of that name."""
    return replace(inner, others={**inner.others, mix.sent: inner.output}, mix=mix)


def spikingjelly_lif(soft: bool, decay_input: bool) -> Neuron:
    """For ``rate`` instead of 1/tau."""

    def charge(q: Values) -> Array:
        leak = q["v"] if soft else q["v"] - q["v_reset"]
        if decay_input:
            return np.asarray(q["v"] + q["rate"] * (q["x"] - leak))
        return np.asarray(q["v"] - q["rate"] * leak + q["x"])

    return _spikingjelly(charge, soft)


def spikingjelly_plif(soft: bool, decay_input: bool) -> Neuron:
    """The rate is a sigmoid of ``w``."""
    inner = spikingjelly_lif(soft, decay_input)
    return replace(inner, charge=lambda q: inner.charge({**q, "rate": sigmoid(q["w"])}))


def spikingjelly_if(soft: bool) -> Neuron:
    return _spikingjelly(lambda q: q["v"] + q["x"], soft)


def spikingjelly_raf(soft: bool) -> Neuron:
    """``radius`` and ``angle`` of a step."""

    def charge(q: Values) -> Array:
        return np.asarray(q["radius"] * (q["u"] * np.sin(q["angle"]) + q["v"] * np.cos(q["angle"])))

    def other(q: Values) -> Array:
        turned = q["u"] * np.cos(q["angle"]) - q["v"] * np.sin(q["angle"])
        return np.asarray(q["radius"] * turned + q["x"])

    return _spikingjelly(charge, soft, u=other)


def spikingjelly_gated() -> Neuron:
    """Parameters before their sigmoid; ``conduct`` and ``last`` are of each step.

    What the library takes at the next step leaves the potential at once, but after the last step
    of a call, where it forgets the spike.
    """

    def decay(q: Values) -> Array:
        return np.asarray(1.0 - sigmoid(q["alpha"]) * (1.0 - sigmoid(q["tau"])))

    def charge(q: Values) -> Array:
        current = q["x"] * (1.0 - sigmoid(q["beta"]) * (1.0 - sigmoid(q["conduct"])))
        lost = (1.0 - sigmoid(q["alpha"])) * sigmoid(q["linear_decay"])
        return np.asarray(decay(q) * q["v"] - lost + current)

    def potential(q: Values) -> Array:
        gamma = sigmoid(q["gamma"])
        taken = gamma * q["h"] + (1.0 - gamma) * sigmoid(q["v_subreset"]) / decay(q)
        return np.asarray(q["h"] - (1.0 - q["last"]) * q["s"] * taken)

    return Neuron(charge, lambda q: sigmoid(q["v_threshold"]), potential, strict=False)


def snntorch_lapicque(reset: str) -> Neuron:
    def gain(q: Values) -> Array:
        return np.asarray(q["time_step"] / (q["R"] * q["C"]))

    def scaled(q: Values) -> Values:
        return {**q, "beta": 1.0 - gain(q), "x": q["x"] * q["R"] * gain(q)}

    parts = _snntorch_leaky(lambda q: q["x"], reset, delayed=True, masks=True, clamps=False)
    return Neuron(
        **{
            **parts,
            "charge": lambda q: parts["charge"](scaled(q)),
            "kept": lambda q: parts["kept"](scaled(q)),
        }
    )


def snntorch_recurrent(reset: str, delayed: bool, mix: Mix, synaptic: bool) -> Neuron:
    """The layer's own spikes come back through weights of any kind."""

    def current(q: Values) -> Array:
        return np.asarray(clamped(q["alpha"]) * q["syn"] + q["x"]) if synaptic else q["x"]

    parts = _snntorch_leaky(current, reset, delayed or synaptic, masks=True)
    inner = Neuron(**parts, others={"syn": current} if synaptic else {})
    return fed_back(inner, mix)
