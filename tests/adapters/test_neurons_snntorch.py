"""What is peculiar to snnTorch's further neurons: refusals, recurrence, quantisation, its helpers.

Their gradients, forward and copies are in tests/adapters/test_neurons.py.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import snntorch
import snntorch.functional as SF
import torch
from cases import BATCH, NEURONS, atan
from neurons_snntorch import STATES, exact_atan, make_layer, run_explicit, run_hidden
from snntorch import backprop, utils
from snntorch.functional import quant
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.errors import NativeGradientWarning, UnsupportedConfigError
from tssl_adapters.testing import STEPS

NATIVE = rules.SurrogateGradient(atan)


def drive(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 0.6 + torch.randn(STEPS, BATCH, NEURONS, generator=generator, dtype=dtype)


def layer_of(name: str, dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    torch.manual_seed(0)
    if name.startswith("R"):
        settings.setdefault("recurrence", "linear")
    return make_layer(name, dtype, **settings)


def input_gradient(layer: Any, run: Callable[..., Any], x: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and dE/dx of a loss that weighs every spike differently."""
    x = x.clone().requires_grad_()
    out = run(layer, x, None).out
    weights = torch.linspace(-1.0, 2.0, out.numel(), dtype=torch.float64).view_as(out)
    (grad,) = torch.autograd.grad((out * weights.to(out.dtype)).sum(), x)
    return out.detach(), grad


# --- the same neuron under another name --------------------------------------------------------


def dead_current(layer: Any) -> Any:
    layer.alpha = torch.zeros_like(layer.alpha)
    return layer


def unfed(layer: Any) -> Any:
    for parameter in layer.recurrent.parameters():
        parameter.data.zero_()
    return layer


def same_decay(layer: Any, other: Any) -> Any:
    """Lapicque with Leaky's decay and a gain of 1."""
    layer.time_step = torch.ones((), dtype=torch.float64)
    layer.C = torch.ones((), dtype=torch.float64)
    layer.R = 1 / (1 - other.beta)
    return layer


TWINS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "Synaptic is Leaky": lambda **s: (layer_of("Leaky", **s), dead_current(layer_of("Synaptic"))),
    "RLeaky is Leaky": lambda **s: (layer_of("Leaky", **s), unfed(layer_of("RLeaky"))),
    "Lapicque is Leaky": lambda **s: (
        (leaky := layer_of("Leaky", **s)),
        same_decay(layer_of("Lapicque"), leaky),
    ),
    "RSynaptic is Synaptic": lambda **s: (
        layer_of("Synaptic", **s),
        unfed(layer_of("RSynaptic")),
    ),
}


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("name", TWINS)
def test_tsslbp_of_the_same_neuron(name: str, tau_s: float) -> None:
    """By subtraction these pairs are one neuron, so TSSL-BP's gradient is one as well."""
    first, second = TWINS[name]()
    second.threshold = first.threshold.clone()
    for key in ("alpha", "beta"):
        if hasattr(first, key) and "Lapicque" not in name:
            setattr(second, key, getattr(first, key).clone())
    results = [
        input_gradient(tssl_adapters.wrap(layer, tau_s=tau_s, rule="tsslbp"), run_explicit, drive())
        for layer in (first, second)
    ]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-6, atol=1e-6)
    assert float((results[0][1] != 0).double().mean()) > 0.5


class _SpikeTime(torch.autograd.Function):
    """A spike with TSSL-BP's slope where it fires and its fallback where it does not."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor, increment: Tensor) -> Tensor:
        ctx.save_for_backward(distance, increment)
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        distance, increment = ctx.saved_tensors
        z = torch.exp((-distance / 0.2).clamp(-8, 8))
        smooth = z / (0.2 * (1 + z) ** 2)
        return grad * torch.where(distance > 0, (1 / increment).clamp(0, 8), smooth), None


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_tsslbp_of_alpha(reset: str) -> None:
    """F_v = 0: no chain over the potential, so TSSL-BP is a slope, and the currents' autograd."""
    layer = layer_of("Alpha", reset_mechanism=reset)
    x = drive()
    _, ours = input_gradient(tssl_adapters.wrap(layer, rule="tsslbp"), run_explicit, x)

    alpha, beta, theta = layer.alpha, layer.beta, layer.threshold
    scale = torch.log(alpha) / (torch.log(beta) - torch.log(alpha)) + 1
    exc = inh = mem = torch.zeros_like(x[0])
    leaf, outs = x.clone().requires_grad_(), []
    for step in leaf:
        due, old_inh, old_mem = (mem > theta).to(x.dtype).detach(), inh, mem
        exc, inh = alpha * exc + step, beta * inh - step
        mem = scale * (exc + inh)
        before = (1 - due) * old_mem if reset == "zero" else old_mem
        if reset == "zero":
            exc, inh, mem = ((1 - due) * state for state in (exc, inh, mem))
        elif reset == "subtract":
            exc, inh, mem = exc - theta * due, (1 - due) * inh, mem + old_inh * due
        outs.append(_SpikeTime.apply(mem - theta, (mem - before).detach()))
    out = torch.stack(outs)
    weights = torch.linspace(-1.0, 2.0, out.numel(), dtype=x.dtype).view_as(out)
    (expected,) = torch.autograd.grad((out * weights).sum(), leaf)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


# --- recurrence --------------------------------------------------------------------------------


@pytest.mark.parametrize("recurrence", ["V", "linear"])
@pytest.mark.parametrize("name", ["RLeaky", "RSynaptic"])
def test_what_is_passed_as_spk_is_fed_back(name: str, recurrence: str) -> None:
    """At tau_s > 1 a loop that passes the output back feeds back the PSC, whatever it is."""
    native = layer_of(name, recurrence=recurrence)
    wrapped = tssl_adapters.wrap(layer_of(name, recurrence=recurrence), tau_s=3.0)
    x = drive().requires_grad_()
    psc = torch.zeros_like(x[0])
    theirs = ours = tuple(torch.zeros_like(x[0]) for _ in STATES[name])
    outs = []
    for step in x:
        spikes, *after = native(step.detach(), *theirs)
        ours = wrapped(step, *ours)
        psc = psc + (spikes.detach() - psc) / 3.0
        torch.testing.assert_close(ours[0].double(), psc, rtol=1e-6, atol=1e-6)
        for a, b in zip(ours[1:], after, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        assert torch.equal(wrapped.spk, spikes)
        outs.append(ours[0])
        theirs = (ours[0].detach(), *(state.detach() for state in ours[1:]))
    assert 0.05 < float((torch.stack(outs) > 0.3).double().mean()) < 0.95
    torch.stack(outs)[-1].sum().backward()
    assert x.grad is not None
    assert float(x.grad[0].abs().sum()) > 0.0


@pytest.mark.parametrize("name", ["RLeaky", "RSynaptic"])
def test_recurrence_is_computed_once_a_call(name: str) -> None:
    """So that weights under a normalisation that moves are the native ones."""

    def normalised() -> Any:
        layer = layer_of(name)
        torch.manual_seed(1)
        parametrizations.spectral_norm(layer.recurrent)
        return layer

    native, wrapped = normalised(), tssl_adapters.wrap(normalised())
    calls: list[int] = []
    wrapped.recurrent.register_forward_hook(lambda *_: calls.append(1))
    theirs, ours = (run_explicit(layer, drive(), None) for layer in (native, wrapped))
    assert torch.equal(ours.membrane, theirs.membrane)
    assert len(calls) == STEPS
    assert isinstance(wrapped.recurrent, nn.Linear)


@pytest.mark.parametrize("name", ["RLeaky", "RSynaptic"])
def test_recurrence_is_put_back_after_an_error(name: str) -> None:
    layer = tssl_adapters.wrap(layer_of(name, init_hidden=True))
    run_hidden(layer, drive(), None)
    layer.beta = torch.full((NEURONS + 1,), 0.5)
    with pytest.raises(RuntimeError, match="size"):
        layer(drive()[0])
    assert isinstance(layer.recurrent, nn.Linear)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("name", ["RLeaky", "RSynaptic"])
def test_float32_with_the_default_surrogate(name: str, reset: str) -> None:
    """As users have it: values and gradients are native to float32."""

    def made() -> Any:
        torch.manual_seed(0)
        return getattr(snntorch, name)(
            **({"alpha": 0.8} if name == "RSynaptic" else {}),
            beta=0.7,
            threshold=0.5,
            linear_features=NEURONS,
            reset_mechanism=reset,
            init_hidden=True,
        )

    x = drive(torch.float32)
    out, grad = input_gradient(made(), run_hidden, x)
    our_out, our_grad = input_gradient(tssl_adapters.wrap(made(), rule=NATIVE), run_hidden, x)
    assert torch.equal(our_out, out)
    torch.testing.assert_close(our_grad, grad, rtol=1e-5, atol=1e-5)


# --- time ------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [True, False], ids=["hidden", "explicit"])
@pytest.mark.parametrize("name", STATES)
def test_a_rule_without_a_chain_goes_nowhere_back(name: str, hidden: bool) -> None:
    layer = layer_of(name, init_hidden=hidden)
    tssl_adapters.wrap(layer, rule=rules.SurrogateGradient(atan, chain=False))
    x = drive().requires_grad_()
    run = (run_hidden if hidden else run_explicit)(layer, x, None)
    (run.out[-1].sum() + run.membrane[-1].sum()).backward()
    assert x.grad is not None
    assert float(x.grad[:-1].abs().max()) == 0.0
    if name != "Alpha":  # whose potential the step's own input does not move: it cancels
        assert float(x.grad[-1].abs().max()) > 0.0


def net(name: str) -> nn.Sequential:
    torch.manual_seed(0)
    settings = {
        "Leaky": {"beta": 0.8},
        "Lapicque": {"beta": 0.4},
        "Synaptic": {"alpha": 0.7, "beta": 0.7},
        "Alpha": {"alpha": 0.8, "beta": 0.6},
        "RLeaky": {"beta": 0.8, "linear_features": 4},
        "RSynaptic": {"alpha": 0.7, "beta": 0.7, "linear_features": 4},
    }[name]
    cls = getattr(snntorch, name)
    common = {**settings, "threshold": 0.4, "init_hidden": True}
    return nn.Sequential(
        nn.Linear(6, 4),
        cls(**common),
        nn.Linear(4, 4),
        cls(**common, output=True),
    )


def train(name: str, truncated: int | None, **wrapping: Any) -> list[Tensor]:
    snntorch.SpikingNeuron.instances.clear()  # the library resets every layer that ever was
    model = net(name)
    if wrapping:
        tssl_adapters.wrap(model, **wrapping)
    generator = torch.Generator().manual_seed(3)
    batches = [(2.0 * torch.rand(3, 6, generator=generator), torch.tensor([0, 1, 3]))] * 2
    options: dict[str, Any] = {
        "num_steps": 6,
        "time_var": False,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "criterion": SF.mse_count_loss(0.8, 0.2),
    }
    data: Any = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    if truncated is None:
        loss = backprop.BPTT(model, data, **options)
    else:
        loss = backprop.TBPTT(model, data, K=truncated, **options)
    return [loss.detach(), *(p.detach().clone() for p in model.parameters())]


@pytest.mark.parametrize("truncated", [None, 1, 3], ids=["BPTT", "TBPTT-1", "TBPTT-3"])
@pytest.mark.parametrize("name", sorted(set(STATES) - {"RSynaptic"}))
def test_backprop(name: str, truncated: int | None) -> None:
    """With the native rule an epoch ends at the native weights, with TSSL-BP elsewhere."""
    native = train(name, truncated)
    for ours, theirs in zip(train(name, truncated, rule=NATIVE), native, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for tau_s in (1.0, 3.0):
        loss, *weights = train(name, truncated, tau_s=tau_s)
        assert torch.isfinite(loss)
        assert all(torch.isfinite(weight).all() for weight in weights)
        moved = [float((a - b).abs().max()) for a, b in zip(weights, native[1:], strict=True)]
        if (name, truncated) != ("Alpha", 1):  # its input moves only the potentials to come
            assert max(moved) > 1e-5


@pytest.mark.parametrize("wrapping", [{}, {"tau_s": 1.0}, {"tau_s": 3.0}], ids=str)
def test_backprop_of_hidden_rsynaptic_fails_natively(wrapping: dict[str, Any]) -> None:
    """The library resets and detaches ``syn`` and ``mem``, but leaves ``spk`` with its graph."""
    with pytest.raises(RuntimeError, match="second time"):
        train("RSynaptic", None, **wrapping)


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("tau_s", [1.0, 3.0])
def test_reset_between_sequences(name: str, tau_s: float) -> None:
    """``utils.reset`` starts anew: the second sequence is as good as the first."""
    model = tssl_adapters.wrap(net(name), tau_s=tau_s)
    x = torch.rand(5, 3, 6, generator=torch.Generator().manual_seed(3)) * 2.0

    def run() -> Tensor:
        utils.reset(model)
        for layer in (model[1], model[3]):
            if name == "RSynaptic":  # which utils.reset leaves out
                layer.spk = torch.zeros_like(layer.spk)
        return torch.stack([model(step)[0] for step in x])

    first, again = run(), run()
    assert torch.equal(first, again)
    assert float(first.detach().abs().sum()) > 0.0


@pytest.mark.parametrize("name", STATES)
def test_detach_hidden_cuts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No gradient from behind ``detach_hidden``, at tau_s > 1 either, and the PSC goes on."""
    monkeypatch.setattr(snntorch.SpikingNeuron, "instances", [])  # it detaches every layer alive
    layer = tssl_adapters.wrap(layer_of(name, init_hidden=True), tau_s=3.0)
    x = drive().requires_grad_()
    layer.reset_mem()
    outs = []
    for t, step in enumerate(x):
        if t == 3:
            type(layer).detach_hidden()
            if name == "RSynaptic":  # which the library leaves out
                layer.spk.detach_()
        outs.append(layer(step))
    torch.stack(outs[3:]).sum().backward()
    assert x.grad is not None
    assert float(x.grad[:3].abs().max()) == 0.0
    assert float(x.grad[3:].abs().max()) > 0.0
    theirs = run_hidden(layer_of(name, init_hidden=True), drive(), None).out
    trace = torch.zeros_like(theirs[0])
    for ours, spike in zip(outs, theirs, strict=True):
        trace = trace + (spike - trace) / 3.0
        torch.testing.assert_close(ours, trace, rtol=1e-6, atol=1e-6)


# --- copies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STATES)
def test_pickle(name: str) -> None:
    """Where the surrogate can be pickled, so can a wrapped layer."""
    layer = layer_of(name)
    layer.spike_grad = exact_atan
    tssl_adapters.wrap(layer, tau_s=3.0)
    twin = pickle.loads(pickle.dumps(layer))
    assert type(twin) is type(layer)
    for a, b in zip(
        input_gradient(layer, run_explicit, drive()),
        input_gradient(twin, run_explicit, drive()),
        strict=True,
    ):
        assert torch.equal(a, b)


# --- refusals --------------------------------------------------------------------------------


def bare(name: str, **settings: Any) -> Any:
    """A layer with nothing but what its class needs."""
    needed = {
        "Leaky": {"beta": 0.8},
        "Lapicque": {"beta": 0.8},
        "Synaptic": {"alpha": 0.9, "beta": 0.8},
        "Alpha": {"alpha": 0.9, "beta": 0.8},
        "RLeaky": {"beta": 0.8, "all_to_all": False},
        "RSynaptic": {"alpha": 0.9, "beta": 0.8, "all_to_all": False},
    }[name]
    return getattr(snntorch, name)(**{**needed, **settings})


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
@pytest.mark.parametrize("name", STATES)
def test_inhibition_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedConfigError, match="inhibition=False"):
        tssl_adapters.wrap(nn.Sequential(bare(name, inhibition=True)))


@pytest.mark.parametrize("own", [torch.round, lambda mem: mem, True], ids=["round", "own", "True"])
@pytest.mark.parametrize("name", STATES)
def test_a_quantiser_of_ones_own_is_refused(name: str, own: Any) -> None:
    with pytest.raises(UnsupportedConfigError, match="state_quant is a function of your own"):
        tssl_adapters.wrap(nn.Sequential(bare(name, state_quant=own)))
    layer = tssl_adapters.wrap(nn.ModuleList([bare(name)]))[0]
    layer.state_quant = own
    with (
        pytest.warns(NativeGradientWarning, match="layer '0': its state_quant"),
        suppress(TypeError),
    ):
        layer(torch.rand(2, 3))  # of which the library cannot call True


@pytest.mark.parametrize("name", ["Synaptic", "RLeaky", "RSynaptic"])
def test_a_beta_of_zero_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedConfigError, match="beta is 0 somewhere"):
        tssl_adapters.wrap(bare(name, beta=0.0))
    tssl_adapters.wrap(bare(name, beta=0.0, reset_mechanism="zero"))
    layer = tssl_adapters.wrap(bare(name, learn_beta=True))
    layer.beta.data.zero_()
    with pytest.warns(NativeGradientWarning, match="beta is 0 somewhere"):
        layer(torch.rand(2, 3))


def test_a_lapicque_that_forgets_is_refused() -> None:
    made = {"beta": False, "R": 1.0, "C": 1.0}
    with pytest.raises(UnsupportedConfigError, match=r"R\*C is the time_step"):
        tssl_adapters.wrap(bare("Lapicque", **made))
    tssl_adapters.wrap(bare("Lapicque", **made, reset_mechanism="zero"))


@pytest.mark.parametrize("name", ["Leaky", "Synaptic", "RLeaky"])
def test_a_changed_reset_is_refused(name: str) -> None:
    layer = bare(name, reset_delay=False)
    layer.reset_mechanism = "zero"
    with pytest.raises(UnsupportedConfigError, match="reset_mechanism was changed"):
        tssl_adapters.wrap(layer)


def test_hidden_rsynaptic_without_delay_is_refused() -> None:
    """It fails natively, at every call."""
    layer = bare("RSynaptic", reset_delay=False, init_hidden=True)
    with pytest.raises(TypeError):
        layer(torch.rand(2, 3))
    with pytest.raises(UnsupportedConfigError, match="use reset_delay=True"):
        tssl_adapters.wrap(layer)


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("missing", ["spk", "mem"])
def test_rsynaptic_without_delay_has_the_librarys_errors(reset: str, missing: str) -> None:
    """It resets the states that it was given, and fails where it was given none."""
    native = bare("RSynaptic", reset_delay=False, reset_mechanism=reset)
    ours = tssl_adapters.wrap(bare("RSynaptic", reset_delay=False, reset_mechanism=reset))
    states = {name: torch.zeros(2, 3) for name in ("spk", "syn", "mem") if name != missing}
    if missing == "mem" and reset == "none":
        theirs, found = (layer(torch.ones(2, 3), **states) for layer in (native, ours))
        assert all(map(torch.equal, found, theirs))
        return
    for layer in (native, ours):
        with pytest.raises(TypeError, match="unsupported operand"):
            layer(torch.ones(2, 3), **states)


@pytest.mark.parametrize("name", STATES)
def test_the_librarys_own_error(name: str) -> None:
    """States by argument, though the layer hides them."""
    layer = tssl_adapters.wrap(bare(name, init_hidden=True))
    with pytest.raises(TypeError, match="init_hidden"):
        layer(torch.rand(2, 3), mem=torch.zeros(2, 3))


@pytest.mark.parametrize("kind", ["uniform", "threshold", "zero"])
def test_every_quantiser_of_the_library(kind: str) -> None:
    """Levels of every kind; values and gradient are native."""
    uniform, centred = kind == "uniform", kind == "threshold"
    quantiser = quant.state_quant(4, uniform, centred, upper_limit=0.5)
    x = drive(torch.float32)

    def made() -> Any:
        return snntorch.Synaptic(0.6, 0.7, threshold=0.6, state_quant=quantiser)

    out, grad = input_gradient(made(), run_explicit, x)
    our_out, our_grad = input_gradient(tssl_adapters.wrap(made(), rule=NATIVE), run_explicit, x)
    assert torch.equal(our_out, out)
    torch.testing.assert_close(our_grad, grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_potentials_between_two_levels(dtype: torch.dtype) -> None:
    """Where a sum lies half-way its rounding decides on the level, and half precision is coarse."""
    found = []
    for wrap in (False, True):
        quantiser = quant.state_quant(4, threshold=1.0)
        settings = {"reset_mechanism": "zero", "state_quant": quantiser}
        layer = snntorch.Lapicque(beta=0.7, threshold=0.5, learn_beta=True, **settings).to(dtype)
        if wrap:
            tssl_adapters.wrap(layer)
        generator, mem = torch.Generator().manual_seed(0), layer.init_lapicque()
        for _ in range(8):
            given = (0.5 + 1.5 * torch.randn(64, 64, generator=generator)).to(dtype)
            spike, mem = layer(given, mem)
            found.append([spike, mem])
    native, wrapped = found[:8], found[8:]
    for theirs, ours in zip(native, wrapped, strict=True):
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("name", ["Leaky", "Synaptic"])
def test_a_float32_quantiser_of_a_float64_layer(name: str, vector: bool) -> None:
    """Its levels are float32 whatever comes in, so the state and the potential differ in dtype."""
    quantiser = quant.state_quant(6, threshold=1.0)

    def made() -> Any:
        torch.manual_seed(0)
        layer = make_layer(name, torch.float64, vector=vector, learn=True)
        layer.state_quant = quantiser
        return layer

    def run(layer: Any) -> list[Tensor]:
        x = drive().requires_grad_()
        out, mem, _ = run_explicit(layer, x, None)
        loss = (out.double() * torch.linspace(-1.0, 2.0, out.numel()).view_as(out)).sum()
        return [out, mem, *torch.autograd.grad(loss + mem.sum(), [x, *layer.parameters()])]

    expected, found = run(made()), run(tssl_adapters.wrap(made(), rule=NATIVE))
    assert expected[1].dtype == torch.float32
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    for ours, theirs in zip(found[2:], expected[2:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for grad in run(tssl_adapters.wrap(made()))[2:]:
        assert torch.isfinite(grad).all()
        assert grad.any()


def test_a_float32_quantiser_of_a_float64_sequence() -> None:
    """Adjoints are float64 all the way, as in single steps."""
    found = []
    for whole in (True, False):
        layer = bare("Leaky", init_hidden=True, state_quant=quant.state_quant(6, threshold=1.0))
        tssl_adapters.wrap(layer.double(), rule=rules.TSSLBP(), tau_s=1.5)
        x = drive().requires_grad_()
        out = tssl_adapters.multi_step_forward(layer, x) if whole else torch.stack([*map(layer, x)])
        found.append(torch.autograd.grad(out.double().square().sum(), x)[0])
    assert found[0].any()
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


def test_another_synaptic_current_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """snnTorch 0.8.1 to 0.9.1 returned the potential as the current."""
    original = snntorch.Synaptic.forward

    def old(self: Any, input_: Tensor, syn: Any = None, mem: Any = None) -> Any:
        spikes, _, mem = original(self, input_, syn, mem)
        self.syn = mem
        return spikes, mem, mem

    monkeypatch.setattr(snntorch.Synaptic, "forward", old)
    layer = tssl_adapters.wrap(nn.ModuleList([bare("Synaptic")]))[0]
    with pytest.warns(NativeGradientWarning, match=r"layer '0' .* its state 'syn' differs"):
        layer(torch.rand(4, 5), torch.zeros(4, 5), torch.zeros(4, 5))


def test_learned_alpha_of_alpha_fails_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is why no test has one."""
    monkeypatch.setattr(snntorch.SpikingNeuron, "instances", [])  # half a layer stays among them
    with pytest.raises(TypeError, match="parameter 'alpha'"):
        snntorch.Alpha(0.9, 0.8, learn_alpha=True)


def test_learned_beta_of_lapicque_reaches_its_decay() -> None:
    """dE/dbeta goes through C, which was made of beta once: natively, and here."""
    grads = []
    for wrapped in (False, True):
        layer = layer_of("Lapicque", learn_beta=True)
        if wrapped:
            tssl_adapters.wrap(layer, rule=NATIVE)
        run_explicit(layer, drive(), None).out.sum().backward()
        grads.append(float(layer.beta.grad))
    assert math.isclose(*grads, rel_tol=1e-5)
    assert abs(grads[0]) > 1e-3


# --- a factor of the spikes -------------------------------------------------------------------


def potentials(layer: Any, form: str, x: Tensor) -> Any:
    """The potential after every step, or after the last one where a sequence returns no other."""
    if form == "whole":
        out = tssl_adapters.multi_step_forward(layer, x)
        return out[-1] if isinstance(out, tuple) else layer.mem
    return (run_hidden if layer.init_hidden else run_explicit)(layer, x, None).membrane


RESETTING = ["native", "smooth-tsslbp", "tsslbp", "lee", "eventprop"]


@pytest.mark.parametrize("engine", ["torch", "cpu"])
@pytest.mark.parametrize("form", ["explicit", "hidden", "whole"])
@pytest.mark.parametrize(
    ("reset", "rule"),
    [(reset, rule) for reset in ("subtract", "zero") for rule in RESETTING]
    + [("none", rule) for rule in RESETTING[:3]],  # the others refuse it
)
@pytest.mark.parametrize("delayed", [True, False], ids=["delay", "nodelay"])
@pytest.mark.parametrize("name", ["Leaky", "Synaptic", "RLeaky"])
def test_a_factor_of_the_spikes_reaches_the_potential_as_it_does_natively(
    name: str, delayed: bool, reset: str, form: str, engine: str, rule: str
) -> None:
    """Nothing else is learned: without delay ``spk / factor`` is on the potential's graph, with a
    gradient of zero. Only where spikes come back as an input has it another one.
    """
    settings = {"reset_mechanism": reset, "reset_delay": delayed, "init_hidden": form == "hidden"}
    settings |= {"recurrence": "V"} if name == "RLeaky" else {}
    x, factors = drive(torch.float32), []
    for made in (layer_of(name, torch.float32, graded=True, **settings) for _ in range(2)):
        if factors:
            tssl_adapters.wrap(made, rule=rule, engine=engine)
        v = potentials(made, form, x)
        factors.append((v.requires_grad, made.graded_spikes_factor, v))
    (natively, theirs, expected), (wrapped, ours, found) = factors
    assert torch.equal(found, expected)
    assert wrapped == natively == (name == "RLeaky" or not (delayed or reset == "none"))
    if natively:
        weights = torch.linspace(-1.0, 2.0, found.numel()).view_as(found)
        (grad,) = torch.autograd.grad((found * weights).sum(), ours)
        (reference,) = torch.autograd.grad((expected * weights).sum(), theirs)
        if name != "RLeaky":
            assert float(grad) == 0.0
        if name != "RLeaky" or rule == "native":
            torch.testing.assert_close(grad, reference, rtol=1e-4, atol=1e-5)
