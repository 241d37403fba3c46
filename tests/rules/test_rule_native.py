"""``rule="native"``: the library's own gradient out of this package's engines.

The untouched library is the oracle. Every layer of every library is held to it in
tests/adapters/test_neurons.py and tests/engine/test_native_identity.py; here are the surrogates,
and what is peculiar to the rule.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import norse.torch as norse
import pytest
import snntorch
import torch
from norse.torch.functional.threshold import threshold
from snntorch import surrogate as snn_surrogate
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.adapters.norse.surrogates import FORMULAS as NORSE
from tssl_adapters.adapters.norse.surrogates import surrogate as of_norse
from tssl_adapters.adapters.snntorch.surrogates import surrogate as of_snntorch
from tssl_adapters.adapters.spikingjelly.surrogates import surrogate as of_spikingjelly
from tssl_adapters.engine.compiled import sequences
from tssl_adapters.errors import NativeGradientWarning, UnsupportedConfigError
from tssl_adapters.rules.native import Surrogate, by_autograd, surrogate_of

Make = Callable[[torch.dtype], Any]
STEPS, SHAPE = 6, (4, 5)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
engines = pytest.mark.parametrize("engine", ["torch", "cpu"])

SNNTORCH: dict[str, Callable[[], Any]] = {
    "atan": lambda: snn_surrogate.atan(alpha=1.3),
    "fast_sigmoid": lambda: snn_surrogate.fast_sigmoid(slope=6),
    "sigmoid": lambda: snn_surrogate.sigmoid(slope=3),
    "triangular": lambda: snn_surrogate.triangular(threshold=0.7),
    "spike_rate_escape": lambda: snn_surrogate.spike_rate_escape(beta=1.4, slope=2),
    "SFS": lambda: snn_surrogate.SFS(slope=3, B=-0.4),
    "heaviside": lambda: snn_surrogate.heaviside(),
    "straight_through_estimator": lambda: snn_surrogate.straight_through_estimator(),
    "SSO": lambda: snn_surrogate.SSO(mean=0.2, variance=0.7),
    "custom_surrogate": lambda: snn_surrogate.custom_surrogate(lambda x, g, s: g * (1 - s / 2)),
}
SPIKINGJELLY: dict[str, Callable[[], Any]] = {
    "Sigmoid": lambda: surrogate.Sigmoid(3.0),
    "ATan": lambda: surrogate.ATan(1.5),
    "SoftSign": lambda: surrogate.SoftSign(1.7),
    "SuperSpike": lambda: surrogate.SuperSpike(1.4),
    "PiecewiseQuadratic": lambda: surrogate.PiecewiseQuadratic(0.8),
    "PiecewiseExp": lambda: surrogate.PiecewiseExp(1.6),
    "PiecewiseLeakyReLU": lambda: surrogate.PiecewiseLeakyReLU(0.4, 0.1),
    "NonzeroSignLogAbs": lambda: surrogate.NonzeroSignLogAbs(2.0),
    "Erf": lambda: surrogate.Erf(1.2),
    "S2NN": lambda: surrogate.S2NN(3.0, 0.7),
    "QPseudoSpike": lambda: surrogate.QPseudoSpike(3.0),
    "LeakyKReLU": lambda: surrogate.LeakyKReLU(0.2, 0.9),
    "FakeNumericalGradient": lambda: surrogate.FakeNumericalGradient(0.6),
    "LogTailedReLU": lambda: surrogate.LogTailedReLU(0.3),
    "Rect": lambda: surrogate.Rect(0.9),
    "DeterministicPass": lambda: surrogate.DeterministicPass(),
    "SquarewaveFourierSeries": lambda: surrogate.SquarewaveFourierSeries(3, 6.0),
}
LEFT_TO_TORCH = {
    *("SSO", "LSO", "custom_surrogate"),
    *("SquarewaveFourierSeries", "PoissonPass", "MultiLevelSpikeCount"),
}
"""As docs/rules/native.md says."""
ROUNDING = {"sigmoid", "triangular"}
"""snnTorch multiplies the gradient of a spike, which is float32, by a number first."""


def parameters(method: str, dtype: torch.dtype, cls: Any = norse.LIFParameters) -> Any:
    """At which a few neurons fire in every step."""
    numbers = {"v_th": 0.4, "v_reset": -0.2, "alpha": 1.7}
    if cls is not norse.IAFParameters:
        numbers |= {"tau_mem_inv": 300.0, "v_leak": 0.1}
    if cls is norse.LIFParameters:
        numbers["tau_syn_inv"] = 400.0
    given = {key: torch.tensor(value, dtype=dtype) for key, value in numbers.items()}
    return cls(method=method, **given)


def node(cls: Any, mode: str, spikes: Any, **settings: Any) -> Any:
    return cls(v_threshold=0.6, step_mode=mode, surrogate_function=spikes, **settings)


def run(layer: Any, x: Tensor) -> list[Tensor]:
    """Outputs and potentials over ``[T, ...]``."""
    if isinstance(layer, neuron.BaseNode):
        functional.reset_net(layer)
        if layer.step_mode == "m":
            return [layer(x), layer.v]
        return [value for step in x.unbind(0) for value in (layer(step), layer.v)]
    if isinstance(layer, snntorch.SpikingNeuron):
        states = layer.init_leaky() if isinstance(layer, snntorch.Leaky) else layer.init_synaptic()
        states, found = states if isinstance(states, tuple) else (states,), []
        for step in x.unbind(0):
            out, *states = layer(step, *states)
            found += [out, *states]
        return found
    cell = type(layer).__name__.endswith("Cell")
    state = layer.state_fallback(x[0] if cell else x)
    state, found = type(state)(*(torch.zeros_like(x[0]) for _ in state)), []
    for step in x.unbind(0) if cell else [x]:
        out, state = layer(step, state)
        found += [out, state.v]
    return found


def drive(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (0.3 + torch.randn(STEPS, *SHAPE, generator=generator, dtype=torch.float64)).to(dtype)


Ran = tuple[list[Tensor], list[Tensor]]


def gradients(layer: Any, x: Tensor, change: Callable[[Any], None] | None = None) -> Ran:
    """Values, and the gradients of the input and the parameters from a loss on all of them."""
    x = x.clone().requires_grad_()
    found = run(layer, x)
    if change is not None:
        change(layer)
        found += run(layer, x)
    generator = torch.Generator().manual_seed(1)
    loss = x.new_zeros(())
    for value in found:
        weights = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        loss = loss + (value * weights.to(value.dtype)).sum()
    torch.manual_seed(2)
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    pairs = zip(wanted, grads, strict=True)
    return found, [torch.zeros_like(w) if g is None else g for w, g in pairs]


def same(ours: Ran, theirs: Ran, tolerance: float) -> None:
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    fired = torch.cat([value.flatten().double() for value in theirs[0][::2]])
    assert 0.05 < float((fired == 1.0).double().mean()) < 0.95
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))
    assert float(theirs[1][0].abs().sum()) > 0.0


def wrapped(layer: Any, engine: str = "cpu", **options: Any) -> Any:
    return tssl_adapters.wrap(layer, rule="native", engine=engine, **options)


# --- every surrogate ---------------------------------------------------------------------------


def every_surrogate() -> Iterator[tuple[str, Any, Surrogate, Any]]:
    for name, make in SNNTORCH.items():
        yield f"snntorch-{name}", name, of_snntorch(make()), make()
    for name, make in SPIKINGJELLY.items():
        yield f"spikingjelly-{name}", name, of_spikingjelly(make()), make()
    for name in NORSE:
        layer = norse.LIFCell(parameters(name, torch.float64))
        alpha = layer.p.alpha
        yield (
            f"norse-{name}",
            name,
            of_norse(layer),
            lambda x, name=name, alpha=alpha: threshold(x, name, alpha),
        )


EVERY = {name: rest for name, *rest in every_surrogate()}


def test_no_surrogate_of_the_libraries_is_missing() -> None:
    theirs = {
        name
        for name, value in vars(snn_surrogate).items()
        if callable(value) and not isinstance(value, type)
    }
    assert theirs == {*SNNTORCH, "LSO"}
    classes = {
        name
        for name, value in vars(surrogate).items()
        if isinstance(value, type) and issubclass(value, surrogate.SurrogateFunctionBase)
    }
    assert classes - {"SurrogateFunctionBase"} == {
        *SPIKINGJELLY,
        *("PoissonPass", "MultiLevelSpikeCount"),  # no spikes, or none that are certain
    }
    with pytest.raises(ValueError, match="currently support") as error:
        threshold(torch.zeros(1), "", 1.0)
    said = str(error.value).partition("support")[2]
    assert set(said.replace("and", "").replace(",", " ").strip(" .").split()) == {*NORSE}


@pytest.mark.parametrize("name", EVERY)
def test_formula(name: str) -> None:
    """What is compiled is what autograd finds of the library's function, in the points between."""
    short, found, function = EVERY[name]
    assert found.arithmetic is (short not in LEFT_TO_TORCH)
    x = torch.cat([torch.linspace(-3.1, 3.3, 977, dtype=torch.float64), torch.zeros(1)])
    rounds = short in ROUNDING
    for dtype, rounding in ((torch.float64, 1e-6 if rounds else 1e-13), (torch.float32, 1e-6)):
        torch.manual_seed(0)
        ours = found(x.to(dtype))
        torch.manual_seed(0)
        theirs = by_autograd(x.to(dtype), function)
        assert ours.dtype == theirs.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("name", NORSE)
def test_a_number_that_is_float32(name: str) -> None:
    """As Norse makes it where none is given: its square is rounded to that in a float64 layer."""
    layer = norse.LIFCell(norse.LIFParameters(method=name, alpha=torch.tensor(1.7)))
    found = of_norse(layer)
    assert found.arithmetic
    x = torch.linspace(-3.1, 3.3, 977, dtype=torch.float64)
    theirs = by_autograd(x, lambda x: threshold(x, name, layer.p.alpha))
    torch.testing.assert_close(found(x), theirs, rtol=1e-13, atol=1e-13)
    assert of_norse(norse.LIFCell(norse.LIFParameters(method=name))).arithmetic


@pytest.mark.parametrize("alpha", [2.5, 40.0, 1.0])
def test_a_power_that_is_no_short_product_is_left_to_torch(alpha: float) -> None:
    assert not of_spikingjelly(surrogate.QPseudoSpike(alpha)).arithmetic


def test_a_formula_that_is_anothers_is_not_taken() -> None:
    """As a library of another version would be met."""
    function = surrogate.ATan(1.5)
    right = Surrogate(of_spikingjelly(function).derivative, (1.5,))
    wrong = right._replace(parameters=(1.5000001,))
    assert surrogate_of(function, [wrong, right]) == right
    assert surrogate_of(function, [wrong]) == Surrogate(by_autograd, (function,))


LAYERS: dict[str, Make] = {}
"""A layer in steps, or whole, for every surrogate of its library."""
for _name, _make in SNNTORCH.items():
    LAYERS[f"snntorch-{_name}"] = lambda dtype, make=_make: snntorch.Leaky(
        beta=torch.tensor(0.8, dtype=dtype), threshold=0.6, spike_grad=make()
    )
for _name, _make in SPIKINGJELLY.items():
    for _mode in "sm":
        LAYERS[f"spikingjelly-{_name}-{_mode}"] = lambda dtype, make=_make, mode=_mode: node(
            neuron.LIFNode, mode, make()
        )
for _name in NORSE:
    for _cls in (norse.LIFCell, norse.LIF):
        LAYERS[f"norse-{_name}-{_cls.__name__}"] = lambda dtype, name=_name, cls=_cls: cls(
            parameters(name, dtype)
        )
SETTINGS: dict[str, Make] = {
    "Synaptic": lambda dtype: snntorch.Synaptic(
        alpha=torch.tensor(0.7, dtype=dtype), beta=torch.tensor(0.8, dtype=dtype), threshold=0.6
    ),
    "PLIF": lambda dtype: node(neuron.ParametricLIFNode, "m", surrogate.ATan()).to(dtype),
    "IF": lambda dtype: node(neuron.IFNode, "s", surrogate.ATan(), v_reset=-0.1),
    "LIFBoxCell": lambda dtype: norse.LIFBoxCell(parameters("tanh", dtype, norse.LIFBoxParameters)),
    "IAFCell": lambda dtype: norse.IAFCell(parameters("super", dtype, norse.IAFParameters)),
}
for _reset in ("subtract", "zero", "none"):
    for _late in (True, False):
        SETTINGS[f"Leaky-{_reset}-{_late}"] = lambda dtype, reset=_reset, late=_late: (
            snntorch.Leaky(
                beta=torch.tensor(0.8, dtype=dtype), learn_beta=True,
                threshold=torch.tensor(0.6, dtype=dtype), learn_threshold=True,
                reset_mechanism=reset, reset_delay=late,
            )
        )  # fmt: skip
for _v_reset in (0.0, None):
    for _cut in (True, False):
        SETTINGS[f"LIFNode-{_v_reset}-{_cut}"] = lambda dtype, v_reset=_v_reset, cut=_cut: node(
            neuron.LIFNode, "m", surrogate.Sigmoid(), v_reset=v_reset, detach_reset=cut, tau=3.0
        )


@engines
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", [*LAYERS, *SETTINGS])
def test_native_gradient(name: str, dtype: torch.dtype, engine: str) -> None:
    make = (LAYERS | SETTINGS)[name]
    torch.manual_seed(0)
    ours = gradients(wrapped(make(dtype), engine), drive(dtype))
    theirs = gradients(make(dtype), drive(dtype))
    # Where the gradient of a state goes through spikes that are float32, it is rounded to that.
    rounds = name.startswith("Leaky") and name.endswith("-False")
    rounds = rounds or name in {f"snntorch-{one}" for one in ROUNDING}
    same(ours, theirs, TOLERANCE[torch.float32 if rounds else dtype])


@pytest.mark.parametrize("name", ["spikingjelly-Sigmoid-m", "norse-circ-LIF"])
def test_the_loops_compute_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called, function = [], sequences.CompiledSequenceFunction
    forward = function.forward
    monkeypatch.setattr(
        function, "forward", staticmethod(lambda *given: (called.append(1), forward(*given))[1])
    )
    layer = wrapped(LAYERS[name](torch.float64))
    assert "Native(), engine='cpu'" in repr(layer)
    gradients(layer, drive(torch.float64))
    assert called


def test_the_loops_compute_single_steps() -> None:
    layer = wrapped(LAYERS["spikingjelly-Erf-s"](torch.float64))
    assert "Native(), engine='cpu'" in repr(layer)
    spikes = layer(drive(torch.float64)[0].requires_grad_())
    assert spikes.grad_fn.name() == "CompiledStepFunctionBackward"


# --- where a surrogate overflows ---------------------------------------------------------------


class Overflowing(torch.autograd.Function):
    """The derivative of a sigmoid, as one writes it down: infinity over infinity far below."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        decayed = torch.exp(-25.0 * ctx.saved_tensors[0])
        return grad * 25.0 * decayed / (decayed + 1.0) ** 2


OVERFLOWING = {"the library's": snn_surrogate.sigmoid(), "the user's": Overflowing.apply}
AT = torch.tensor([-9.0, -4.0, -3.6, -3.5, -3.45, -3.3, -1.0, 0.3, 1.2, 2.0])
"""Drives of neurons that fire from 0: exp(25 * 3.55) is the largest float32."""


def overflowing(
    spikes: Any, loop: str, weight: float, engine: str | None, *, delay: bool = True
) -> Tensor:
    """The gradient of drives ``[T, ...]`` by a loss on the spikes; with weight 0 on potentials."""
    settings = {"beta": 0.0, "threshold": 0.0, "reset_mechanism": "none", "spike_grad": spikes}
    layer = snntorch.Leaky(**settings, reset_delay=delay)
    if engine is not None:
        wrapped(layer, engine)
    x = AT.repeat(3, 1, 1).requires_grad_()
    if loop == "whole":
        out, mem = tssl_adapters.multi_step_forward(layer, x)
    else:
        out, mem = map(torch.stack, zip(*(layer(step) for step in x), strict=True))
    loss = mem.sum() if weight == 0.0 else (out * weight).sum()
    (grad,) = torch.autograd.grad(loss, x)
    return grad


@engines
@pytest.mark.parametrize("loop", ["steps", "whole"])
@pytest.mark.parametrize("delay", [True, False])
@pytest.mark.parametrize("spikes", OVERFLOWING)
def test_a_surrogate_that_overflows_where_nothing_arrives(
    spikes: str, delay: bool, loop: str, engine: str
) -> None:
    """Natively autograd never asks for the slope of a spike that nobody reads, nor a reset."""
    theirs = overflowing(OVERFLOWING[spikes], loop, 0.0, None, delay=delay)
    assert torch.equal(theirs, torch.ones_like(theirs))
    assert torch.equal(overflowing(OVERFLOWING[spikes], loop, 0.0, engine, delay=delay), theirs)


@engines
@pytest.mark.parametrize("loop", ["steps", "whole"])
@pytest.mark.parametrize("weight", [1e-3, 1.0, -0.5])
def test_a_surrogate_that_overflows_where_something_does(
    weight: float, loop: str, engine: str
) -> None:
    """It is NaN where the library's exp overflows, and the library's nowhere else is."""
    ours = overflowing(snn_surrogate.sigmoid(), loop, weight, engine)
    theirs = overflowing(snn_surrogate.sigmoid(), loop, weight, None)
    beyond = torch.exp(-25.0 * AT).isinf().expand_as(ours)
    assert torch.equal(ours.isnan(), beyond)
    assert bool(theirs[beyond].isnan().all())
    # The library multiplies the gradient by exp first, which may overflow before.
    known = theirs.isfinite()
    assert float(known.double().mean()) >= 0.5
    torch.testing.assert_close(ours[known], theirs[known], rtol=1e-5, atol=1e-9)


# --- what changes ------------------------------------------------------------------------------


def steeper(layer: Any) -> None:
    layer.surrogate_function.alpha = 0.7


def another(layer: Any) -> None:
    layer.surrogate_function = surrogate.PiecewiseExp(2.0)


def unknown(layer: Any) -> None:
    layer.surrogate_function = surrogate.SquarewaveFourierSeries(3, 6.0)


def replaced(layer: Any) -> None:
    layer.spike_grad = snn_surrogate.fast_sigmoid(3)


def reparametrised(layer: Any) -> None:
    layer.p = layer.p._replace(method="triangle")


def filled(layer: Any) -> None:
    layer.p.alpha.fill_(0.4)


CHANGES: dict[str, tuple[str, Callable[[Any], None]]] = {
    "a parameter, sequences": ("spikingjelly-Sigmoid-m", steeper),
    "a parameter, steps": ("spikingjelly-Sigmoid-s", steeper),
    "another, sequences": ("spikingjelly-Sigmoid-m", another),
    "another, steps": ("spikingjelly-Sigmoid-s", another),
    "one that is not compiled": ("spikingjelly-Sigmoid-s", unknown),
    "snnTorch's": ("snntorch-atan", replaced),
    "Norse's, sequences": ("norse-tanh-LIF", reparametrised),
    "Norse's, steps": ("norse-tanh-LIFCell", reparametrised),
    "Norse's alpha, sequences": ("norse-tanh-LIF", filled),
    "Norse's alpha, steps": ("norse-tanh-LIFCell", filled),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_counts_from_the_next_call_on(name: str) -> None:
    """The steps before keep the surrogate that they were computed with."""
    which, change = CHANGES[name]
    make, x = LAYERS[which], drive(torch.float32)
    native, layer = make(x.dtype), wrapped(make(x.dtype))
    if change is not filled:  # in place: natively it counts for the steps before, too
        same(gradients(layer, x, change), gradients(native, x, change), 1e-5)
        native, layer = make(x.dtype), wrapped(make(x.dtype))
    before = gradients(native, x)
    same(gradients(layer, x), before, 1e-5)
    change(native)
    change(layer)
    after = gradients(native, x)
    same(gradients(layer, x), after, 1e-5)
    assert float((before[1][0] - after[1][0]).abs().max()) > 1e-2


@pytest.mark.parametrize("which", ["surrogate", "another"])
def test_a_change_between_two_steps(which: str) -> None:
    """That were decided of before."""
    x, found = drive(torch.float32), []
    for wraps in (False, True):
        layer = LAYERS["spikingjelly-Sigmoid-s"](x.dtype)
        layer = wrapped(layer) if wraps else layer
        given, total = x.clone().requires_grad_(), x.new_zeros(())
        for t, step in enumerate(given.unbind(0)):
            if t == 4:
                assert not wraps or layer._tssl_settings.decided is not None
                (steeper if which == "surrogate" else another)(layer)
            total = total + (layer(step) * step.detach()).sum()
        found += torch.autograd.grad(total, given)
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


def test_a_change_is_seen_by_the_other_ways_to_call_a_layer() -> None:
    x = drive(torch.float64)
    for make, change in (
        (LAYERS["spikingjelly-Sigmoid-s"], steeper),
        (lambda _: snntorch.Leaky(beta=0.8, init_hidden=True), replaced),
        (LAYERS["norse-tanh-LIFCell"], reparametrised),
    ):
        found = []
        for layer in (make(x.dtype), wrapped(make(x.dtype))):
            given = x.clone().requires_grad_()
            tssl_adapters.multi_step_forward(layer, given)
            change(layer)
            if isinstance(layer, neuron.BaseNode):
                functional.reset_net(layer)
            elif isinstance(layer, snntorch.SpikingNeuron):
                layer.reset_mem()
            out = tssl_adapters.multi_step_forward(layer, given)
            out = out[0] if isinstance(out, tuple) else out
            found += torch.autograd.grad(out.square().sum(), given)
        torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
    layer = wrapped(LAYERS["spikingjelly-Sigmoid-s"](x.dtype))
    steeper(layer)
    given = x[0].clone().requires_grad_()
    state = (torch.zeros_like(given),)
    (ours,), _ = layer.functional_forward((given,), state)
    tssl_adapters.unwrap(layer)
    (theirs,), _ = layer.functional_forward((given,), state)
    (one,), (other,) = (torch.autograd.grad(out.sum(), given) for out in (ours, theirs))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_function_that_no_longer_spikes_gives_way_to_the_library() -> None:
    layer = wrapped(nn.Sequential(LAYERS["spikingjelly-Sigmoid-s"](torch.float32)))
    native = LAYERS["spikingjelly-Sigmoid-s"](torch.float32)
    native.surrogate_function.spiking = layer[0].surrogate_function.spiking = False
    with pytest.warns(NativeGradientWarning, match="layer '0': .* no spikes"):
        out = layer(torch.ones(2, 3))
    assert torch.equal(out, native(torch.ones(2, 3)))


# --- functions of the user's -------------------------------------------------------------------


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, width: Any) -> Tensor:
        ctx.save_for_backward(x, torch.as_tensor(width))
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        x, width = ctx.saved_tensors
        shape = torch.exp(-x.abs() / width)
        return grad * shape, (grad * shape * x).sum() if width.requires_grad else None


class OwnModule(nn.Module):
    def __init__(self, learns: bool = False) -> None:
        super().__init__()
        self.width = nn.Parameter(torch.tensor(0.6), requires_grad=learns)

    def forward(self, x: Tensor) -> Tensor:
        return Own.apply(x, self.width)


@pytest.mark.parametrize("mode", ["s", "m"])
def test_a_function_of_the_users(mode: str) -> None:
    x = drive(torch.float64)
    layer = wrapped(node(neuron.LIFNode, mode, OwnModule()))
    assert "Native(), engine='torch'" in repr(layer)
    theirs = gradients(node(neuron.LIFNode, mode, OwnModule()), x)
    same(gradients(layer, x), theirs, 1e-12)


def test_one_that_learns_is_refused() -> None:
    model = nn.Sequential(node(neuron.LIFNode, "s", OwnModule(learns=True)))
    with pytest.raises(UnsupportedConfigError, match=r"0 .*surrogate learns \(width\).*skip this"):
        wrapped(model)
    held = node(neuron.LIFNode, "s", surrogate.ATan(nn.Parameter(torch.tensor(2.0))))
    x = drive(torch.float64)  # a parameter that natively gets no gradient gets none
    same(gradients(wrapped(copy.deepcopy(held)), x), gradients(held, x), 1e-12)


# --- gradients that are not there natively -----------------------------------------------------

_NUMBERS = {"v_threshold": 0.6, "v_reset": -0.1, "tau": 2.5}
_COMPILED_BY_THE_LIBRARY, _NOT = surrogate.Sigmoid, surrogate.LeakyKReLU


@pytest.mark.parametrize("function", [_COMPILED_BY_THE_LIBRARY, _NOT])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("number", _NUMBERS)
@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("cls", [neuron.LIFNode, neuron.QIFNode, neuron.KLIFNode])
def test_numbers_that_are_parameters(
    cls: Any, mode: str, number: str, dtype: torch.dtype, function: Any
) -> None:
    """SpikingJelly's own kernels give them none, its other ways do."""
    x, found = drive(dtype), []
    for wraps in (False, True):
        layer = cls(step_mode=mode, v_reset=0.0, surrogate_function=function())
        delattr(layer, number)
        value = nn.Parameter(torch.tensor(_NUMBERS[number], dtype=dtype))
        setattr(layer, number, value)
        layer = wrapped(layer) if wraps else layer
        given = x.clone().requires_grad_()
        out = run(layer, given)
        (out[0] if mode == "m" else torch.stack(out[::2])).square().sum().backward()
        found.append((value.grad, given.grad))
    (theirs, other), (ours, own) = found
    kernels = dtype is torch.float32 and function is _COMPILED_BY_THE_LIBRARY
    assert (theirs is None) is (kernels and cls is not neuron.KLIFNode)
    assert (ours is None) is (theirs is None)
    rounding = TOLERANCE[dtype]
    if theirs is not None:
        torch.testing.assert_close(ours, theirs, rtol=rounding, atol=rounding)
    torch.testing.assert_close(own, other, rtol=rounding, atol=rounding)


def test_a_number_in_a_tensor_may_change_between_steps() -> None:
    """Steps that were decided of before look at no tensor, and so are not taken."""
    for layer in (native := neuron.LIFNode(), wrapped(neuron.LIFNode())):
        layer.v_threshold = torch.tensor(0.5)
        layer.seen = []
        for t, step in enumerate(drive(torch.float32).requires_grad_().unbind(0)):
            layer.v_threshold.fill_(0.5 if t < 4 else 0.05)
            layer.seen.append(layer(step))
    assert torch.equal(torch.stack(native.seen), torch.stack(layer.seen))


@pytest.mark.parametrize("training", [True, False])
def test_spikes_without_a_gradient_in_evaluation(training: bool) -> None:
    x = drive(torch.float64)
    layer = neuron.ComplementaryLIFNode(3.0, 0.6, step_mode="s").train(training)
    theirs = gradients(layer, x)
    ours = wrapped(neuron.ComplementaryLIFNode(3.0, 0.6, step_mode="s").train(not training))
    gradients(ours, x)
    same(gradients(ours.train(training), x), theirs, 1e-12)


# --- the rest ----------------------------------------------------------------------------------


def test_above_one_step_it_is_the_surrogates_gradient() -> None:
    x = drive(torch.float64)
    found = []
    for rule in (rules.Native(), rules.SurrogateGradient(of_spikingjelly(surrogate.Sigmoid()))):
        layer = node(neuron.LIFNode, "m", surrogate.Sigmoid())
        found.append(gradients(tssl_adapters.wrap(layer, rule=rule, tau_s=3.0), x))
    for a, b in zip(*(values + grads for values, grads in found), strict=True):
        assert torch.equal(a, b)


def test_inspect_says_which_engine() -> None:
    model = nn.Sequential(
        node(neuron.LIFNode, "s", surrogate.ATan()), node(neuron.LIFNode, "s", OwnModule())
    )
    report = tssl_adapters.inspect(model, rule="native", engine="cpu")
    assert [row.detail for row in report] == [
        "step: Native(), engine='cpu'",
        "step: Native(), engine='torch'",
    ]


def test_copies_and_pickles_follow_their_own_layer() -> None:
    x = drive(torch.float64)
    layer = wrapped(node(neuron.LIFNode, "m", surrogate.Sigmoid()))
    gradients(layer, x)
    functional.reset_net(layer)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        twin.surrogate_function.alpha = 1.0
        theirs = gradients(node(neuron.LIFNode, "m", surrogate.Sigmoid(1.0)), x)
        same(gradients(twin, x), theirs, 1e-12)
    same(gradients(layer, x), gradients(node(neuron.LIFNode, "m", surrogate.Sigmoid()), x), 1e-12)
    shared = wrapped(snntorch.Leaky(beta=0.8, threshold=0.6))  # copies have the same function
    gradients(shared, x)
    shared.reset_mem()
    native = snntorch.Leaky(beta=0.8, threshold=0.6)
    same(gradients(copy.deepcopy(shared), x), gradients(native, x), 1e-12)
    cell = wrapped(norse.IAFCell(norse.IAFParameters(alpha=torch.ones(5))))  # left to torch
    cell(x[0].requires_grad_())
    assert type(pickle.loads(pickle.dumps(cell))) is type(cell)


def test_unwrap() -> None:
    x = drive(torch.float64)
    layer = wrapped(node(neuron.LIFNode, "s", surrogate.Sigmoid()))
    gradients(layer, x)
    native = node(neuron.LIFNode, "s", surrogate.Sigmoid())
    native(x[0])
    tssl_adapters.unwrap(layer)
    assert type(layer) is neuron.LIFNode
    assert sorted(vars(layer)) == sorted(vars(native))
    for a, b in zip(gradients(layer, x)[1], gradients(native, x)[1], strict=True):
        assert torch.equal(a, b)


def test_options() -> None:
    assert isinstance(rules.BY_NAME["native"](), rules.Native)
    with pytest.raises(ValueError, match="checkpoint must be 1 step or more"):
        rules.Native(checkpoint=0)
    with pytest.raises(RuntimeError, match="wrap gives it the layer's"):
        rules.Native().slope(None)  # type: ignore[arg-type]
