"""TSSL-BP's own gradients through the wrapped layers of every library, against the numpy oracle.

Outside the paper's neuron there are no reference vectors: subtraction, non-zero reset, snnTorch's
delay, every reset path, losses on the membrane, learnable parameters, incoming state, synapses.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import norse.torch as norse
import numpy as np
import numpy.typing as npt
import oracle
import pytest
import snntorch
import torch
from cases import BATCH, NEURONS, Case
from layers import CASES
from norse.torch.functional.reset import reset_subtract
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import rules

STEPS = 8
Array = npt.NDArray[np.float64]
OPTIONS: dict[str, dict[str, Any]] = {
    "reference": {},
    "complete": {"reset_path": "complete"},
    "none": {"reset_path": "none"},
    "no-fallback": {"fallback": False, "reset_path": "complete"},
    "narrow": {"max_slope": 2.0, "fallback_width": 0.7},
}


class Known(NamedTuple):
    """A layer in the oracle's terms."""

    record: dict[str, Any]
    leak: float | Array | None = None
    """dt * tau_syn_inv of a synaptic current in front of the membrane."""


def as_array(value: Any) -> Array:
    value = value.detach() if isinstance(value, Tensor) else value
    return np.asarray(value, dtype=np.float64)


def known(layer: Any) -> Known:
    """Read the layer's settings, from the library's documentation, not from the package."""
    if isinstance(layer, snntorch.Leaky):
        return Known(
            {
                "decay": as_array(layer.beta).clip(0, 1),
                "threshold": as_array(layer.threshold),
                "reset": {"subtract": "subtract", "zero": "value", "none": "never"}[
                    layer.reset_mechanism
                ],
                "timing": "delayed" if layer.reset_delay else "both",
            }
        )
    if isinstance(layer, neuron.BaseNode):
        rate, rest = 0.0, layer.v_reset or 0.0
        if isinstance(layer, neuron.ParametricLIFNode):
            rate = 1.0 / (1.0 + float(torch.exp(-layer.w.detach())))
        elif isinstance(layer, neuron.LIFNode):
            rate = 1.0 / layer.tau
        return Known(
            {
                "decay": 1.0 - rate,
                "gain": rate if getattr(layer, "decay_input", False) else 1.0,
                "offset": rate * rest,
                "threshold": layer.v_threshold,
                "reset": "subtract" if layer.v_reset is None else "value",
                "reset_value": rest,
                "strict": False,
            }
        )
    p = layer.p
    rate = layer.dt * as_array(p.tau_mem_inv)
    subtract = getattr(p, "reset_method", None) is reset_subtract
    return Known(
        {
            "decay": 1.0 - rate,
            "gain": rate,
            "offset": rate * as_array(p.v_leak),
            "threshold": as_array(p.v_th),
            "reset": "subtract" if subtract else "value",
            "reset_value": 0.0 if subtract else as_array(p.v_reset),
        },
        None if isinstance(layer, norse.LIFBoxCell) else layer.dt * as_array(p.tau_syn_inv),
    )


def summed(gradient: Array, parameter: Tensor) -> Array:
    """Reduce a per-neuron gradient to a scalar parameter where it is one."""
    return gradient.sum().reshape(parameter.shape) if parameter.ndim == 0 else gradient


def chain_rule(layer: Any, grads: dict[str, Array], extra: dict[str, Array]) -> list[Array]:
    """From the oracle's decay, gain, offset, ... to the layer's own parameters."""
    if isinstance(layer, snntorch.Leaky):
        found = {"beta": grads["decay"], "threshold": grads["threshold"]} | extra
        return [found[name] for name, _ in layer.named_parameters()]
    if isinstance(layer, neuron.BaseNode):
        if not isinstance(layer, neuron.ParametricLIFNode):
            return []
        rate = 1.0 / (1.0 + float(torch.exp(-layer.w.detach())))
        rest = layer.v_reset or 0.0
        gain = grads["gain"] if layer.decay_input else 0.0
        return [rate * (1 - rate) * (-grads["decay"] + gain + rest * grads["offset"])]
    p, dt = layer.p, layer.dt
    v_leak = as_array(p.v_leak)
    found = {
        "tau_mem_inv": dt * (-grads["decay"] + grads["gain"] + v_leak * grads["offset"]),
        "v_leak": summed(dt * as_array(p.tau_mem_inv) * grads["offset"], p.v_leak),
        "v_th": grads["threshold"],
        "v_reset": grads["reset_value"],
    } | extra
    if getattr(p, "reset_method", None) is reset_subtract:
        found["v_reset"] = np.zeros_like(as_array(p.v_reset))
    return [found[name] for name in p._fields if _learns(getattr(p, name))]


def _learns(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def currents(x: Array, start: Array, leak: Any) -> tuple[Array, Array]:
    """i'[t] = i[t-1] + x[t] and i[t] = (1 - leak) i'[t]."""
    charged, after, i = [], [], start
    for step in x:
        charged.append(i + step)
        i = charged[-1] * (1.0 - leak)
        after.append(i)
    return np.stack(charged), np.stack(after)


def currents_back(
    grad_charged: Array, grad_after: Array, charged: Array, leak: Any
) -> tuple[Array, Array, Array]:
    """Gradients of x, of the incoming current and of the leak."""
    grad_x, later = np.zeros_like(charged), np.zeros_like(charged[0])
    grad_leak = np.zeros_like(charged[0])
    for t in reversed(range(len(charged))):
        total = grad_after[t] + later
        grad_leak -= total * charged[t]
        grad_x[t] = grad_charged[t] + (1.0 - leak) * total
        later = grad_x[t]
    return grad_x, later, grad_leak


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients(case: Case, options: str, tau_s: float) -> None:
    torch.manual_seed(2)
    generator = np.random.default_rng(3)
    layer: Any = case.make(torch.float64)
    settings = OPTIONS[options]
    tssl_adapters.wrap(layer, rule=rules.TSSLBP(**settings), tau_s=tau_s)
    shape = (STEPS, BATCH, NEURONS)
    x = 0.6 + generator.standard_normal(shape)
    v0 = 0.3 + 0.4 * generator.standard_normal(shape[1:]) if tau_s == 1.0 else None
    weights = [generator.standard_normal(shape) for _ in range(3)]

    given = torch.tensor(x, requires_grad=True)
    state = None if v0 is None else torch.tensor(v0, requires_grad=True)
    run = case.run(layer, given, state)
    loss = sum(
        (values * torch.tensor(weight).to(values.dtype)).sum()
        for values, weight in zip((run.out, run.membrane, *run.others), weights, strict=False)
    )
    wanted = [given, *([] if state is None else [state]), *case.params(layer)]
    ours = torch.autograd.grad(loss, wanted, allow_unused=True)  # type: ignore[arg-type]
    expected = by_oracle(layer, case, x, v0, weights, tau_s, settings, run)

    # snnTorch's spikes, and where Norse's LIF starts from rest its first step, are float32.
    single = isinstance(layer, norse.LIF) and v0 is None
    tolerance = 1e-5 if "snntorch" in case.name else 1e-8 if single else 1e-10
    for gradient, reference in zip(ours, expected, strict=True):
        gradient = torch.zeros(reference.shape) if gradient is None else gradient
        assert gradient.shape == reference.shape
        scale = max(1.0, float(np.abs(reference).max()))
        assert float(np.abs(gradient.numpy() - reference).max()) <= tolerance * scale


def by_oracle(
    layer: Any,
    case: Case,
    x: Array,
    v0: Array | None,
    weights: list[Array],
    tau_s: float,
    settings: dict[str, Any],
    run: Any,
) -> list[Array]:
    record, leak = known(layer)
    rest = np.float32(case.rest) if isinstance(layer, norse.LIF) else case.rest
    start = np.full(x.shape[1:], rest, dtype=np.float64) if v0 is None else v0
    factor = as_array(getattr(layer, "graded_spikes_factor", 1.0))
    drive, i0 = x, np.zeros_like(start) if v0 is None else 0.1 * v0
    if leak is not None:
        drive, _ = currents(x, i0, leak)
    found = oracle.run(
        drive=drive,
        **record,
        tau_s=tau_s,
        v0=start,
        grad_out=weights[0] * factor,
        grad_membrane=weights[1],
        **settings,
    )
    np.testing.assert_allclose(run.out.detach().numpy(), found["psc"] * factor, atol=1e-6)
    np.testing.assert_allclose(run.membrane.detach().numpy(), found["membrane"], atol=1e-12)
    grad_x, grad_v0 = found["drive"], found["v0"]
    extra = {"graded_spikes_factor": np.asarray((weights[0] * found["psc"]).sum())}
    if leak is not None:
        grad_x, grad_i0, grad_leak = currents_back(found["drive"], weights[2], drive, leak)
        grad_v0 = grad_v0 + 0.1 * grad_i0
        vector = np.ndim(leak) > 0
        extra = {"tau_syn_inv": layer.dt * (grad_leak.sum(0) if vector else grad_leak.sum())}
    parameters = chain_rule(layer, found, extra)
    return [grad_x, *([] if v0 is None else [grad_v0]), *parameters]


def test_the_oracle_sees_spikes_and_silence() -> None:
    """The drive used above makes every kind of layer spike, and not always."""
    x = torch.tensor(0.6 + np.random.default_rng(3).standard_normal((STEPS, BATCH, NEURONS)))
    for case in CASES:
        layer: nn.Module = case.make(torch.float64)
        rate = float((case.run(layer, x, None).out != 0).double().mean())
        assert 0.05 < rate < 0.95, case.name
