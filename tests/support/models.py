"""Small models as each library's users write them, one of all three, and how to compare models.

A model takes ``[T, batch, 4]``, starts from rest, and returns every spiking layer's output.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import norse.torch as norse
import snntorch
import torch
from compat_norse import box, lifted
from compat_snntorch import delay, start
from compat_spikingjelly import dropout, functional, layer, linear, neuron, node, set_sequences
from norse.torch.functional.lif import LIFParameters
from torch import Tensor, nn

INPUTS, BATCH = 4, 256
"""Wide, so that a wrapped layer's probing of its record takes few rounds."""
T = torch.as_tensor
LIVELY = {"tau_mem_inv": T(300.0), "v_th": T(0.3)}
"""Norse's own defaults need a drive of 10 to spike."""


class SnnTorchNet(nn.Module):
    """Explicit state, hidden state, learnable decay and threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, 6)
        self.lif1 = snntorch.Leaky(beta=0.8, threshold=0.5, learn_beta=True, learn_threshold=True)
        self.drop = nn.Dropout(0.3)
        self.fc2 = nn.Linear(6, 5)
        self.lif2 = snntorch.Leaky(
            beta=torch.full((5,), 0.7),
            threshold=0.3,
            init_hidden=True,
            output=True,
            reset_mechanism="zero",
            **delay(snntorch.Leaky, False),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        (mem,) = start(self.lif1)
        start(self.lif2)
        rows = []
        for step in x:
            spk, mem = self.lif1(self.fc1(step), mem)
            rows.append((spk, mem, *self.lif2(self.fc2(self.drop(spk)))))
        return tuple(map(torch.stack, zip(*rows, strict=True)))


class SpikingJellyNet(nn.Module):
    """Multi-step and single-step nodes in the library's containers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            linear(INPUTS, 6),
            node("LIFNode", step_mode="m", tau=3.0, v_threshold=0.3),
            dropout(0.3),
            linear(6, 6),
            node(
                "ParametricLIFNode",
                step_mode="m",
                v_threshold=0.2,
                v_reset=None,
                detach_reset=True,
            ),
        )
        set_sequences(self.conv)
        self.head = layer.MultiStepContainer(nn.Linear(6, 5), neuron.IFNode(v_threshold=0.3))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        functional.reset_net(self)
        hidden = self.conv(x)
        return hidden, self.head(hidden), self.conv[1].v, self.head[1].v


class NorseNet(nn.Module):
    """``SequentialState`` over a whole sequence, and a lifted cell."""

    def __init__(self) -> None:
        super().__init__()
        self.body = norse.SequentialState(
            nn.Linear(INPUTS, 6), norse.LIF(LIFParameters(**LIVELY)), nn.Linear(6, 6)
        )
        self.cell = lifted(norse.LIFCell(LIFParameters(**LIVELY)))
        self.box = box(**LIVELY)
        self.readout = norse.LI()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        hidden, states = self.body(x)
        spikes, state = self.cell(hidden)
        last, outs = None, []
        for step in hidden:
            out, last = self.box(step, last)
            outs.append(out)
        membrane, _ = self.readout(spikes)
        return spikes, torch.stack(outs), membrane, state.v, state.i, last.v, states[1].v


class MixedNet(nn.Module):
    """All three libraries, in nested containers; one neuron is registered twice."""

    def __init__(self) -> None:
        super().__init__()
        leaky = snntorch.Leaky(beta=0.8, threshold=0.3, init_hidden=True)
        self.body = nn.Sequential(
            OrderedDict(fc=nn.Linear(INPUTS, 6), inner=nn.Sequential(OrderedDict(lif=leaky)))
        )
        self.again = leaky
        lif = node("LIFNode", tau=2.0, v_threshold=0.3, step_mode="m")
        self.middle = nn.ModuleDict({"fc": nn.Linear(6, 6), "node": lif})
        self.head = nn.ModuleList([nn.Linear(6, 5), norse.LIF(LIFParameters(**LIVELY)), norse.LI()])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        start(self.again)
        functional.reset_net(self.middle)  # older versions reset whatever has a `reset`
        first = torch.stack([self.body(step) for step in x])
        second = self.middle["node"](self.middle["fc"](first))
        third, state = self.head[1](self.head[0](second))
        return first, second, third, self.head[2](third)[0], state.v


MODELS: dict[str, Callable[[], nn.Module]] = {
    "snntorch": SnnTorchNet,
    "spikingjelly": SpikingJellyNet,
    "norse": NorseNet,
    "mixed": MixedNet,
}
SPIKING = {
    "snntorch": ["lif1", "lif2"],
    "spikingjelly": ["conv.1", "conv.4", "head.1"],
    "norse": ["body.1", "cell.lifted_module", "box"],
    "mixed": ["body.inner.lif", "middle.node", "head.1"],
}
"""Dotted paths of the layers to wrap."""


def inputs() -> Tensor:
    return 0.5 + torch.randn(6, BATCH, INPUTS, generator=torch.Generator().manual_seed(3))


def numbers(model: nn.Module) -> list[Tensor]:
    """What a forward and a backward pass give: outputs, then gradients."""
    torch.manual_seed(1)
    x = inputs().requires_grad_()
    outs = [out for out in model(x) if out.ndim == 3]
    generator = torch.Generator().manual_seed(4)
    loss = sum((out * torch.randn(out.shape, generator=generator)).sum() for out in outs)
    wanted = [x, *model.parameters()]
    assert isinstance(loss, Tensor)
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    with torch.no_grad():
        model(x)  # leaves states without a graph behind: those can be copied
    return [*outs, *(torch.zeros(()) if grad is None else grad for grad in grads)]


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def anatomy(model: nn.Module) -> dict[str, Any]:
    """Every module with its class, attributes, parameters, hooks and memories: the objects."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        found[path] = module
        found[f"{path} class"] = type(module)
        for name, value in vars(module).items():
            found[f"{path}.{name}"] = value
            if isinstance(value, dict):
                found |= {f"{path}.{name}[{key!r}]": inner for key, inner in value.items()}
    return found


def assert_same_anatomy(now: dict[str, Any], before: dict[str, Any]) -> None:
    assert list(now) == list(before)
    assert [key for key in now if now[key] is not before[key]] == []


def label(value: Any) -> str:
    """A parameter's name without addresses, which differ from one test process to the next."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
