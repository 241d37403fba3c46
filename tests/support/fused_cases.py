"""What every kind of compiled kernel is held to; the tests of a kind say where they run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import naive
import pytest
import torch
from torch import Tensor

import tssl_adapters
from tssl_adapters.arithmetic import absolute, arithmetic
from tssl_adapters.engine.call.plan import Plan
from tssl_adapters.engine.compiled import fused, takes
from tssl_adapters.engine.compiled.kernels import Backend
from tssl_adapters.engine.step.spec import link_size
from tssl_adapters.engine.torch.sequence import SequenceFunction
from tssl_adapters.neuron import LinearCharge, Neuron, computes
from tssl_adapters.resets import Never, Subtract, SubtractEarly, ToValue
from tssl_adapters.rules import (
    STDBP,
    STRSBP,
    TSSLBP,
    EventProp,
    Lee,
    Rule,
    SmoothTSSLBP,
    SurrogateGradient,
)

T, BATCH, FEATURES = 7, 3, 5


def plain(v: Any, x: Any, decay: Any, gain: Any, offset: Any) -> Any:
    return decay * v + gain * x + offset


@computes(plain)
def affine(v: Tensor, x: Tensor, decay: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    return decay * v + gain * x + offset


def a_neuron(timing: str, reset: str, dense: bool, device: str = "cpu") -> Neuron:
    """A neuron that learns all of its numbers, one for all or ``FEATURES`` of each."""

    def parameter(value: float) -> Tensor:
        shape = (FEATURES,) if dense else ()
        return torch.full(shape, value, dtype=torch.float64, device=device, requires_grad=True)

    decay, gain, offset, threshold, value = map(parameter, (0.7, 0.9, 0.05, 0.8, 0.1))
    resets = {
        "value": ToValue(value),
        "subtract": Subtract(),
        "early": SubtractEarly(),
        "never": Never(),
    }
    charge = LinearCharge(decay, gain, offset, affine, (decay, gain, offset))
    return Neuron(charge, resets[reset], threshold, timing)  # type: ignore[arg-type]


def plain_divided(v: Any, x: Any, tau: Any, rest: Any) -> Any:
    return (x - (v - rest)) / tau + v


@computes(plain_divided)
def divided(v: Any, x: Any, tau: Any, rest: Any) -> Any:
    return (x - (v - rest)) / tau + v


def a_dividing_neuron(tau: float, rest: float) -> Neuron:
    """A neuron whose charge divides, as SpikingJelly's does."""
    rate = 1.0 / tau
    charge = LinearCharge(1.0 - rate, rate, rest * rate, divided, (tau, rest))
    return Neuron(charge, ToValue(rest), 1.0, strict=False)


@arithmetic
def fast_sigmoid(distance: Any) -> Any:
    far = 1.0 + absolute(distance)
    return 1.0 / (far * far)


OTHER_RULES = (
    SmoothTSSLBP(),
    SmoothTSSLBP(memory=9.0, reset_path="complete"),
    SurrogateGradient(fast_sigmoid, reset_path="none"),
    SurrogateGradient(fast_sigmoid),
    EventProp(),
    Lee(),
)
"""Rules that are compiled, beside the paper's."""
WINDOWED = {
    "lee": (Lee(gate="active", normalise=True), 1.0),
    "stdbp": (STDBP(strict=False), 1.0),
    "stdbp-silent": (STDBP(strict=False, silent="none", max_slope=2.0), 1.0),
    "strsbp-spike": (STRSBP(credit="spike"), 3.0),
    "strsbp-train": (STRSBP(), 1.0),
    "strsbp-psc": (STRSBP(self_effect="regular", silent="zero"), 3.0),
}
"""Rules that are told of a whole window, and a time constant."""
windowed = pytest.mark.parametrize(("rule", "tau_s"), WINDOWED.values(), ids=WINDOWED)
STEPWISE = {name: case for name, case in WINDOWED.items() if not case[0].whole}
windowed_steps = pytest.mark.parametrize(("rule", "tau_s"), STEPWISE.values(), ids=STEPWISE)
other_rules = pytest.mark.parametrize("rule", OTHER_RULES, ids=lambda rule: type(rule).__name__)


class Demanding(TSSLBP):
    """A rule that asks more of a trace than the paper's."""

    def active_from(self, tau_s: float) -> float:
        return 0.6


class Variant(NamedTuple):
    """A neuron, a rule, and a way of calling."""

    timing: str
    reset: str
    tau_s: float
    path: Any
    linked: bool
    dense: bool
    fallback: bool


VARIANTS = [
    Variant(timing, reset, tau_s, path, index % 2 == 0, index % 3 == 0, index % 5 != 0)
    for index, (timing, reset, (tau_s, path)) in enumerate(
        itertools.product(
            ("immediate", "delayed", "both"),
            ("value", "subtract", "early", "never"),
            ((1.0, "reference"), (3.0, "complete"), (1.0, "none")),
        )
    )
    if not (timing == "immediate" and reset == "early")
    and index % 3
    != index // 3 % 3  # each way of calling in two neurons of three: they compile long
]
variants = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v[:4])))


OVERFLOWS = pytest.mark.parametrize(
    "variant", VARIANTS[::4], ids=lambda v: "-".join(map(str, v[:4]))
)


def call_of(
    backend: Backend, plan: Plan, drive: Tensor, state: Tensor, trace: Tensor | None = None
) -> fused.Call:
    """A sequence that the kernels have to know."""
    assert takes.why_not(plan) is None
    dense = takes.layout(backend, drive, drive.shape[1:], state, trace, plan.neuron.values())
    assert dense is not None
    return takes.call_of(plan, drive.dtype, dense, True, backend)


def check_against_torch(
    backend: Backend,
    variant: Variant,
    device: str = "cpu",
    steps: int = T,
    scale: float = 1.0,
    rule: Rule | None = None,
) -> Tensor:
    """The kernels give what the recursion in torch gives: values, and every gradient.

    Returns:
        The drive's gradient for gradients of this scale.
    """
    torch.manual_seed(0)
    neuron = a_neuron(variant.timing, variant.reset, variant.dense, device)
    rule = rule or TSSLBP(reset_path=variant.path, fallback=variant.fallback)
    size, tau_s = (BATCH, FEATURES), variant.tau_s

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(device).requires_grad_()

    # Not contiguous, as a batch-first user's transposed input is not.
    drive = leaf(BATCH, steps, FEATURES)
    state, trace = leaf(*size), leaf(*size) if tau_s > 1 else None
    links = link_size(neuron, rule)
    linked = variant.linked and links > 0
    link = leaf(links, *size) if linked else None
    plan = Plan(neuron, rule, tau_s, links, linked, variant.dense, False)
    given = (drive.transpose(0, 1), state, trace)
    ours = call_of(backend, plan, *given).run(*given, None, link, *neuron.values())
    ours = (*ours[:2], *ours[5:])
    links_in = (None,) * links if link is None else link.unbind()
    theirs = SequenceFunction.apply(plan, None, *given, *links_in, *neuron.values())
    theirs = (*theirs[:2], torch.stack(theirs[2:])) if links else theirs
    if tau_s == 1.0 or device == "cpu":
        assert torch.equal(ours[0], theirs[0])
    else:  # on a GPU torch multiplies by 1/tau_s
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-14, atol=1e-14)
    assert torch.equal(ours[1], theirs[1])
    weights = [scale * torch.randn(out.shape, dtype=torch.float64).to(device) for out in theirs]
    if links > 3 and variant.timing != "delayed":
        weights[-1][2] = 0.0  # a row that such a link does not use
    # What overflows adds up to one thing or another, by the order of the neurons.
    learned = neuron.values()[:5] if scale == 1.0 else ()
    leaves = [t for t in (drive, state, trace, link, *learned) if torch.is_tensor(t)]
    found, expected = (
        torch.autograd.grad(
            sum((out * w).sum() for out, w in zip(outs, weights, strict=True)),
            leaves,
            allow_unused=True,
        )
        for outs in (ours, theirs)
    )
    for ours_grad, theirs_grad in zip(found, expected, strict=True):
        zero = torch.zeros((), device=device)
        left = zero if ours_grad is None else ours_grad
        right = zero if theirs_grad is None else theirs_grad
        torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-11, equal_nan=True)
    return found[0]


def check_overflow(backend: Backend, variant: Variant, device: str = "cpu") -> None:
    """Where lambda overflows, the kernels' gradients are infinite, or none, where torch's are."""
    gradient = check_against_torch(backend, variant, device, steps=40, scale=4e307)
    assert 0.1 < gradient.isfinite().double().mean() < 1.0


def norse_model() -> Any:
    norse = pytest.importorskip("norse.torch")
    layer = norse.LIF()
    return layer, lambda x: layer(x)[0]


def spikingjelly_model() -> Any:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    layer = neuron.LIFNode(step_mode="m", detach_reset=True)
    return layer, layer


def integrating_model() -> Any:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    layer = neuron.IFNode(step_mode="m")
    return layer, layer


def check_layer(
    engine: str,
    make: Callable[[], Any],
    steps: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    rule: str | Rule = "tsslbp",
    tau_s: float = 1.0,
) -> None:
    """A wrapped layer runs on the kernels: the native values, the gradient of plain torch."""
    torch.manual_seed(0)
    x = (2.0 * torch.randn(steps, 5, 33)).to(device, dtype)
    weight = torch.randn(x.shape).to(device, dtype)
    _, run = make()
    expected = run(x)
    gradients = []
    for name in ("torch", engine):
        layer, run = make()
        tssl_adapters.wrap(layer, engine=name, rule=rule, tau_s=tau_s)
        given = x.clone().requires_grad_()
        out = run(given)
        assert tau_s != 1.0 or torch.equal(out, expected)
        gradients.append(torch.autograd.grad((out * weight).sum(), given)[0])
        assert len(layer._tssl_settings.loops) == (name == engine)
        assert None not in layer._tssl_settings.loops.values()
    tolerance = max(1e-5, 4.0 * torch.finfo(dtype).eps)
    torch.testing.assert_close(*gradients, rtol=tolerance, atol=tolerance)
    assert gradients[0].abs().sum() > 0


def check_against_naive(
    backend: Backend, tau_s: float, steps: int, neurons: int, device: str = "cpu"
) -> None:
    """The kernels give what the readable recursion gives."""
    torch.manual_seed(0)
    neuron, rule = a_dividing_neuron(2.0, 0.1), TSSLBP()
    drive = (4.0 * torch.randn(steps, neurons, dtype=torch.float64)).requires_grad_()
    state, trace = torch.rand(2, neurons, dtype=torch.float64)
    grad_out, grad_state = torch.randn(2, steps, neurons, dtype=torch.float64)
    run = naive.forward(neuron, tau_s, drive.detach(), state, trace)
    expected = naive.backward(neuron, rule, tau_s, drive.detach(), run, grad_out, grad_state)
    plan = Plan(neuron, rule, tau_s, link_size(neuron, rule), False, True, False)
    x, v, a, g, c = (t.to(device) for t in (drive, state, trace, grad_out, grad_state))
    given = (x, v, None if tau_s == 1.0 else a)
    out, states, *_ = call_of(backend, plan, *given).run(*given, None, None, *neuron.values())
    (found,) = torch.autograd.grad((out * g).sum() + (states * c).sum(), drive)
    torch.testing.assert_close(out.cpu(), run.spike if tau_s == 1.0 else run.psc)
    torch.testing.assert_close(states.cpu(), run.state)
    torch.testing.assert_close(found, expected.drive, rtol=1e-10, atol=1e-10)


def leaky_steps(**settings: Any) -> Any:
    snntorch = pytest.importorskip("snntorch")
    layer = snntorch.Leaky(beta=0.8, learn_beta=True, **settings)
    return layer, lambda x, mem: layer(x, layer.init_leaky() if mem is None else mem)


def spikingjelly_steps() -> Any:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    layer = neuron.ParametricLIFNode(v_reset=-0.3)
    return layer, lambda x, v: (layer(x), layer.v)


def leaky_both() -> Any:
    return leaky_steps(reset_delay=False)


def norse_steps() -> Any:
    layer = pytest.importorskip("norse.torch").LIFCell()
    return layer, layer


def potential(state: Any) -> Tensor:
    found: Tensor = getattr(state, "v", state)
    return found


def check_steps(
    engine: str,
    make: Callable[[], Any],
    tau_s: float,
    device: str = "cpu",
    rule: str | Rule = "tsslbp",
) -> None:
    """Steps in the user's own loop: as with torch, also where the two take turns."""
    torch.manual_seed(0)
    x, weight, weight_v = (2.0 * torch.randn(3, 6, 5, 33)).to(device)
    results = []
    # Engines that take turns hand each other's links on.
    for engines in (("torch",), (engine,), (engine, "torch"), ("torch", "torch", engine)):
        layer, run = make()
        tssl_adapters.wrap(layer, engine=engine, tau_s=tau_s, rule=rule)
        given, state, outputs, states = x.clone().requires_grad_(), None, [], []
        for t, step in enumerate(given):
            layer._tssl_settings.engine = engines[t % len(engines)]
            out, state = run(step, state)
            outputs.append(out)
            states.append(potential(state))
        out, v = torch.stack(outputs), torch.stack(states)
        loss = (out * weight).sum() + 0.1 * (v[2:] * weight_v[2:]).sum()
        grads = torch.autograd.grad(loss, [given, *layer.parameters()])
        results.append((out.detach(), v.detach(), *grads))
        assert bool(layer._tssl_settings.loops) == (engine in engines)
        assert None not in layer._tssl_settings.loops.values()
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        assert torch.equal(other[1], results[0][1])
        for found, expected in zip(other[2:], results[0][2:], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert results[0][2].abs().sum() > 0


@contextmanager
def allocations_filled_with_nan() -> Iterator[None]:
    """Have torch fill what it allocates."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def check_nothing_unwritten_is_read(backend: Backend, device: str = "cpu", steps: int = T) -> None:
    """No value comes from memory that was only allocated."""
    torch.manual_seed(0)
    neuron, rule = a_neuron("both", "value", False, device), TSSLBP()
    drive = torch.randn(steps, BATCH, FEATURES, dtype=torch.float64).to(device).requires_grad_()
    plan = Plan(neuron, rule, 3.0, 0, False, False, False)
    with allocations_filled_with_nan():
        state = torch.zeros_like(drive[0])
        call = call_of(backend, plan, drive, state)
        out, after, *_ = call.run(drive, state, None, None, None, *neuron.values())
        (grad,) = torch.autograd.grad(out.sum() + after.sum(), drive)
    assert out.isfinite().all()
    assert after.isfinite().all()
    assert grad.isfinite().all()
