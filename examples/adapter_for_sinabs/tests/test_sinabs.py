"""The shared suite, and what sinabs has beyond it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from adapter_for_sinabs import ADAPTER
from sinabs import activation, layers
from sinabs_cases import CASES, FLOAT32, called
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.errors import NativeGradientWarning, RuleWarning
from tssl_adapters.testing import AdapterSuite, Golden, Refusal


def paper_s(tau_m: float, theta: float, dtype: torch.dtype) -> nn.Module:
    layer: Any = layers.LIF(
        tau_mem=1.0,
        spike_threshold=torch.tensor(theta),
        spike_fn=activation.SingleSpike,
        reset_fn=activation.MembraneReset(),
        norm_input=False,
        train_alphas=True,
    )
    layer.alpha_mem = nn.Parameter(torch.tensor(1.0 - 1.0 / tau_m))
    return layer.to(dtype)  # type: ignore[no-any-return]


class OtherReset:
    def __call__(self, spikes: Tensor, state: dict[str, Tensor], threshold: Tensor) -> Any:
        return state


SINGLE: dict[str, Any] = {"tau_mem": 4.0, "spike_fn": activation.SingleSpike}


class TestSinabs(AdapterSuite):
    library = "sinabs"
    cases = CASES
    golden = Golden(paper_s, called, tolerance=FLOAT32)
    refusals = [  # noqa: RUF012
        Refusal("several spikes", lambda: layers.LIF(4.0), "may have several spikes"),
        Refusal("tsslbp", layers.IAF, "may have several spikes", {"rule": "tsslbp"}),
        Refusal("up to", lambda: layers.IAF(spike_fn=activation.MaxSpike(3)), "several spikes"),
        Refusal("reset", lambda: layers.LIF(**SINGLE, reset_fn=OtherReset()), "its reset_fn is"),
        Refusal(
            "spikes",
            lambda: layers.LIF(4.0, spike_fn=type("Own", (activation.SingleSpike,), {})),
            "its spike_fn is a function of your own",
        ),
    ]


def drive(steps: int = 6, batch: int = 4, neurons: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 3.0 * torch.randn(batch, steps, neurons, generator=generator)


def grads(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    out = layer(x)
    weight = torch.linspace(-1.0, 2.0, out.numel()).view_as(out)
    learned = [p for p in layer.parameters() if p.requires_grad]
    found = torch.autograd.grad((out * weight).sum(), [x, *learned], allow_unused=True)
    return [torch.zeros(()) if g is None else g for g in found]


def close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


SURROGATES = {
    "SingleExponential": activation.SingleExponential(0.4, 1.5),
    "PeriodicExponential": activation.PeriodicExponential(0.4, 1.5),
    "Gaussian": activation.Gaussian(0.1, 0.6, 2.0),
    "MultiGaussian": activation.MultiGaussian(0.1, 0.6, 0.2, 5.0, 2.0),
    "Heaviside": activation.Heaviside(0.7),
    "your own": lambda v, theta: 1.0 / (1.0 + (v - theta).abs()) ** 2,
}


@pytest.mark.parametrize("spike", [activation.SingleSpike, activation.MultiSpike])
@pytest.mark.parametrize("kind", [layers.LIF, layers.ALIF])
@pytest.mark.parametrize("name", SURROGATES)
def test_every_surrogate(name: str, kind: Any, spike: Any) -> None:
    """Under the rule ``native``, at a fixed threshold and at one that adapts."""
    taus = {"tau_mem": 4.0} | ({"tau_adapt": 4.0} if kind is layers.ALIF else {})
    made = [
        kind(
            **taus,
            spike_fn=spike,
            surrogate_grad_fn=SURROGATES[name],
            spike_threshold=torch.tensor(0.7),
        )
        for _ in range(2)
    ]
    wrapped = tssl_adapters.wrap(made[0], rule="native")
    close(grads(wrapped, drive()), grads(made[1], drive()))


@pytest.mark.parametrize("name", SURROGATES)
def test_which_surrogates_are_compiled(name: str) -> None:
    """Those with a formula in plain arithmetic; the others run in torch."""
    layer = layers.LIF(**SINGLE, surrogate_grad_fn=SURROGATES[name])
    tssl_adapters.wrap(layer, rule="native", engine="cpu")
    engine = "torch" if name in ("PeriodicExponential", "your own") else "cpu"
    assert f"engine='{engine}'" in tssl_adapters.inspect(layer)[0].detail
    grads(layer, drive())
    assert bool([spec for spec in layer._tssl_settings.loops.values() if spec]) == (engine == "cpu")


def test_a_surrogate_that_is_changed_between_calls() -> None:
    surrogate = activation.SingleExponential()
    layer = tssl_adapters.wrap(layers.LIF(**SINGLE, surrogate_grad_fn=surrogate), rule="native")
    before = grads(layer, drive())
    surrogate.grad_width = 0.1
    layer.reset_states()
    native = layers.LIF(**SINGLE, surrogate_grad_fn=surrogate)
    after = grads(layer, drive())
    close(after, grads(native, drive()))
    assert not torch.allclose(after[0], before[0], rtol=0.1)


@pytest.mark.parametrize("spike", [activation.SingleSpike, activation.MultiSpike])
def test_surrogates_take_their_options(spike: Any) -> None:
    """Several spikes per step are differentiated like one, also without chain or reset."""
    found = []
    for options in ({}, {"chain": False}, {"reset_path": "none"}):
        layer = layers.LIF(4.0, spike_fn=spike)
        rule = rules.SurrogateGradient(lambda x: 1.0 / (1.0 + x.abs()) ** 2, **options)
        found.append(grads(tssl_adapters.wrap(layer, rule=rule), drive())[0])
    whole, without_chain, without_reset = found
    assert torch.equal(whole[:, -1], without_chain[:, -1])
    assert not torch.allclose(whole[:, 0], without_chain[:, 0], rtol=0.01)
    assert not torch.allclose(whole[:, 0], without_reset[:, 0], rtol=0.01)


def test_several_spikes_come_out() -> None:
    layer = tssl_adapters.wrap(layers.IAF(), rule="native")
    assert float(layer(drive()).max()) > 2.0


def test_layers_that_do_not_spike_stay() -> None:
    model = nn.Sequential(nn.Linear(5, 5), layers.ExpLeak(4.0), layers.LIF(**SINGLE))
    rows = tssl_adapters.inspect(model)
    assert [(row.layer, row.status) for row in rows] == [("ExpLeak", "native"), ("LIF", "wrap")]
    tssl_adapters.wrap(model)
    assert type(model[1]) is layers.ExpLeak
    assert torch.isfinite(model(drive())).all()


def test_a_batch_of_another_size() -> None:
    """The library draws states from those of the batch before, wrapped or not."""
    outs = []
    for wrapped in (True, False):
        layer = layers.LIF(**SINGLE)
        if wrapped:
            tssl_adapters.wrap(layer)
        torch.manual_seed(0)
        outs.append([layer(drive()), layer(drive(batch=7)), layer(drive(batch=7, neurons=3))])
    for ours, theirs in zip(*outs, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("form", [layers.LIF, layers.LIFSqueeze])
def test_whole_models_layer_by_layer(form: Any) -> None:
    """``multi_step_forward`` calls a model of sinabs' layers as it is, batch first."""
    size = {"batch_size": 4} if form is layers.LIFSqueeze else {}
    model = nn.Sequential(nn.Linear(5, 5), form(**SINGLE, **size), nn.Linear(5, 2))
    x = drive().flatten(0, 1) if size else drive()
    expected = model(x).detach()
    ADAPTER.reset(model)
    tssl_adapters.wrap(model)
    assert torch.equal(tssl_adapters.multi_step_forward(model, x), expected)


def test_firing_rate() -> None:
    layer, native = tssl_adapters.wrap(layers.LIF(**SINGLE)), layers.LIF(**SINGLE)
    layer(drive()), native(drive())
    assert torch.equal(layer.firing_rate, native.firing_rate)
    assert layer.firing_rate.requires_grad


@pytest.mark.parametrize("rule", ["native", "tsslbp", "smooth-tsslbp", "lee"])
def test_rules(rule: str) -> None:
    layer = layers.LIF(**SINGLE, reset_fn=activation.MembraneReset())
    native = grads(layers.LIF(**SINGLE, reset_fn=activation.MembraneReset()), drive())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuleWarning)
        found = grads(tssl_adapters.wrap(layer, rule=rule), drive())
    assert torch.isfinite(found[0]).all()
    assert torch.allclose(found[0], native[0], rtol=1e-3, atol=1e-5) == (rule == "native")


@pytest.mark.parametrize("form", [layers.LIF, layers.LIFSqueeze, layers.ALIF])
def test_what_is_another_neuron_since_it_was_wrapped(form: Any) -> None:
    """The library's own spikes and gradient, and at a longer time constant their PSC."""
    size = {"batch_size": 4} if form is layers.LIFSqueeze else {}
    taus = {"tau_adapt": 4.0} if form is layers.ALIF else {}
    layer, native = (form(**SINGLE, **size, **taus) for _ in range(2))
    tssl_adapters.wrap(layer, tau_s=3.0)
    layer.reset_fn = native.reset_fn = OtherReset()
    x = drive().flatten(0, 1) if size else drive()
    with pytest.warns(NativeGradientWarning, match="its reset_fn is a function of your own"):
        out = layer(x).view_as(drive())
    psc = torch.zeros(4, 5)
    for t, spikes in enumerate(native(x).view_as(drive()).unbind(1)):
        psc = psc + (spikes - psc) / 3.0
        torch.testing.assert_close(out[:, t], psc)


def test_a_reset_reaches_every_layer() -> None:
    """A model that is a layer, and a recurrent one, too."""
    recurrent = layers.LIFRecurrent(**SINGLE, rec_connect=nn.Linear(5, 5))
    for model in (layers.LIF(**SINGLE), nn.Sequential(recurrent)):
        model(drive())
        ADAPTER.reset(model)
        assert not any(buffer.any() for buffer in model.buffers())
