"""Ways to use snnTorch's layers: tutorials' networks, loops, losses and helpers.

Each is run wrapped and unwrapped as in tests/test_usage.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import snntorch
import torch
from snntorch import functional as SF
from snntorch import utils
from snntorch._layers.bntt import BatchNormTT1d
from snntorch.export_nir import export_to_nir
from snntorch.functional import probe
from snntorch.import_nir import import_from_nir
from torch import Tensor, nn
from torch.nn.functional import mse_loss, softplus
from torch.utils.data import DataLoader
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
    no_lost_links,
    own_instances,
    rule_of,
    seeded,
)

import tssl_adapters

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from snntorch import backprop

Values = tuple[Tensor, list[Tensor]]


def hidden(beta: Any = 0.9, **settings: Any) -> snntorch.Leaky:
    return snntorch.Leaky(**({"beta": beta, "threshold": 0.5, "init_hidden": True} | settings))


def recorded(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """A tutorial's forward pass over hidden states: all spikes and potentials of the last layer."""
    utils.reset(net)
    spikes, mem = zip(*(net(step) for step in x), strict=True)
    return torch.stack(list(spikes)), torch.stack(list(mem))


def tutorial_net() -> nn.Sequential:
    first = (nn.Linear(INPUTS, HIDDEN), hidden(threshold=0.3))
    return nn.Sequential(*first, nn.Linear(HIDDEN, CLASSES), hidden(output=True, threshold=0.3))


# --- populations ------------------------------------------------------------------------------

POPULATION = 6 * CLASSES


def population_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Linear(INPUTS, HIDDEN), hidden()),
        nn.Sequential(nn.Linear(HIDDEN, POPULATION), hidden(output=True)),
    )


POPULATION_LOSSES: dict[str, Callable[[], Any]] = {
    "ce_rate": lambda: SF.ce_rate_loss(True, CLASSES, weight=torch.ones(CLASSES)),  # it needs some
    "ce_count": lambda: SF.ce_count_loss(population_code=True, num_classes=CLASSES),
    "mse_count": lambda: SF.mse_count_loss(1.0, 0.1, population_code=True, num_classes=CLASSES),
}


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("name", POPULATION_LOSSES)
def test_population_coding(name: str, tau_s: float) -> None:
    """Many output neurons stand for a class, in a loss and in the accuracy."""

    def run(net: Any, x: Tensor) -> Values:
        spikes, mem = recorded(net, x)
        accuracy = SF.accuracy_rate(spikes, TARGETS, population_code=True, num_classes=CLASSES)
        loss = POPULATION_LOSSES[name]()(spikes, TARGETS)
        return loss, [spikes, mem, torch.tensor(accuracy)]

    check(population_net, run, "snntorch", data(), tau_s)


# --- nested containers ------------------------------------------------------------------------


def nested_net() -> nn.Sequential:
    """Blocks in blocks with hidden states, as for event cameras."""

    def block(inputs: int, outputs: int) -> nn.Sequential:
        layers = (
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            hidden(0.5),
        )
        return nn.Sequential(*layers, nn.MaxPool2d(2))

    head = nn.Sequential(nn.Flatten(), nn.Linear(6 * 4, CLASSES), hidden(0.5, output=True))
    return nn.Sequential(nn.Sequential(block(2, 4), nn.Sequential(block(4, 6))), head)


@pytest.mark.parametrize("tau_s", TAUS)
def test_nested_sequentials(tau_s: float) -> None:
    def run(net: Any, x: Tensor) -> Values:
        spikes, mem = recorded(net, x)
        return SF.mse_count_loss(0.8, 0.2)(spikes, TARGETS) + mem.square().mean(), [spikes, mem]

    check(nested_net, run, "snntorch", data(size=(2, 8, 8)), tau_s)


class Normalised(nn.Module):
    """Batch normalisation of its own for every time step."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, CLASSES, bias=False)
        self.norm = BatchNormTT1d(CLASSES, STEPS)
        self.lif = snntorch.Leaky(beta=0.9, threshold=0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem, rows = self.lif.init_leaky(), []
        for step, norm in zip(x, self.norm, strict=True):
            spikes, mem = self.lif(norm(self.fc(step)), mem)
            rows.append((spikes, mem))
        spikes, potentials = zip(*rows, strict=True)
        return torch.stack(spikes), torch.stack(potentials)


@pytest.mark.parametrize("tau_s", TAUS)
def test_batch_normalisation_through_time(tau_s: float) -> None:
    def run(net: Any, x: Tensor) -> Values:
        spikes, mem = net(x)
        loss = SF.ce_rate_loss()(spikes, TARGETS) + SF.ce_max_membrane_loss()(mem, TARGETS)
        return loss, [spikes, mem]

    torch.manual_seed(0)
    check(Normalised, run, "snntorch", data(), tau_s)


# --- one neuron, called twice a step ----------------------------------------------------------


class Regression(nn.Module):
    """Membrane regression; one neuron serves two layers, or two that share their parameters do."""

    def __init__(self, neuron: Callable[[], nn.Module], neurons: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.lif1 = self.lif2 = neuron()
        if neurons == 2:
            self.lif2 = neuron()
            for name, parameter in self.lif1.named_parameters():
                setattr(self.lif2, name, parameter)
        self.fc3 = nn.Linear(HIDDEN, 1)
        self.readout = snntorch.Leaky(beta=0.9, learn_beta=True, reset_mechanism="none")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        start = self.lif1.reset_mem()
        self.lif2.reset_mem()
        first = second = start if isinstance(start, tuple) else (start,)
        if self.lif1.init_hidden:  # both layers on one state
            first = second = ()
        mem, spikes, potentials = self.readout.init_leaky(), [], []
        for step in x:
            spk, first = self.after(self.lif1(self.fc1(step), *first))
            spk, second = self.after(self.lif2(self.fc2(spk), *second))
            _, mem = self.readout(self.fc3(spk), mem)
            spikes.append(spk)
            potentials.append(mem)
        return torch.stack(spikes), torch.stack(potentials)

    @staticmethod
    def after(result: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        return (result, ()) if isinstance(result, Tensor) else (result[0], result[1:])


def regression(net: Any, x: Tensor) -> Values:
    """A loss on the potential at every step."""
    spikes, mem = net(x)
    return mse_loss(mem.squeeze(-1), x.mean(-1).cumsum(0)), [spikes, mem]


NEURONS: dict[str, Callable[..., nn.Module]] = {
    "Leaky": lambda **s: snntorch.Leaky(beta=0.9, threshold=0.4, learn_threshold=True, **s),
    "Lapicque": lambda **s: snntorch.Lapicque(beta=0.8, threshold=0.1, **s),
    "Synaptic": lambda **s: snntorch.Synaptic(
        alpha=0.7, beta=0.9, threshold=0.4, learn_alpha=True, learn_beta=True, **s
    ),
    "Alpha": lambda **s: snntorch.Alpha(alpha=0.9, beta=0.7, threshold=0.1, learn_beta=True, **s),
}


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize("init_hidden", [False, True])
def test_regression_with_a_neuron_called_twice_a_step(
    init_hidden: bool, name: str, tau_s: float
) -> None:
    def make(neurons: int = 1) -> nn.Module:
        return Regression(lambda: NEURONS[name](init_hidden=init_hidden), neurons)

    if init_hidden or tau_s == 1.0:  # the twin's filter has one trace a layer
        check(make, regression, "snntorch", data(), tau_s)
    if init_hidden:
        return
    one, two = (tssl_adapters.wrap(seeded(lambda n=n: make(n)), tau_s=tau_s) for n in (1, 2))
    (loss, values), (expected, theirs) = regression(one, data()), regression(two, data())
    for left, right in zip(values, theirs, strict=True):
        assert torch.equal(left, right)
    found = torch.autograd.grad(loss, list(one.parameters()))
    close(found, torch.autograd.grad(expected, list(two.parameters())), 1e-5)


# --- losses -----------------------------------------------------------------------------------

WEIGHT = torch.linspace(0.5, 2.0, CLASSES)
LOSSES: dict[str, tuple[bool, Callable[[], Any]]] = {
    "ce_rate, weighed": (False, lambda: SF.ce_rate_loss(weight=WEIGHT)),
    "ce_count, sum": (False, lambda: SF.ce_count_loss(reduction="sum")),
    "ce_max_membrane, weighed": (True, lambda: SF.ce_max_membrane_loss(weight=WEIGHT)),
    "mse_count, sum": (False, lambda: SF.mse_count_loss(0.8, 0.2, reduction="sum")),
    "mse_membrane, per sample": (True, lambda: SF.mse_membrane_loss(reduction="none")),
    "mse_temporal, tolerant": (False, lambda: SF.mse_temporal_loss(tolerance=1)),
    "mse_temporal, spike times": (False, lambda: SF.mse_temporal_loss(target_is_time=True)),
    "mse_temporal, several": (
        False,
        lambda: SF.mse_temporal_loss(target_is_time=True, multi_spike=True),
    ),
    "ce_temporal, reciprocal": (False, lambda: SF.ce_temporal_loss(inverse="reciprocal")),
}


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, tau_s: float) -> None:
    """With weights, reductions and targets in time; and both accuracies."""
    on_membrane, make_loss = LOSSES[name]

    def run(net: Any, x: Tensor) -> Values:
        spikes, mem = recorded(net, x)
        targets = TARGETS
        if "times" in name:
            targets = (torch.arange(BATCH * CLASSES) % STEPS).view(BATCH, CLASSES).float()
        elif "several" in name:
            targets = torch.tensor([1.0, 4.0]).view(2, 1, 1).expand(2, BATCH, CLASSES).clone()
        loss = make_loss()(mem if on_membrane else spikes, targets).sum()
        rate = SF.accuracy_rate(spikes, TARGETS)
        first = SF.accuracy_temporal(spikes.detach(), TARGETS)
        return loss, [spikes, mem, torch.tensor([rate, first])]

    check(tutorial_net, run, "snntorch", data(), tau_s)


# --- the library's training loops -------------------------------------------------------------


@pytest.mark.parametrize("regularised", [False, True])
@pytest.mark.parametrize("criterion", ["ce_rate", "ce_max_membrane", "mse_membrane"])
def test_real_time_recurrent_learning(criterion: str, regularised: bool) -> None:
    """With the native rule at the native weights after an epoch, with TSSL-BP elsewhere."""

    def trained(**wrapping: Any) -> list[Tensor]:
        net = seeded(tutorial_net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        if wrapping:
            tssl_adapters.wrap(net, **wrapping)
        options: dict[str, Any] = {"num_steps": STEPS, "time_var": False}
        if regularised:
            options["regularization"] = SF.l1_rate_sparsity(1e-2)
        loss = getattr(SF, f"{criterion}_loss")()
        batches = [(data(seed=seed)[0], TARGETS) for seed in (3, 4)]
        loader: Any = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
        found = backprop.RTRL(net, loader, optimizer, loss, **options)
        return [found.detach(), *(p.detach().clone() for p in net.parameters())]

    native = trained()
    close(trained(rule=rule_of("snntorch")), native, 1e-5)
    for tau_s in TAUS:
        loss, *weights = trained(tau_s=tau_s)
        assert torch.isfinite(loss)
        moved = [float((a - b).abs().max()) for a, b in zip(weights, native[1:], strict=True)]
        assert all(0.0 < m < 10.0 for m in moved[:2])


class Forward(nn.Module):
    """A layer of a forward-forward network, whose ``train`` is a step of its own training."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(inputs, outputs), hidden(0.8, threshold=0.3)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=0.01)

    def forward(self, x: Tensor) -> Tensor:
        utils.reset(self)
        return torch.stack([self.lif(self.fc(step)) for step in x])

    def train(self, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        good, bad = (self(x).mean(0).square().mean(1) for x in (positive, negative))
        loss = softplus(torch.cat([0.3 - good, bad - 0.3])).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return self(positive).detach(), self(negative).detach()


class ForwardForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Forward(INPUTS, HIDDEN), Forward(HIDDEN, HIDDEN)])

    def train(self, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        for layer in self.layers:
            positive, negative = layer.train(positive, negative)
        return positive, negative


def test_forward_forward() -> None:
    """``wrap`` calls nothing that the user may have given another meaning."""

    def trained(**wrapping: Any) -> list[Tensor]:
        net = seeded(ForwardForward)
        if wrapping:
            tssl_adapters.wrap(net, **wrapping)
        for seed in range(3):
            net.train(data(seed=seed), data(seed=9 - seed))
        if wrapping:
            tssl_adapters.unwrap(net)
        return [p.detach() for p in net.parameters()]

    native = trained()
    close(trained(rule=rule_of("snntorch")), native, 1e-4)
    for tau_s in TAUS:
        weights = trained(tau_s=tau_s)
        assert all(torch.isfinite(weight).all() for weight in weights)
        assert not any(torch.equal(a, b) for a, b in zip(weights, native, strict=True))


# --- tools ------------------------------------------------------------------------------------


def test_monitors() -> None:
    """The library's own record what layers, found by isinstance, emit and are given."""

    def watched(net: nn.Module) -> list[Tensor]:
        options: dict[str, Any] = {"net": net, "instance": snntorch.Leaky}
        monitors = [
            probe.OutputMonitor(**options),
            probe.InputMonitor(**options),
            probe.AttributeMonitor("threshold", pre_forward=False, **options),
        ]
        recorded(net, data())
        found = [record for each in monitors for record in each.records]
        assert len(found) == 3 * 2 * STEPS
        flat = (each if isinstance(each, tuple) else (each,) for each in found)
        return [tensor for each in flat for tensor in each]

    native, ours = watched(seeded(population_net)), seeded(population_net)
    for left, right in zip(watched(tssl_adapters.wrap(ours)), native, strict=True):
        assert torch.equal(left, right)


def test_nir_round_trip() -> None:
    """A wrapped network exports as the native one does, and what is imported can be wrapped."""
    import nir

    def make() -> nn.Sequential:
        first, last = (
            hidden(torch.full((size,), 0.9), threshold=torch.full((size,), 0.4))
            for size in (HIDDEN, CLASSES)
        )
        return nn.Sequential(nn.Linear(INPUTS, HIDDEN), first, nn.Linear(HIDDEN, CLASSES), last)

    sample = data()[0]
    graphs = [
        export_to_nir(net, sample, ignore_dims=[0])
        for net in (seeded(make), tssl_adapters.wrap(seeded(make)))
    ]
    for one, other in zip(*(graph.nodes.values() for graph in graphs), strict=True):
        assert type(one) is type(other)
        if isinstance(one, nir.LIF):
            assert (one.tau == other.tau).all()
            assert (one.v_threshold == other.v_threshold).all()

    def run(net: Any, x: Tensor) -> Values:
        utils.reset(net)
        state, outs = None, []
        for step in x:
            out, state = net(step, state)
            outs.append(out)
        out = torch.stack(outs)
        return SF.ce_rate_loss()(out, TARGETS), [out]

    imported = import_from_nir(graphs[0])
    assert any(isinstance(module, snntorch.Leaky) for module in imported.modules())
    expected, values = run(imported, data())
    native = torch.autograd.grad(expected, list(imported.parameters()), allow_unused=True)
    tssl_adapters.wrap(imported, rule=rule_of("snntorch"))
    loss, found = run(imported, data())
    assert torch.equal(loss, expected)
    assert torch.equal(found[0], values[0])
    ours = torch.autograd.grad(loss, list(imported.parameters()), allow_unused=True)
    for left, right in zip(ours, native, strict=True):
        assert (left is None) == (right is None)
        if left is not None and right is not None:
            close([left], [right], 2e-5)
