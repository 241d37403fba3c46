"""Inputs and states of any dtype and layout: what the library does with them, in every engine."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tssl_adapters
from tssl_adapters.errors import EngineWarning
from tssl_adapters.rules import TSSLBP

T, SHAPE = 4, (3, 20)
ENGINES = ("torch", "cpu")


def snntorch_steps(x: Tensor, start: Tensor | None, wrap: Callable[[Any], Any]) -> Any:
    layer = wrap(pytest.importorskip("snntorch").Leaky(beta=0.9))
    mem, outs = layer.init_leaky() if start is None else start, []
    for step in x:
        out, mem = layer(step, mem)
        outs.append(out)
    return torch.stack(outs), mem


def norse_steps(x: Tensor, start: Tensor | None, wrap: Callable[[Any], Any]) -> Any:
    layer = wrap(pytest.importorskip("norse.torch").LIFCell())
    state, outs = layer.state_fallback(x[0]), []
    state = state if start is None else state._replace(v=start)
    for step in x:
        out, state = layer(step, state)
        outs.append(out)
    return torch.stack(outs), state.v


def norse_box_steps(x: Tensor, start: Tensor | None, wrap: Callable[[Any], Any]) -> Any:
    layer = wrap(pytest.importorskip("norse.torch").LIFBoxCell())
    state, outs = layer.state_fallback(x[0]), []
    state = state if start is None else state._replace(v=start)
    for step in x:
        out, state = layer(step, state)
        outs.append(out)
    return torch.stack(outs), state.v


def norse_sequence(x: Tensor, start: Tensor | None, wrap: Callable[[Any], Any]) -> Any:
    layer = wrap(pytest.importorskip("norse.torch").LIF())
    state = layer.state_fallback(x)
    out, state = layer(x, state if start is None else state._replace(v=start))
    return out, state.v


def spikingjelly(mode: str) -> Any:
    def run(x: Tensor, start: Tensor | None, wrap: Callable[[Any], Any]) -> Any:
        neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
        layer = wrap(neuron.LIFNode(step_mode=mode))
        if start is not None:
            layer.v = start
        return layer(x) if mode == "m" else torch.stack([layer(step) for step in x]), layer.v

    return run


RUNS = {
    "snntorch": snntorch_steps,
    "norse": norse_steps,
    "norse box": norse_box_steps,
    "norse sequence": norse_sequence,
    "spikingjelly": spikingjelly("s"),
    "spikingjelly sequence": spikingjelly("m"),
}
INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "float32": lambda x: x,
    "float64": lambda x: x.double(),
    "bfloat16": lambda x: x.bfloat16(),
    "float16": lambda x: x.half(),
    "bool": lambda x: x > 1.5,
    "int64": lambda x: x.long(),
    "uint8": lambda x: x.byte(),
    "empty batch": lambda x: x[:, :0],
    "expanded": lambda x: x[:, :1].expand(T, *SHAPE),
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "no batch": lambda x: x[:, 0],
}
STATES: dict[str, Callable[[tuple[int, ...]], Tensor | None]] = {
    "none": lambda shape: None,
    "scalar": lambda shape: torch.tensor(0.3),
    "float64 scalar": lambda shape: torch.tensor(0.3, dtype=torch.float64),
    "float32": lambda shape: torch.full(shape, 0.3),
    "float64": lambda shape: torch.full(shape, 0.3, dtype=torch.float64),
    "bfloat16": lambda shape: torch.full(shape, 0.3, dtype=torch.bfloat16),
    "row": lambda shape: torch.full(shape[-1:], 0.3),
    "expanded": lambda shape: torch.full((1,), 0.3).expand(shape),
}
CASES = [(kind, "none", False) for kind in INPUTS]
CASES += [("float32", state, False) for state in STATES if state != "none"]
CASES += [("float64", "float32", False), ("float64", "scalar", False), ("bool", "float64", False)]
CASES += [("bfloat16", "float32", False), ("float32", "none", True), ("bfloat16", "none", True)]


def outcome(
    run: Any, kind: str, state: str, autocast: bool, engine: str | None, tau_s: float
) -> tuple[str, list[Tensor], list[Tensor]]:
    """What a layer's call raises, gives, and sends back."""

    def wrap(layer: Any) -> Any:
        if engine is None:
            return layer
        return tssl_adapters.wrap(layer, engine=engine, tau_s=tau_s, rule=TSSLBP())

    torch.manual_seed(0)
    leaf = 3.0 * torch.rand(T, *SHAPE)
    x = INPUTS[kind](leaf.requires_grad_())
    start = STATES[state](tuple(x.shape[1:]))
    leaves = [leaf]
    if start is not None and start.is_contiguous():
        leaves.append(start.requires_grad_())
    try:
        with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", EngineWarning)
            out, after = run(x, start, wrap)
    except Exception as error:
        return type(error).__name__, [], []
    weight = torch.linspace(-1.0, 1.0, out.numel()).view(out.shape)
    loss = (out * weight).sum() + 0.1 * after.sum()
    grads = ()
    if loss.requires_grad:
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    found = [torch.zeros_like(a) if g is None else g for a, g in zip(leaves, grads, strict=False)]
    return "", [out.detach(), after.detach()], found


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
@pytest.mark.parametrize("name", RUNS)
def test_values_are_the_librarys_and_gradients_alike(
    name: str, case: tuple[str, str, bool]
) -> None:
    raised, values, _ = outcome(RUNS[name], *case, None, 1.0)
    kind, state, _ = case
    both = state == "none" and kind in ("float32", "bfloat16", "bool")
    for tau_s in (1.0, 3.0) if both else (1.0,):
        gradients = []
        for engine in ENGINES:
            ours, found, grads = outcome(RUNS[name], *case, engine, tau_s)
            assert ours == raised
            if tau_s == 1.0:
                torch.testing.assert_close(found, values, rtol=0.0, atol=0.0, equal_nan=True)
            gradients.append(grads)
        half = case[2] or {"bfloat16", "float16"} & {*case[:2]}
        tolerance = 2e-2 if half else 1e-3
        torch.testing.assert_close(*gradients, rtol=tolerance, atol=tolerance)


def test_a_threshold_wider_than_the_input() -> None:
    """Of each neuron its own, so that it promotes the fallback, where there is one."""
    norse = pytest.importorskip("norse.torch")
    generator = torch.Generator().manual_seed(0)
    x = 0.5 + torch.randn(T, *SHAPE, generator=generator)
    p = norse.IAFParameters(v_th=torch.full(SHAPE[1:], 0.25, dtype=torch.float64))

    def gradient(x: Tensor) -> Tensor:
        layer = tssl_adapters.wrap(norse.IAF(p=p), rule="tsslbp", tau_s=3.0, engine="torch")
        x = x.clone().requires_grad_()
        return torch.autograd.grad(layer(x)[0].double().square().sum(), x)[0]

    found, expected = gradient(x), gradient(x.double())
    assert found.dtype == torch.float32
    assert expected.abs().max() > 0
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("library", ["snntorch", "spikingjelly", "norse"])
def test_spikes_lie_in_memory_as_the_librarys_do(library: str, engine: str) -> None:
    """A convolution behind them rounds by the order of the dimensions, ``channels_last``, say."""
    steps = {"snntorch": snntorch_steps, "spikingjelly": spikingjelly("s")}
    run = steps.get(library, norse_box_steps)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(T, 2, 8, 5, 5, generator=generator)
    x = x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (T, 2))

    def strides(wrap: Callable[[Any], Any]) -> list[tuple[int, ...]]:
        found = []

        def watched(layer: Any) -> Any:
            layer = wrap(layer)
            layer.register_forward_hook(
                lambda _, __, out: found.append(
                    (out[0] if isinstance(out, tuple) else out).stride()
                )
            )
            return layer

        run(x.clone().requires_grad_() * 1.0, None, watched)
        return found

    natively = strides(lambda layer: layer)
    assert natively[0] == x[0].stride()
    assert strides(lambda layer: tssl_adapters.wrap(layer, engine=engine)) == natively
