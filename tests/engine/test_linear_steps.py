"""Compiled steps of linear neurons: the same as those that decide everything anew."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import norse.torch as norse
import pytest
import snntorch
import torch
from changes import another_beta, beta_written_past_torch, lower_threshold, scaled_spikes, spaced
from norse.torch.module.snn import SNNCell
from spikingjelly.activation_based import neuron
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import tssl_adapters
from tssl_adapters import adapters, rules
from tssl_adapters.arithmetic import arithmetic
from tssl_adapters.bench.measures import KeptForBackward
from tssl_adapters.engine.compiled import deciding
from tssl_adapters.engine.compiled.steps import Steps

STEPS, SHAPE = 6, (3, 5)
Change = Callable[[Any], None]

LAYERS: dict[str, Callable[[], Any]] = {
    "Leaky": lambda: snntorch.Leaky(beta=0.8, threshold=0.7),
    "Leaky to zero": lambda: snntorch.Leaky(beta=0.8, threshold=0.7, reset_mechanism="zero"),
    "Leaky without reset": lambda: snntorch.Leaky(beta=0.8, reset_mechanism="none"),
    "Leaky that hides its state": lambda: snntorch.Leaky(beta=0.8, init_hidden=True),
    "LIFNode": lambda: neuron.LIFNode(),
    "LIFNode by subtraction": lambda: neuron.LIFNode(v_reset=None, detach_reset=True),
    "IFNode": lambda: neuron.IFNode(v_reset=0.1),
    "ParametricLIFNode": lambda: neuron.ParametricLIFNode(),
    "ParametricLIFNode to a level": lambda: neuron.ParametricLIFNode(v_reset=0.25),
    "ParametricLIFNode, whole input": lambda: neuron.ParametricLIFNode(
        decay_input=False, v_reset=None
    ),
    "LIFCell": lambda: norse.LIFCell(),
    "LIFBoxCell": lambda: norse.LIFBoxCell(),
    "Leaky, each its own": lambda: snntorch.Leaky(
        beta=torch.linspace(0.2, 0.9, SHAPE[-1]), threshold=torch.linspace(0.3, 1.2, SHAPE[-1])
    ),
    "LIFCell, each its own": lambda: norse.LIFCell(
        norse.LIFParameters(tau_mem_inv=torch.linspace(50.0, 200.0, SHAPE[-1]))
    ),
}
RULES = {
    "default": rules.SmoothTSSLBP(),
    "TSSL-BP": rules.TSSLBP(),
    "TSSL-BP, complete": rules.TSSLBP(reset_path="complete"),
    "cut": rules.SmoothTSSLBP(reset_path="none"),
}
layers = pytest.mark.parametrize("name", LAYERS)


def wrapped(name: str, rule: rules.Rule, **kwargs: Any) -> Any:
    layer = LAYERS[name]()
    return tssl_adapters.wrap(layer, rule=rule, engine="cpu", **kwargs)


def steps(layer: Any, x: Tensor, change: Change | None = None) -> list[Tensor]:
    """Outputs and potentials of a loop, with a change of the layer after three steps."""
    found: list[Tensor] = []
    mem = None
    for t, step in enumerate(x.unbind(0)):
        if t == 3 and change is not None:
            change(layer)
        if isinstance(layer, neuron.BaseNode):
            found += [layer(step), layer.v]
        elif isinstance(layer, SNNCell):
            spikes, mem = layer(step, mem)
            found += [spikes, *mem]
        elif layer.init_hidden:
            found += [layer(step), layer.mem]
        else:
            spikes, mem = layer(step) if mem is None else layer(step, mem)
            found += [spikes, mem]
    if isinstance(layer, neuron.BaseNode):
        layer.reset()
    return found


def drive(scale: float = 1.5) -> Tensor:
    torch.manual_seed(0)
    return scale * torch.randn(STEPS, *SHAPE)


def gradient(found: list[Tensor], x: Tensor) -> Tensor:
    """That of a loss on all outputs, and on some potentials."""
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (value * torch.randn(value.shape, generator=generator)).sum()
        for k, value in enumerate(found)
        if k % 2 == 0 or k % 5 == 0 or k % 7 == 0
    )
    (grad,) = torch.autograd.grad(loss, x)
    return grad


def check(name: str, rule: rules.Rule, x: Tensor, change: Change | None = None) -> None:
    """The same as without, and the library's values."""
    ours = []
    for short in (True, False):
        layer = wrapped(name, rule)
        given = x.clone().requires_grad_(x.is_floating_point())
        with pytest.MonkeyPatch.context() as patch:
            if not short:
                patch.setattr(deciding, "may_compile", lambda *_: False)
            found = steps(layer, given, change)
            took = [out.grad_fn.name() for out in found if out.grad_fn is not None]
            assert ("CompiledStepFunctionBackward" in took) == short
            ours.append((found, gradient(found, given)))
    native = steps(LAYERS[name](), x, change)
    for value, slowly, theirs in zip(ours[0][0], ours[1][0], native, strict=True):
        assert torch.equal(value, theirs)
        assert torch.equal(value, slowly)
    torch.testing.assert_close(ours[0][1], ours[1][1], rtol=1e-5, atol=1e-6)
    assert ours[0][1].abs().sum() > 0


@pytest.mark.parametrize("rule", RULES)
@layers
def test_steps(name: str, rule: str) -> None:
    check(name, RULES[rule], drive())


@layers
def test_a_second_sequence(name: str) -> None:
    layer = wrapped(name, rules.SmoothTSSLBP())
    found = []
    for _ in range(2):
        if isinstance(layer, snntorch.Leaky):
            layer.reset_mem()
        x = drive().requires_grad_()
        found.append(gradient(steps(layer, x), x))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


_held: list[Tensor] = []


def beta_given_other_memory(layer: Any) -> None:
    _held.append(layer.beta.data)  # it stays as it is, where it was
    layer.beta.data = torch.tensor(0.4)


def filled(layer: Any) -> None:
    layer.beta.fill_(0.4)


def loaded(layer: Any) -> None:
    layer.load_state_dict({**layer.state_dict(), "beta": torch.tensor(0.4)})


@pytest.mark.parametrize(
    "change",
    [
        beta_written_past_torch, beta_given_other_memory, another_beta,
        lower_threshold, scaled_spikes,
    ],
)  # fmt: skip
def test_what_changes_in_a_leaky_layer_counts(change: Change) -> None:
    check("Leaky", rules.SmoothTSSLBP(), drive(), change)


@pytest.mark.parametrize("change", [filled, loaded])
def test_numbers_may_be_written_to_within_a_graph(change: Change) -> None:
    """The steps before keep their gradient, as natively if beta alone is written to."""
    x = drive().requires_grad_()
    ours, native = wrapped("Leaky", rules.Native()), LAYERS["Leaky"]()
    expected = gradient(steps(native, x, filled), x)
    torch.testing.assert_close(gradient(steps(ours, x, change), x), expected)


@pytest.mark.parametrize("name", ["v_th", "tau_mem_inv", "tau_syn_inv", "v_reset", "v_leak"])
def test_what_changes_in_a_cell_counts(name: str) -> None:
    def written(cell: Any) -> None:
        getattr(cell.p, name).data.add_(0.125)

    def replaced(cell: Any) -> None:
        cell.p = cell.p._replace(**{name: getattr(cell.p, name) + 0.125})

    def cell() -> Any:  # norse's default parameters are one object for all
        return norse.LIFCell(norse.LIFParameters(*map(copy.deepcopy, norse.LIFParameters())))

    for change in (written, replaced):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(LAYERS, "LIFCell", cell)
            check("LIFCell", rules.SmoothTSSLBP(), drive(3.0), change)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("tau", 5.0), ("v_threshold", 0.4), ("v_reset", 0.2), ("v_reset", None),
        ("detach_reset", True), ("decay_input", False), ("v", 0.3),
    ],
)  # fmt: skip
def test_what_changes_in_a_node_counts(setting: str, value: Any) -> None:
    check("LIFNode", rules.SmoothTSSLBP(), drive(), lambda node: setattr(node, setting, value))


def added(w: Tensor) -> None:
    with torch.no_grad():
        w.add_(0.5)


def written_past_torch(w: Tensor) -> None:
    w.data.add_(0.5)


def given_other_memory(w: Tensor) -> None:
    w.data = torch.tensor(0.5)


def frozen(w: Tensor) -> None:
    w.requires_grad_(False)


@pytest.mark.parametrize("change", [added, written_past_torch, given_other_memory, frozen])
@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith("Parametric")])
def test_a_function_of_a_number_that_learns_follows_it(
    name: str, change: Callable[[Tensor], None]
) -> None:
    """Changed between two sequences, and between their forward and backward passes, where the
    number itself is not needed.
    """
    found: dict[str, list[Tensor]] = {"native": [], "cpu": [], "torch": []}
    for engine, seen in found.items():
        layer, x = LAYERS[name](), drive().requires_grad_()
        if engine != "native":
            tssl_adapters.wrap(layer, rule="native", engine=engine)
        for _ in range(3):
            values = steps(layer, x)
            if change is not written_past_torch:  # which natively keeps what it wrote over
                change(layer.w)
            wanted = [x, *([layer.w] if layer.w.requires_grad else [])]
            if change is not given_other_memory and len(wanted) == 2:
                seen += torch.autograd.grad(sum(v.square().sum() for v in values), wanted)
            seen += values
            change(layer.w)
    for ours, theirs in zip(found["cpu"], found["native"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert all(map(torch.equal, found["cpu"][-2 * STEPS :], found["native"][-2 * STEPS :]))
    torch.testing.assert_close(found["cpu"], found["torch"], rtol=1e-5, atol=1e-5)
    assert "CompiledStep" in found["cpu"][-1].grad_fn.name()


def test_a_state_does_not_follow_from_h_if_its_reset_learns() -> None:
    """Which TSSL-BP asks for: the threshold's gradient would count what made the state, too."""
    found = []
    for engine in ("cpu", "torch"):
        v_th, v_reset = (torch.tensor(value, requires_grad=True) for value in (0.4, -0.2))
        cell = norse.LIFCell(norse.LIFParameters(v_th=v_th, v_reset=v_reset))
        tssl_adapters.wrap(cell, rule=rules.TSSLBP(), engine=engine)
        x = drive(3.0).requires_grad_()
        total = sum(v.square().sum() for v in steps(cell, x))
        assert isinstance(cell._tssl_settings.decided, Steps) is (engine == "cpu")
        found.append(torch.autograd.grad(total, [x, v_th, v_reset]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", [rules.SmoothTSSLBP(), rules.TSSLBP()], ids=str)
@pytest.mark.parametrize("settings", [{}, {"v_reset": None, "decay_input": False}])
@pytest.mark.parametrize("name", ["tau", "v_threshold"])
def test_a_setting_may_be_a_parameter(
    name: str, settings: dict[str, Any], rule: rules.Rule
) -> None:
    found = []
    for engine in ("cpu", "torch"):
        node = neuron.LIFNode(**settings)
        value = torch.tensor(getattr(node, name))
        delattr(node, name)
        setattr(node, name, torch.nn.Parameter(value))
        tssl_adapters.wrap(node, rule=rule, engine=engine)
        x = drive().requires_grad_()
        for _ in range(2):
            total = sum(v.square().sum() for v in steps(node, x))
            found.append(torch.autograd.grad(total, [x, getattr(node, name)]))
            with torch.no_grad():
                getattr(node, name).mul_(1.25)
        assert isinstance(node._tssl_settings.decided, Steps) is (engine == "cpu")
    for ours, theirs in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"v_reset": None, "detach_reset": True}])
def test_a_decay_that_learns_costs_the_drive(settings: dict[str, Any]) -> None:
    """Beside h: the state before a step is h of the one before it."""
    node = tssl_adapters.wrap(neuron.ParametricLIFNode(**settings), engine="cpu")
    x = torch.randn(20, 3, 50, requires_grad=True)
    for step in x:
        node(step)
    node.reset()
    with KeptForBackward() as kept:
        for step in x.unbind(0):
            node(step)
    drives = kept.num_bytes / (x.numel() * 4)
    assert 2.0 <= drives < 2.0 + 1.1 / len(x)


def test_numbers_of_a_step_are_those_that_it_was_computed_with() -> None:
    """A backward pass after the numbers have changed."""
    found = []
    for change in (None, beta_written_past_torch):
        layer, x = wrapped("Leaky", rules.SmoothTSSLBP()), drive().requires_grad_()
        values = steps(layer, x)
        if change is not None:
            change(layer)
        found.append(gradient(values, x))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.double(),
        lambda x: x.half(),
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x[:, :1, :1].expand(-1, *SHAPE),
    ],
    ids=["double", "half", "order", "spread"],
)
@pytest.mark.parametrize("name", ["Leaky", "LIFNode"])
def test_inputs_of_another_kind(name: str, form: Callable[[Tensor], Tensor]) -> None:
    """Between others; what the library makes of them, the loops or torch do as well."""
    layer, native, x = wrapped(name, rules.SmoothTSSLBP()), LAYERS[name](), drive()
    values, expected = [], []
    for model, found in ((layer, values), (native, expected)):
        mem = model.init_leaky() if isinstance(model, snntorch.Leaky) else None
        for t, step in enumerate(x):
            given = form(x)[t] if t in (3, 4) else step
            given = given.clone(memory_format=torch.preserve_format).requires_grad_()
            out = model(given) if mem is None else model(given, mem)
            if mem is not None:
                out, mem = out
            found.append(out)
    assert all(map(torch.equal, values, expected))
    assert all(map(lambda a, b: a.dtype == b.dtype, values, expected))


@layers
def test_checkpoints(name: str) -> None:
    found = []
    for kept in (True, False):
        layer, x = wrapped(name, rules.TSSLBP()), drive().requires_grad_()
        if not isinstance(layer, snntorch.Leaky) or layer.init_hidden:
            found.append(gradient(steps(layer, x), x))
            continue
        mem, values = layer.init_leaky(), []
        for step in x.unbind(0):
            if kept:
                values += list(layer(step, mem))
            else:
                values += list(checkpoint(layer, step, mem, use_reentrant=False))
            mem = values[-1]
        found.append(gradient(values, x))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kept", [Tensor.double, spaced])
def test_what_hooks_keep_in_another_form(kept: Callable[[Tensor], Tensor]) -> None:
    found = []
    for hooks in (False, True):
        layer, x = wrapped("Leaky", rules.SmoothTSSLBP()), drive().requires_grad_()
        if hooks:
            with torch.autograd.graph.saved_tensors_hooks(lambda t: t, kept):
                found.append(gradient(steps(layer, x), x))
        else:
            found.append(gradient(steps(layer, x), x))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def pickled(layer: Any) -> Any:
    return pickle.loads(pickle.dumps(layer))


@layers
def test_copies_decide_anew(name: str) -> None:
    layer, x = wrapped(name, rules.SmoothTSSLBP()), drive().requires_grad_()
    steps(layer, x)
    if isinstance(layer, snntorch.Leaky):
        layer.reset_mem()  # a state with a graph cannot be copied
    assert layer._tssl_settings.decided is not None
    expected = None
    again = pickled if isinstance(layer, neuron.BaseNode) else copy.deepcopy  # as natively
    for copied in (copy.deepcopy(layer), again(layer)):
        assert copied._tssl_settings.decided is None
        if isinstance(copied, snntorch.Leaky):
            copied.reset_mem()
        found = gradient(steps(copied, x), x)
        assert expected is None or torch.equal(found, expected)
        expected = found


class Watching(TorchDispatchMode):
    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return function(*args, **(kwargs or {}))


def test_transforms_and_modes_go_the_long_way() -> None:
    layer, x = wrapped("LIFNode", rules.SmoothTSSLBP()), drive()
    steps(layer, x.clone().requires_grad_())
    decided = layer._tssl_settings.decided
    assert decided is not None
    assert decided.fits([x[0]], [x[1]], ())
    assert not torch.vmap(lambda a: a * decided.fits([a], [a], ()))(x).any()
    with torch.no_grad():
        assert not decided.fits([x[0]], [x[1]], ())
    with Watching():
        assert not decided.fits([x[0]], [x[1]], ())


@pytest.mark.parametrize("name", ["Leaky", "LIFNode"])
def test_a_loop_that_is_wrong_is_not_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing goes around the trial before a loop's first use."""
    monkeypatch.setattr(deciding.launch, "alike", lambda ours, theirs: False)
    layer, x = wrapped(name, rules.SmoothTSSLBP()), drive().requires_grad_()
    with pytest.warns(tssl_adapters.errors.EngineWarning):
        found = steps(layer, x)
    assert layer._tssl_settings.decided is None
    torch_layer = tssl_adapters.wrap(LAYERS[name](), engine="torch")
    expected = gradient(steps(torch_layer, x), x)
    torch.testing.assert_close(gradient(found, x), expected, rtol=1e-5, atol=1e-6)


@layers
def test_a_trial_is_against_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not against the loops for sequences, which would be compiled for it."""
    monkeypatch.setattr(deciding.launch, "forward", lambda *_: pytest.fail("compiled"))
    layer, x = wrapped(name, rules.SmoothTSSLBP()), drive().requires_grad_()
    gradient(steps(layer, x), x)
    assert layer._tssl_settings.decided is not None


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("name", ["Leaky", "LIFCell", "LIFNode"])
def test_what_is_decided_is_not_looked_at_again(
    name: str, tau_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = wrapped(name, rules.SmoothTSSLBP(), tau_s=tau_s), drive().requires_grad_()
    looked: list[int] = []
    own = type(layer)._tssl_look
    monkeypatch.setattr(type(layer), "_tssl_look", lambda layer: (looked.append(1), own(layer))[1])
    steps(layer, x)
    # A first step makes its states, a second one may decide.
    assert 1 <= len(looked) <= 2


def test_a_potential_of_another_batch_begins_anew() -> None:
    """Whatever it is, as natively; the PSC does, too."""
    layer, x = wrapped("Leaky", rules.SmoothTSSLBP(), tau_s=3.0), drive().requires_grad_()
    steps(layer, x)
    expected = layer(x[0], torch.zeros_like(x[0]))
    found = layer(x[0], torch.ones(SHAPE[0] + 1, *SHAPE[1:]))
    assert all(map(torch.equal, found, expected))


@arithmetic
def decaying(v: Tensor, x: Tensor, decay: Tensor) -> Tensor:
    return decay * v + x


@pytest.mark.parametrize("learns", [False, True])
def test_a_delayed_reset_of_an_adapter_from_outside_is_told(learns: bool) -> None:
    """Whoever describes the step to ``attach`` is given r, compiled or not."""
    decay, threshold = torch.tensor(0.9, requires_grad=learns), torch.tensor(0.5)

    def record() -> adapters.Neuron:
        charge = adapters.LinearCharge(decay, 1.0, 0.0, decaying, (decay,))
        return adapters.Neuron(charge, adapters.Subtract(), threshold, "delayed", True, True)

    def native(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            h = (decay * v + x) - (v > threshold).float() * threshold
            return (h > threshold).float(), h

    settings = adapters.Settings("", rules.SmoothTSSLBP(), 1.0, "cpu")
    described = adapters.Described(partial(adapters.linear_cell, record), (decay, threshold))
    v, told = torch.zeros(3, 4), []
    for step in torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(0)):
        x = step.requires_grad_()
        library = adapters.NativeForward(x, partial(native, x, v), lambda x, v: (x, *native(x, v)))
        before = (v > threshold).float()
        ran = adapters.attach(
            settings, record(), x, v, None, library, sequence=False, described=described
        )
        assert ran.before is not None
        assert torch.equal(ran.before, before)
        v = ran.state
        told.append(before.any())
    assert settings.decided is not None
    assert any(told)
