"""EventProp: its golden file, continuous time, a plain recursion, the libraries and the engines.

The golden file and :func:`exact` are of the continuous system V' = (I - V)/tau_m, I' = -I/tau_s.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import norse.torch as norse
import numpy as np
import pytest
import snntorch
import torch
from compat_spikingjelly import dropout, node
from fused_cases import (
    VARIANTS,
    Variant,
    affine,
    check_against_torch,
    check_steps,
    leaky_both,
    leaky_steps,
    norse_steps,
)
from norse.torch.functional.lif import LIFFeedForwardState, LIFParameters, LIFState
from rule_layers import by_engine, leaky, relative
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import losses, rules
from tssl_adapters.engine.attach import attach
from tssl_adapters.engine.call.settings import Settings
from tssl_adapters.engine.cpu.backend import CpuBackend
from tssl_adapters.errors import LostLinkWarning, RuleWarning, UnsupportedConfigError
from tssl_adapters.neuron import LinearCharge, Neuron
from tssl_adapters.resets import Subtract, ToValue

DATA = dict(np.load(Path(__file__).parents[1] / "golden" / "rule_eventprop.npz"))
TAU_M, TAU_S, T = 20.0, 5.0, 60.0
RULE = rules.EventProp()
COMPILED = Settings("layer", RULE, 1.0, "cpu")
"""One for all layers: what it compiles is tried once."""

pytestmark = [
    pytest.mark.filterwarnings("error::tssl_adapters.errors.EngineWarning"),
    pytest.mark.filterwarnings("ignore:.*no synaptic current:tssl_adapters.errors.RuleWarning"),
]


# --- the networks of the golden file ------------------------------------------------------------


class Net(NamedTuple):
    """Layers of neurons, their weights, and what goes in."""

    case: str
    kind: str
    layers: list[list[int]]

    @classmethod
    def of(cls, index: int) -> Net:
        case = f"case{index:02d}"
        kind = str(DATA[f"{case}/name"])
        count = len(DATA[f"{case}/W"])
        layers = [[*range(4)], [4, 5]] if kind.startswith("two") else [[*range(count)]]
        return cls(case, kind, layers)

    def __getitem__(self, name: str) -> Tensor:
        return torch.as_tensor(DATA[f"{self.case}/{name}"])

    @property
    def recurrent(self) -> bool:
        return self.kind.startswith("rec")

    def weights(self) -> tuple[Tensor, Tensor]:
        return self["W"].clone().requires_grad_(), self["W_in"].clone().requires_grad_()

    def events(self, dt: float) -> Tensor:
        """``[T, 1, inputs]``."""
        x = torch.zeros(round(T / dt), 1, self["W_in"].shape[1], dtype=torch.float64)
        for time, index in zip(self["event_time"], self["event_input"], strict=True):
            x[round(float(time) / dt), 0, index] += 1.0
        return x


NETS = [Net.of(index) for index in range(int(DATA["n_cases"]))]
FORWARD = [net for net in NETS if not net.recurrent]
one_of_each = pytest.mark.parametrize("net", FORWARD[1::3], ids=lambda net: net.kind)
Layer = Callable[[Tensor], Tensor]


def time_loss(spikes: Tensor, indices: Sequence[int], dt: float) -> Tensor:
    """sum f(t, n) over spikes at (k + 1/2) dt: the gradient of a spike is f there."""
    t = (torch.arange(len(spikes), dtype=torch.float64) + 0.5) * dt
    n = torch.tensor(indices, dtype=torch.float64)
    return (spikes.double() * _f(t[:, None], n)[:, None]).sum()


def _f(t: Any, n: Any) -> Any:
    return torch.sin(0.1 * t + 0.7 * n) + 0.02 * t


def read_out(current: Tensor, dt: float) -> Tensor:
    """V at the end of neurons that do not spike, from the current i' ``[T, 1, n]``."""
    v = torch.zeros_like(current[0])
    for i in current:
        v = (1 - dt / TAU_M) * v + dt / TAU_M * i
    return v


def through(
    net: Net, dt: float, layer: Callable[[], Layer], filtered: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """A feed-forward network's gradients, and its spikes.

    Args:
        net: the network.
        dt: the time step.
        layer: makes layers from the summed input to spikes.
        filtered: what the read-out's current is of its summed input.
    """
    weight, weight_in = net.weights()
    x, spikes = net.events(dt) @ weight_in.T, []
    for depth, indices in enumerate(net.layers):
        if depth:
            x = spikes[-1].double() @ weight[indices][:, net.layers[depth - 1]].T
        else:
            x = x[..., indices]
        if net.kind == "two-li:end" and depth:
            v = read_out(filtered(x), dt)
            n = torch.tensor(indices, dtype=torch.float64)
            (v * v / 2 + 0.3 * n * v).sum().backward()
            break
        spikes.append(layer()(x))
    else:
        time_loss(spikes[-1], net.layers[-1], dt).backward()
    assert weight_in.grad is not None
    grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    return grad, weight_in.grad, spikes


def current(x: Tensor, dt: float, tau_s: Any = TAU_S) -> Tensor:
    """i'[t] = (1 - dt/tau_s) i'[t-1] + x[t]: its sum over all steps before."""
    t = torch.arange(len(x), dtype=torch.float64)
    kernel = ((1 - dt / tau_s) ** (t[:, None] - t).clamp(min=0.0)).tril()
    return (kernel @ x.flatten(1)).view_as(x)


def leaky_neuron(dt: float, reset: Any, timing: Any = "immediate", **values: Any) -> Neuron:
    """One that the compiled engines know."""
    values = {"decay": 1 - dt / TAU_M, "gain": dt / TAU_M, "offset": 0.0, **values}
    threshold = values.pop("threshold", 1.0)
    charge = LinearCharge(**values, formula=affine, raw=tuple(values.values()))
    return Neuron(charge, reset, threshold, timing)


def compiled(neuron: Neuron, dt: float) -> Layer:
    """A layer with a synaptic current in front, the whole sequence in one call."""

    def run(x: Tensor) -> Tensor:
        given = current(x, dt)
        start = torch.zeros_like(given[0])
        return attach(COMPILED, neuron, given, start, None, None, sequence=True).out

    return run


def compare(net: Net, dt: float, reset: str, found: Any, tolerance: float) -> None:
    grad, grad_in, spikes = found
    expected = net[f"dt{dt}/{reset}/spikes"].double()
    ours = torch.cat(spikes, -1)[:, 0].detach().double()
    assert torch.equal(ours, expected[:, : ours.shape[1]])
    assert grad_in.abs().sum() > 0
    first, last = net.layers[0], net.layers[-1]
    assert relative(grad_in[first], net[f"dt{dt}/{reset}/grad_W_in"][first]) <= tolerance
    if len(net.layers) > 1 or net.recurrent:
        expected = net[f"dt{dt}/{reset}/grad_W"][last][:, first]
        assert relative(grad[last][:, first], expected) <= tolerance


RESETS: dict[str, Any] = {"zero": ToValue(0.0), "sub": Subtract()}
resets = pytest.mark.parametrize("reset", RESETS)


@resets
@pytest.mark.parametrize(
    ("net", "dt"),
    [(net, 0.5) for net in FORWARD] + [(FORWARD[k], dt) for k in (1, 4, 7) for dt in (1.0, 0.25)],
)
def test_golden(net: Net, dt: float, reset: str) -> None:
    """Compiled, where a whole sequence is a call."""
    neuron = leaky_neuron(dt, RESETS[reset])
    found = through(
        net, dt, lambda: compiled(neuron, dt),
        lambda x: current(x, dt),
    )  # fmt: skip
    compare(net, dt, reset, found, 1e-12)


# --- every library ------------------------------------------------------------------------------


def norse_parameters(dt: float) -> Any:
    values = {"tau_mem_inv": dt / TAU_M, "tau_syn_inv": dt / TAU_S, "v_leak": 0.0, "v_th": 1.0}
    values["v_reset"] = 0.0
    return LIFParameters(**{k: torch.tensor(v, dtype=torch.float64) for k, v in values.items()})


def norse_sequence(dt: float) -> Layer:
    layer = tssl_adapters.wrap(norse.LIF(norse_parameters(dt), dt=1.0), rule=RULE)
    return lambda x: layer(x, _rest(x))[0]  # type: ignore[no-any-return]


def norse_cell(dt: float) -> Layer:
    cell = tssl_adapters.wrap(norse.LIFCell(norse_parameters(dt), dt=1.0), rule=RULE)

    def run(x: Tensor) -> Tensor:
        state, outs = _rest(x), []
        for step in x:
            out, state = cell(step, state)
            outs.append(out)
        return torch.stack(outs)

    return run


def _rest(x: Tensor) -> Any:
    return LIFFeedForwardState(*torch.zeros(2, *x.shape[1:], dtype=x.dtype))


@pytest.mark.parametrize("make", [norse_sequence, norse_cell])
@pytest.mark.parametrize("engine", ["torch", "cpu"])
@one_of_each
def test_norse(net: Net, engine: str, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSSL_ADAPTERS_ENGINE", engine)
    found = through(net, 0.5, lambda: make(0.5), lambda x: current(x, 0.5))
    compare(net, 0.5, "zero", found, 1e-12)


@pytest.mark.parametrize("net", NETS[6:9], ids=lambda net: net.case)
def test_norse_recurrent(net: Net) -> None:
    weight, weight_in = net.weights()
    layer = norse.LIFRecurrentCell(10, 2, norse_parameters(1.0), dt=1.0)
    layer.input_weights, layer.recurrent_weights = nn.Parameter(weight_in), nn.Parameter(weight)
    tssl_adapters.wrap(layer, rule=RULE)
    state = LIFState(*torch.zeros(3, 1, 2, dtype=torch.float64))
    outs = []
    for step in net.events(1.0):
        out, state = layer(step, state)
        outs.append(out)
    spikes = torch.stack(outs)
    time_loss(spikes, [0, 1], 1.0).backward()
    found = (layer.recurrent_weights.grad, layer.input_weights.grad, [spikes])
    compare(net, 1.0, "zero", found, 1e-12)


@pytest.mark.parametrize("mode", ["m", "s"])
@resets
@one_of_each
def test_spikingjelly(net: Net, reset: str, mode: str) -> None:
    """Its potential is charged by the PSC of the layer below, at tau_s > 1."""
    dt = 0.5
    tau_s = TAU_S / dt
    weight, weight_in = net.weights()
    v_reset = 0.0 if reset == "zero" else None
    a, spikes = losses.psc(net.events(dt), tau_s), []
    for depth, indices in enumerate(net.layers):
        below = weight_in if not depth else weight[indices][:, net.layers[depth - 1]]
        x = tau_s * (a @ below.T)[..., : len(indices)]
        if net.kind == "two-li:end" and depth:
            v = read_out(x, dt)
            n = torch.tensor(indices, dtype=torch.float64)
            (v * v / 2 + 0.3 * n * v).sum().backward()
            break
        layer = node("LIFNode", tau=TAU_M / dt, step_mode=mode, v_reset=v_reset, v_threshold=1.0)
        tssl_adapters.wrap(layer, rule=RULE, tau_s=tau_s)
        a = layer(x) if mode == "m" else torch.stack([layer(step) for step in x])
        spikes.append(spikes_of(a, tau_s))
    else:
        time_loss_of_psc(a, net.layers[-1], dt, tau_s).backward()
    found = (weight.grad, weight_in.grad, spikes)
    compare(net, dt, reset, found, 1e-11)


def spikes_of(psc: Tensor, tau_s: float) -> Tensor:
    before = torch.cat([torch.zeros_like(psc[:1]), psc[:-1]])
    return (tau_s * (psc - before) + before).detach().round()


def time_loss_of_psc(psc: Tensor, indices: Sequence[int], dt: float, tau_s: float) -> Tensor:
    """:func:`time_loss` of the spikes that a PSC was made of."""
    before = torch.cat([torch.zeros_like(psc[:1]), psc[:-1]])
    return time_loss(tau_s * (psc - before) + before, indices, dt)


def snntorch_leaky(net: Net, dt: float) -> Any:
    """Of PSCs; its spikes are float32."""
    tau_s = TAU_S / dt
    weight, weight_in = net.weights()
    a, spikes = losses.psc(net.events(dt), tau_s), []
    for depth, indices in enumerate(net.layers):
        below = weight_in if not depth else weight[indices][:, net.layers[depth - 1]]
        x = tau_s * dt / TAU_M * (a.double() @ below.T)[..., : len(indices)]
        layer = snntorch.Leaky(beta=1 - dt / TAU_M, reset_mechanism="zero").double()
        tssl_adapters.wrap(layer, rule=RULE, tau_s=tau_s)
        mem, outs = layer.init_leaky(), []
        for step in x:
            out, mem = layer(step, mem)
            outs.append(out)
        a = torch.stack(outs)
        spikes.append(spikes_of(a, tau_s))
    time_loss_of_psc(a.double(), net.layers[-1], dt, tau_s).backward()
    return weight.grad, weight_in.grad, spikes


def snntorch_synaptic(net: Net, dt: float) -> Any:
    """With a synapse of its own."""

    def make() -> Layer:
        layer = snntorch.Synaptic(
            alpha=1 - dt / TAU_S, beta=1 - dt / TAU_M, reset_delay=False
        ).double()
        tssl_adapters.wrap(layer, rule=RULE)

        def run(x: Tensor) -> Tensor:
            state, outs = layer.init_synaptic(), []
            for step in dt / TAU_M * x:
                out, *state = layer(step, *state)
                outs.append(out)
            return torch.stack(outs)

        return run

    return through(net, dt, make, lambda x: current(x, dt))


@pytest.mark.parametrize(
    ("run", "reset"), [(snntorch_leaky, "zero"), (snntorch_synaptic, "sub")], ids=["psc", "synapse"]
)
@pytest.mark.parametrize("net", FORWARD[1:6:3], ids=lambda net: net.kind)
def test_snntorch(net: Net, run: Any, reset: str) -> None:
    """Delayed, by subtraction, it is another neuron, and so is ``Synaptic`` to zero."""
    compare(net, 0.5, reset, run(net, 0.5), 5e-6)


# --- the equations, on random layers ------------------------------------------------------------


class Plain(NamedTuple):
    """What the docstring's equations give, summed over time where they are of a parameter."""

    drive: Tensor
    decay: Tensor
    gain: Tensor
    threshold: Tensor
    reset_value: Tensor


def by_equations(
    x: Tensor,
    state: Tensor,
    grad_spike: Tensor,
    c: Tensor,
    neuron: Any,
    reset: str,
    delayed: bool,
    bound: float,
    whole: bool,
) -> Plain:
    """A line an equation; ``whole`` has the loss's jump."""
    decay, gain, theta, value = (v.item() for v in neuron)
    rows = []
    for drive in x:  # v is what the layer hands on, u what is left of it as the charge begins
        due = state > theta if delayed else torch.zeros_like(state, dtype=torch.bool)
        if reset == "value":
            u = held = torch.where(due, 0.0, state)
            h = decay * u + gain * drive
            removed = h - value
        else:
            held, removed = state, torch.full_like(state, theta / decay if delayed else theta)
            u = state - due * removed
            h = decay * u + gain * drive
        s = (h > theta).double()
        after = torch.where(s > 0, value if reset == "value" else h - theta, h)
        state = h if delayed else after
        rows.append((h - u, s, removed, held))
    zero = torch.zeros_like(state)
    lam = mu = zero
    drives, of_decay, of_gain, of_threshold, of_value = [], zero, zero, zero, zero
    for t in reversed(range(len(x))):
        d, s, removed, held = rows[t]
        later = grad_spike[t + 1] if t + 1 < len(x) else grad_spike[t]
        phi = torch.where((s > 0) & (d > 0), (1 / d).clamp(max=bound), 0.0)
        other = t + 1 if delayed else t - 1
        around = (c[t] + (c[other] if 0 <= other < len(x) else zero)) / 2 if whole else zero
        carry = decay + (1 - decay) * removed * phi
        following = decay * (lam + mu) + (zero if delayed else c[t])
        lam = -phi * (later - grad_spike[t] + removed * around) + carry * lam
        own = zero if delayed else c[t] * (carry / decay)
        mu = own + carry * mu
        of_threshold = of_threshold - s * (lam + mu)
        of_value = of_value + s * following
        mu = mu + (c[t] if delayed else zero)
        e = lam + mu
        drives.append(gain * e)
        of_decay, of_gain = of_decay + e * held, of_gain + e * x[t]
    sums = (of_decay, of_gain, of_threshold, of_value)
    return Plain(torch.stack(drives[::-1]), *(each.sum() for each in sums))


@pytest.mark.parametrize(
    ("engine", "how", "bound"),
    [
        *(("torch", "whole", math.inf), ("torch", "calls", 2.0), ("torch", "steps", math.inf)),
        ("torch", "checkpoint", 4.0),
        *(("cpu", "whole", 4.0), ("cpu", "calls", 4.0), ("cpu", "steps", math.inf)),
    ],
)
@pytest.mark.parametrize("reset", ["value", "subtract"])
@pytest.mark.parametrize("timing", ["immediate", "delayed"])
def test_equations(engine: str, timing: str, reset: str, bound: float, how: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(11, 3, 50, dtype=torch.float64).mul_(1.5).requires_grad_()
    start = torch.randn(3, 50, dtype=torch.float64) * 0.3
    grad_spike, c = torch.randn(2, *x.shape, dtype=torch.float64)
    to = -0.2 if timing == "immediate" else 0.0  # a delayed reset to a value is to zero
    numbers = [torch.tensor(v, dtype=torch.float64) for v in (0.8, 0.9, 0.7, to)]
    decay, gain, theta, value = (number.requires_grad_() for number in numbers)
    resets_to = {"value": ToValue(value), "subtract": Subtract()}[reset]
    neuron = leaky_neuron(1.0, resets_to, timing, decay=decay, gain=gain, threshold=theta)
    rule = rules.EventProp(
        max_slope=None if bound == math.inf else bound,
        checkpoint=4 if how == "checkpoint" else None,
    )
    settings = Settings("layer", rule, 1.0, engine, seen_around=True)
    outs, kept, state = [], [], start
    for part in x.split({"steps": 1, "calls": 6}.get(how, len(x))):
        given = part[0] if how == "steps" else part
        found = attach(
            settings, neuron, given, state, None, None, sequence=how != "steps",
            keep_states=how != "steps",
        )  # fmt: skip
        state = found.state
        outs.append(found.out.expand_as(part))
        kept.append((state if found.states is None else found.states).expand_as(part))
    out, states = torch.cat(outs), torch.cat(kept)
    assert 0.1 < out.detach().mean() < 0.6
    ((out * grad_spike).sum() + (states * c).sum()).backward()
    expected = by_equations(
        x.detach(), start, grad_spike, c, numbers, reset, timing == "delayed", bound,
        whole=how in ("whole", "checkpoint"),
    )  # fmt: skip
    assert relative(x.grad, expected.drive) <= 1e-12
    for leaf, wanted in zip((decay, gain, theta), expected[1:4], strict=True):
        assert relative(leaf.grad, wanted) <= 1e-11
    if reset == "value" and timing == "immediate":
        assert relative(value.grad, expected.reset_value) <= 1e-11


@pytest.mark.parametrize("variant", VARIANTS[::4], ids=lambda v: "-".join(map(str, v[:4])))
@pytest.mark.parametrize("steps", [1, 7])
def test_the_loops_are_the_torch_recursion(variant: Variant, steps: int) -> None:
    check_against_torch(CpuBackend(), variant, steps=steps, rule=RULE)


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("make", [leaky_steps, leaky_both, norse_steps])
@pytest.mark.filterwarnings("ignore:.*step by step:tssl_adapters.errors.RuleWarning")
def test_engines_take_turns(make: Any, tau_s: float) -> None:
    check_steps("cpu", make, tau_s, rule=RULE)


@resets
@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("engine", ["torch", "cpu"])
def test_calls_of_any_length(engine: str, tau_s: float, reset: str) -> None:
    """The last step included, where a spike cannot move."""
    torch.manual_seed(1)
    data = torch.randn(12, 3, 40, dtype=torch.float64)
    weight = torch.randn(12, 3, 40, dtype=torch.float64)
    found: list[Tensor] = []
    for cuts in ((), (4, 5, 9), "steps"):
        x = data.clone().requires_grad_()
        out = by_engine(RULE, leaky_neuron(5.0, RESETS[reset]), 4 * x, tau_s, cuts, engine)
        (out * weight).sum().backward()
        assert x.grad is not None
        found.append(x.grad)
    assert found[0][-2].abs().sum() > 0
    # At tau_s = 1 nothing comes after the last step: neither a spike nor a time.
    assert bool(found[0][-1].any()) is False
    for other in found[1:]:
        assert relative(other, found[0]) <= 1e-12


# --- continuous time ----------------------------------------------------------------------------


class Exact(NamedTuple):
    """One neuron in continuous time, event by event: its parameters and its input."""

    weights: Tensor
    times: list[float]
    tau_m: float = TAU_M
    tau_s: float = TAU_S
    theta: float = 1.0
    v_reset: float = 0.0
    subtract: bool = False

    def run(self) -> tuple[list[float], float]:
        """Its spike times, and the integral of V^2/2."""
        v = i = now = integral = 0.0
        spikes: list[float] = []
        events = [*zip(self.times, self.weights.tolist(), strict=True), (T, 0.0)]
        for time, weight in events:
            while (fires := now + self._crossing(v, i)) < time:
                integral += self._integral(v, i, fires - now)
                i *= math.exp(-(fires - now) / self.tau_s)
                v, now = 0.0 if self.subtract else self.v_reset, fires
                spikes.append(fires)
            integral += self._integral(v, i, time - now)
            v, i, now = self._v(v, i, time - now), self._decayed(i, time - now) + weight, time
        return spikes, integral

    def _decayed(self, i: float, t: float) -> float:
        return i * math.exp(-t / self.tau_s)

    def _parts(self, v: float, i: float) -> tuple[float, float]:
        """Of exp(-t/tau_m) and of exp(-t/tau_s)."""
        by_current = self.tau_s / (self.tau_s - self.tau_m) * i
        return v - by_current, by_current

    def _v(self, v: float, i: float, t: float) -> float:
        slow, fast = self._parts(v, i)
        return slow * math.exp(-t / self.tau_m) + fast * math.exp(-t / self.tau_s)

    def _crossing(self, v: float, i: float) -> float:
        slow, fast = self._parts(v, i)
        if slow * fast >= 0.0:
            return math.inf
        ratio = -(fast / self.tau_s) / (slow / self.tau_m)
        top = math.log(ratio) / (1 / self.tau_s - 1 / self.tau_m)
        if top <= 0.0 or self._v(v, i, top) <= self.theta:
            return math.inf
        low, high = 0.0, top
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (low, middle) if self._v(v, i, middle) > self.theta else (middle, high)
        return high

    def _integral(self, v: float, i: float, t: float) -> float:
        slow, fast = self._parts(v, i)
        total = 0.0
        for left, a in ((slow, 1 / self.tau_m), (fast, 1 / self.tau_s)):
            for right, b in ((slow, 1 / self.tau_m), (fast, 1 / self.tau_s)):
                total += left * right * (1 - math.exp(-(a + b) * t)) / (a + b)
        return total / 2

    def loss(self, kind: str) -> float:
        spikes, integral = self.run()
        return (
            integral if kind == "potential" else sum(float(_f(torch.tensor(t), 0)) for t in spikes)
        )

    def gradient(self, kind: str) -> dict[str, Tensor]:
        """Central differences of fourth order."""
        found = {}
        for name in ("weights", "tau_m", "tau_s", "theta", "v_reset"):
            value = torch.as_tensor(getattr(self, name), dtype=torch.float64)
            rows = []
            for unit in torch.eye(value.numel(), dtype=torch.float64):
                moved = [value + 1e-4 * k * unit.view_as(value) for k in (2, 1, -1, -2)]
                e = [self._replace(**{name: _number(m)}).loss(kind) for m in moved]
                rows.append((-e[0] + 8 * e[1] - 8 * e[2] + e[3]) / 12e-4)
            found[name] = torch.tensor(rows, dtype=torch.float64)
        return found


def _number(value: Tensor) -> Any:
    return value if value.ndim else float(value)


def discrete(
    exact: Exact, dt: float, kind: str, steps: bool = False
) -> tuple[int, dict[str, Tensor]]:
    """How often the neuron fires on a grid of steps, and the rule's gradients."""
    leaves = {
        name: torch.as_tensor(getattr(exact, name), dtype=torch.float64).clone().requires_grad_()
        for name in ("weights", "tau_m", "tau_s", "theta", "v_reset")
    }
    x = torch.zeros(round(T / dt), len(exact.times), dtype=torch.float64)
    for k, time in enumerate(exact.times):
        x[round(time / dt), k] = 1.0
    given = current((x @ leaves["weights"])[:, None], dt, leaves["tau_s"])
    reset = Subtract() if exact.subtract else ToValue(leaves["v_reset"])
    rate = dt / leaves["tau_m"]
    neuron = leaky_neuron(dt, reset, decay=1 - rate, gain=rate, threshold=leaves["theta"])
    settings = COMPILED
    state = torch.zeros(1, dtype=torch.float64)
    if steps:
        outs, kept = [], []
        for step in given:
            found = attach(settings, neuron, step, state, None, None, sequence=False)
            state = found.state
            outs.append(found.out)
            kept.append(state)
        out, states = torch.stack(outs), torch.stack(kept)
    else:
        found = attach(settings, neuron, given, state, None, None, sequence=True, keep_states=True)
        assert found.states is not None
        out, states = found.out, found.states
    if kind == "potential":
        loss = (states * states / 2).sum() * dt
    else:
        loss = time_loss(out[:, None], [0], dt)
    loss.backward()
    none = torch.zeros((), dtype=torch.float64)
    grads = {k: none if leaf.grad is None else leaf.grad for k, leaf in leaves.items()}
    return int(out.detach().sum()), grads


def examples(**values: Any) -> list[Exact]:
    found = []
    for net in NETS[:3]:
        times = [float(t) for t in net["event_time"]]
        weights = net["W_in"][0][net["event_input"]]
        found.append(Exact(weights, times, **values))
    return found


PARAMETERS = ("weights", "tau_m", "tau_s", "theta", "v_reset")


def errors(cases: Sequence[Exact], kind: str, dt: float, **how: Any) -> dict[str, float]:
    """Medians, of the nets that fire as often as they do in continuous time."""
    found: dict[str, list[float]] = {name: [] for name in PARAMETERS}
    for exact in cases:
        count, ours = discrete(exact, dt, kind, **how)
        if count != len(exact.run()[0]):
            continue
        theirs = exact.gradient(kind)
        for name in PARAMETERS:
            far = ours[name].flatten() - theirs[name]
            found[name].append(float(far.norm() / theirs[name].norm().clamp(min=1e-12)))
    assert len(found["weights"]) >= 2
    return {name: float(np.median(values)) for name, values in found.items()}


NEURONS = {
    "zero": {},
    "subtract": {"subtract": True},
    "value": {"v_reset": -0.3},
}


def cosine_and_error(net: Net, dt: float, reset: str) -> tuple[float, float]:
    neuron = leaky_neuron(dt, RESETS[reset])
    if net.recurrent:
        ours = recurrent(net, dt, neuron)
    else:
        ours = through(
            net, dt, lambda: compiled(neuron, dt),
            lambda x: current(x, dt),
        )  # fmt: skip
    used = torch.cat([net["W_in"], net["W"]], 1) != 0  # the weights that there are
    found = torch.cat([ours[1], ours[0]], 1)[used]
    exact = torch.cat([net["grad_W_in"], net["grad_W"]], 1)[used]
    if int(torch.cat(ours[2], -1).sum()) != len(net["spike_time"]):
        return math.nan, math.nan
    far = float((found - exact).norm() / exact.norm())
    return float(torch.cosine_similarity(found, exact, dim=0)), far


def recurrent(net: Net, dt: float, neuron: Neuron) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Spikes that come back one step later."""
    weight, weight_in = net.weights()
    settings, outs = COMPILED, []
    i = state = out = torch.zeros(1, len(weight), dtype=torch.float64)
    for x in net.events(dt) @ weight_in.T:
        i = (1 - dt / TAU_S) * i + x + out @ weight.T
        found = attach(settings, neuron, i, state, None, None, sequence=False)
        out, state = found.out, found.state
        outs.append(out)
    spikes = torch.stack(outs)
    time_loss(spikes, net.layers[-1], dt).backward()
    assert weight.grad is not None
    assert weight_in.grad is not None
    return weight.grad, weight_in.grad, [spikes.detach()]


@resets
def test_networks_tend_to_the_exact_gradient(reset: str) -> None:
    """All twelve, from a step of a fifth of the synaptic time constant to one of an eightieth."""
    coarse, fine = (
        np.array([cosine_and_error(net, dt, reset) for net in NETS]).T for dt in (1.0, 0.0625)
    )
    assert np.isfinite(fine[0]).sum() >= 10
    assert np.nanmedian(fine[0]) > 0.99
    assert np.nanmedian(fine[1]) < 0.05
    assert np.nanmedian(coarse[1]) > 5.0 * np.nanmedian(fine[1])
    assert np.nanmedian(coarse[0]) > 0.9


@pytest.mark.parametrize("kind", ["times", "potential"])
@pytest.mark.parametrize("values", NEURONS)
def test_parameters_tend_to_the_exact_gradient(values: str, kind: str) -> None:
    """Of losses on spike times, and on the potential of the neuron that spikes."""
    found = errors(examples(**NEURONS[values]), kind, 0.0625)
    if values == "subtract":
        del found["v_reset"]  # there is none
    assert max(found.values()) < 0.06
    assert found["weights"] < errors(examples(**NEURONS[values]), kind, 1.0)["weights"]


@pytest.mark.filterwarnings("ignore:.*step by step:tssl_adapters.errors.RuleWarning")
def test_step_by_step_a_loss_on_a_spiking_potential_is_not_exact() -> None:
    """What the test before holds whole sequences to, by the jump at a spike, is left out."""
    for exact in examples():
        theirs = exact.gradient("potential")["weights"]
        whole, steps = (
            float((discrete(exact, 0.0625, "potential", how)[1]["weights"] - theirs).norm())
            for how in (False, True)
        )
        assert steps > 0.2 * theirs.norm()
        assert steps > 20.0 * whole


def test_an_integrator_passes_its_spikes_on_unchanged() -> None:
    """What a later spike sends goes past an earlier one of a neuron that does not leak whole."""
    x = torch.tensor([0.6, 0.7, 0.4, 0.8, 0.1], dtype=torch.float64)[:, None, None]
    x.requires_grad_()
    out = by_engine(RULE, leaky(1.0, 1.0, "subtract"), x)
    assert out.detach().flatten().tolist() == [0.0, 1.0, 0.0, 1.0, 0.0]
    out[3].sum().backward()  # G[3] = 1, so that the second spike has D = -1, and phi = 1/0.8
    assert x.grad is not None
    expected = torch.tensor([1.25, 1.25, 1.25, 1.25, 0.0], dtype=torch.float64)
    torch.testing.assert_close(x.grad.flatten(), expected, rtol=1e-15, atol=1e-15)


def test_stdbp_of_integrators_that_fire_once() -> None:
    torch.manual_seed(0)
    x = 0.05 * torch.rand(30, 4, 20, dtype=torch.float64)
    x[-5:] = 0.0
    charge = LinearCharge(1.0, 1.0, 0.0, lambda v, x: v + x)
    neuron, grads = Neuron(charge, ToValue(-1e9), 1.0), []
    for rule in (rules.EventProp(), rules.STDBP(silent="none", max_slope=1e9)):
        given = (x * 20).requires_grad_()
        out = by_engine(rule, neuron, given.cumsum(0) / 20)
        weight = torch.sin(torch.arange(30.0, dtype=torch.float64))[:, None, None]
        (out * weight).sum().backward()
        grads.append(given.grad)
        assert 0 < int(out.detach().sum()) <= 80
    assert torch.equal(grads[0], grads[1])
    assert grads[0].any()


# --- where it has nothing to say, or is not exact -----------------------------------------------


@pytest.mark.parametrize("engine", ["torch", "cpu"])
@pytest.mark.parametrize("mode", ["m", "s"])
def test_counts_have_no_times(mode: Any, engine: str) -> None:
    """The gradient is zero, and one warning says why."""
    torch.manual_seed(0)
    layer = tssl_adapters.wrap(node("LIFNode", step_mode=mode), rule=RULE, engine=engine)
    for once in (True, False):
        layer.reset()
        x = (2 * torch.rand(6, 3, 5)).requires_grad_()
        out = layer(x) if mode == "m" else torch.stack([layer(step) for step in x])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            out.sum(0).square().sum().backward()
        assert x.grad is not None
        assert not x.grad.any()
        assert [w.category for w in caught] == [RuleWarning] * once
        for warning in caught:
            assert "is the same at every time step" in str(warning.message)
            assert "EventProp() learns from spike times alone" in str(warning.message)


@pytest.mark.parametrize("engine", ["torch", "cpu"])
@pytest.mark.parametrize("mode", ["m", "s"])
def test_losses_on_times_are_not_warned_of(mode: Any, engine: str) -> None:
    torch.manual_seed(0)
    layer = tssl_adapters.wrap(node("LIFNode", step_mode=mode), rule=RULE, engine=engine)
    x = (2 * torch.rand(6, 3, 5)).requires_grad_()
    out = layer(x) if mode == "m" else torch.stack([layer(step) for step in x])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses.first_spike_time(out).sum().backward()
    assert x.grad is not None
    assert x.grad.any()


@pytest.mark.parametrize("engine", ["torch", "cpu"])
@pytest.mark.parametrize("make", [leaky_steps, norse_steps])
def test_losses_on_a_spiking_potential_are_warned_of_step_by_step(make: Any, engine: str) -> None:
    torch.manual_seed(0)
    layer, run = make()
    tssl_adapters.wrap(layer, rule=RULE, engine=engine)
    for scale, expected in ((1e-3, 0), (9.0, 1), (9.0, 0)):
        layer._tssl_settings.seen_around = layer._tssl_settings.seen_around and not expected
        state, total = None, torch.zeros(())
        for step in (scale * torch.rand(6, 3, 5)).requires_grad_():
            _, state = run(step, state)
            v = getattr(state, "v", state)
            total = total + v.square().sum()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            total.backward()
        assert [w.category for w in caught] == [RuleWarning] * expected
        assert layer._tssl_settings.seen_around  # nobody looks again
        for warning in caught:
            assert "knows what a loss on it jumps by at a spike only where" in str(warning.message)


@pytest.mark.parametrize("engine", ["torch", "cpu"])
@pytest.mark.parametrize("drive", [0.0, 50.0, -50.0])
@pytest.mark.parametrize("steps", [1, 6])
@resets
def test_silence_and_spikes_at_every_step(
    reset: str, steps: int, drive: float, engine: str
) -> None:
    """No division by a rise that is none."""
    for decay in (1.0, 0.5, 0.0):
        neuron = leaky_neuron(1.0, RESETS[reset], decay=decay, gain=1.0)
        settings = Settings("layer", RULE, 1.0, engine)
        x = torch.full((steps, 2, 3), drive, dtype=torch.float64, requires_grad=True)
        start = torch.full((2, 3), 60.0, dtype=torch.float64)  # which falls, and spikes
        found = attach(settings, neuron, x, start, None, None, sequence=True, keep_states=True)
        assert found.states is not None
        weight = torch.arange(float(steps))[:, None, None]
        ((found.out + found.states) * weight).sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()


def test_a_lost_link_ends_what_is_told() -> None:
    """A masked state: the time of the spike before it does not move."""
    layer = tssl_adapters.wrap(snntorch.Leaky(beta=0.9, reset_mechanism="zero"), rule=RULE)
    mem, x = layer.init_leaky(), torch.full((4, 1, 1), 1.5, requires_grad=True)

    def run() -> list[Tensor]:
        nonlocal mem
        outs = []
        for t, step in enumerate(x):
            out, mem = layer(step, mem)
            mem = mem * 1.0 if t == 1 else mem
            outs.append(out)
        return outs

    with pytest.warns(LostLinkWarning):
        outs = run()
    assert [out.item() for out in outs] == [1.0] * 4
    sum(k * out.sum() for k, out in enumerate(outs, 1)).backward()
    assert x.grad is not None
    assert x.grad.flatten()[[1, 3]].tolist() == [0.0, 0.0]
    assert x.grad[0] != 0.0


def test_what_it_refuses() -> None:
    refused = {
        "linear integrate-and-fire neurons, and its charge is quadratic": node("QIFNode"),
        "nothing resets this neuron": snntorch.Leaky(beta=0.5, reset_mechanism="none"),
        "its refractory period hides spikes": norse.LIFRefracCell(),
    }
    for why, layer in refused.items():
        kind = type(layer)
        with pytest.raises(UnsupportedConfigError, match=why):
            tssl_adapters.wrap(layer, rule="eventprop")
        assert type(layer) is kind


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_slope": 0.0}, ValueError),
        ({"max_slope": "8"}, TypeError),
        ({"checkpoint": 0}, ValueError),
    ],
)
def test_options_are_checked(options: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"EventProp: {next(iter(options))} must be"):
        rules.EventProp(**options)
    assert str(rules.EventProp()) == "EventProp()"


def said(model: nn.Module, **how: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tssl_adapters.wrap(model, rule="eventprop", **how)
    assert all(w.category is RuleWarning for w in caught)
    return [str(w.message) for w in caught]


def test_bare_spikes_are_remarked_on() -> None:
    (remark,) = said(nn.ModuleDict({"bare": node("LIFNode"), "own": norse.LIFCell()}))
    assert "'bare': no synaptic current between input and potential, and tau_s=1" in remark
    assert "'own'" not in remark
    assert said(nn.Sequential(node("LIFNode")), tau_s=2.0) == []
    assert said(nn.Sequential(snntorch.Synaptic(alpha=0.9, beta=0.9))) == []


def test_modules_that_lose_times_are_remarked_on() -> None:
    (remark,) = said(nn.Sequential(nn.MaxPool1d(2), norse.LIFCell(), dropout(0.5)))
    assert remark.startswith("tssl_adapters: '0' (MaxPool1d) passes a gradient to spikes alone")
    assert "EventProp needs the gradient one step after a spike" in remark


@pytest.mark.parametrize("engine", ["torch", "cpu"])
def test_a_rise_too_small_for_its_reciprocal(engine: str) -> None:
    """1 / 1e-40 is infinite; but nothing comes of a rise without a spike."""
    layer = tssl_adapters.wrap(
        snntorch.Leaky(beta=0.9, reset_mechanism="zero"), rule="eventprop", tau_s=2.0, engine=engine
    )
    x = torch.tensor([1e-40, 2.0], requires_grad=True)
    mem, loss = layer.init_leaky(), torch.zeros(())
    for t in range(4):
        out, mem = layer(x, mem)
        loss = loss + t * out.sum()
    (grad,) = torch.autograd.grad(loss, x)
    assert grad[0] == 0.0
    assert grad[1].isfinite()
    assert grad[1] != 0.0
