"""What PyTorch offers around a model: several processes, compilation, averages, layouts."""

from __future__ import annotations

import copy
import itertools
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import compiler
import pytest
import snntorch
import torch
import torch.distributed as dist
import train_distributed
from models import MODELS, SPIKING, equal, inputs, numbers
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import tssl_adapters

TAUS = [1.0, 3.0]


def made(name: str, tau_s: float = 1.0, skip: Any = ()) -> nn.Module:
    """The same wrapped model at every call."""
    torch.manual_seed(0)
    return tssl_adapters.wrap(MODELS[name]().eval(), tau_s=tau_s, skip=skip)


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    """A mean over the batch, as DistributedDataParallel averages over processes."""
    outs = [out for out in model(x) if out.ndim == 3]
    terms = [(out * torch.linspace(-1.0, 2.0, out.shape[-1])).sum((0, 2)).mean() for out in outs]
    return torch.stack(terms).sum()


def gradients(model: nn.Module) -> list[Tensor]:
    """Of every parameter that got one."""
    return [p.grad for p in model.parameters() if p.grad is not None]


def close(left: list[Tensor], right: list[Tensor]) -> None:
    """Equal up to the order of sums."""
    assert len(left) == len(right) > 0
    for ours, theirs in zip(left, right, strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-5 * scale)


def one_of_two(rank: int, folder: str) -> None:
    """A process with half the batch; writes every model's gradients after the average."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = {}
    for name, tau_s in itertools.product(MODELS, TAUS):
        parallel = DistributedDataParallel(made(name, tau_s))
        loss_of(parallel, inputs().chunk(2, dim=1)[rank]).backward()
        found[name, tau_s] = gradients(parallel)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, tau_s in itertools.product(MODELS, TAUS):
        assert equal(first[name, tau_s], second[name, tau_s])
        alone = made(name, tau_s)
        loss_of(alone, inputs()).backward()
        close(first[name, tau_s], gradients(alone))


def accuracies(said: str) -> list[str]:
    """Of what the example prints, the lines on its accuracy."""
    return [line for line in said.splitlines() if "test accuracy" in line]


def test_the_distributed_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under torchrun, two processes learn, and as this one does with batches twice as large."""
    options = "--data digits --epochs 3 --dtype float64".split()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = subprocess.run(
        [*command, train_distributed.__file__, *options],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    two = accuracies(run.stdout)
    found = [float(line.split()[-1].rstrip("%")) for line in two]
    assert len(found) == 3
    assert found[-1] > max(40.0, found[0])

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": port}
    for name, value in {**alone, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(sys, "argv", ["one", *options, "--batch-size", "100"])
    train_distributed.main()
    assert two == accuracies(capsys.readouterr().out)


@pytest.mark.singly
@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("name", MODELS)
def test_compiled_models(name: str, tau_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile breaks its graph at the wrapped layers; the gradient is the same."""
    # snnTorch lists every layer ever made, and torch.compile would guard all of the list.
    monkeypatch.setattr(snntorch.SpikingNeuron, "instances", [])
    model = made(name, tau_s)
    expected = numbers(model)
    compiler.forget()
    compiled = torch.compile(model, backend="aot_eager")
    x = inputs()
    for _ in range(2):
        model.zero_grad()
        loss_of(compiled, x).backward()  # type: ignore[arg-type]
    found = gradients(model)
    model.zero_grad()
    loss_of(model, x).backward()
    close(found, gradients(model))
    close(numbers(model), expected)


def test_compiled_whole() -> None:
    """fullgraph=True cannot be had, and torch says so rather than taking another gradient."""
    model = made("spikingjelly")
    compiler.forget()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match=r"torch\.compiler\.disable"):
        compiled(inputs())


@pytest.mark.parametrize("name", MODELS)
def test_averaged_copies(name: str) -> None:
    """An exponential moving average is a wrapped model with the same forward pass."""
    if "norse" in SPIKING_LIBRARIES[name]:
        pytest.skip("Norse's parameters cannot be copied natively")
    model = made(name)
    numbers(model)  # leaves states without a graph behind
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    average.update_parameters(model)
    assert equal(numbers(average.module), numbers(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    average.update_parameters(model)
    assert tssl_adapters.is_wrapped(average)
    assert not equal(numbers(average.module), numbers(model))


SPIKING_LIBRARIES = {
    "snntorch": ["snntorch"],
    "spikingjelly": ["spikingjelly"],
    "norse": ["norse"],
    "mixed": ["snntorch", "spikingjelly", "norse"],
}


@pytest.mark.parametrize("name", MODELS)
def test_functional_call(name: str) -> None:
    """Other weights for one call: their gradients are those of a model that has them."""
    model, other = made(name), made(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    weights = {k: v.detach().clone().requires_grad_() for k, v in other.named_parameters()}
    outs = torch.func.functional_call(model, weights, (inputs(),))
    outs = [out for out in outs if out.ndim == 3]
    terms = [(out * torch.linspace(-1.0, 2.0, out.shape[-1])).sum((0, 2)).mean() for out in outs]
    torch.stack(terms).sum().backward()
    loss_of(other, inputs()).backward()
    close([w.grad for w in weights.values() if w.grad is not None], gradients(other))
    assert gradients(model) == []


@pytest.mark.parametrize("name", MODELS)
def test_wrapped_beside_native(name: str) -> None:
    """A skipped layer keeps its own gradient, and its input gets it."""
    first = SPIKING[name][0]
    torch.manual_seed(0)
    native = MODELS[name]().eval()
    partly = made(name, skip=[first])
    whole = made(name)
    values = [numbers(model) for model in (partly, native, whole)]
    count = len([out for out in native(inputs()) if out.ndim == 3])
    assert equal(values[0][:count], values[1][:count])
    input_gradients = [value[count] for value in values]
    assert not torch.equal(input_gradients[0], input_gradients[1])
    assert not torch.equal(input_gradients[0], input_gradients[2])


@pytest.mark.parametrize("tau_s", TAUS)
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_channels_last(step_mode: str, tau_s: float) -> None:
    """A convolution in channels-last layout: the same values and gradients."""

    def run(channels_last: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(
            layer.Conv2d(2, 4, 3, step_mode=step_mode),
            neuron.LIFNode(tau=2.0, v_threshold=0.2, step_mode=step_mode),
            layer.Conv2d(4, 3, 3, step_mode=step_mode),
            neuron.IFNode(v_threshold=0.2, step_mode=step_mode),
        )
        tssl_adapters.wrap(model, tau_s=tau_s)
        x = torch.randn(4, 2, 2, 9, 9, generator=torch.Generator().manual_seed(1))
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
            x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (4, 2))
        x.requires_grad_()
        out = model(x) if step_mode == "m" else torch.stack([model(step) for step in x])
        (out * torch.linspace(-1.0, 2.0, out.numel()).view_as(out)).sum().backward()
        assert x.grad is not None
        return [out.detach(), x.grad, *gradients(model)]

    assert run(False)[0].any()
    close(run(True), run(False))


def test_copies_do_not_share_states() -> None:
    """A deep copy made in mid-training goes its own way."""
    model = made("spikingjelly", 3.0)
    numbers(model)
    twin = copy.deepcopy(model)
    assert equal(numbers(twin), numbers(model))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not equal(numbers(twin), numbers(model))
