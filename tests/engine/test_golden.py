"""The vectors that the authors' code computed: through the engine, and through each library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_layers import (
    LIBRARIES,
)
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.engine.attach import attach
from tssl_adapters.engine.call.settings import Settings
from tssl_adapters.neuron import LinearCharge, Neuron
from tssl_adapters.resets import ToValue

GOLDEN = Path(__file__).parents[1] / "golden"
LAYERS = dict(np.load(GOLDEN / "lif_psc_layer.npz"))
CASES = [f"case{i:02d}" for i in range(int(LAYERS["n_cases"]))]


def paper_neuron(tau_m: float, theta: float) -> Neuron:
    decay = 1.0 - 1.0 / tau_m
    charge = LinearCharge(decay, 1.0, 0.0, lambda v, x: decay * v + x)
    return Neuron(charge, ToValue(0.0), theta)


FLOAT64 = ["engine", "spikingjelly-m", *({"norse"} & {*LIBRARIES})]


def relative(ours: Tensor, golden: np.ndarray[Any, Any]) -> float:
    reference = torch.as_tensor(golden)
    return float((ours.detach().double() - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_engine_on_one_layer(case: str) -> None:
    tau_m, tau_s, theta = (float(LAYERS[f"{case}/{k}"]) for k in ("tau_m", "tau_s", "theta"))
    drive = torch.tensor(LAYERS[f"{case}/drive"])
    cotangent = torch.tensor(LAYERS[f"{case}/grad_psc"])
    neuron = paper_neuron(tau_m, theta)
    settings = Settings("layer", rules.TSSLBP(), tau_s)

    x = drive.clone().requires_grad_()
    result = attach(settings, neuron, x, torch.zeros_like(x[0]), None, None, sequence=True)
    result.out.backward(cotangent)
    assert relative(x.grad, LAYERS[f"{case}/grad_drive"]) <= 1e-12
    np.testing.assert_allclose(result.out.detach(), LAYERS[f"{case}/psc"], atol=1e-14)

    x = drive.clone().requires_grad_()
    state, trace, outs = torch.zeros_like(x[0]), None, []
    for step in x.unbind(0):
        one = attach(settings, neuron, step, state, trace, None, sequence=False)
        state, trace = one.state, one.trace
        outs.append(one.out)
    torch.stack(outs).backward(cotangent)
    assert relative(x.grad, LAYERS[f"{case}/grad_drive"]) <= 1e-12

    zero = torch.zeros_like(drive)
    run = naive.forward(neuron, tau_s, drive, zero[0], zero[0])
    grads = naive.backward(neuron, rules.TSSLBP(), tau_s, drive, run, cotangent, zero)
    assert relative(grads.drive, LAYERS[f"{case}/grad_drive"]) <= 1e-12


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("case", CASES)
def test_library_on_one_layer(case: str, library: str) -> None:
    tau_m, tau_s, theta = (float(LAYERS[f"{case}/{k}"]) for k in ("tau_m", "tau_s", "theta"))
    make, run = LIBRARIES[library]
    # snnTorch's spikes are float32 whatever the input.
    float64 = 5e-7 if library == "snntorch" else 1e-12
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, float64)):
        layer = tssl_adapters.wrap(make(tau_m, theta, dtype), tau_s=tau_s, rule="tsslbp")
        x = torch.tensor(LAYERS[f"{case}/drive"], dtype=dtype, requires_grad=True)
        out = run(layer, x)
        out.backward(torch.tensor(LAYERS[f"{case}/grad_psc"]).to(out.dtype))
        assert relative(x.grad, LAYERS[f"{case}/grad_drive"]) <= tolerance
        np.testing.assert_allclose(out.detach(), LAYERS[f"{case}/psc"], atol=1e-6)


class Network(nn.Module):
    """A bias-free stack of linear layers and spiking layers, over ``[T, batch, inputs]``."""

    def __init__(self, data: dict[str, Any], spiking: list[Any], run: Any) -> None:
        super().__init__()
        weights = [data[f"weight{k}_initial"] for k in range(len(spiking))]
        self.linear = nn.ModuleList(nn.Linear(*w.shape[::-1], bias=False) for w in weights)
        self.spiking, self.run = nn.ModuleList(spiking), run
        for linear, weight in zip(self.linear, weights, strict=True):
            linear.weight.data = torch.tensor(weight, dtype=linear.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        for linear, layer in zip(self.linear, self.spiking, strict=True):
            x = self.run(layer, linear(x))
        return x


class EngineLayer(nn.Module):
    """The engine alone, as a layer."""

    def __init__(self, tau_m: float, theta: float, tau_s: float) -> None:
        super().__init__()
        self.neuron = paper_neuron(tau_m, theta)
        self.settings = Settings("layer", rules.TSSLBP(), tau_s)

    def forward(self, x: Tensor) -> Tensor:
        zero = torch.zeros_like(x[0])
        return attach(self.settings, self.neuron, x, zero, None, None, sequence=True).out


FC = {name: dict(np.load(GOLDEN / f"{name}.npz")) for name in ("fc_network_t5", "fc_network_t30")}


def parameters_of(data: dict[str, Any]) -> tuple[float, float, float, int]:
    depth = sum(key.endswith("_initial") for key in data)
    return float(data["tau_m"]), float(data["theta"]), float(data["tau_s"]), depth


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", FC)
def test_first_step_gradients_of_a_network(name: str, library: str) -> None:
    data = FC[name]
    tau_m, theta, tau_s, depth = parameters_of(data)
    make, run = LIBRARIES[library]
    layers = [make(tau_m, theta, torch.float32) for _ in range(depth)]
    network = tssl_adapters.wrap(Network(data, layers, run), tau_s=tau_s, rule="tsslbp")
    out = network(torch.tensor(data["input_psc"], dtype=torch.float32))
    np.testing.assert_allclose(out.detach(), data["output_psc"], atol=1e-6)
    (0.5 * (out - torch.tensor(data["loss_target"])).square().sum()).backward()
    for k, linear in enumerate(network.linear):
        assert relative(linear.weight.grad, data[f"weight{k}_grad_first_step"]) <= 1e-5


@pytest.mark.parametrize("library", FLOAT64)
@pytest.mark.parametrize("name", FC)
def test_training_trajectory(name: str, library: str) -> None:
    """In float64 the whole training: every loss and the final weights."""
    data = FC[name]
    tau_m, theta, tau_s, depth = parameters_of(data)
    if library == "engine":
        layers: list[Any] = [EngineLayer(tau_m, theta, tau_s) for _ in range(depth)]
        network = Network(data, layers, lambda layer, x: layer(x)).double()
    else:
        make, run = LIBRARIES[library]
        layers = [make(tau_m, theta, torch.float64) for _ in range(depth)]
        network = tssl_adapters.wrap(
            Network(data, layers, run), tau_s=tau_s, rule="tsslbp"
        ).double()
    for k, linear in enumerate(network.linear):
        linear.weight.data = torch.tensor(data[f"weight{k}_initial"])
    x, target = torch.tensor(data["input_psc"]), torch.tensor(data["loss_target"])
    optimizer = torch.optim.AdamW(network.parameters(), lr=float(data["lr"]))
    losses = []
    for _ in data["losses"]:
        optimizer.zero_grad()
        loss = 0.5 * (network(x) - target).square().sum()
        loss.backward()
        losses.append(loss.item())
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.clamp_(-4.0, 4.0)
    np.testing.assert_allclose(losses, data["losses"], rtol=1e-9)
    for k, linear in enumerate(network.linear):
        assert relative(linear.weight, data[f"weight{k}_final"]) <= 1e-9


def over_time(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return function(x.flatten(0, 1)).unflatten(0, x.shape[:2])


@pytest.mark.parametrize("library", ["engine", *LIBRARIES])
def test_convolutional_network(library: str) -> None:
    data = dict(np.load(GOLDEN / "conv_network_t5.npz"))
    tau_m, theta, tau_s = (float(data[k]) for k in ("tau_m", "theta", "tau_s"))
    dtype = torch.float64 if library in FLOAT64 else torch.float32
    if library == "engine":
        layers: list[Any] = [EngineLayer(tau_m, theta, tau_s) for _ in range(3)]
        run: Callable[[Any, Tensor], Tensor] = lambda layer, x: layer(x)  # noqa: E731
    else:
        make, run = LIBRARIES[library]
        layers = [
            tssl_adapters.wrap(make(tau_m, theta, dtype), tau_s=tau_s, rule="tsslbp")
            for _ in range(3)
        ]
    names = ("conv1_weight", "conv2_weight", "fc_weight")
    conv1, conv2, fc = (torch.tensor(data[n], dtype=dtype, requires_grad=True) for n in names)
    x = torch.tensor(data["input_psc"], dtype=dtype)
    gain = 4.0 * float(data["pool_gain"])
    x = run(layers[0], over_time(lambda z: F.conv2d(z, conv1, padding=2), x))
    x = over_time(lambda z: F.avg_pool2d(z, 2) * gain, x)
    x = run(layers[1], over_time(lambda z: F.conv2d(z.to(dtype), conv2, padding=1), x))
    out = run(layers[2], F.linear(x.flatten(2), fc))
    out.backward(torch.tensor(data["grad_output_psc"], dtype=out.dtype))
    np.testing.assert_allclose(out.detach(), data["output_psc"], atol=1e-6)
    for name, weight in zip(names, (conv1, conv2, fc), strict=True):
        tolerance = 1e-9 if dtype == torch.float64 else 1e-5
        assert relative(weight.grad, data[f"{name}_grad"]) <= tolerance
