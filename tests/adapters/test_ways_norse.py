"""Ways to use Norse's layers: NIR graphs, policies, nested states, hooks, learned parameters.

Each is run wrapped and unwrapped as in tests/test_usage.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import nir
import norse.torch as norse
import numpy as np
import pytest
import torch
from norse.torch.functional.lif import LIFParameters
from norse.torch.functional.lif_adex import LIFAdExParameters
from norse.torch.functional.lsnn import LSNNParameters
from norse.torch.functional.regularization import spike_accumulator, voltage_accumulator
from norse.torch.functional.reset import reset_subtract, reset_value
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from usage import (  # noqa: F401
    BATCH,
    CLASSES,
    HIDDEN,
    INPUTS,
    STEPS,
    TARGETS,
    TAUS,
    check,
    close,
    data,
    leaves,
    no_lost_links,
    own_instances,
    rule_of,
    seeded,
)

import tssl_adapters

Values = tuple[Tensor, list[Tensor]]
T = torch.as_tensor
LIVELY = LIFParameters(v_th=T(0.3), tau_mem_inv=T(400.0))
LSNN = LSNNParameters(v_th=T(0.3), tau_mem_inv=T(400.0))
ADEX = LIFAdExParameters(v_th=T(0.3), tau_mem_inv=T(400.0))


# --- NIR --------------------------------------------------------------------------------------


def graph(kind: str) -> nir.NIRGraph:
    """A network that another library exported."""
    random = np.random.default_rng(0)

    def full(number: float) -> Any:
        return np.full((HIDDEN,), number, dtype=np.float32)

    neurons: dict[str, Callable[[], Any]] = {
        "IF": lambda: nir.IF(r=full(1.0), v_threshold=full(0.4)),
        "LIF": lambda: nir.LIF(
            tau=full(0.005), r=full(1.0), v_leak=full(0.0), v_threshold=full(0.3)
        ),
        "CubaLIF": lambda: nir.CubaLIF(
            tau_mem=full(0.003),
            tau_syn=full(0.004),
            r=full(2.0),
            v_leak=full(0.0),
            v_threshold=full(0.2),
            w_in=full(1.5),
        ),
    }
    weights = [
        nir.Affine(
            weight=random.normal(size=shape).astype(np.float32) * 0.8,
            bias=np.full(shape[:1], 0.1, dtype=np.float32),
        )
        for shape in ((HIDDEN, INPUTS), (CLASSES, HIDDEN))
    ]
    return nir.NIRGraph.from_list(weights[0], neurons[kind](), weights[1])


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("kind", ["IF", "LIF", "CubaLIF"])
@pytest.mark.parametrize("method", [reset_value, reset_subtract])
def test_from_nir(method: Any, kind: str, tau_s: float) -> None:
    """The executor of an imported graph carries the wrapped cells' states."""

    def run(model: Any, x: Tensor) -> Values:
        state, outs = None, []
        for step in x:
            out, state = model(step, state)
            outs.append(out)
        out = torch.stack(outs)
        return cross_entropy(out.mean(0), TARGETS), [out]

    def make() -> nn.Module:
        return norse.from_nir(graph(kind), reset_method=method)  # type: ignore[no-any-return]

    check(make, run, "norse", data(), tau_s)


def test_to_nir() -> None:
    """A wrapped network exports as the native one does."""

    def make() -> nn.Module:
        return norse.SequentialState(
            nn.Linear(INPUTS, HIDDEN), norse.LIFBoxCell(), nn.Linear(HIDDEN, 2), norse.LIFCell()
        )

    native, ours = seeded(make), tssl_adapters.wrap(seeded(make))
    graphs = [norse.to_nir(model, data()[0]) for model in (native, ours)]
    kinds = [[type(node).__name__ for node in each.nodes.values()] for each in graphs]
    assert kinds[0] == kinds[1]
    assert {"LIF", "CubaLIF"} <= set(kinds[1])


# --- a policy ---------------------------------------------------------------------------------


class Policy(nn.Module):
    """As in Norse's cartpole task: encoded observations, a recurrent layer, a leaky readout."""

    def __init__(self, cell: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.encoder = norse.ConstantCurrentLIFEncoder(15)
        self.cell = cell(2 * 4, 16)
        self.readout = norse.LILinearCell(16, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spikes = [self.encoder(torch.relu(sign * 200.0 * x)) for sign in (1.0, -1.0)]
        state = voltage = None
        voltages, rows = [], []
        for step in torch.cat(spikes, dim=2):
            z, state = self.cell(step, state)
            out, voltage = self.readout(z, voltage)
            voltages.append(out)
            rows.append(z)
        best = torch.stack(voltages).amax(0)
        return torch.softmax(best, dim=1), torch.stack(rows)


CELLS: dict[str, Callable[[int, int], nn.Module]] = {
    "lif": lambda i, o: norse.LIFRecurrentCell(i, o, p=LIVELY),
    "lsnn": lambda i, o: norse.LSNNRecurrentCell(i, o, p=LSNN),
    "adex": lambda i, o: norse.LIFAdExRecurrentCell(i, o, p=ADEX),
}


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("name", CELLS)
def test_a_policy_by_reinforce(name: str, tau_s: float) -> None:
    """An episode of single decisions, each with a graph of its own; one backward pass."""

    def run(policy: Any, x: Tensor) -> Values:
        state, logs, rewards = torch.tensor([[0.02, -0.03, 0.04, 0.01]]), [], []
        spikes, generator = [], torch.Generator().manual_seed(2)
        for _ in range(5):
            probabilities, fired = policy(state)
            action = int(torch.rand((), generator=generator) < 0.5)
            logs.append(probabilities[0, action].log())
            spikes.append(fired)
            state = 0.9 * state + 0.02 * (2 * action - 1)  # where the cart goes
            rewards.append(float(state[0, 0] > 0))
        returns, total = [], 0.0
        for reward in rewards[::-1]:
            total = reward + 0.99 * total
            returns.insert(0, total)
        wanted = torch.tensor(returns)
        wanted = (wanted - wanted.mean()) / (wanted.std() + 1e-6)
        loss = -(torch.stack(logs) * wanted).sum()
        return loss, [torch.stack(logs), torch.stack(spikes)]

    def make() -> nn.Module:
        policy = Policy(CELLS[name])
        with torch.no_grad():
            policy.cell.input_weights.abs_().mul_(8.0)
            for weight in policy.readout.parameters():
                weight.abs_().mul_(2.0)  # else the largest voltage is the first one, 0
        return policy

    if tau_s == 1.0:  # the twin's filter goes on from decision to decision
        check(make, run, "norse", data(), tau_s)
    model = tssl_adapters.wrap(seeded(make), tau_s=tau_s)
    loss, (_, fired) = run(model, data())
    assert 0.0 < float(fired.detach().ne(0).double().mean()) < 1.0
    for grad in torch.autograd.grad(loss, list(model.parameters())):
        assert torch.isfinite(grad).all()
        assert grad.any()


# --- containers -------------------------------------------------------------------------------


def nested() -> nn.Module:
    """States within states, recurrent and feed-forward."""
    inner = norse.SequentialState(nn.Linear(HIDDEN, HIDDEN), norse.LIFCell(LIVELY))
    recurrent = norse.LSNNRecurrentCell(HIDDEN, HIDDEN, p=LSNN)
    return norse.SequentialState(
        nn.Linear(INPUTS, HIDDEN), norse.IAFCell(), inner, recurrent, norse.LILinearCell(HIDDEN, 4)
    )


def stepped(model: Any, x: Tensor) -> Values:
    state, outs = None, []
    for step in x:
        out, state = model(step, state)
        outs.append(out)
    out = torch.stack(outs)
    return cross_entropy(out.amax(0), TARGETS) + state[2][1].v.square().mean(), [out, state[3].b]


@pytest.mark.parametrize("tau_s", TAUS)
def test_nested_states(tau_s: float) -> None:
    check(nested, stepped, "norse", data(), tau_s)


def test_state_hooks() -> None:
    """``SequentialState``'s hooks on its stateful layers see what they see natively."""

    def watched(model: Any) -> list[Tensor]:
        seen: list[Tensor] = []
        model.register_forward_state_hooks(lambda module, inputs, out: seen.append(out[0].detach()))
        stepped(model, data())
        model.remove_forward_state_hooks()
        stepped(model, data())
        return seen

    native, ours = watched(seeded(nested)), watched(tssl_adapters.wrap(seeded(nested)))
    assert len(ours) == len(native) >= 3 * STEPS
    for left, right in zip(ours, native, strict=True):
        assert torch.equal(left, right)


SEQUENCES: dict[str, Callable[[], nn.Module]] = {
    "LIFRecurrent": lambda: norse.LIFRecurrent(HIDDEN, HIDDEN, LIVELY),
    "LSNNRecurrent": lambda: norse.LSNNRecurrent(HIDDEN, HIDDEN, LSNN),
    "LIFAdEx": lambda: norse.LIFAdEx(ADEX, record_states=True),
    "LSNN": lambda: norse.LSNN(LSNN, record_states=True),
    "IAF": lambda: norse.IAF(),
}


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("name", SEQUENCES)
def test_whole_sequences(name: str, tau_s: float) -> None:
    """A module in ``SequentialState``; a loss on its states, recorded or the last ones."""

    def make() -> nn.Module:
        lift = norse.Lift(nn.Linear(INPUTS, HIDDEN))
        return norse.SequentialState(lift, SEQUENCES[name](), nn.Linear(HIDDEN, CLASSES))

    def run(model: Any, x: Tensor) -> Values:
        out, states = model(x)
        v = states[1].v
        return cross_entropy(out.mean(0), TARGETS) + v.square().mean(), [out, v]

    check(make, run, "norse", data(), tau_s)


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("accumulator", [spike_accumulator, voltage_accumulator])
@pytest.mark.parametrize("name", ["LIFCell", "LIFExCell", "LSNNCell"])
def test_regularization(name: str, accumulator: Any, tau_s: float) -> None:
    def make() -> nn.ModuleDict:
        p = LSNN if name == "LSNNCell" else None
        cell = getattr(norse, name)(p) if p is not None else getattr(norse, name)()
        return nn.ModuleDict({"fc": nn.Linear(INPUTS, HIDDEN), "cell": cell})

    def run(model: Any, x: Tensor) -> Values:
        regularize, state, term, outs = norse.RegularizationCell(accumulator), None, None, []
        for step in x:
            z, state = model["cell"](4.0 * model["fc"](step), state)
            z, term = regularize(z, state)
            outs.append(z)
        out = torch.stack(outs)
        return out.mean() + 1e-3 * term.sum(), [out, state.v, term]  # type: ignore[union-attr]

    check(make, run, "norse", 3.0 * data(), tau_s)


# --- learned parameters -----------------------------------------------------------------------


def learning(name: str) -> nn.ModuleDict:
    def parameter(value: float) -> nn.Parameter:
        return nn.Parameter(torch.tensor(value))

    common = {
        "tau_syn_inv": parameter(300.0),
        "tau_mem_inv": parameter(400.0),
        "v_th": parameter(0.3),
        "v_reset": parameter(-0.1),
    }
    p: Any = LSNNParameters(beta=parameter(0.5), tau_adapt_inv=parameter(100.0), **common)
    if name == "LIFAdEx":
        p = LIFAdExParameters(adaptation_current=parameter(0.5), delta_T=parameter(0.3), **common)
    cell = getattr(norse, f"{name}Cell")(p)
    return nn.ModuleDict({"fc": nn.Linear(INPUTS, HIDDEN), "cell": cell})


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("name", ["LSNN", "LIFAdEx"])
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_learned_parameters_under_anomaly_detection(name: str, tau_s: float) -> None:
    def run(model: Any, x: Tensor) -> Values:
        state, outs = None, []
        for step in x:
            z, state = model["cell"](2.0 * model["fc"](step), state)
            outs.append(z)
        out = torch.stack(outs)
        return out.square().mean() + state.v.square().mean(), [out, state.v, state.i]  # type: ignore[union-attr]

    with torch.autograd.detect_anomaly(check_nan=True):
        check(lambda: learning(name), run, "norse", data(), tau_s)
    model = tssl_adapters.wrap(seeded(lambda: learning(name)), tau_s=tau_s)
    bad = data()
    bad[1, 0] = math.nan
    loss, _ = run(model, bad)
    with (
        torch.autograd.detect_anomaly(check_nan=True),
        pytest.raises(RuntimeError, match="returned nan values"),
    ):
        loss.backward()
    optimizer = torch.optim.Adam(leaves(model), lr=0.01)
    before = [leaf.detach().clone() for leaf in leaves(model)]
    run(model, data())[0].backward()
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, leaves(model), strict=True))
