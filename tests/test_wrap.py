"""wrap, unwrap, is_wrapped, skip, inspect, supported: on layers, models and mixtures."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
import re
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

import norse.torch as norse
import numpy as np
import pytest
import snntorch
import torch
from cases import Case
from layers import CASES
from models import (
    BATCH,
    INPUTS,
    MODELS,
    SPIKING,
    MixedNet,
    anatomy,
    assert_same_anatomy,
    equal,
    inputs,
    label,
    numbers,
)
from spikingjelly.activation_based import base, encoding, layer, neuron
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import adapters, rules
from tssl_adapters.errors import AlreadyWrappedError, NoSpikingLayersError

every_case = pytest.mark.parametrize("case", CASES, ids=label)
every_model = pytest.mark.parametrize("name", MODELS)
every_tau_s = pytest.mark.parametrize("tau_s", [1.0, 3.0])


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]()


def without_ours(text: str) -> str:
    """What is printed of a model, without what a wrapped layer adds to its library's."""
    return re.sub(r"(, )?tssl_adapters: [^\n]*?engine='\w+'", "", text)


def wrapped_paths(model: nn.Module) -> list[str]:
    """The layers that are wrapped themselves: nothing below them is."""
    is_wrapped = tssl_adapters.is_wrapped
    return [
        path
        for path, module in model.named_modules()
        if is_wrapped(module) and not any(map(is_wrapped, module.children()))
    ]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        torch.manual_seed(1)
        optimizer.zero_grad()
        outs = [out for out in model(inputs()) if out.ndim == 3]
        sum(((out - 0.3) ** 2).mean() for out in outs).backward()  # type: ignore[union-attr]
        optimizer.step()
    with torch.no_grad():
        model(inputs())


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def tags_left(model: nn.Module) -> list[str]:
    """Tensors of a model that still carry something of ours."""
    return [
        key
        for key, value in anatomy(model).items()
        if isinstance(value, Tensor) and any("tssl" in name for name in vars(value))
    ]


# --- wrap ------------------------------------------------------------------------------------


@pytest.mark.singly
@every_model
@every_tau_s
def test_wrap_changes_the_class_and_nothing_else(name: str, tau_s: float) -> None:
    model = made(name)
    for i, module in enumerate(model.modules()):
        module.train(i % 2 == 0)
    before, text = anatomy(model), repr(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    parameters, flags = list(model.parameters()), [m.training for m in model.modules()]

    assert tssl_adapters.wrap(model, tau_s=tau_s) is model
    after = anatomy(model)

    added = {key for key in after if key not in before}
    memories = {k for k in added if "_memories" in k and k.endswith("['tssl_psc']")}
    assert added - memories == {
        f"{path}._tssl_settings"
        for path, module in model.named_modules(remove_duplicate=False)
        if path in SPIKING[name] or path == "again"
    }
    assert bool(memories) == (tau_s > 1 and name in ("spikingjelly", "mixed"))
    changed = {key for key in before if after[key] is not before[key]}
    spiking = {*SPIKING[name], *({"again"} if name == "mixed" else ())}
    assert changed == {f"{path} class" for path in spiking}
    for path in spiking:
        native = before[f"{path} class"]
        assert isinstance(model.get_submodule(path), native)
        assert issubclass(after[f"{path} class"], native)
    assert repr(model).count("tssl_adapters: SmoothTSSLBP()") == len(spiking)
    assert without_ours(repr(model)) == text
    assert [m.training for m in model.modules()] == flags
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


@pytest.mark.singly
@every_case
@every_tau_s
def test_single_layers_too(case: Case, tau_s: float) -> None:
    native = case.make(torch.float32)
    wrapped = copy.deepcopy(native)
    assert not tssl_adapters.is_wrapped(wrapped)
    assert tssl_adapters.wrap(wrapped, tau_s=tau_s) is wrapped
    assert tssl_adapters.is_wrapped(wrapped)
    assert isinstance(wrapped, type(native))
    assert type(wrapped) is not type(native)
    current = "" if tau_s == 1.0 else "tau_s=3, "
    ours = f"tssl_adapters: SmoothTSSLBP(), {current}engine='cpu'"
    own = native.extra_repr()
    assert wrapped.extra_repr() == (f"{own}, {ours}" if own else ours)
    assert without_ours(str(wrapped)) == str(native)
    assert wrapped._get_name() == type(native).__name__
    assert list(wrapped.state_dict()) == list(native.state_dict())
    assert [n for n, _ in wrapped.named_buffers()] == [n for n, _ in native.named_buffers()]
    assert tssl_adapters.unwrap(wrapped) is wrapped
    assert not tssl_adapters.is_wrapped(wrapped)
    assert str(wrapped) == str(native)
    assert type(wrapped) is type(native)


@every_model
@pytest.mark.filterwarnings("ignore::tssl_adapters.errors.LostLinkWarning")  # by backward hooks
def test_hooks_survive(name: str) -> None:
    """Each kind fires as often as natively, before wrap, wrapped, and after unwrap."""
    model = made(name)
    calls: list[str] = []

    def note(kind: str) -> Callable[..., None]:
        def hook(*args: Any) -> None:
            calls.append(kind)

        return hook

    for path in SPIKING[name]:
        module = model.get_submodule(path)
        module.register_forward_pre_hook(note(f"{path} pre"))
        module.register_forward_hook(note(f"{path} forward"))
        module.register_full_backward_hook(note(f"{path} backward"))
        module._register_state_dict_hook(note(f"{path} state"))
    counts = []
    for change in (lambda m: m, tssl_adapters.wrap, tssl_adapters.unwrap):
        change(model)
        calls.clear()
        numbers(model)
        model.state_dict()
        counts.append(sorted(calls))
    assert len(set(counts[0])) == 4 * len(SPIKING[name])
    assert counts[0] == counts[1] == counts[2]


@every_model
def test_is_wrapped(name: str) -> None:
    model = made(name)
    modules = dict(model.named_modules())
    assert not any(map(tssl_adapters.is_wrapped, modules.values()))
    tssl_adapters.wrap(model)
    above = {path.rsplit(".", i)[0] for path in SPIKING[name] for i in range(path.count(".") + 1)}
    assert {path for path, m in modules.items() if tssl_adapters.is_wrapped(m)} == {"", *above}
    tssl_adapters.unwrap(model)
    assert not any(map(tssl_adapters.is_wrapped, modules.values()))


def test_wrap_changes_the_gradient_and_not_the_output() -> None:
    for name in MODELS:
        native, model = numbers(made(name)), numbers(tssl_adapters.wrap(made(name)))
        outputs = sum(1 for out in made(name)(inputs()) if out.ndim == 3)
        assert equal(native[:outputs], model[:outputs])
        assert not torch.equal(native[outputs], model[outputs])  # the input's gradient
        assert torch.isfinite(model[outputs]).all()


def test_shared_neuron_is_wrapped_once() -> None:
    model = MixedNet()
    assert model.again is model.body.inner.lif
    rows = [row.path for row in tssl_adapters.inspect(model)]
    assert rows == ["body.inner.lif", "middle.node", "head.1", "head.2"]
    tssl_adapters.wrap(model)
    assert model.again is model.body.inner.lif
    assert type(model.again).__mro__.count(type(model.again)) == 1
    assert type(model.again).__bases__[1] is snntorch.Leaky
    tssl_adapters.unwrap(model)
    assert type(model.again) is snntorch.Leaky


def test_a_shared_container_is_wrapped_once() -> None:
    block = nn.Sequential(nn.Linear(4, 4), norse.LIF())
    model = nn.ModuleList([block, nn.ModuleList([block]), block])
    tssl_adapters.wrap(model)
    assert len(tssl_adapters.inspect(model)) == 1
    assert tssl_adapters.is_wrapped(block[1])


@pytest.mark.parametrize("rule", [None, "smooth-tsslbp", rules.SmoothTSSLBP()])
def test_default_rule(rule: Any) -> None:
    given = numbers(tssl_adapters.wrap(made("mixed"), rule=rule))
    assert equal(given, numbers(tssl_adapters.wrap(made("mixed"))))


@pytest.mark.parametrize("rule", [rules.TSSLBP(), rules.TSSLBP(8.0, 0.2)])
def test_the_papers_rule_by_name(rule: Any) -> None:
    given = numbers(tssl_adapters.wrap(made("mixed"), rule=rule))
    assert equal(given, numbers(tssl_adapters.wrap(made("mixed"), rule="tsslbp")))
    assert not equal(given, numbers(tssl_adapters.wrap(made("mixed"))))


@pytest.mark.parametrize("tau_s", [3, np.float32(3.0), np.float64(3.0)])
def test_tau_s_of_any_real_type(tau_s: Any) -> None:
    given = numbers(tssl_adapters.wrap(made("mixed"), tau_s=tau_s))
    assert equal(given, numbers(tssl_adapters.wrap(made("mixed"), tau_s=3.0)))


# --- unwrap ----------------------------------------------------------------------------------


@pytest.mark.singly
@every_model
@every_tau_s
def test_unwrap_undoes_wrap(name: str, tau_s: float) -> None:
    model = made(name)
    before = anatomy(model)
    tssl_adapters.wrap(model, tau_s=tau_s)
    assert tssl_adapters.unwrap(model) is model
    assert_same_anatomy(anatomy(model), before)


@pytest.mark.singly
@every_model
@every_tau_s
def test_unwrap_after_use(name: str, tau_s: float) -> None:
    """The model is what a native twin is after the same calls."""
    model, twin = made(name), made(name)
    types = [type(m) for m in model.modules()]
    natively = numbers(twin)
    numbers(tssl_adapters.wrap(model, tau_s=tau_s))
    tssl_adapters.unwrap(model)
    assert list(anatomy(model)) == list(anatomy(twin))
    assert [type(m) for m in model.modules()] == types
    assert list(model.state_dict()) == list(twin.state_dict())
    assert tags_left(model) == []
    assert equal(numbers(copy.deepcopy(model)), natively)
    assert equal(numbers(model), natively)


@pytest.mark.singly
@every_case
@every_tau_s
@pytest.mark.parametrize("grad", [True, False])
def test_unwrap_of_a_layer_in_use(case: Case, tau_s: float, grad: bool) -> None:
    """With states in it, whatever they are, nothing of ours is left behind."""
    native = case.make(torch.float32)
    layer = tssl_adapters.wrap(copy.deepcopy(native), tau_s=tau_s)
    x = torch.rand(3, BATCH, 5).requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        case.run(native, x, None)
        case.run(layer, x, None)
    tssl_adapters.unwrap(layer)
    ours, theirs = anatomy(layer), anatomy(native)
    assert list(ours) == list(theirs)
    assert [type(value) for value in ours.values()] == [type(value) for value in theirs.values()]
    assert tags_left(layer) == []


def test_unwrap_of_what_is_not_wrapped() -> None:
    model = made("mixed")
    before = anatomy(model)
    assert tssl_adapters.unwrap(model) is model
    assert_same_anatomy(anatomy(model), before)


def test_unwrap_of_a_part() -> None:
    """One layer, or a container, of a wrapped model; the rest stays wrapped."""
    model = tssl_adapters.wrap(made("mixed"))
    tssl_adapters.unwrap(model.body)
    assert wrapped_paths(model) == ["middle.node", "head.1"]
    tssl_adapters.unwrap(model.head[1])
    assert wrapped_paths(model) == ["middle.node"]
    tssl_adapters.wrap(model.body, tau_s=3.0)
    assert wrapped_paths(model) == ["body.inner.lif", "middle.node"]


@every_model
def test_another_rule_after_unwrap(name: str) -> None:
    model = made(name)
    first = numbers(tssl_adapters.wrap(model))
    tssl_adapters.unwrap(model)
    rule = rules.SurrogateGradient(lambda x: 1 / (1 + x**2))
    second = numbers(tssl_adapters.wrap(model, rule=rule))
    assert not equal(first, second)
    assert equal(second, numbers(tssl_adapters.wrap(made(name), rule=rule)))
    tssl_adapters.unwrap(model)
    assert equal(first, numbers(tssl_adapters.wrap(model)))


class Bounded(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return value.clamp(0.1, 0.9)


def test_unwrap_keeps_a_parametrization_made_since() -> None:
    """torch swaps the class too, for a subclass of ours; only our part of it may go."""
    x, layer = torch.rand(2, 5), snntorch.Leaky(2.0, threshold=0.5, learn_beta=True)
    tssl_adapters.wrap(layer)
    nn.utils.parametrize.register_parametrization(layer, "beta", Bounded())
    expected = layer(x, torch.ones(2, 5))[1]
    tssl_adapters.unwrap(layer)
    assert not tssl_adapters.is_wrapped(layer)
    assert float(layer.beta) == pytest.approx(0.9)
    assert torch.equal(layer(x, torch.ones(2, 5))[1], expected)


# --- training, copies, checkpoints -----------------------------------------------------------


@pytest.mark.singly
@every_model
@every_tau_s
def test_optimizer_built_before_goes_on_training(name: str, tau_s: float) -> None:
    """Before, during and after, the same parameters move, as with an optimizer built anew."""
    model, twin = made(name), made(name)
    optimizer, start = sgd(model), values(model)
    train(model, optimizer, 2)
    train(twin, sgd_of_twin := sgd(twin), 2)
    natively = values(model)
    assert equal(natively, values(twin))
    assert all(not torch.equal(a, b) for a, b in zip(start, natively, strict=True))

    tssl_adapters.wrap(model, tau_s=tau_s)
    train(model, optimizer, 2)
    fresh = sgd(tssl_adapters.wrap(twin, tau_s=tau_s))
    fresh.load_state_dict(sgd_of_twin.state_dict())
    train(twin, fresh, 2)
    wrapped = values(model)
    assert equal(wrapped, values(twin))
    assert all(not torch.equal(a, b) for a, b in zip(natively, wrapped, strict=True))

    tssl_adapters.unwrap(model)
    assert equal(wrapped, values(model))  # weights as trained
    train(model, optimizer, 1)
    native_again = sgd(tssl_adapters.unwrap(twin))
    native_again.load_state_dict(fresh.state_dict())
    train(twin, native_again, 1)
    assert equal(values(model), values(twin))
    assert not equal(values(model), wrapped)


@pytest.mark.singly
@every_model
@every_tau_s
def test_deepcopy_of_a_wrapped_model(name: str, tau_s: float) -> None:
    """Equal to the original, and independent of it in weights, states and wrapping."""
    model = tssl_adapters.wrap(made(name), tau_s=tau_s)
    found = numbers(model)  # leaves states behind
    twin = copy.deepcopy(model)
    assert wrapped_paths(twin) == wrapped_paths(model) == SPIKING[name]
    assert equal(numbers(twin), found)
    start = values(model)
    train(twin, sgd(twin), 2)
    assert equal(values(model), start)
    assert not equal(values(twin), start)
    assert equal(numbers(model), found)
    tssl_adapters.unwrap(twin)
    assert wrapped_paths(twin) == []
    assert wrapped_paths(model) == SPIKING[name]
    assert equal(numbers(model), found)


def picklable_leaky() -> nn.Module:
    """With its default surrogate, a closure, snnTorch's layer does not pickle natively."""
    return snntorch.Leaky(0.8, threshold=0.4, surrogate_disable=True)


def through_pickle(module: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(module))


def through_save(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.singly
@every_case
@pytest.mark.parametrize("trip", [through_pickle, through_save, copy.deepcopy])
@pytest.mark.parametrize("used", [False, True])
def test_pickle_and_deepcopy_where_they_work_natively(
    case: Case, trip: Callable[[nn.Module], nn.Module], used: bool
) -> None:
    """And where they do not, wrapping neither mends it nor changes what is said."""
    native = case.make(torch.float32)
    x = torch.rand(3, BATCH, 5)
    if used:
        with torch.no_grad():
            case.run(native, x, None)
    problem = ""
    try:
        trip(native)
    except Exception as error:
        problem = str(error)
    if trip is not copy.deepcopy:
        assert bool(problem) == ("spikingjelly" not in case.name)
    for tau_s in (1.0, 3.0):
        layer = tssl_adapters.wrap(case.make(torch.float32), tau_s=tau_s)
        if used:
            with torch.no_grad():
                case.run(layer, x, None)
        if problem:
            with pytest.raises((AttributeError, RuntimeError, pickle.PicklingError)) as caught:
                trip(layer)
            assert str(caught.value) == problem
            tssl_adapters.unwrap(layer)
            with pytest.raises((AttributeError, RuntimeError, pickle.PicklingError)) as caught:
                trip(layer)
            assert str(caught.value) == problem
            continue
        copied = trip(layer)
        assert type(copied) is type(layer)
        assert torch.equal(case.run(copied, x, None).out, case.run(layer, x, None).out)
        with torch.no_grad():
            case.run(layer, x, None)
        native_again = trip(tssl_adapters.unwrap(layer))
        assert type(native_again) is type(native)
        tssl_adapters.unwrap(copied)
        assert torch.equal(case.run(copied, x, None).out, case.run(native_again, x, None).out)


@every_tau_s
def test_snntorch_pickles_where_its_surrogate_does(tau_s: float) -> None:
    layer = tssl_adapters.wrap(picklable_leaky(), tau_s=tau_s)
    x = torch.rand(4, BATCH, 5)
    for trip in (through_pickle, through_save):
        copied = trip(layer)
        assert tssl_adapters.is_wrapped(copied)
        mem, ours = layer.reset_mem(), copied.reset_mem()
        for step in x:
            (out, mem), (theirs, ours) = layer(step, mem), copied(step, ours)
            assert torch.equal(out, theirs)
            assert torch.equal(mem, ours)
        assert type(trip(tssl_adapters.unwrap(copied))) is snntorch.Leaky


@every_tau_s
def test_pickle_of_a_whole_model(tau_s: float) -> None:
    model = tssl_adapters.wrap(made("spikingjelly"), tau_s=tau_s)
    found = numbers(model)
    for trip in (through_pickle, through_save):
        copied = trip(model)
        assert wrapped_paths(copied) == SPIKING["spikingjelly"]
        assert equal(numbers(copied), found)
    assert equal(
        numbers(through_pickle(tssl_adapters.unwrap(model))), numbers(made("spikingjelly"))
    )


@pytest.mark.singly
@every_model
@every_tau_s
def test_state_dict_between_wrapped_and_native(name: str, tau_s: float) -> None:
    """Checkpoints of either load into the other, through a file, strictly."""
    trained = tssl_adapters.wrap(made(name), tau_s=tau_s)
    train(trained, sgd(trained), 2)
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    native = made(name)
    native.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert equal(values(native), values(trained))
    assert list(native.state_dict()) == list(trained.state_dict())

    back = tssl_adapters.wrap(made(name), tau_s=tau_s)
    back.load_state_dict(native.state_dict(), strict=True)
    assert equal(numbers(back), numbers(trained))
    tssl_adapters.unwrap(trained)
    assert equal(numbers(native), numbers(trained))


# --- skip ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        ((), ["body.inner.lif", "middle.node", "head.1"]),
        ("body", ["middle.node", "head.1"]),
        ("body.*", ["middle.node", "head.1"]),
        (["body.inner"], ["middle.node", "head.1"]),
        (["body.inner.lif"], ["middle.node", "head.1"]),
        (["body.inner.lif", "head.[0-9]"], ["middle.node"]),
        (dict.fromkeys(("h??d.1", "*.node")), ["body.inner.lif"]),
        (("*.lif",), ["middle.node", "head.1"]),
        (["lif", "node", "1", "ead.1", "head.11"], ["body.inner.lif", "middle.node", "head.1"]),
        (["Head.1", "BODY"], ["body.inner.lif", "middle.node", "head.1"]),
        (["head.2"], ["body.inner.lif", "middle.node", "head.1"]),
        (norse.LIF, ["body.inner.lif", "middle.node"]),
        ([norse.LIF, snntorch.SpikingNeuron], ["middle.node"]),
        ([neuron.BaseNode], ["body.inner.lif", "head.1"]),
        ([base.StepModule], ["body.inner.lif", "head.1"]),  # a mixin, no module class
        ([nn.ModuleList], ["body.inner.lif", "middle.node"]),
        ([nn.Linear, norse.LI, nn.Conv2d], ["body.inner.lif", "middle.node", "head.1"]),
        ([nn.ModuleList, "body"], ["middle.node"]),
        (iter(["body", norse.LIF]), ["middle.node"]),
    ],
    ids=label,
)
def test_skip(skip: Any, left: list[str]) -> None:
    model = made("mixed")
    before = anatomy(model)
    assert wrapped_paths(tssl_adapters.wrap(model, skip=skip)) == left
    for path in SPIKING["mixed"]:
        same = type(model.get_submodule(path)) is before[f"{path} class"]
        assert same == (path not in left)


@pytest.mark.parametrize("skip", ["*", nn.Module, ["", "nothing"], MixedNet], ids=label)
def test_skip_of_everything(skip: Any) -> None:
    model = made("mixed")
    before = anatomy(model)
    with pytest.raises(NoSpikingLayersError, match="3 skipped"):
        tssl_adapters.wrap(model, skip=skip)
    assert_same_anatomy(anatomy(model), before)


def test_skip_reaches_a_shared_neuron_under_each_of_its_names() -> None:
    model = MixedNet()
    for skip in ("again", "body.inner.lif", "body"):
        tssl_adapters.wrap(model, skip=skip)
        assert wrapped_paths(model) == ["middle.node", "head.1"], skip
        tssl_adapters.unwrap(model)


def test_skip_takes_a_name_literally_too() -> None:
    """What the error offers for pasting are names, and names may hold brackets."""
    model = nn.ModuleDict({"a[0]": norse.LIF(), "a0": norse.LIF()})
    tssl_adapters.wrap(model, skip=["a[0]"])
    assert not tssl_adapters.is_wrapped(model["a[0]"])


@pytest.mark.parametrize(
    ("first", "second"), [(["head", "middle"], "body"), (["body"], [neuron.BaseNode, norse.LIF])]
)
def test_two_wraps_in_one_model(first: Any, second: Any) -> None:
    """Each layer keeps the tau_s and the rule of the call that wrapped it."""
    rule = rules.SurrogateGradient(lambda x: 1 / (1 + x**2))
    model = tssl_adapters.wrap(made("mixed"), tau_s=3.0, skip=first)
    early = wrapped_paths(model)
    with pytest.raises(AlreadyWrappedError):
        tssl_adapters.wrap(model, rule=rule)
    tssl_adapters.wrap(model, rule=rule, skip=second)
    assert wrapped_paths(model) == SPIKING["mixed"]
    by_hand = made("mixed")
    for path in SPIKING["mixed"]:
        own = {"tau_s": 3.0} if path in early else {"rule": rule}
        tssl_adapters.wrap(by_hand.get_submodule(path), **own)
    assert equal(numbers(model), numbers(by_hand))
    for row in tssl_adapters.inspect(model):
        if row.status == "wrapped":
            assert ("tau_s=3" in row.detail) == (row.path in early)
            assert ("TSSLBP" in row.detail) == (row.path in early)
    with torch.no_grad():
        outs = dict(zip(SPIKING["mixed"], model(inputs()), strict=False))
    for path, out in outs.items():
        assert bool(((out > 0) & (out < 1)).any()) == (path in early)
    tssl_adapters.unwrap(model)
    assert equal(numbers(model), numbers(made("mixed")))


# --- inspect and supported -------------------------------------------------------------------


class EveryStatus(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, INPUTS)
        self.block = nn.Sequential(norse.LIF(), norse.LICell(), norse.LIFBoxCell())
        self.done = tssl_adapters.wrap(snntorch.Leaky(0.9), tau_s=2.5)
        self.single = neuron.IFNode()
        self.multi = neuron.LIFNode(step_mode="m")
        self.other = neuron.TernaryIFNode()
        self.quantised = snntorch.Leaky(0.9, state_quant=torch.round)
        self.head = snntorch.Synaptic(0.9, 0.8)
        self.drop = nn.Dropout()


def test_inspect_of_every_status() -> None:
    model = EveryStatus()
    before = anatomy(model)
    report = tssl_adapters.inspect(model, skip=["head"])
    assert_same_anatomy(anatomy(model), before)
    versions = {name: metadata.version(name) for name in ("snntorch", "spikingjelly", "norse")}
    found = [(row.path, row.layer, row.library, row.status) for row in report]
    assert found == [
        ("block.0", "LIF", "norse", "wrap"),
        ("block.1", "LICell", "norse", "native"),
        ("block.2", "LIFBoxCell", "norse", "wrap"),
        ("done", "Leaky", "snntorch", "wrapped"),
        ("single", "IFNode", "spikingjelly", "wrap"),
        ("multi", "LIFNode", "spikingjelly", "wrap"),
        ("other", "TernaryIFNode", "spikingjelly", "refused"),
        ("quantised", "Leaky", "snntorch", "refused"),
        ("head", "Synaptic", "snntorch", "skipped"),
    ]
    assert all(row.version == versions[row.library] for row in report)
    how = {row.path: row.detail for row in report}
    assert [how[path] for path in ("block.0", "block.2", "single", "multi")] == [
        "sequence: SmoothTSSLBP(), engine='cpu'",
        "step: SmoothTSSLBP(), engine='cpu'",
        "step: SmoothTSSLBP(), engine='cpu'",
        "sequence: SmoothTSSLBP(), engine='cpu'",
    ]
    assert "does not spike" in how["block.1"]
    assert how["done"] == "step, wrapped already: SmoothTSSLBP(), tau_s=2.5, engine='cpu'"
    assert "state_quant" in how["quantised"]
    assert "skip" in how["head"]
    assert how["other"]
    assert [row.path for row in report if row.status == "refused" and row.config] == ["quantised"]


def test_inspect_prints_a_table() -> None:
    report = tssl_adapters.inspect(EveryStatus())
    text = str(report)
    assert repr(report) == text
    lines = text.splitlines()
    assert lines[0].split() == "layer class library status how, or why not".split()
    assert len(report) == 9
    assert report[0].path == "block.0"
    assert report[-1].path == "head"
    assert [row.path for row in report[:2]] == ["block.0", "block.1"]
    assert len(list(report)) == 9
    for row in report:
        line = next(line for line in lines if line.startswith(f"{row.path} "))
        assert line.split()[1] == row.layer
        assert f" {row.library} " in line
        assert f" {row.status} " in line
        assert row.detail.split()[0] in line
    assert max(map(len, lines)) <= 100


def test_inspect_fits_100_columns_whatever_the_names() -> None:
    """Long names are broken, at dots where they have some; no letter is lost."""
    stream = nn.Sequential(snntorch.Leaky(0.9), snntorch.Synaptic(0.9, 0.8))
    layers = {"encoder": nn.ModuleDict({"visual_stream_of_the_whole_model": stream})}
    model = nn.ModuleDict(layers | {"a" * 120: snntorch.LeakyParallel(2, 2)})
    table, *_ = str(tssl_adapters.inspect(model)).split("\n\n")
    lines = table.splitlines()
    assert max(map(len, lines)) <= 100
    width = lines[0].index("class")
    names = [line[:width].strip() for line in lines[1:]]
    assert "".join(names) == "".join(row.path for row in tssl_adapters.inspect(model))
    assert "encoder." in names
    assert "visual_stream_of_the_whole_model.1" in names


def test_a_library_is_named_once() -> None:
    """Where all layers are of the same; its column makes room."""
    layer = snntorch.Leaky(0.9)
    (row,) = report = tssl_adapters.inspect(layer)
    assert str(report).splitlines()[:4] == [
        "layer  class  status  how, or why not",
        f"Leaky  Leaky  wrap    {row.detail}",
        "",
        f"library: snntorch {row.version}",
    ]


def last(report: Any) -> str:
    """What is said below a table, last."""
    return " ".join(str(report).split("\n\n")[-1].split())


def test_inspect_says_what_to_do() -> None:
    """The last paragraph; the call that it shows works."""
    model = EveryStatus()
    assert last(tssl_adapters.inspect(model)) == (
        "Wrapped already: 1 layer. Next: train as before; unwrap(model) gives them the library's "
        "gradient back."
    )
    tssl_adapters.unwrap(model)
    said = last(tssl_adapters.inspect(model))
    assert "Next: wrap(model, skip=['other', 'quantised']) leaves" in said
    assert said.endswith("wraps 6 layers.")
    skip = ["other", "quantised"]
    assert last(tssl_adapters.inspect(model, skip=skip)) == (
        "Next: wrap(model, skip=['other', 'quantised']) wraps 6 layers; your training loop stays "
        "as it is."
    )
    tssl_adapters.wrap(model, skip=skip)
    nothing = last(tssl_adapters.inspect(norse.LI()))
    assert nothing.startswith("Nothing here to wrap. Next: print(tssl_adapters.supported())")
    assert last(tssl_adapters.inspect(nn.Linear(2, 2))).endswith("layers that can be wrapped.")


def test_inspect_repeats_the_arguments_that_it_was_given() -> None:
    """So that what it says to do is the call that was meant; and the call works."""
    model = nn.Sequential(
        snntorch.Leaky(0.9), snntorch.Leaky(0.9), snntorch.LeakyParallel(2, 2), norse.LIF()
    )
    said = last(
        tssl_adapters.inspect(
            model, rule="native", tau_s=2.0, skip=[norse.LIF, "1"], engine="torch"
        )
    )
    call = "wrap(model, rule='native', tau_s=2.0, engine='torch', skip=[LIF, '1', '2'])"
    assert f"Next: {call} leaves what is refused native and wraps 1 layer." in said
    eval(
        f"tssl_adapters.{call}", {"tssl_adapters": tssl_adapters, "model": model, "LIF": norse.LIF}
    )
    assert [tssl_adapters.is_wrapped(layer) for layer in model] == [True, False, False, False]
    said = last(tssl_adapters.inspect(snntorch.LeakyParallel(2, 2)))
    assert said.startswith("Refused: 1 layer, and nothing else to wrap. Next: take a layer of")


def test_inspect_shows_a_rule_of_a_function_without_its_address() -> None:
    rule = rules.SurrogateGradient(torch.sigmoid)
    assert f"wrap(model, rule={rule})" in last(tssl_adapters.inspect(neuron.LIFNode(), rule=rule))


def test_supported_says_what_to_do() -> None:
    text = str(tssl_adapters.supported())
    assert text.splitlines()[0].split() == ["layer", "library", "called", "by"]
    assert max(map(len, text.splitlines())) <= 100
    for row in tssl_adapters.supported():
        assert f"\n{row.layer} " in text
    assert last(tssl_adapters.supported()).startswith("Next: print(tssl_adapters.inspect(model))")


def test_a_wrapped_layer_names_the_options_of_its_rule() -> None:
    rule = tssl_adapters.rules.TSSLBP(max_slope=4.0, reset_path="none")
    (row,) = tssl_adapters.inspect(tssl_adapters.wrap(neuron.IFNode(step_mode="m"), rule=rule))
    rule_text = "TSSLBP(max_slope=4.0, reset_path='none')"
    assert row.detail.startswith(f"sequence, wrapped already: {rule_text}, engine=")


def narrow(width: float, x: Tensor) -> Tensor:
    return 1.0 / (1.0 + x.abs() / width) ** 2


def test_a_wrapped_layer_names_its_surrogate() -> None:
    """By name, and not by where in memory it is; within a partial function too."""
    rule = rules.SurrogateGradient(partial(narrow, 0.1), reset_path="none")
    said = (
        "SurrogateGradient(derivative=functools.partial(<function narrow>, 0.1), reset_path='none')"
    )
    model = tssl_adapters.wrap(neuron.IFNode(), rule=rule)
    assert f"tssl_adapters: {said}, engine=" in str(model)
    (row,) = tssl_adapters.inspect(model)
    assert row.detail.startswith(f"step, wrapped already: {said}, engine=")
    x = torch.ones(1, requires_grad=True)
    found = tssl_adapters.compare(model, lambda model: model(x).sum())
    assert found.rules == (f"{said}, tau_s=1",)


def test_inspect_foretells_wrap() -> None:
    for name in MODELS:
        model = made(name)
        foretold = [row.path for row in tssl_adapters.inspect(model) if row.status == "wrap"]
        assert foretold == SPIKING[name]
        tssl_adapters.wrap(model)
        rows = tssl_adapters.inspect(model)
        assert [row.path for row in rows if row.status == "wrapped"] == foretold
        assert not [row for row in rows if row.status == "wrap"]


def test_inspect_of_one_layer_and_of_none() -> None:
    (row,) = tssl_adapters.inspect(neuron.LIFNode())
    assert (row.path, row.status) == ("LIFNode", "wrap")
    report = tssl_adapters.inspect(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    assert list(report) == []
    assert str(report).startswith("No layer of snnTorch, SpikingJelly or Norse in this model. Next")


NATIVE: dict[str, Callable[[], nn.Module]] = {
    "NonSpikingIFNode": neuron.NonSpikingIFNode,
    "NonSpikingLIFNode": neuron.NonSpikingLIFNode,
    "SynapseFilter": layer.SynapseFilter,
    "Dropout": layer.Dropout,
    "PoissonEncoder": encoding.PoissonEncoder,
    "BatchNorm1d": lambda: layer.BatchNorm1d(3),
    "MultiStepContainer": layer.MultiStepContainer,
    "LI": norse.LI,
    "LICell": norse.LICell,
    "LIBoxCell": norse.LIBoxCell,
    "LILinearCell": lambda: norse.LILinearCell(2, 2),
    "RegularizationCell": norse.RegularizationCell,
    "SequentialState": norse.SequentialState,
    "SpikeLatencyLIFEncoder": lambda: norse.SpikeLatencyLIFEncoder(3),
}


@pytest.mark.parametrize("name", NATIVE)
def test_layers_without_spikes_are_listed_and_left_alone(name: str) -> None:
    model = nn.Sequential(NATIVE[name](), norse.LIF())
    before = anatomy(model[0])
    row = tssl_adapters.inspect(model)[0]
    assert (row.path, row.layer, row.status) == ("0", name, "native")
    tssl_adapters.wrap(model, tau_s=3.0)
    assert_same_anatomy(anatomy(model[0]), before)
    assert not tssl_adapters.is_wrapped(model[0])
    assert tssl_adapters.inspect(model)[0] == row


class OwnReadout(neuron.NonSpikingLIFNode):
    pass


class OwnIntegrator(norse.LICell):
    pass


def test_a_user_s_own_readouts_are_native_too() -> None:
    model = nn.Sequential(OwnReadout(), OwnIntegrator(), norse.LIF())
    tssl_adapters.wrap(model)
    assert wrapped_paths(model) == ["2"]


def test_supported_is_the_adapters_table() -> None:
    """The static table, which imports nothing, says what the adapters do."""
    report = tssl_adapters.supported()
    classes: dict[str, set[type]] = {}
    for row in report:
        module, name = row.layer.rsplit(".", 1)
        cls = getattr(importlib.import_module(module), name)
        classes.setdefault(row.library, set()).add(cls)
        assert row.version == metadata.version(row.library)
        assert f"{row.library} {row.version}" in str(report)
        assert row.layer in str(report)
        both = row.library == "spikingjelly" and name != "GatedLIFNode"
        mode = "step or sequence" if both else None
        adapter = next(a for a in adapters.loaded() if a.library == row.library)
        made = cls(T=3) if name == "GatedLIFNode" else cls.__new__(cls)
        assert row.mode == (mode or adapter.mode(made))
    assert classes == {adapter.library: set(adapter.kinds) for adapter in adapters.loaded()}
    assert {row.layer for row in report} >= {
        "snntorch.Leaky",
        *(
            f"spikingjelly.activation_based.neuron.{name}Node"
            for name in "LIF IF ParametricLIF HalfThresholdIF KLIF QIF EIF Izhikevich "
            "ComplementaryLIF CUBALIF RAF GatedLIF SimpleIF SimpleLIF".split()
        ),
        "norse.torch.LIFCell",
        "norse.torch.LIF",
        "norse.torch.LIFBoxCell",
        "norse.torch.IAF",
        "norse.torch.LSNNRecurrentCell",
    }


def test_supported_lists_installed_libraries_only(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without_norse(name: str) -> str:
        if name == "norse":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_norse)
    report = tssl_adapters.supported()
    assert {row.library for row in report} == {"snntorch", "spikingjelly"}
    assert "norse" not in str(report)


@pytest.mark.parametrize(
    ("made", "options", "engine"),
    [
        (norse.LIFCell, {}, "cpu"),
        (norse.LIFCell, {"tau_s": 3.0}, "cpu"),
        (norse.LIFCell, {"rule": "eventprop"}, "cpu"),
        (norse.LIFRefracCell, {}, "cpu"),
        (lambda: norse.LIFRecurrentCell(4, 4), {}, "cpu"),
        (lambda: norse.LIFRecurrentCell(4, 4), {"tau_s": 3.0}, "cpu"),
        (lambda: norse.LIFRecurrentCell(4, 4), {"rule": "eventprop"}, "torch"),
        (neuron.QIFNode, {}, "cpu"),
        (neuron.QIFNode, {"tau_s": 3.0}, "cpu"),
        (neuron.SimpleIFNode, {}, "cpu"),
        (neuron.SimpleIFNode, {"tau_s": 3.0}, "cpu"),
    ],
)
def test_the_engine_that_is_said_is_the_one_that_runs(
    made: Any, options: dict[str, Any], engine: str
) -> None:
    layer = made()
    (row,) = tssl_adapters.inspect(layer, engine="cpu", **options)
    tssl_adapters.wrap(layer, engine="cpu", **options)
    assert f"engine={engine!r}" in repr(layer)
    assert row.detail.endswith(f"engine={engine!r}")
    layer(torch.rand(3, 4, requires_grad=True))
    assert any(layer._tssl_settings.loops.values()) == (engine == "cpu")
