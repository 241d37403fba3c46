"""Compiled steps in a permuted memory format: what torch gives, in the format that it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch
import torch
from cell_layers import RULES, close, took
from compat_snntorch import start
from spikingjelly.activation_based import neuron
from torch import Tensor

import tssl_adapters

STEPS, SHAPE = 5, (2, 3, 4, 5)
CHANNELS = torch.tensor([0.3, 0.6, 0.9]).view(3, 1, 1)
LAYERS: dict[str, Callable[[], Any]] = {
    "Leaky": lambda: snntorch.Leaky(0.8),
    "Leaky to zero": lambda: snntorch.Leaky(0.8, reset_mechanism="zero"),
    "Leaky, each channel its own": lambda: snntorch.Leaky(CHANNELS, learn_beta=True),
    "Synaptic": lambda: snntorch.Synaptic(0.7, 0.8),
    "LIFNode": lambda: neuron.LIFNode(),
    "KLIFNode": lambda: neuron.KLIFNode(),
    "IzhikevichNode": lambda: neuron.IzhikevichNode(a=0.3, b=0.2),
    "LIFCell": lambda: norse.LIFCell(),
}
LOSE_IT = {"IzhikevichNode", "LIFCell"}
"""Whose states are contiguous natively too, so that torch computes their steps."""
Format = Callable[[Tensor, int], Tensor]


def last(x: Tensor, step: int = 0) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def turned(x: Tensor, step: int = 0) -> Tensor:
    """Another order of the dimensions, which SpikingJelly's own kernels do not keep."""
    return x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)


def at_first(x: Tensor, step: int) -> Tensor:
    """One that changes on the way."""
    return last(x) if step < 3 else x


def ran(layer: Any, x: Tensor, form: Format) -> list[Tensor]:
    """Outputs and potentials of a loop."""
    snn, found = isinstance(layer, snntorch.SpikingNeuron), list[Tensor]()
    first = form(x[0].detach(), 0)
    states: Any = [torch.zeros_like(first) for _ in start(layer)] if snn else ()
    for t, step in enumerate(x):
        given = form(step, t)
        if snn:
            out, *states = layer(given, *states)
            found += [out, *states]
        elif isinstance(layer, neuron.BaseNode):
            found += [layer(given), layer.v]
        else:
            out, state = layer(given, *states)
            found += [out, *state]
            states = [state]
    return found


def gradients(found: list[Tensor], x: Tensor, layer: Any) -> list[Tensor]:
    """Of a loss whose gradients arrive contiguous."""
    generator = torch.Generator().manual_seed(1)
    loss = sum((value * torch.randn(value.shape, generator=generator)).sum() for value in found)
    return list(torch.autograd.grad(loss, [x, *layer.parameters()], allow_unused=True))


def check(name: str, rule: Any, form: Format, tau_s: float = 1.0) -> tuple[list[Tensor], int]:
    ours: list[Any] = []
    for engine in ("cpu", "torch", None):
        torch.manual_seed(0)
        layer = LAYERS[name]()
        if engine is not None:
            tssl_adapters.wrap(layer, rule=rule, tau_s=tau_s, engine=engine)
        x = (2.0 * torch.randn(STEPS, *SHAPE)).requires_grad_()
        found = ran(layer, x, form)
        ours.append((found, gradients(found, x, layer) if engine else []))
    if tau_s != 1.0:
        ours.pop()
    for values, _ in ours[1:]:
        assert all(map(torch.equal, ours[0][0], values))
    for values, _ in ours[1 : 2 if form is at_first else None]:
        assert [v.stride() for v in ours[0][0]] == [v.stride() for v in values]
    close(ours[0][1], ours[1][1], 1e-5)
    assert ours[0][1][0].any()
    return ours[0][0], took(ours[0][0])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", LAYERS)
def test_channels_last(name: str, rule: str) -> None:
    values, compiled = check(name, RULES[rule], last)
    assert (compiled >= STEPS) == (name not in LOSE_IT)
    assert any(value.is_contiguous() for value in values) == (name in LOSE_IT)


@pytest.mark.parametrize("rule", ["default", "TSSL-BP"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_psc_in_a_format(name: str, rule: str) -> None:
    _, compiled = check(name, RULES[rule], last, tau_s=3.0)
    assert (compiled >= STEPS) == (name not in LOSE_IT)


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("rule", ["default", "TSSL-BP"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_format_that_changes(name: str, rule: str, tau_s: float) -> None:
    """Torch takes the steps in which input and states lie differently, the loops the others."""
    check(name, RULES[rule], at_first, tau_s)


def test_what_hooks_keep_in_another_form() -> None:
    """The numbers of each neuron, say, lie as they did."""
    found = []
    for keep in (lambda t: t, lambda t: t.clone(memory_format=torch.contiguous_format)):
        torch.manual_seed(0)
        layer = tssl_adapters.wrap(LAYERS["Leaky, each channel its own"](), engine="cpu")
        x = (2.0 * torch.randn(STEPS, *SHAPE)).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            values = ran(layer, x, last)
        assert took(values) >= STEPS
        found.append(gradients(values, x, layer))
    close(*found, 1e-6)


def test_another_order_of_the_dimensions() -> None:
    _, compiled = check("KLIFNode", "smooth-tsslbp", turned)
    assert compiled == 0


@pytest.mark.parametrize("name", ["KLIFNode", "Leaky, each channel its own"])
def test_a_format_that_comes_after_another(name: str) -> None:
    """What a contiguous sequence decided, and had in memory, is of no use to it."""
    layer, native = tssl_adapters.wrap(LAYERS[name](), engine="cpu"), LAYERS[name]()
    x = torch.randn(STEPS, *SHAPE).requires_grad_()
    for form in (lambda x, t: x, last, lambda x, t: x, last):
        values, theirs = ran(layer, x, form), ran(native, x, form)
        if name == "KLIFNode":
            for model in (layer, native):
                model.reset()
        assert took(values) >= STEPS
        assert all(map(torch.equal, values, theirs))


SEQUENCES: dict[str, Callable[[], Any]] = {
    "LIFNode": lambda: neuron.LIFNode(step_mode="m"),
    "LIFNode, every potential": lambda: neuron.LIFNode(step_mode="m", store_v_seq=True),
    "LIFNode from another format": lambda: neuron.LIFNode(step_mode="m"),
    "ParametricLIFNode": lambda: neuron.ParametricLIFNode(step_mode="m", v_reset=None),
    "LIF": lambda: norse.LIF(),
    "IAF": lambda: norse.IAF(),
}


def sequences(layer: Any, x: Tensor) -> list[Tensor]:
    """Two calls, the second from where the first ends."""
    found, state = list[Tensor](), None
    for part in x.split([3, STEPS - 3]):
        given = last(part.flatten(0, 1)).unflatten(0, part.shape[:2])
        if isinstance(layer, norse.LIF | norse.IAF):
            out, state = layer(given, state)
            found += [out, *state]
        else:
            found += [layer(given), layer.v]
            found += [layer.v_seq] if layer.store_v_seq else []
    return found


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences(name: str, rule: str, tau_s: float) -> None:
    found = []
    for engine in ("cpu", "torch", None):
        torch.manual_seed(0)
        layer = SEQUENCES[name]()
        if engine is not None:
            tssl_adapters.wrap(layer, rule=RULES[rule], tau_s=tau_s, engine=engine)
        x = (2.0 * torch.randn(STEPS, *SHAPE)).requires_grad_()
        if name == "LIFNode from another format":
            layer.v = torch.zeros(SHAPE)
        values = sequences(layer, x)
        found.append((values, gradients(values, x, layer) if engine else []))
    for values, _ in found[1 : None if tau_s == 1.0 else 2]:
        assert all(map(torch.equal, found[0][0], values))
    ours, native = ([v.stride() for v in found[k][0]] for k in (0, 2))
    assert ours == native
    assert found[0][0][0].is_contiguous() == (name in ("LIF", "LIFNode from another format"))
    close(found[0][1], found[1][1], 1e-5)
