"""Ways to use SpikingJelly's nodes: containers, losses, loops, memory optimisation, readouts.

Each is run wrapped and unwrapped as in tests/test_usage.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import (
    base,
    encoding,
    functional,
    layer,
    memopt,
    neuron,
    surrogate,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, smooth_l1_loss
from usage import (  # noqa: F401
    CLASSES,
    HIDDEN,
    INPUTS,
    STEPS,
    TARGETS,
    TAUS,
    check,
    close,
    data,
    emitting_psc,
    leaves,
    no_lost_links,
    own_instances,
    rule_of,
    seeded,
)

import tssl_adapters

Values = tuple[Tensor, list[Tensor]]
NODES: dict[str, Callable[..., nn.Module]] = {
    "LIFNode": lambda **s: neuron.LIFNode(v_threshold=0.3, **s),
    "ParametricLIFNode": lambda **s: neuron.ParametricLIFNode(v_threshold=0.3, **s),
    "KLIFNode": lambda **s: neuron.KLIFNode(v_threshold=0.3, **s),
    "QIFNode": lambda **s: neuron.QIFNode(v_threshold=0.4, v_c=0.3, **s),
    "IzhikevichNode": lambda **s: neuron.IzhikevichNode(v_threshold=0.4, a=0.4, b=0.3, **s),
    "RAFNode": lambda **s: neuron.RAFNode(v_threshold=0.4, **s),
    "SimpleIFNode": lambda **s: neuron.SimpleIFNode(v_threshold=0.4, **s),
}


def net(node: Callable[..., nn.Module] = NODES["LIFNode"], mode: str = "m") -> nn.Sequential:
    model = nn.Sequential(
        layer.Linear(INPUTS, HIDDEN), node(), layer.Linear(HIDDEN, CLASSES), node()
    )
    with torch.no_grad():
        for linear in (model[0], model[2]):
            linear.weight.mul_(5.0)  # a lively network
    functional.set_step_mode(model, mode)
    return model


def rate_loss(out: Tensor) -> Tensor:
    return mse_loss(out.mean(0), torch.eye(CLASSES)[TARGETS])


def whole(model: Any, x: Tensor) -> Values:
    functional.reset_net(model)
    out = model(x)
    return rate_loss(out), [out]


# --- every node, both step modes ---------------------------------------------------------------


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("name", NODES)
def test_step_modes(name: str, tau_s: float) -> None:
    def steps(model: Any, x: Tensor) -> Values:
        functional.reset_net(model)
        out = torch.stack([model(step) for step in x])
        return rate_loss(out) + 0.1 * model[1].v.square().mean(), [out, model[1].v, model[3].v]

    check(lambda: net(NODES[name], "s"), steps, "spikingjelly", data(), tau_s)
    check(lambda: net(NODES[name]), whole, "spikingjelly", data(), tau_s)


# --- truncated backpropagation ----------------------------------------------------------------


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("mode", ["s", "m"])
def test_detach_net(mode: str, name: str) -> None:
    """A long sequence in windows, detached between them; a step of the optimizer after each."""

    def trained(**wrapping: Any) -> list[Tensor]:
        model = seeded(lambda: net(NODES[name], mode))
        if wrapping:
            tssl_adapters.wrap(model, **wrapping)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        functional.reset_net(model)
        seen = []
        for window in data(12).split(4):
            out = model(window) if mode == "m" else torch.stack([model(step) for step in window])
            optimizer.zero_grad()
            rate_loss(out).backward()
            optimizer.step()
            functional.detach_net(model)
            seen.append(out.detach())
        return [torch.cat(seen), *(p.detach() for p in model.parameters())]

    native = trained()
    close(trained(rule=rule_of("spikingjelly")), native, 1e-4)
    for tau_s in TAUS:
        _, *weights = trained(tau_s=tau_s)
        assert all(torch.isfinite(weight).all() for weight in weights)
        moved = [not torch.equal(a, b) for a, b in zip(weights, native[1:], strict=True)]
        assert all(moved[:2])


# --- containers and loops ---------------------------------------------------------------------


def images() -> nn.Sequential:
    """Stateless layers over time and batch at once, then over time; a vote at the end."""
    return nn.Sequential(
        layer.SeqToANNContainer(
            nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.AvgPool2d(2)
        ),
        neuron.LIFNode(v_threshold=0.2, step_mode="m"),
        layer.Flatten(step_mode="m"),
        layer.MultiStepContainer(nn.Linear(4 * 9, 2 * CLASSES), neuron.IFNode(v_threshold=0.3)),
        layer.SynapseFilter(tau=3.0, step_mode="m"),
        layer.VotingLayer(2, step_mode="m"),
    )


@pytest.mark.parametrize("tau_s", TAUS)
def test_containers(tau_s: float) -> None:
    check(images, whole, "spikingjelly", data(size=(1, 6, 6)), tau_s)


@pytest.mark.parametrize("tau_s", TAUS)
def test_delay(tau_s: float) -> None:
    def make() -> nn.Module:
        model = net()
        model.insert(2, layer.Delay(delay_steps=1, step_mode="m"))
        return model

    check(make, whole, "spikingjelly", data(), tau_s)


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("split", [1, 3])
def test_chunks(split: int, tau_s: float) -> None:
    """The library's own loop over parts of a sequence."""

    def run(model: Any, x: Tensor) -> Values:
        functional.reset_net(model)
        out = functional.chunk_multi_step_forward(split, x, model)
        return rate_loss(out) + model[1].v.mean(), [out, model[1].v]

    check(lambda: net(NODES["ParametricLIFNode"]), run, "spikingjelly", data(), tau_s)


@pytest.mark.parametrize("tau_s", TAUS)
def test_functional_multi_step_forward_of_several_modules(tau_s: float) -> None:
    def run(model: Any, x: Tensor) -> Values:
        functional.reset_net(model)
        hidden = functional.seq_to_ann_forward(x, [model[0]])
        hidden = functional.multi_step_forward(hidden, [model[1], model[2]])
        out = functional.multi_step_forward(hidden, model[3])
        return rate_loss(out), [hidden, out]

    check(lambda: net(mode="s"), run, "spikingjelly", data(), tau_s)


# --- losses -----------------------------------------------------------------------------------

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "TET": lambda out: functional.temporal_efficient_training_cross_entropy(out, TARGETS),
    "similar": lambda out: functional.spike_similar_loss(
        out.transpose(0, 1).flatten(1),
        torch.eye(CLASSES)[TARGETS],
        kernel_type="linear",
        loss_type="mse",
    ),
}


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, tau_s: float) -> None:
    def run(model: Any, x: Tensor) -> Values:
        _, [out] = whole(model, x)
        return LOSSES[name](out), [out]

    check(net, run, "spikingjelly", data(), tau_s)


class NonSpikingNode(neuron.SimpleLIFNode):  # type: ignore[misc]
    """The library's DQN example makes its readout of a node that does not fire."""

    def single_step_forward(self, x: Tensor) -> Tensor:
        self.neuronal_charge(x)
        return self.v  # type: ignore[no-any-return]


READOUTS: dict[str, Callable[[], nn.Module]] = {
    "of the library": lambda: neuron.NonSpikingLIFNode(tau=2.0, decode="max-mem"),
    "mean": lambda: neuron.NonSpikingIFNode(decode="mean-mem"),
    "of the example": lambda: NonSpikingNode(tau=2.0, decay_input=True),
}


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("readout", READOUTS)
def test_non_spiking_heads(readout: str, tau_s: float) -> None:
    """Q-values are potentials; Bellman's loss with a frozen target network, a clipped step."""

    def make() -> nn.Module:
        layers = (nn.Linear(INPUTS, HIDDEN), neuron.IFNode(), nn.Linear(HIDDEN, CLASSES))
        return nn.Sequential(*layers, READOUTS[readout]())

    def q_values(model: Any, x: Tensor) -> Tensor:
        functional.reset_net(model)
        if readout == "of the example":
            for step in x:
                model(step)
            return model[-1].v  # type: ignore[no-any-return]
        spikes = functional.multi_step_forward(x, model[:-1])
        return model[-1](spikes)  # type: ignore[no-any-return]

    def targets(model: nn.Module) -> Tensor:
        """What a copy of the network that does not learn says."""
        frozen = make()
        frozen.load_state_dict(model.state_dict())
        if tssl_adapters.is_wrapped(model):
            tssl_adapters.wrap(frozen, tau_s=tau_s)
        with torch.no_grad():
            return 1.0 + 0.9 * q_values(frozen, data(seed=9)).amax(1)

    def run(model: Any, x: Tensor, aim: Tensor | None = None) -> Values:
        aim = targets(model) if aim is None else aim
        chosen = q_values(model, x).gather(1, TARGETS.unsqueeze(1)).squeeze(1)
        return smooth_l1_loss(chosen, aim), [chosen, aim]

    if tau_s == 1.0:  # the frozen network has no hook of the twin's
        check(make, run, "spikingjelly", data(), tau_s)
    model = tssl_adapters.wrap(seeded(make), tau_s=tau_s)
    report = {row.path: row.status for row in tssl_adapters.inspect(model)}
    assert report["1"] == "wrapped"
    assert report.get("3", "native") == "native"
    optimizer, losses, aim = torch.optim.Adam(model.parameters(), lr=0.01), [], targets(model)
    for _ in range(10):
        loss, _ = run(model, data(), aim)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


# --- memory, precision, surrogates, encoders ---------------------------------------------------


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("budget", ["speed", "memory"])
def test_optimised_memory(budget: Any, name: str, tau_s: float) -> None:
    """``optimize_memory`` after ``wrap``: the same numbers, with compressed spikes."""

    def run(model: Any) -> list[Tensor]:
        loss, values = whole(model, data())
        return [loss.detach(), *values, *torch.autograd.grad(loss, list(model.parameters()))]

    def make() -> nn.Module:
        return tssl_adapters.wrap(seeded(lambda: net(NODES[name])), tau_s=tau_s)

    plain, saving = make(), make()
    before = [id(parameter) for parameter in saving.parameters()]
    optimised = memopt.optimize_memory(
        saving,
        (nn.Linear, base.MemoryModule),
        lambda model: whole(model, data()),
        level=1,
        checkpoint_budget=budget,
    )
    assert [id(parameter) for parameter in optimised.parameters()] == before
    close(run(optimised), run(plain), 1e-6)
    assert tssl_adapters.is_wrapped(optimised)


@pytest.mark.parametrize("level", [0, 2, 3, 4])
def test_other_levels_of_optimised_memory(level: Any) -> None:
    """Beyond the first they measure a GPU's memory, and say so natively too."""

    def optimise(model: nn.Module) -> str:
        options = {"level": level, "split_fn": lambda module: [], "can_chunk": lambda module: True}
        try:
            targets = (nn.Linear, base.MemoryModule)
            memopt.optimize_memory(model, targets, lambda m: whole(m, data()), **options)
        except RuntimeError as error:
            return str(error)
        return ""

    native, ours = seeded(net), tssl_adapters.wrap(seeded(net))
    assert optimise(ours) == optimise(native)
    if not torch.cuda.is_available():
        loss, values = whole(ours, data())
        assert torch.equal(values[0], whole(native, data())[1][0])
        assert all(grad.any() for grad in torch.autograd.grad(loss, list(ours.parameters())))


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("name", NODES)
def test_mixed_precision(name: str, tau_s: float) -> None:
    """bfloat16 autocast: float32 weights get finite gradients, values are the twin's."""

    def run(model: Any) -> tuple[Tensor, Tensor]:
        functional.reset_net(model)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(data())
            return out, cross_entropy(out.mean(0), TARGETS)

    twin, ours = seeded(lambda: net(NODES[name])), seeded(lambda: net(NODES[name]))
    tssl_adapters.wrap(ours, tau_s=tau_s)
    with emitting_psc(twin, tau_s):
        expected, _ = run(twin)
    out, loss = run(ours)
    assert out.dtype == expected.dtype
    assert torch.equal(out, expected)
    assert out.any()
    for grad in torch.autograd.grad(loss, leaves(ours)):
        assert grad.dtype == torch.float32
        assert torch.isfinite(grad).all()
        assert grad.any()


@pytest.mark.parametrize("tau_s", TAUS)
def test_encoders(tau_s: float) -> None:
    """A learned and a Poisson encoder before the network, as in the library's first examples."""

    def make() -> nn.Module:
        stem = nn.Sequential(nn.Linear(INPUTS, INPUTS), neuron.IFNode(v_threshold=0.3))
        return nn.ModuleDict({"encoder": stem, "poisson": encoding.PoissonEncoder(), "net": net()})

    def run(model: Any, x: Tensor) -> Values:
        functional.reset_net(model)
        torch.manual_seed(5)
        learned = torch.stack([model["encoder"](x[0]) for _ in range(STEPS)])
        out = model["net"](learned + model["poisson"](x.clamp(0.0, 1.0)))
        return rate_loss(out), [learned, out]

    check(make, run, "spikingjelly", data(), tau_s)


SURROGATES = [
    surrogate.ATan, surrogate.PiecewiseQuadratic, surrogate.Rect, surrogate.SoftSign,
    surrogate.PiecewiseLeakyReLU, surrogate.LeakyKReLU,
]  # fmt: skip


@pytest.mark.parametrize("kind", SURROGATES, ids=lambda kind: kind.__name__)
def test_the_surrogate_is_not_asked(kind: Any) -> None:
    """Whatever it is, the spikes are the same and the rule's gradient is too."""

    def run(**settings: Any) -> list[Tensor]:
        model = tssl_adapters.wrap(seeded(lambda: net(lambda: NODES["LIFNode"](**settings))))
        loss, values = whole(model, data())
        return [*values, *torch.autograd.grad(loss, list(model.parameters()))]

    for ours, plain in zip(run(surrogate_function=kind()), run(), strict=True):
        assert torch.equal(ours, plain)
