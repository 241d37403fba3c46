"""Layers that are changed after they were wrapped, before or between their calls."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import norse.torch as norse
import pytest
import snntorch
import torch
from compat_spikingjelly import node
from spikingjelly.activation_based import surrogate
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters.adapters.base import untouched
from tssl_adapters.errors import NativeGradientWarning, UnsupportedConfigError

Change = Callable[[Any], object]


def half(distance: Tensor) -> Tensor:
    return 0.5 * surrogate.sigmoid.apply(distance, 4.0)


class Half(nn.Module):
    spiking = True

    def forward(self, distance: Tensor) -> Tensor:
        return half(distance)


class Case(NamedTuple):
    name: str
    make: Callable[[], Any]
    change: Change


def leaky(**settings: Any) -> Any:
    return snntorch.Leaky(**{"beta": 0.8, "threshold": 0.6, "init_hidden": True, **settings})


def synaptic() -> Any:
    return snntorch.Synaptic(alpha=0.7, beta=0.8, threshold=0.6, init_hidden=True)


def lif(**settings: Any) -> Any:
    return node("LIFNode", tau=1.5, surrogate_function=surrogate.Sigmoid(), **settings)


def smooth() -> Any:
    return node("QIFNode", surrogate_function=surrogate.Sigmoid())


def setting(name: str, value: Any) -> Change:
    return lambda layer: setattr(layer, name, value)


def parameter(name: str, value: Any) -> Change:
    return lambda layer: setattr(layer, "p", layer.p._replace(**{name: value}))


def fires_late(layer: Any) -> None:
    layer.fire = lambda mem: layer.spike_grad(mem - 1.0)


def steps_otherwise(layer: Any) -> None:
    def step(x: Tensor) -> Tensor:
        layer.v = 0.5 * layer.v + x
        return layer.surrogate_function(layer.v - 1.2)  # type: ignore[no-any-return]

    layer.single_step_forward = step


def half_step(x: Tensor, state: Any, p: Any, dt: float) -> Any:
    spikes, after = norse.functional.lif.lif_feed_forward_step(0.5 * x, state, p, dt)
    return spikes, after


def half_recurrent(x: Tensor, state: Any, *rest: Any) -> Any:
    return norse.functional.lif.lif_step(0.5 * x, state, *rest)


def keeps_some(z: Tensor, v: Tensor, *_: Any) -> Tensor:
    return v - 0.5 * z.detach() * v


KNOWN = [
    Case("Leaky threshold", leaky, setting("threshold", torch.tensor(0.4))),
    Case("Leaky beta", leaky, setting("beta", torch.tensor(0.5))),
    Case("Leaky reset_delay", leaky, setting("reset_delay", False)),
    Case("LIFNode v_threshold", lif, setting("v_threshold", 0.4)),
    Case("LIFNode v_reset", lif, setting("v_reset", -0.2)),
    Case("LIFNode no v_reset", lif, setting("v_reset", None)),
    Case("LIFNode tau", lif, setting("tau", 3.0)),
    Case("LIFNode decay_input", lif, setting("decay_input", False)),
    Case("LIFNode detach_reset", lif, setting("detach_reset", True)),
    Case("LIFCell v_th", norse.LIFCell, parameter("v_th", torch.tensor(0.3))),
    Case("LIFCell dt", norse.LIFCell, setting("dt", 0.002)),
]
"""Other settings of the same neuron."""
OTHER = [
    Case("Leaky spike_grad", leaky, setting("spike_grad", half)),
    Case("Leaky spike_grad module", leaky, setting("spike_grad", Half())),
    Case("Leaky fire", leaky, fires_late),
    Case("Leaky mem_reset", leaky, setting("mem_reset", torch.zeros_like)),
    Case("Leaky inhibition", leaky, setting("inhibition", True)),
    Case("Leaky state_quant", leaky, setting("state_quant", lambda mem: 0.9 * mem)),
    Case(
        "Leaky state_function",
        leaky,
        lambda layer: setattr(layer, "state_function", lambda x: 0.5 * layer.mem + x),
    ),
    Case("Synaptic spike_grad", synaptic, setting("spike_grad", half)),
    Case("Synaptic fire", synaptic, fires_late),
    Case("LIFNode spiking", lif, lambda layer: layer.surrogate_function.set_spiking_mode(False)),
    Case("LIFNode surrogate", lif, setting("surrogate_function", Half())),
    Case("LIFNode step", lif, steps_otherwise),
    Case("QIFNode surrogate", smooth, setting("surrogate_function", Half())),
    Case("LIFCell activation", norse.LIFCell, setting("activation", half_step)),
    Case(
        "LIFRecurrentCell activation",
        lambda: norse.LIFRecurrentCell(5, 5),
        setting("activation", half_recurrent),
    ),
    Case("LIFBoxCell reset", norse.LIFBoxCell, parameter("reset_method", keeps_some)),
]
"""Another neuron, or none."""


def cases(which: list[Case]) -> Any:
    return pytest.mark.parametrize("case", which, ids=lambda case: case.name)


class Run(NamedTuple):
    out: Tensor
    gradient: Tensor


def drive(scale: float = 1.5) -> Tensor:
    return scale * torch.rand(8, 4, 5, generator=torch.Generator().manual_seed(0))


def made(case: Case) -> Any:
    torch.manual_seed(0)
    layer = case.make()
    if hasattr(layer, "p"):  # Norse's spike of itself only when they are driven hard
        layer.p = layer.p._replace(alpha=torch.tensor(4.0))
    return layer


def run(layer: Any, change: Change | None = None, at: int = 0) -> Run:
    """From rest, with a change of the layer before a step."""
    is_norse = hasattr(layer, "p")
    x = drive(9.0 if is_norse else 1.5).requires_grad_()
    if hasattr(layer, "reset"):
        layer.reset() if callable(layer.reset) else layer.reset_mem()
    outs, state = [], None
    for t, step in enumerate(x):
        if change is not None and t == at:
            change(layer)
        if is_norse:
            out, state = layer(step, state)
        else:
            out = layer(step)
        outs.append(out)
    out = torch.stack(outs)
    weights = torch.linspace(-1.0, 2.0, out.numel()).view_as(out)
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    return Run(out.detach(), gradient)


def layer_of(case: Case) -> Any:
    """The changed layer, natively."""
    layer = made(case)
    case.change(layer)
    return layer


def wrapped(layer: Any, **how: Any) -> Any:
    model = nn.Sequential(layer)
    tssl_adapters.wrap(model, **{"rule": "tsslbp", **how})
    return layer


def said(found: list[warnings.WarningMessage]) -> list[str]:
    return [str(w.message) for w in found if issubclass(w.category, NativeGradientWarning)]


@pytest.mark.filterwarnings("ignore::tssl_adapters.errors.RuleWarning")
@cases(KNOWN)
def test_a_changed_setting_is_heeded(case: Case) -> None:
    """The values are the library's, and the gradient that of a layer which was made so."""
    layer = wrapped(made(case), rule=None)
    changed = layer_of(case)
    native, fresh = run(copy.deepcopy(changed)), run(wrapped(changed, rule=None))
    before = run(layer)
    case.change(layer)
    found = run(layer)
    assert torch.equal(found.out, native.out)
    assert not torch.equal(found.gradient, before.gradient)
    torch.testing.assert_close(found.gradient, fresh.gradient, rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore::tssl_adapters.errors.RuleWarning")
@pytest.mark.parametrize("engine", ["torch", "numba"])
@pytest.mark.parametrize("at", [0, 3])
@cases(OTHER)
def test_another_neuron_runs_as_its_library_has_it(case: Case, at: int, engine: str) -> None:
    """From the call on in which it is another, with one warning, from the states that it had."""
    native = run(made(case), case.change, at)
    layer = wrapped(made(case), engine=engine)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        ours = run(layer, case.change, at)
        again = run(layer)
    assert torch.equal(ours.out, native.out)
    assert ours.out.any()
    if at == 0:
        torch.testing.assert_close(ours.gradient, native.gradient, rtol=1e-6, atol=1e-7)
    (warning,) = said(found)
    assert "layer '0'" in warning
    assert "its library's own forward pass and gradient" in warning
    assert not [w for w in found if w.category.__name__ == "LostLinkWarning"]
    assert torch.equal(again.out, run(layer_of(case)).out)


@pytest.mark.filterwarnings("ignore::tssl_adapters.errors.RuleWarning")
@cases([case for case in OTHER if case.name != "Synaptic spike_grad"])
def test_another_neuron_emits_the_psc_of_its_library_s_spikes(case: Case) -> None:
    tau_s = 3.0
    native = run(made(case), case.change)
    trace, expected = torch.zeros(4, 5), []
    for spikes in native.out:
        trace = trace + (spikes - trace) / tau_s
        expected.append(trace)
    layer = wrapped(made(case), tau_s=tau_s)
    with pytest.warns(NativeGradientWarning):
        found = run(layer, case.change)
    torch.testing.assert_close(found.out, torch.stack(expected))
    assert found.gradient.any()


@pytest.mark.parametrize(
    ("make", "name", "other"),
    [(leaky, "spike_grad", half), (lif, "surrogate_function", Half())],
    ids=["Leaky", "LIFNode"],
)
def test_the_rule_takes_over_again(make: Any, name: str, other: Any) -> None:
    layer, untouched = wrapped(make(), rule=None), wrapped(make(), rule=None)
    kept = getattr(layer, name)
    with pytest.warns(NativeGradientWarning):
        run(layer, setting(name, other))
    setattr(layer, name, kept)
    assert torch.equal(run(layer).gradient, run(untouched).gradient)


@pytest.mark.parametrize(
    ("make", "name"),
    [(leaky, "spike_grad"), (synaptic, "spike_grad"), (lif, "surrogate_function")],
    ids=["Leaky", "Synaptic", "LIFNode"],
)
def test_what_emits_no_spikes_is_refused(make: Any, name: str) -> None:
    layer = make()
    setattr(layer, name, Half())
    kind = type(layer)
    with pytest.raises(UnsupportedConfigError, match=r"surrogate function gives 0, 0, 0.5, 0.5 at"):
        wrapped(layer, rule=None)
    assert type(layer) is kind


@pytest.mark.parametrize(
    "case",
    [case for case in OTHER if case.name in ("Leaky fire", "LIFCell activation")],
    ids=lambda case: case.name,
)
def test_another_neuron_over_a_whole_sequence(case: Case) -> None:
    native = run(made(case), case.change)
    layer = wrapped(made(case), rule=None)
    case.change(layer)
    x = drive(9.0 if hasattr(layer, "p") else 1.5).requires_grad_()
    model = norse.SequentialState(layer) if hasattr(layer, "p") else nn.Sequential(layer)
    with pytest.warns(NativeGradientWarning):
        out = tssl_adapters.multi_step_forward(model, x)
    out = out[0] if isinstance(out, tuple) else out
    weights = torch.linspace(-1.0, 2.0, out.numel()).view_as(out)
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    assert torch.equal(out, native.out)
    torch.testing.assert_close(gradient, native.gradient, rtol=1e-6, atol=1e-7)


def test_what_a_probe_does_is_undone() -> None:
    """Older versions of snnTorch hold their states as attributes."""
    layer = leaky()
    layer.note, mem = "before", layer.mem
    with untouched(layer):
        layer.note, layer.other, layer.mem = "after", "new", torch.ones(3)
    assert layer.note == "before"
    assert not hasattr(layer, "other")
    assert layer.mem is mem


def test_another_neuron_in_a_functional_call() -> None:
    layer, native = wrapped(lif(), rule=None), lif()
    for changed in (layer, native):
        changed.surrogate_function = Half()
    given = (drive()[0],), (torch.zeros(4, 5),)
    with pytest.warns(NativeGradientWarning):
        (out,), (v,) = layer.functional_forward(*given)
    (expected,), (after,) = native.functional_forward(*given)
    assert torch.equal(out, expected)
    assert torch.equal(v, after)
