"""compare: what it says against figures by hand, and that it leaves everything as it was."""

from __future__ import annotations

import copy
import io
import json
import math
import random
import sys
from collections.abc import Callable
from typing import Any

import norse.torch as norse
import numpy as np
import pytest
import snntorch
import torch
from models import MODELS, SPIKING, anatomy, assert_same_anatomy, inputs
from snntorch import surrogate
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based import surrogate as sj_surrogate
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.comparing.comparison import Comparison, LayerComparison
from tssl_adapters.errors import NoSpikingLayersError

of_tsslbp = pytest.mark.filterwarnings("ignore:tssl_adapters. TSSLBP lets the gradient grow")
every_model = pytest.mark.parametrize("name", MODELS)
Step = Callable[[Any], Tensor]


def loss_of(model: nn.Module) -> Tensor:
    """A loss on every output, of a batch with dropout and noise from numpy and random."""
    x = inputs()[:, :32] + float(np.random.rand()) * 0.1 + random.random() * 0.1
    outs = [out for out in model(x) if out.ndim == 3]
    generator = torch.Generator().manual_seed(4)
    return sum(((out * torch.randn(out.shape, generator=generator)).sum() for out in outs), T(0.0))


T = torch.as_tensor


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    model.zero_grad()
    loss_of(model).backward()
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def compared(model: nn.Module, **options: Any) -> Comparison:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    return tssl_adapters.compare(model, loss_of, **options)


def by_path(found: Comparison) -> dict[str, LayerComparison]:
    return {one.path: one for one in found.layers}


def kinds(found: Comparison) -> set[tuple[str, tuple[str, ...]]]:
    return {(flag.kind, flag.where) for flag in found.flags}


def lone(weight: float, drive: list[float], **options: Any) -> tuple[nn.Module, Step]:
    """One SpikingJelly neuron behind one weight, and a loss on its spikes."""
    torch.manual_seed(0)
    fc = layer.Linear(1, 1, bias=False, step_mode="m")
    nn.init.constant_(fc.weight, weight)
    options = {"v_threshold": 1.0, "step_mode": "m", "decay_input": False} | options
    model = nn.Sequential(fc, neuron.LIFNode(**options))
    x = T(drive).reshape(-1, 1, 1)

    def step(model: Any) -> Tensor:
        functional.reset_net(model)
        return model(x).sum()

    return model, step


# What it says.


@of_tsslbp
@pytest.mark.singly
@every_model
@pytest.mark.parametrize("tau_s", [1.0, 3.0])
def test_gradients_are_those_of_both_passes(name: str, tau_s: float) -> None:
    rule = rules.TSSLBP(max_slope=4.0)
    native = gradients(made(name))
    wrapped = gradients(tssl_adapters.wrap(made(name), rule=rule, tau_s=tau_s))
    found = compared(made(name), rule=rule, tau_s=tau_s)
    assert [one.name for one in found.parameters] == [n for n, _ in made(name).named_parameters()]
    for one in found.parameters:
        left, right = native[one.name], wrapped[one.name]
        assert one.native == pytest.approx(float(left.norm()), rel=1e-5)
        assert one.wrapped == pytest.approx(float(right.norm()), rel=1e-5)
        assert one.ratio == pytest.approx(float(right.norm() / left.norm()), rel=1e-5)
        cosine = torch.nn.functional.cosine_similarity(left.flatten(), right.flatten(), dim=0)
        assert one.cosine == pytest.approx(float(cosine), abs=1e-5)


@every_model
def test_rates_are_those_of_the_outputs(name: str) -> None:
    outs: dict[str, list[Tensor]] = {path: [] for path in SPIKING[name]}
    model = made(name)
    for path in SPIKING[name]:
        module = model.get_submodule(path)
        module.register_forward_hook(
            lambda _, __, out, path=path: outs[path].append(
                (out[0] if isinstance(out, tuple) else out).detach()
            )
        )
    gradients(model)
    layers = by_path(compared(made(name)))
    assert list(layers) == SPIKING[name]
    for path, seen in outs.items():
        whole = torch.cat([out if out.ndim == 3 else out[None] for out in seen])  # [T, batch, N]
        rate, silent = whole.ne(0).double().mean(), whole.ne(0).any(0).any(0).logical_not()
        assert layers[path].rate == pytest.approx(float(rate))
        assert 0.0 < float(rate) < 1.0
        assert layers[path].silent == pytest.approx(float(silent.double().mean()))
        assert layers[path].wrapped_rate == pytest.approx(float(rate))
        assert layers[path].status == "wrapped"


def test_a_psc_has_the_rate_of_its_spikes() -> None:
    model, step = lone(1.0, [0.9, 0.9, 0.9, 2.0], tau=2.0, v_reset=0.0)
    (one,) = tssl_adapters.compare(model, step, tau_s=3.0).layers
    assert (one.rate, one.wrapped_rate) == (0.5, 0.5)  # the PSC is above 0 in 3 of 4 steps
    assert one.silent == one.wrapped_silent == 0.0


@pytest.mark.parametrize(("v_reset", "threshold"), [(0.0, 1.0), (-1.0, 3.0), (None, 2.0)])
def test_rise_scale_and_carry_by_hand(v_reset: float | None, threshold: float) -> None:
    tau, drive = 4.0, [1.5, 2.5, 0.5, 3.0]
    rest = 0.0 if v_reset is None else v_reset
    decay = 1.0 - 1.0 / tau
    v, rises, carries, spikes = rest, [], [], 0
    for x in drive:
        h = v - (v - rest) / tau + x
        rises.append(h - v)
        v = h
        carries.append(decay)
        if h >= threshold:
            spikes += 1
            slope = min(8.0, 1.0 / rises[-1])
            removed = threshold if v_reset is None else h - v_reset
            stays = decay if v_reset is None else 0.0
            carries[-1] = stays + slope * removed * (1.0 - decay)
            v = h - removed
    stretches = [carries[i:j] for i in range(len(drive)) for j in range(i + 1, len(drive) + 1)]
    scale = threshold if v_reset is None else threshold - v_reset
    model, step = lone(1.0, drive, tau=tau, v_reset=v_reset, v_threshold=threshold)
    (one,) = tssl_adapters.compare(model, step, rule=rules.TSSLBP()).layers
    assert 0 < spikes < len(drive)
    assert one.scale == pytest.approx(scale)
    assert one.rise == pytest.approx(math.sqrt(np.mean(np.square(rises))) / scale, rel=1e-5)
    assert one.carry == pytest.approx(max(map(math.prod, stretches)), rel=1e-5)


SIGMOID = 2.0 * math.log(3.0 + 2.0 * math.sqrt(2.0))
HALVES = math.sqrt(2.0) - 1.0


@pytest.mark.parametrize(
    ("made", "width"),
    [
        (lambda: snntorch.Leaky(0.9, init_hidden=True), 2.0 / math.pi),
        (lambda: snntorch.Leaky(0.9, init_hidden=True, threshold=10.0), 0.2 / math.pi),
        (
            lambda: snntorch.Leaky(
                0.9, init_hidden=True, spike_grad=surrogate.fast_sigmoid(slope=25)
            ),
            2.0 * HALVES / 25.0,
        ),
        (lambda: neuron.IFNode(surrogate_function=sj_surrogate.Sigmoid(alpha=4.0)), SIGMOID / 4.0),
        (
            lambda: neuron.IFNode(v_reset=-3.0, surrogate_function=sj_surrogate.Sigmoid(alpha=4.0)),
            SIGMOID / 16.0,
        ),
        (lambda: norse.LIFBoxCell(), 2.0 * HALVES),
        (lambda: norse.LIFRefracCell(), 2.0 * HALVES),
    ],
)
def test_width_of_a_native_surrogate(made: Callable[[], nn.Module], width: float) -> None:
    model = nn.Sequential(nn.Linear(3, 4), made())

    def step(model: Any) -> Tensor:
        out = model(torch.full((2, 3), 0.5))
        return (out[0] if isinstance(out, tuple) else out).sum()

    (one,) = tssl_adapters.compare(model, step).layers
    assert one.native_width == pytest.approx(width, rel=0.03)


class PerNeuron(nn.Module):
    """A surrogate whose width is learned, neuron by neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.width = nn.Parameter(T([1.0, 1.0]))

    def forward(self, distance: Tensor) -> Tensor:
        smooth = torch.sigmoid(distance / self.width)
        return smooth + (distance.ge(0).to(distance) - smooth).detach()


def test_width_of_a_surrogate_with_a_number_for_each_neuron() -> None:
    lif = snntorch.Leaky(0.9, init_hidden=True, spike_grad=PerNeuron())
    model = nn.Sequential(nn.Linear(3, 2), lif)
    found = tssl_adapters.compare(model, lambda model: model(torch.ones(5, 3)).sum())
    assert found.layers[0].native_width == pytest.approx(SIGMOID, rel=0.03)
    assert lif.spike_grad.width.grad is None


def arctan(width: float) -> rules.SurrogateGradient:
    return rules.SurrogateGradient(lambda z: 1.0 / (1.0 + (math.pi * z / width) ** 2))


@pytest.mark.parametrize("width", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("threshold", [1.0, 5.0])
def test_width_of_a_rule(width: float, threshold: float) -> None:
    model, step = lone(1.0, [0.5, 0.9, 0.2], v_threshold=threshold)
    (one,) = tssl_adapters.compare(model, step, rule=arctan(width)).layers
    assert one.wrapped_width == pytest.approx(width * 2.0 / math.pi / threshold, rel=0.03)


def test_width_of_a_rule_of_spike_times() -> None:
    """1/d has fallen to half where the step would have been twice as large."""
    model, step = lone(1.0, [1.25])
    (one,) = tssl_adapters.compare(model, step, rule=rules.TSSLBP(fallback=False)).layers
    assert one.rise == pytest.approx(1.25)
    assert one.wrapped_width == pytest.approx(1.25, rel=0.03)


def test_a_slope_without_end_is_infinitely_wide() -> None:
    model, step = lone(1.0, [1.25])
    found = tssl_adapters.compare(model, step, rule=rules.Lee(gate="none"))
    assert found.layers[0].wrapped_width == math.inf
    assert found.to_dict()["layers"][0]["wrapped_width"] == "inf"


# What it flags.


def network(scale: float = 1.0, layers: int = 1, **options: Any) -> tuple[nn.Module, Step]:
    """Fully connected snnTorch layers under a constant input, and a loss on the last potential."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for _ in range(layers):
        fc = nn.Linear(30, 30)
        nn.init.normal_(fc.weight, std=scale / math.sqrt(30.0))
        nn.init.zeros_(fc.bias)
        parts += [fc, snntorch.Leaky(**{"beta": 0.9, "init_hidden": True} | options)]
    model = nn.Sequential(*parts, nn.Linear(30, 5))
    x, wanted = torch.rand(16, 30), torch.randint(5, (16,))

    def step(model: Any) -> Tensor:
        for one in model[1::2]:
            one.reset_mem()
        counts = sum((model(x) for _ in range(10)), T(0.0))
        return nn.functional.cross_entropy(counts, wanted)

    return model, step


def test_a_sound_network_is_not_flagged() -> None:
    model, step = network(2.0)
    found = tssl_adapters.compare(model, step, rule=arctan(1.5))
    assert found.flags == ()
    assert str(found).endswith("Nothing stands out.")


@pytest.mark.parametrize(("beta", "same"), [(0.8, True), (0.95, False)])
def test_two_gradients_that_are_one_are_said_to_be(beta: float, same: bool) -> None:
    """Where the default rule is the library's own surrogate."""
    model, step = network(2.0, beta=beta)
    said = str(tssl_adapters.compare(model, step))
    assert ("both gradients are the same here: no difference is to be expected" in said) == same
    assert said.endswith("Nothing stands out.") != same


def test_nothing_is_said_of_gradients_that_never_arrive() -> None:
    model, step = network(2.0)
    found = tssl_adapters.compare(model, lambda model: step(model) * 0.0)
    assert "both gradients" not in str(found)


def test_dead_layers_are_flagged_the_first_one_first() -> None:
    model, step = network(0.02, layers=3)
    found = tssl_adapters.compare(model, step, rule=arctan(1.0))
    assert found.layers[1].rate == 0.0
    assert found.layers[1].silent == 1.0
    layers, parameters = (flag for flag in found.flags if flag.kind == "dead")
    assert layers.where == ("1", "3", "5")
    assert "begin with 1" in layers.do
    assert parameters.where == ("2.weight", "4.weight", "6.weight")


def test_a_layer_that_always_fires_is_flagged() -> None:
    model, step = network(1.0)
    with torch.no_grad():
        model[0].bias += 30.0
    found = tssl_adapters.compare(model, step, rule=arctan(1.0))
    assert found.layers[0].rate == 1.0
    assert [flag.what for flag in found.flags if flag.where == ("1",) and flag.kind == "dead"] == [
        "it fires in at least 90% of all steps, so its spikes carry no information"
    ]


@of_tsslbp
def test_a_gradient_that_is_far_larger_is_flagged() -> None:
    """Layer by layer; the chain over time within a layer multiplies it by hardly more than 1."""
    model, step = network(2.0, layers=3)
    found = tssl_adapters.compare(model, step, rule=rules.TSSLBP())
    ratio = found.parameters[0].ratio
    assert ratio is not None
    assert ratio > 10.0
    assert {where for kind, where in kinds(found) if kind == "exploding"} == {
        ("0.weight", "0.bias")
    }
    assert all(one.carry is not None and 0.9 < one.carry < 1.5 for one in found.layers)


@pytest.mark.parametrize(("v_reset", "tau", "grows"), [(None, 5.0, True), (0.0, 2.0, False)])
def test_a_chain_that_grows_is_flagged(v_reset: float | None, tau: float, grows: bool) -> None:
    """Under a strong, noisy drive it does with a reset by subtraction. With the paper's reset to
    zero a spike may make it larger too, but the steps up to the next one take that back.
    """
    torch.manual_seed(0)
    spikes, weight = (torch.rand(60, 8, 50) < 0.2).float(), torch.randn(50, 30)
    drive = spikes @ ((3.0 if grows else 1.0) * (weight + 0.3) / 7.0)
    model = nn.Sequential(layer.Linear(30, 30, bias=False, step_mode="m"))
    nn.init.eye_(model[0].weight)
    model.append(neuron.LIFNode(tau, decay_input=False, v_reset=v_reset, step_mode="m"))

    def step(model: Any) -> Tensor:
        functional.reset_net(model)
        return model(drive).sum()

    found = tssl_adapters.compare(model, step, rule=rules.TSSLBP())
    (one,) = found.layers
    assert one.carry is not None
    assert (("exploding", ("1",)) in kinds(found)) == grows
    assert one.carry > 10.0 if grows else 1.0 < one.carry < 10.0
    (default,) = tssl_adapters.compare(model, step).layers
    assert default.carry is not None
    assert default.carry < 1.0


def test_a_vanishing_gradient_is_flagged() -> None:
    model, step = network(2.0)
    small = rules.SurrogateGradient(lambda z: 1e-3 / (1.0 + (math.pi * z) ** 2))
    found = tssl_adapters.compare(model, step, rule=small)
    assert ("vanishing", ("0.weight", "0.bias")) in kinds(found)
    nothing = rules.SurrogateGradient(torch.zeros_like)
    found = tssl_adapters.compare(model, step, rule=nothing)
    assert ("dead", ("0.weight", "0.bias")) in kinds(found)
    assert found.layers[0].wrapped_width is None


def test_widths_that_do_not_fit_are_flagged() -> None:
    steep = surrogate.fast_sigmoid(slope=100)
    model, step = network(2.0, spike_grad=steep)
    found = tssl_adapters.compare(model, step, rule=arctan(50.0))
    said = {flag.kind: flag.what for flag in found.flags if flag.where == ("1",)}
    assert said["too narrow"].startswith("the library's surrogate")
    assert said["too wide"].startswith("the rule's slope")
    found = tssl_adapters.compare(model, step, rule=arctan(0.01))
    assert [flag.kind for flag in found.flags if flag.what.startswith("the rule's slope")] == [
        "too narrow"
    ]


def test_a_narrow_surrogate_vanishes_and_the_rule_does_not_explode() -> None:
    model, step = network(2.0, spike_grad=surrogate.fast_sigmoid(slope=100))
    found = tssl_adapters.compare(model, step, rule=arctan(1.0))
    assert found.parameters[0].ratio > 10.0  # type: ignore[operator]
    said = {flag.kind: flag for flag in found.flags}
    assert set(said) == {"vanishing", "too narrow"}
    assert said["vanishing"].where == ("0.weight", "0.bias")
    assert said["vanishing"].what.startswith("the native gradient is less than 0.1")


def test_fine_steps_are_too_fine_for_a_width_of_theta() -> None:
    model, step = lone(1.0, [0.04] * 40, tau=100.0)
    found = tssl_adapters.compare(model, step, rule=arctan(1.0))
    (one,) = found.layers
    assert one.rise == pytest.approx(0.036, rel=0.1)
    assert {flag.what[:18] for flag in found.flags if flag.kind == "too wide"} == {
        "the library's surr", "the rule's slope i",
    }  # fmt: skip
    default = tssl_adapters.compare(model, step)
    assert [flag.what[:18] for flag in default.flags if flag.kind == "too wide"] == [
        "the library's surr"
    ]


@pytest.mark.parametrize(
    ("drive", "kind", "advised"),
    [
        ([0.01] * 400 + [1.0], "too wide", "raise what comes in"),
        ([8.0] * 5, "too narrow", "smaller inputs"),
    ],
)
def test_the_default_rule_is_not_advised_where_it_is_in_use(
    drive: list[float], kind: str, advised: str
) -> None:
    model, step = lone(1.0, drive, tau=2.0)
    for wrapped in (False, True):
        if wrapped:
            tssl_adapters.wrap(model[1])  # by itself, so that it knows itself by another name
        (said,) = (
            flag
            for flag in tssl_adapters.compare(model, step).flags
            if flag.kind == kind and flag.what.startswith("the rule's slope")
        )
        assert said.where == ("1",)
        assert advised in said.do
        assert "default rule" not in said.do


def test_what_is_not_finite_is_flagged() -> None:
    model, step = network(2.0)
    with torch.no_grad():
        model[0].bias[3] = math.nan
    found = tssl_adapters.compare(model, step)
    said = [flag.where for flag in found.flags if flag.kind == "not finite"]
    assert said[:3] == [("0.bias",), ("1",), ("0.weight", "0.bias")]
    json.dumps(found.to_dict(), allow_nan=False)
    found = tssl_adapters.compare(model, lambda model: step(model) * math.inf)
    assert "the loss is" in found.flags[0].what
    assert "nan" in str(found)


def test_a_step_that_is_not_fixed_is_flagged() -> None:
    model, step = network(2.0)
    calls = iter([1.0, 2.0])
    found = tssl_adapters.compare(model, lambda model: step(model) * next(calls))
    assert [flag.kind for flag in found.flags if not flag.where] == ["not fixed"]


def test_layers_without_a_gradient_and_without_a_call_are_flagged() -> None:
    model, step = network(2.0, layers=2)
    model.add_module("aside", snntorch.Leaky(0.9))
    cut = model[3].register_forward_hook(lambda _, __, out: out.detach())

    def stepped(model: Any) -> Tensor:
        return step(model[:5])

    found = tssl_adapters.compare(model, stepped)
    cut.remove()
    said = {flag.where: flag.what for flag in found.flags if flag.kind == "dead"}
    assert said[("aside",)] == "step does not call it"
    assert said[("1", "3", "aside")] == "no gradient reaches it"
    assert found.parameters[0].native is None
    assert found.layers[0].rise is None
    assert "-" in str(found)


def test_what_a_rule_remarks_is_said_and_not_warned_of() -> None:
    model = nn.Sequential(nn.Linear(3, 4), snntorch.Leaky(0.9, init_hidden=True))
    lee = rules.Lee(gate="active")
    found = tssl_adapters.compare(model, lambda model: model(torch.ones(2, 3)).sum(), rule=lee)
    assert [flag.what for flag in found.flags if flag.kind == "remark"] == [
        "Lee(gate='active') gates '1', the model's last layer. If it is the output it will hardly "
        "learn: wrap that layer with Lee() first, then the model with skip=['1']"
    ]


# Which layers, and how often.


def test_skipped_and_refused_layers_say_so() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 4),
        snntorch.Leaky(0.9, init_hidden=True, threshold=0.1),
        snntorch.Leaky(0.9, init_hidden=True, inhibition=True, threshold=0.1),
        neuron.IFNode(v_threshold=0.1),
    )
    found = tssl_adapters.compare(model, lambda m: m(torch.rand(3, 4)).sum(), skip=neuron.IFNode)
    assert [one.status for one in found.layers] == ["wrapped", "refused", "skipped"]
    assert "inhibition=True" in found.layers[1].detail
    assert found.layers[1].rate is not None
    assert found.layers[1].rise is None
    table = str(found).splitlines()
    assert [line.split()[-1] for line in table[4:6]] == ["refused", "skipped"]


def test_a_layer_that_is_shared_is_one() -> None:
    lif = snntorch.Leaky(0.9, threshold=0.3)
    model = nn.ModuleDict({"wide": nn.Linear(3, 6), "fc": nn.Linear(6, 6), "a": lif, "b": lif})

    def step(model: Any) -> Tensor:
        first = second = lif.init_leaky()
        total = T(0.0)
        for _ in range(4):
            spikes, first = model["a"](model["wide"](torch.ones(2, 3)), first)
            spikes, second = model["b"](model["fc"](spikes), second)
            total = total + spikes.sum()
        return total

    (one,) = tssl_adapters.compare(model, step, rule=arctan(1.0)).layers
    assert one.path == "a"
    assert one.rate == one.wrapped_rate
    assert one.silent is not None


def test_a_model_that_is_wrapped_is_compared_as_it_is() -> None:
    model, step = network(2.0, layers=2)
    tssl_adapters.wrap(model, rule=arctan(3.0), tau_s=2.0, skip=["3"])
    found = tssl_adapters.compare(model, step)
    assert found.rules == (
        f"{arctan(3.0)}, tau_s=2".replace(str(arctan(3.0)), str(model[1]._tssl_settings.rule)),
    )
    assert [one.status for one in found.layers] == ["wrapped", "skipped"]
    assert found.layers[0].wrapped_width == pytest.approx(6.0 / math.pi, rel=0.03)
    other = tssl_adapters.compare(model, step, rule="tsslbp")
    assert other.rules == ("TSSLBP(), tau_s=1",)
    assert [one.status for one in other.layers] == ["wrapped", "wrapped"]


def test_a_model_that_was_trained_wrapped_is_compared_as_before() -> None:
    """What its steps know of each other by then does not hide them."""
    model, step = network(2.0, layers=2)
    tssl_adapters.wrap(model)
    before = tssl_adapters.compare(model, step)
    step(model).backward()
    assert [layer._tssl_settings.decided is not None for layer in model[1:4:2]] == [True, True]
    assert str(tssl_adapters.compare(model, step)) == str(before)
    assert before.layers[0].rise is not None


# As it was.


def remembered(model: nn.Module) -> dict[str, Any]:
    """Everything of a model by its values."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for path, module in model.named_modules():
        found = {**vars(module), **vars(module).get("_memories", {})}
        tensors |= {f"{path}.{name}": v for name, v in found.items() if isinstance(v, Tensor)}
    kept: dict[str, Any] = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    grads = {f"grad of {name}": p.grad for name, p in model.named_parameters()}
    # What a step itself writes to in place has another version, which nobody can put back.
    versions = {f"version of {n}": t._version for n, t in tensors.items() if n != "calls"}
    settings = {
        f"settings of {path}": (module._tssl_settings, copy.deepcopy(module._tssl_settings))
        for path, module in model.named_modules()
        if hasattr(module, "_tssl_settings")
    }
    tags = {f"tag of {name}": vars(tensor).get("_tssl_tag") for name, tensor in tensors.items()}
    drawn = (torch.get_rng_state(), str(np.random.get_state()), random.getstate())
    return {**kept, **grads, **versions, **tags, **settings, "random": drawn}


def assert_as_it_was(now: dict[str, Any], before: dict[str, Any]) -> None:
    assert list(now) == list(before)
    for name, value in before.items():
        if name == "random":
            torch_state, numpy_state, python_state = value
            assert torch.equal(now[name][0], torch_state)
            assert now[name][1] == numpy_state
            assert now[name][2] == python_state
        elif name.startswith("settings of"):
            assert now[name][0] is value[0], name
            assert now[name][1] == value[1], name
        elif name.startswith(("grad of", "version of", "tag of")):
            assert now[name] is value or now[name] == value, name
        else:
            assert torch.equal(now[name], value), name


class BrokenError(Exception):
    pass


WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "native": lambda model: None,
    "wrapped": tssl_adapters.wrap,
    "wrapped, with a PSC": lambda model: tssl_adapters.wrap(model, tau_s=3.0, rule=arctan(1.0)),
}


OTHERWISE = {"rule": "tsslbp", "tau_s": 2.0}


@pytest.mark.singly
@every_model
@pytest.mark.parametrize(
    ("way", "options", "fails"),
    [
        ("native", {}, 0),
        ("native", {}, 2),
        ("wrapped", {}, 0),
        ("wrapped", OTHERWISE, 1),
        ("wrapped, with a PSC", {}, 2),
        ("wrapped, with a PSC", OTHERWISE, 0),
    ],
)
def test_all_is_as_it_was(name: str, way: str, options: dict[str, Any], fails: int) -> None:
    """After two passes, and where the first or the second one fails."""
    model = made(name)
    model.register_buffer("calls", torch.zeros(()))
    WAYS[way](model)
    gradients(model)  # leaves gradients, and states in the middle of their graph
    next(model.children()).eval()
    model.get_submodule(SPIKING[name][0]).register_forward_hook(lambda *_: None)
    before, objects = remembered(model), anatomy(model)
    calls = 0

    def step(model: Any) -> Tensor:
        nonlocal calls
        calls += 1
        loss = loss_of(model)
        model.calls += 1
        model.train()
        model.extra = calls
        model.zero_grad()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.data.mul_(0.5)
        if calls == fails:
            raise BrokenError
        return loss

    if fails:
        with pytest.raises(BrokenError):
            tssl_adapters.compare(model, step, **options)
    else:
        tssl_adapters.compare(model, step, **options)
    assert calls == (fails or 2)
    assert_as_it_was(remembered(model), before)
    assert_same_anatomy(anatomy(model), objects)


@of_tsslbp
@pytest.mark.parametrize("tau_s", [1.0, 3.0])
def test_a_sequence_goes_on_after_a_comparison(tau_s: float) -> None:
    """A comparison in the middle of a user's loop does not touch its states, links and traces."""

    def halves(between: Callable[[Any], Any]) -> list[Tensor]:
        torch.manual_seed(0)
        fc, lif = nn.Linear(3, 5), snntorch.Leaky(0.9, threshold=0.2, init_hidden=True)
        model = tssl_adapters.wrap(nn.Sequential(fc, lif), tau_s=tau_s, rule=rules.TSSLBP())
        x = torch.rand(6, 4, 3)
        first = [model(one) for one in x[:3]]
        between(model)
        out = torch.stack([*first, *(model(one) for one in x[3:])])
        out.square().sum().backward()
        return [out.detach(), fc.weight.grad]

    def stepped(model: Any) -> Tensor:
        model[1].reset_mem()
        return sum((model(torch.ones(4, 3)).sum() for _ in range(4)), T(0.0))

    undisturbed = halves(lambda model: None)
    disturbed = halves(lambda model: tssl_adapters.compare(model, stepped))
    assert all(map(torch.equal, undisturbed, disturbed))


def test_both_passes_start_from_the_same_hidden_state() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), neuron.LIFNode(v_threshold=0.5))
    with torch.no_grad():
        model(torch.rand(4, 3) * 3.0)
    held = model[1].v
    found = tssl_adapters.compare(model, lambda model: (model(torch.ones(4, 3)) + model[1].v).sum())
    assert found.native_loss == found.wrapped_loss
    assert model[1].v is held


def test_nothing_trains_and_no_gradient_is_left_elsewhere() -> None:
    model, step = network(2.0)
    taught = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(taught.append)
    x = torch.ones(3, requires_grad=True)
    x.grad = grad = torch.ones(3)
    tssl_adapters.compare(model, lambda model: step(model) * x.sum())
    assert taught == []
    assert x.grad is grad
    assert torch.equal(grad, torch.ones(3))
    step(model).backward()
    assert len(taught) == 4


def test_a_lazy_layer_has_to_know_its_shape() -> None:
    model = nn.Sequential(nn.LazyLinear(4), snntorch.Leaky(0.9, init_hidden=True))
    with pytest.raises(ValueError, match=r"'0.weight' has no values yet.*call the model once"):
        tssl_adapters.compare(model, lambda model: model(torch.ones(2, 3)).sum())


# What it refuses.


@pytest.mark.parametrize(
    ("step", "error", "text"),
    [
        (None, TypeError, "step must be a function that takes the model"),
        (lambda model: 1.0, TypeError, "has to return the loss, a scalar tensor, not 1.0"),
        (lambda model: model(torch.ones(2, 3)), ValueError, r"tensor of shape \(2, 4\)"),
        (lambda model: model(torch.ones(2, 3)).sum().detach(), ValueError, "has no graph"),
        (lambda model: torch.ones(()), ValueError, "has no graph"),
    ],
)
def test_bad_steps(step: Any, error: type[Exception], text: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), snntorch.Leaky(0.9, init_hidden=True))
    objects = anatomy(model)
    with pytest.raises(error, match=text):
        tssl_adapters.compare(model, step)
    assert_same_anatomy(anatomy(model), objects)


def test_a_step_leaves_backward_to_compare() -> None:
    model, step = network(2.0)

    def stepped(model: Any) -> Tensor:
        loss = step(model)
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="step called backward"):
        tssl_adapters.compare(model, stepped)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_other_arguments_are_checked_as_wrap_does() -> None:
    model, step = network(2.0)
    with pytest.raises(TypeError, match=r"compare takes a torch\.nn\.Module"):
        tssl_adapters.compare(None, step)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Unknown rule 'unknown'"):
        tssl_adapters.compare(model, step, rule="unknown")
    with pytest.raises(ValueError, match="at least 1 time step"):
        tssl_adapters.compare(model, step, tau_s=0.5)
    with pytest.raises(TypeError, match="skip must be a list"):
        tssl_adapters.compare(model, step, skip=3)  # type: ignore[arg-type]
    with pytest.raises(NoSpikingLayersError, match="1: skipped"):
        tssl_adapters.compare(model, step, skip="1")


def test_no_grad_around_it_does_not_matter() -> None:
    model, step = network(2.0)
    with torch.no_grad():
        assert tssl_adapters.compare(model, step).parameters[0].native


# How it is shown.


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
def test_the_table_fits_a_hundred_columns(tau_s: float) -> None:
    model, step = network(0.3, layers=3)
    names = [f"{'encoder.' * 9}{i}".replace(".", "_") for i in range(len(model))]
    owner = nn.Module()
    owner.add_module("with_a_long_name_of_its_own_" * 3, model)
    renamed = nn.Sequential()
    for name, part in zip(names, model, strict=True):
        renamed.add_module(name, part)
    found = tssl_adapters.compare(renamed, step, tau_s=tau_s)
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 100
    assert repr(found) == str(found)
    assert lines[3].startswith("...")
    assert lines[3].split()[0].endswith("_1")


def test_the_table_has_its_figures() -> None:
    model, step = network(2.0)
    found = tssl_adapters.compare(model, step, rule=arctan(1.0))
    lines = [line.split() for line in str(found).splitlines()]
    one, weight = found.layers[0], found.parameters[0]
    widths = (one.rise, one.native_width, one.wrapped_width, one.carry)
    shares = ["1", f"{one.rate:.3f}", f"{one.silent:.0%}", "1"]
    assert [*shares, *(f"{number:.3g}" for number in widths)] in lines
    numbers = (weight.norm, weight.native, weight.wrapped, weight.ratio, weight.cosine)
    assert ["0.weight", *(f"{number:.3g}" for number in numbers)] in lines


def test_plain_data_is_all_there() -> None:
    model, step = network(0.02, layers=2)
    found = tssl_adapters.compare(model, step, rule="tsslbp")
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert list(data) == [
        "rules", "native_loss", "wrapped_loss", "layers", "parameters", "flags",
    ]  # fmt: skip
    assert data["layers"][1]["path"] == "3"
    assert data["layers"][1]["silent"] == 1.0
    assert data["parameters"][0]["native"] == found.parameters[0].native
    assert data["flags"][0]["where"] == ["1", "3"]


def test_the_plot_shows_both_passes() -> None:
    model, step = network(2.0, layers=2)
    found = tssl_adapters.compare(model, step, rule="tsslbp")
    firing, widths, norms, cosines = found.plot().axes
    assert firing.lines[0].get_ydata().tolist() == [one.rate for one in found.layers]
    assert widths.lines[1].get_ydata().tolist() == [one.native_width for one in found.layers]
    assert norms.lines[1].get_ydata().tolist() == [one.wrapped for one in found.parameters]
    assert cosines.lines[0].get_ydata().tolist() == [one.cosine for one in found.parameters]
    assert [tick.get_text() for tick in firing.get_xticklabels()] == ["1", "3"]
    found.plot().savefig(io.BytesIO())


def test_the_plot_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, step = network(2.0)
    found = tssl_adapters.compare(model, step)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "tssl_adapters.comparing.plot", raising=False)
    with pytest.raises(ImportError, match=r"plot\(\) needs matplotlib.*tssl-adapters\[bench\]"):
        found.plot()
