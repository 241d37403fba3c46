"""torch.compile of every network in examples/: what eager gives."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import compiler
import pytest
import torch
import train_distributed
import train_further_rules
import train_sew_resnet
import train_with_norse
import train_with_snntorch
import train_with_spikingjelly
from spikingjelly.activation_based import functional
from torch import Tensor, nn
from usage import own_instances  # noqa: F401
from zoo.torchvision_stub import declare_missing_operators

import tssl_adapters

BATCH, STEPS = 2, 3
Run = Callable[[Tensor], Tensor]
Compile = Callable[[Any], Any]


def of_library(example: Any, network: str, width: int) -> Callable[[Compile], tuple[Any, Run]]:
    def build(compile: Compile) -> tuple[nn.Module, Run]:
        model = wrapped(example.build_network(network, width * width))
        compiled = compile(model)
        if example is train_with_snntorch:
            return model, compiled
        return model, lambda x: example.run(compiled, x)

    return build


def sew(compile: Compile) -> tuple[nn.Module, Run]:
    declare_missing_operators()
    model = wrapped(train_sew_resnet.build_network())
    compiled = compile(model)
    return model, lambda x: train_sew_resnet.run(compiled, x)


def distributed(compile: Compile) -> tuple[nn.Module, Run]:
    model = train_distributed.build_network(64, "smooth-tsslbp", 1.0)
    compiled = compile(strengthened(model))

    def run(x: Tensor) -> Tensor:
        functional.reset_net(model)
        return compiled(x.flatten(2))  # type: ignore[no-any-return]

    return model, run


def further(name: str, rule: str) -> Callable[[Compile], tuple[Any, Run]]:
    def build(compile: Compile) -> tuple[nn.Module, Run]:
        args = train_further_rules.parse_args([name, "--rule", rule, "--network", "20"])
        data = SimpleNamespace(num_pixels=64, sample_shape=(1, 8, 8), train_labels=[0])
        task = train_further_rules.TASKS[name](args, data)  # type: ignore[arg-type]
        strengthened(task.model)
        if name == "rows":
            output = compile(task.output)
            return task.model, lambda x: output(255.0 * x[0])
        run = compile(task.run)
        return task.model, lambda x: run(x.flatten(2))

    return build


def wrapped(model: nn.Module) -> nn.Module:
    return strengthened(tssl_adapters.wrap(model))


def strengthened(model: nn.Module) -> nn.Module:
    """With larger weights, so that few images and steps make the last layer fire."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(3.0)
    return model


NETWORKS: dict[str, tuple[Callable[[Compile], tuple[Any, Run]], int]] = {
    **{
        f"{example.__name__}-{network}": (of_library(example, network, width), width)
        for example in (train_with_snntorch, train_with_spikingjelly, train_with_norse)
        for network, width in (("20-20", 8), ("cnn", 28))
    },
    "sew_resnet18": (sew, 16),
    "distributed": (distributed, 8),
    "rates": (further("rates", "lee"), 8),
    "times": (further("times", "stdbp"), 8),
    "rows": (further("rows", "strsbp"), 8),
}


def numbers(model: nn.Module, run: Run, width: int) -> list[Tensor]:
    """The output, then the gradients of all parameters."""
    draw = torch.Generator().manual_seed(1)
    out = run(torch.rand(STEPS, BATCH, 1, width, width, generator=draw))
    weights = torch.randn(out.shape, generator=draw)
    return [out, *torch.autograd.grad((out * weights).sum(), list(model.parameters()))]


@pytest.mark.filterwarnings("ignore:tssl_adapters:UserWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network(name: str) -> None:
    build, width = NETWORKS[name]
    compiler.forget()
    found = []
    for compile in (lambda f: f, lambda f: torch.compile(f, backend="aot_eager")):
        torch.manual_seed(0)
        found.append(numbers(*build(compile), width))
    expected, compiled = found
    assert expected[0].count_nonzero()
    for ours, theirs in zip(compiled, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
