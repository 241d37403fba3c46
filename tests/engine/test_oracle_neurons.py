"""The oracle of nonlinear neurons against torch autograd and against the linear oracle."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import oracle
import oracle_neurons
import pytest
import torch
from oracle_neurons import Neuron
from torch import Tensor

STEPS, BATCH, NEURONS = 9, 3, 5


def assert_close(actual: Any, expected: Any, what: str, tolerance: float = 1e-12) -> None:
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, what
    scale = np.abs(expected).max(initial=0.0)
    worst = np.abs(actual - expected).max(initial=0.0)
    assert worst <= tolerance * (scale or 1.0), f"{what}: {worst:.3g} off, scale {scale:.3g}"


def wide(shifted: Any) -> Any:
    """A surrogate slope with wide tails, so that every path carries gradient."""
    return 1.0 / (1.0 + abs(shifted)) ** 2


class Spike(torch.autograd.Function):
    """A step with the derivative :func:`wide`."""

    @staticmethod
    def forward(ctx: Any, shifted: Tensor) -> Tensor:
        ctx.save_for_backward(shifted)
        return (shifted > 0).to(shifted.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * wide(ctx.saved_tensors[0])


# ------------------------------------------------- a neuron with every path that there is


def crowded() -> Neuron:
    """Nothing is left out: states that depend on everything, and reach everything."""

    def potential(q: Mapping[str, Any]) -> Any:
        keep = 0.3 * oracle_neurons.sigmoid(q["w"])
        taken = q["theta0"] + 0.2 * np.sin(q["new_z"]) + 0.1 * q["w"]
        after = q["h"] - q["s"] * (taken + 0.3 * q["h"])
        return (1.0 - keep) * after + keep * q["v"] * q["k"]

    return Neuron(
        charge=lambda q: (
            q["v"]
            + q["k"] * (q["x"] - q["v"] + 0.2 * np.sin(2.0 * q["v"]) - 0.3 * q["w"] * q["v"])
            + 0.1 * q["z"] * q["theta0"]
        ),
        threshold=lambda q: q["theta0"] + 0.2 * q["w"] * q["k"],
        potential=potential,
        others={
            "w": lambda q: 0.7 * q["w"] + 0.2 * q["v"] ** 2 + 0.3 * q["s"] * q["k"] + 0.1 * q["x"],
            "z": lambda q: q["z"] * oracle_neurons.sigmoid(q["h"] * q["w"]) + 0.2 * q["s"] * q["h"],
        },
        output=lambda q: q["s"] * (1.0 + 0.5 * np.sin(q["z"])),
    )


def crowded_loop(
    x: Tensor, v: Tensor, w: Tensor, z: Tensor, p: dict[str, Tensor], tau_s: float
) -> dict[str, list[Tensor]]:
    k, theta0, a = p["k"], p["theta0"], torch.zeros_like(v)
    record: dict[str, list[Tensor]] = {"out": [], "v": [], "w": [], "z": []}
    for now in x:
        h = v + k * (now - v + 0.2 * (2.0 * v).sin() - 0.3 * w * v) + 0.1 * z * theta0
        s = Spike.apply(h - theta0 - 0.2 * w * k)
        fired = s * (1.0 + 0.5 * z.sin())
        new_w = 0.7 * w + 0.2 * v.square() + 0.3 * s * k + 0.1 * now
        new_z = z * (h * w).sigmoid() + 0.2 * s * h
        keep = 0.3 * w.sigmoid()
        after = h - s * (theta0 + 0.2 * new_z.sin() + 0.1 * w + 0.3 * h)
        v = (1.0 - keep) * after + keep * v * k
        w, z = new_w, new_z
        a = a + (fired - a) / tau_s
        for name, value in zip(record, (a, v, w, z), strict=True):
            record[name].append(value)
    return record


@pytest.mark.parametrize("tau_s", [1.0, 2.5])
def test_every_path_is_plain_autograd(tau_s: float) -> None:
    generator = np.random.default_rng(0)
    shape = (STEPS, BATCH, NEURONS)
    x = 1.0 + 2.0 * generator.standard_normal(shape)
    start = {name: generator.standard_normal(shape[1:]) for name in ("v", "w", "z")}
    parameters = {"k": 0.4 + 0.2 * generator.random(NEURONS), "theta0": np.asarray(0.5)}
    weights = {name: generator.standard_normal(shape) for name in ("out", "v", "w", "z")}

    leaf = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
    learnt = {name: torch.tensor(value, requires_grad=True) for name, value in parameters.items()}
    drive = torch.tensor(x, requires_grad=True)
    record = crowded_loop(drive, leaf["v"], leaf["w"], leaf["z"], learnt, tau_s)
    loss = sum((torch.stack(record[n]) * torch.tensor(weights[n])).sum() for n in record)
    loss.backward()  # type: ignore[union-attr]

    found = oracle_neurons.run(
        crowded(),
        drive=x,
        start=start,
        parameters=parameters,
        grad_out=weights["out"],
        grad_states={name: weights[name] for name in start},
        tau_s=tau_s,
        reset_path="complete",
        derivative=wide,
    )
    assert 0.2 < found["spikes"].mean() < 0.8
    assert_close(found["out"], torch.stack(record["out"]).detach(), "out")
    assert_close(found["x"], drive.grad, "x")
    for name in start:
        assert_close(found["states"][name], torch.stack(record[name]).detach(), name)
        assert_close(found["start"][name], leaf[name].grad, f"start {name}")
    for name in parameters:
        assert_close(found["parameters"][name], learnt[name].grad, name)


# ------------------------------------------------- a delayed reset that is not detached


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("reset_path", ["complete", "none"])
def test_delayed_reset_is_plain_autograd(reset: str, reset_path: str, masks: bool) -> None:
    """r[t+1] is s[t] with its gradient where it resets u ("complete"), and a constant elsewhere."""
    generator = np.random.default_rng(1)
    shape = (STEPS, BATCH, NEURONS)
    x, v0 = 0.5 + generator.standard_normal(shape), generator.standard_normal(shape[1:])
    weights = {name: generator.standard_normal(shape) for name in ("out", "v", "syn")}
    values = {"beta": 0.8, "threshold": 0.6, "alpha": 0.7}

    p = {
        name: torch.tensor(value, dtype=torch.float64, requires_grad=True)
        for name, value in values.items()
    }
    drive, leaf = torch.tensor(x, requires_grad=True), torch.tensor(v0, requires_grad=True)
    v, syn, loss = leaf, torch.zeros_like(leaf), torch.zeros(()).double()
    s = (v > p["threshold"]).double().detach()
    for t, now in enumerate(drive):
        r = s if reset_path == "complete" else s.detach()
        current = p["alpha"] * syn + now if masks else now
        fixed = r.detach()
        if reset == "zero":
            v = p["beta"] * (1 - r) * v + (1 - fixed if masks else 1.0) * current
        else:
            v = p["beta"] * v + current - (r * p["threshold"] if reset == "subtract" else 0.0)
        syn = current
        s = Spike.apply(v - p["threshold"])
        loss = loss + (s * torch.tensor(weights["out"][t])).sum()
        loss = loss + (v * torch.tensor(weights["v"][t])).sum()
        if masks:
            loss = loss + (syn * torch.tensor(weights["syn"][t])).sum()
    grads = torch.autograd.grad(loss, [drive, leaf, *p.values()], allow_unused=True)

    neuron = (
        oracle_neurons.snntorch_synaptic(reset, delayed=True)
        if masks
        else oracle_neurons.snntorch_leaky(reset, delayed=True)
    )
    found = oracle_neurons.run(
        neuron,
        drive=x,
        start={"v": v0, **({"syn": np.zeros_like(v0)} if masks else {})},
        parameters=values,
        grad_out=weights["out"],
        grad_states=weights,
        reset_path=reset_path,
        derivative=wide,
    )
    assert 0.2 < found["spikes"].mean() < 0.8
    ours = [found["x"], found["start"]["v"], *found["parameters"].values()]
    for name, mine, theirs in zip(("x", "v0", *values), ours, grads, strict=True):
        if theirs is not None:
            assert_close(mine, theirs, name)


# ------------------------------------------------- the linear neuron's own oracle

LINEAR = {
    "value": oracle_neurons.to_value,
    "subtract": oracle_neurons.subtracted,
    "never": lambda q: q["h"],
}


def linear(reset: str, timing: str) -> Neuron:
    if timing == "immediate":
        charge = lambda q: q["beta"] * q["v"] + q["gain"] * q["x"] + q["offset"]  # noqa: E731
        return Neuron(charge, oracle_neurons.threshold, LINEAR[reset])
    name = {"value": "zero", "subtract": "subtract", "never": "none"}[reset]
    return oracle_neurons.snntorch_leaky(name, delayed=timing == "delayed")


@pytest.mark.parametrize("options", [{}, {"max_slope": 2.0, "fallback_width": 0.7}], ids=str)
@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("reset_path", ["reference", "complete", "none"])
@pytest.mark.parametrize(
    ("reset", "timing"), itertools.product(LINEAR, ("immediate", "delayed", "both"))
)
def test_linear_is_the_linear_oracle(
    reset: str, timing: str, reset_path: str, tau_s: float, options: dict[str, float]
) -> None:
    generator = np.random.default_rng(2)
    shape = (STEPS, BATCH, NEURONS)
    x, v0 = 0.6 + generator.standard_normal(shape), generator.standard_normal(shape[1:])
    g, c = generator.standard_normal((2, *shape))
    beta, theta = 0.7 + 0.2 * generator.random(NEURONS), 0.5
    immediate = timing == "immediate"
    extra = {"gain": 0.9, "offset": 0.05} if immediate else {}
    names = {"decay": "beta", "threshold": "v_th" if immediate else "threshold"}
    names |= {"gain": "gain", "offset": "offset", "reset_value": "v_reset"} if immediate else {}

    expected = oracle.run(
        drive=x,
        decay=beta,
        threshold=theta,
        reset=reset,
        timing=timing,
        reset_value=-0.2 if immediate else 0.0,
        v0=v0,
        tau_s=tau_s,
        grad_out=g,
        grad_membrane=c,
        reset_path=reset_path,
        **extra,
        **options,  # type: ignore[arg-type]
    )
    found = oracle_neurons.run(
        linear(reset, timing),
        drive=x,
        start={"v": v0},
        parameters={"beta": beta, names["threshold"]: theta, "v_reset": -0.2, **extra},
        grad_out=g,
        grad_states={"v": c},
        tau_s=tau_s,
        reset_path=reset_path,
        **options,  # type: ignore[arg-type]
    )
    assert_close(found["out"], expected["psc"], "psc")
    assert_close(found["states"]["v"], expected["membrane"], "membrane")
    for key in ("G", "lambda", "mu", "emitted"):
        assert_close(found[key], expected[key], key)
    assert_close(found["x"], expected["drive"], "drive")
    assert_close(found["start"]["v"], expected["v0"], "v0")
    for theirs, ours in names.items():
        assert_close(found["parameters"][ours], expected[theirs], theirs)


# ------------------------------------------------- TSSL-BP itself, where F_v varies


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("soft", [False, True])
def test_quadratic_by_hand(soft: bool, tau_s: float) -> None:
    """The specification's recursion for one nonlinear neuron, its derivatives in closed form."""
    generator = np.random.default_rng(4)
    shape = (STEPS, BATCH, NEURONS)
    x, v = 0.8 + generator.standard_normal(shape), 0.3 * generator.standard_normal(shape[1:])
    g, c = generator.standard_normal((2, *shape))
    tau, a0, rest, critical, theta, back = 1.6, 1.0, 0.1, 0.5, 0.6, -0.2
    values = {"tau": tau, "a0": a0, "v_rest": rest, "v_c": critical, "v_th": theta, "v_reset": back}
    found = oracle_neurons.run(
        oracle_neurons.spikingjelly_qif(soft),
        drive=x,
        start={"v": v},
        parameters=values,
        grad_out=g,
        grad_states={"v": c},
        tau_s=tau_s,
    )
    h, d, s, a, F_v = (np.zeros(shape) for _ in range(5))
    trace = np.zeros(shape[1:])
    for t in range(STEPS):
        F_v[t] = 1.0 + a0 * (2.0 * v - rest - critical) / tau
        h[t] = v + (x[t] + a0 * (v - rest) * (v - critical)) / tau
        d[t], s[t] = h[t] - v, h[t] >= theta
        trace = s[t] if tau_s == 1.0 else trace + (s[t] - trace) / tau_s
        a[t], v = trace, h[t] - s[t] * (theta if soft else h[t] - back)
    assert 0.1 < s.mean() < 0.9
    z = np.exp(np.clip((theta - h) / 0.2, -8.0, 8.0))
    f = z / (0.2 * (1.0 + z) ** 2)
    phi = s * np.clip(1.0 / d, 0.0, 8.0)
    R, du_dh = (theta, np.ones(shape)) if soft else (h - back, 1.0 - s)
    R = np.broadcast_to(R, shape)

    G = lam = mu = later = np.zeros(shape[1:])
    grad_theta = grad_back = 0.0
    for t in reversed(range(STEPS)):
        dE_du = c[t] + later * (lam + mu)
        chain_reset = (1.0 - later) * R[t] * phi[t] * lam
        G = g[t] / tau_s + (1.0 - 1.0 / tau_s) * G
        silent = a[t] < 1.0 / (4.0 * tau_s)
        p = np.where(silent, G * f[t], phi[t] * G + chain_reset)
        grad_theta -= (p + (s[t] * dE_du if soft else 0.0)).sum()
        grad_back += (s[t] * dE_du).sum()
        lam = phi[t] * G + later * lam * du_dh[t] + chain_reset
        mu = (c[t] + later * mu) * du_dh[t]
        assert_close(found["x"][t], (np.where(silent, G * f[t], lam) + mu) / tau, f"x[{t}]")
        later = F_v[t]
    assert_close(found["start"]["v"], later * (lam + mu), "v0")
    assert_close(found["parameters"]["v_th"], grad_theta, "threshold")
    assert_close(found["parameters"]["v_reset"], 0.0 if soft else grad_back, "reset value")
