"""Compiled steps of recurrent and of nonlinear neurons: what torch gives, forward and back."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch
import torch
from cell_layers import (
    LAYERS,
    RULES,
    SHAPE,
    SIZE,
    STEPS,
    Change,
    close,
    drive,
    dtype_of,
    gradients,
    layers,
    steps,
    took,
    wrapped,
)
from changes import another_beta, beta_written_past_torch, lower_threshold, scaled_spikes, spaced
from compat_snntorch import start
from norse.torch.functional.lif import LIFFeedForwardState
from snntorch import utils
from spikingjelly.activation_based import functional, neuron
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from usage import own_instances  # noqa: F401

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.engine.compiled import deciding
from tssl_adapters.engine.cpu.function import BLOCK
from tssl_adapters.engine.step import cell
from tssl_adapters.engine.step.written import CannotWriteError
from tssl_adapters.errors import EngineWarning, LostLinkWarning, NativeGradientWarning


def owned(p: Any) -> Any:
    """Parameters of a layer's own: Norse's default ones are the same objects for all."""
    return type(p)(*map(copy.deepcopy, p))


def check(
    name: str, rule: Any, change: Change | None = None, scale: float = 2.0, tau_s: float = 1.0
) -> None:
    """Compiled: the library's values, and the gradients that torch gives."""
    dtype = dtype_of(name)
    ours = []
    for engine in ("cpu", "torch"):
        layer = wrapped(name, rule, engine=engine, dtype=dtype, tau_s=tau_s)
        x = drive(dtype, scale)
        steps(layer, x, change)
        decided = layer._tssl_settings.decided
        if isinstance(layer, snntorch.SpikingNeuron):
            utils.reset(torch.nn.Sequential(layer))
        found = steps(layer, x, change)  # it has from the start what the first sequence decided
        if change is None:
            assert layer._tssl_settings.decided is decided
            assert (decided is not None) == (engine == "cpu")
        whole = getattr(layer, "step_mode", "s") == "m" or isinstance(layer, norse.LSNNRecurrent)
        assert (took(found) > (0 if whole else STEPS - 3)) == (engine == "cpu")
        ours.append((found, gradients(found, x, layer)))
    assert all(map(torch.equal, ours[0][0], ours[1][0]))
    if tau_s == 1.0:
        torch.manual_seed(0)
        native = LAYERS[name]().to(dtype)
        for _ in range(2):
            theirs = steps(native, drive(dtype, scale), change)
        assert all(map(torch.equal, ours[0][0], theirs))
    close(ours[0][1], ours[1][1], 1e-5 if dtype is torch.float32 else 1e-12)
    assert ours[0][1][0].abs().sum() > 0


@pytest.mark.parametrize("rule", RULES)
@layers
def test_steps(name: str, rule: str) -> None:
    check(name, RULES[rule])


@pytest.mark.parametrize("rule", RULES)
@layers
def test_steps_that_emit_a_psc(name: str, rule: str) -> None:
    check(name, RULES[rule], tau_s=3.0)


def test_a_psc_of_more_neurons_than_a_loop_holds_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 2.0 * torch.randn(STEPS, 3, BLOCK, generator=generator, dtype=torch.float64)
    found = []
    for engine in ("cpu", "torch"):
        layer = wrapped("KLIFNode", "tsslbp", engine=engine, dtype=torch.float64, tau_s=3.0)
        values = steps(layer, x.requires_grad_())
        found.append((values, gradients(values, x, layer)))
    assert all(map(torch.equal, found[0][0], found[1][0]))
    close(found[0][1], found[1][1], 1e-12)


FLOAT32_SPIKES: dict[str, Callable[[], Any]] = {
    "Synaptic": lambda: snntorch.Synaptic(0.5, 0.8, reset_mechanism="zero"),
    "Lapicque": lambda: snntorch.Lapicque(beta=0.7, reset_mechanism="none"),
}


@pytest.mark.parametrize("name", FLOAT32_SPIKES)
def test_a_psc_has_the_dtype_of_the_librarys_spikes(name: str) -> None:
    """Which in snnTorch is float32 whatever the layer's."""
    native = FLOAT32_SPIKES[name]().double()
    layer = tssl_adapters.wrap(FLOAT32_SPIKES[name]().double(), tau_s=3.0, engine="cpu")
    states, ours, psc = list[Tensor](), list[Tensor](), torch.zeros(())
    for x in drive(torch.float64):
        spike, *states = native(x, *states)
        out, *ours = layer(x, *ours)
        psc = psc + (spike - psc) / 3.0
        assert out.dtype is spike.dtype is torch.float32
        assert torch.equal(out, psc)
    assert psc.any()


THRESHOLDS: dict[str, Callable[[], Any]] = {
    "Lapicque to zero": lambda: snntorch.Lapicque(0.8, reset_mechanism="zero"),
    "Alpha to zero": LAYERS["Alpha to zero"],
    "RLeaky to zero": LAYERS["RLeaky to zero"],
}
NUMBERS_FOR_ALL = {
    "LIFExCell": norse.LIFExFeedForwardState,
    "LSNNCell": norse.LSNNFeedForwardState,
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", NUMBERS_FOR_ALL)
def test_a_start_that_is_one_number_for_all_neurons(name: str, rule: str) -> None:
    """The library's shapes, the gradients that torch gives, and nobody lost a link."""
    make, found = NUMBERS_FOR_ALL[name], []
    for engine in ("cpu", "torch", None):
        layer = LAYERS[name]() if engine is None else wrapped(name, RULES[rule], engine=engine)
        for _ in range(2):  # what a first step decides, the second sequence has from the start
            first = make(
                *(torch.tensor(0.1 * k).requires_grad_() for k in range(len(make._fields)))
            )
            values, state = [], first
            with warnings.catch_warnings():
                warnings.simplefilter("error", LostLinkWarning)
                for x in drive():
                    out, state = layer(x, state)
                    values += [out, *state]
        loss = sum(
            (value * torch.linspace(-1.0, 2.0, value.numel()).view_as(value)).sum()
            for value in values
        )
        found.append((values, torch.autograd.grad(loss, first)))
    for values, _ in found[:2]:
        assert all(map(torch.equal, values, found[2][0]))
    close(found[0][1], found[1][1], 1e-5)


def never_firing(name: str) -> Any:
    """A layer whose threshold is infinite."""
    torch.manual_seed(0)
    layer, level = LAYERS[name](), torch.tensor(math.inf)
    if isinstance(layer, snntorch.SpikingNeuron):
        layer.threshold = level
    elif isinstance(layer, neuron.BaseNode):
        layer.v_threshold = math.inf
    else:
        layer.p = layer.p._replace(v_th=level)
    return layer


@pytest.mark.parametrize("rule", ["TSSL-BP", "default"])
@pytest.mark.parametrize(
    "name",
    ["IzhikevichRecurrentCell", "LIFExCell", "Synaptic at once", "RLeaky to zero", "QIFNode"],
)
def test_a_threshold_that_is_infinite(name: str, rule: str) -> None:
    """Compiled, with what torch gives, and the trial takes it for no other neuron."""
    found = []
    for engine in ("cpu", "torch"):
        layer = tssl_adapters.wrap(never_firing(name), rule=RULES[rule], engine=engine)
        x = drive()
        with warnings.catch_warnings():
            warnings.simplefilter("error", NativeGradientWarning)
            for _ in range(2):
                values = steps(layer, x)
        if engine == "cpu":
            assert took(values) > STEPS - 3
        found.append((values, gradients(values, x, layer)))
    assert all(map(torch.equal, found[0][0], found[1][0]))
    close(found[0][1], found[1][1], 1e-5)


@pytest.mark.parametrize("engine", ["cpu", "torch"])
@pytest.mark.parametrize("mode", ["s", "m"])
def test_an_infinite_potential_does_not_reach_an_infinite_threshold(mode: str, engine: str) -> None:
    """In SpikingJelly, whose nodes compare the difference, which is no number there."""
    native = neuron.QIFNode(v_threshold=math.inf, step_mode=mode)
    layer = tssl_adapters.wrap(copy.deepcopy(native), engine=engine)
    x = torch.full((8, 3), 1e30, requires_grad=True)
    for model in (native, layer):
        assert not any(out.any() for out in ([model(x)] if mode == "m" else map(model, x)))
        assert model.v.isinf().all()


def test_the_trial_of_a_threshold_that_nothing_reaches() -> None:
    """Noise around 1e9 is lost in rounding, and an exponential of it is infinite."""
    p = norse.LIFAdExParameters(v_th=torch.tensor(1e9))
    layer = tssl_adapters.wrap(norse.LIFAdExRecurrentCell(SIZE, SIZE, p=p))
    with warnings.catch_warnings():
        warnings.simplefilter("error", EngineWarning)
        assert took(steps(layer, drive())) > STEPS - 3


@pytest.mark.parametrize("learns", [True, False])
@layers
def test_only_what_depends_on_what_learns_has_a_graph(name: str, learns: bool) -> None:
    """As natively: a current, say, does not depend on the potential."""
    torch.manual_seed(0)
    models = [wrapped(name), LAYERS[name]()]
    found = []
    for model in models:
        model.requires_grad_(learns)
        x = drive().detach()
        for _ in range(2):
            values = steps(model, x)
        found.append([value.requires_grad for value in values])
    assert found[0] == found[1]


@pytest.mark.parametrize("engine", ["cpu", "torch"])
def test_what_no_result_depends_on_has_no_gradient(engine: str) -> None:
    """The input of a last step that reaches the potential in the next one, as natively."""
    layer, (x, last) = wrapped("LSNNCell", engine=engine), drive().unbind(0)[:2]
    for _ in range(2):
        out, state = layer(x)
        out, _ = layer(last, state)
    before, after = torch.autograd.grad(out.sum(), (x, last), allow_unused=True)
    assert before.any()
    assert after is None


def test_a_last_step_that_the_recurrent_weights_do_not_reach() -> None:
    """Norse's hook on them, which is not called natively, takes no ``None``."""
    layer, x = wrapped("LSNNRecurrentCell", "native"), drive()
    for _ in range(2):
        out, _ = layer(x[0])
    out.sum().backward()
    assert x.grad is None or not x.grad.any()


@pytest.mark.parametrize(("rule", "tau_s"), [("default", 3.0), ("TSSL-BP", 1.0), ("TSSL-BP", 3.0)])
@pytest.mark.parametrize("name", ["Lapicque to zero", "Alpha to zero", "RLeaky to zero"])
def test_a_threshold_that_alone_learns(name: str, rule: str, tau_s: float) -> None:
    """A potential that does not depend on it still carries the PSC, and the rule's chain."""
    found = []
    for engine in ("cpu", "torch"):
        torch.manual_seed(0)
        layer = THRESHOLDS[name]()
        layer.requires_grad_(False)
        layer.threshold = torch.nn.Parameter(torch.tensor(0.4))
        tssl_adapters.wrap(layer, rule=RULES[rule], tau_s=tau_s, engine=engine)
        for _ in range(2):
            values = steps(layer, drive().detach())
        assert (took(values) > STEPS - 3) == (engine == "cpu")
        weights = torch.linspace(-1.0, 2.0, values[0].numel()).view_as(values[0])
        loss = sum((value * weights).sum() for value in values)
        found.append(torch.autograd.grad(loss, layer.threshold))
    close(found[0], found[1], 1e-5)
    assert found[0][0].abs() > 0.1


def test_a_number_that_is_frozen_and_learns_again() -> None:
    """Which takes another short way each time."""
    found = []
    for engine in ("cpu", "torch"):
        layer = snntorch.Leaky(0.8, threshold=torch.tensor(0.7), learn_threshold=True)
        tssl_adapters.wrap(layer, engine=engine)
        x, grads = drive(), []
        for learns in (False, True, False, True):
            layer.threshold.requires_grad_(learns)
            layer.reset_mem()
            out = torch.stack([layer(step)[0] for step in x])
            weights = torch.linspace(-1.0, 2.0, out.numel()).view_as(out)
            wanted = [x, *([layer.threshold] if learns else [])]
            grads += torch.autograd.grad((out * weights).sum(), wanted)
        found.append(grads)
    close(found[0], found[1], 1e-5)


def test_the_way_of_another_layout_is_not_taken_for_a_cells() -> None:
    """The first step's state lies in memory as the input does not, so that torch takes it."""
    found = []
    for engine in ("cpu", "torch"):
        layer = wrapped("Synaptic, each its own", engine=engine)
        x = drive().detach().transpose(1, 2).contiguous().requires_grad_()
        states = [torch.zeros(SHAPE), torch.zeros(SHAPE)]
        values = []
        for step in x.transpose(1, 2):
            out, *states = layer(step, *states)
            values.append(out)
        found.append([*values, *gradients(values, x, layer)])
    close(found[0], found[1], 1e-5)


def vectors(layer: Any) -> None:
    layer.beta = torch.linspace(0.1, 0.9, SIZE)


@pytest.mark.parametrize(
    "change", [beta_written_past_torch, another_beta, lower_threshold, scaled_spikes, vectors]
)
def test_what_changes_in_a_recurrent_layer_counts(change: Change) -> None:
    layer, x = wrapped("RLeaky"), drive()
    torch.manual_seed(0)
    native = LAYERS["RLeaky"]()
    for _ in range(2):
        found, theirs = steps(layer, x, change), steps(native, x, change)
        assert all(map(torch.equal, found, theirs))


@pytest.mark.parametrize("name", ["Synaptic, each its own", "RLeaky, each its own"])
def test_numbers_of_each_neuron_are_read_at_every_step(name: str) -> None:
    """Those that learn too, and whatever the size of the batch."""
    number = "beta" if name.startswith("RLeaky") else "alpha"

    def written(layer: Any) -> None:
        getattr(layer, number).data[1] = 0.5

    layer, x = wrapped(name), drive()
    torch.manual_seed(0)
    native = LAYERS[name]()
    for size in (3, 2, 3):
        found, theirs = steps(layer, x[:, :size], written), steps(native, x[:, :size], written)
        assert took(found) > STEPS - 3
        assert all(map(torch.equal, found, theirs))
        with torch.no_grad():
            for model in (layer, native):
                getattr(model, number)[1:3] *= 0.75


def test_numbers_of_each_neuron_that_learn_stay_what_they_were_for_the_steps_before() -> None:
    found = []
    for change in (False, True):
        layer, x = wrapped("RLeaky, each its own"), drive()
        for _ in range(2):
            values = steps(layer, x)
        if change:
            layer.beta.data.mul_(0.5)
            layer(x[0], *start(layer))
        found.append(gradients(values, x, layer))
    close(found[0], found[1], 1e-6)


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("KLIFNode", "tau", 5.0), ("KLIFNode", "v_threshold", 0.4), ("KLIFNode", "v_reset", None),
        ("KLIFNode", "scale_reset", True), ("KLIFNode", "decay_input", False),
        ("QIFNode", "a0", 0.5), ("IzhikevichNode", "detach_reset", True),
        ("IzhikevichNode", "w", 0.25),
    ],
)  # fmt: skip
def test_what_changes_in_a_node_counts(name: str, setting: str, value: Any) -> None:
    def change(node: Any) -> None:
        given = torch.full(SHAPE, value, dtype=torch.float64) if setting == "w" else value
        setattr(node, setting, given)

    found = []
    for engine in ("cpu", "torch"):
        layer, x = wrapped(name, engine=engine, dtype=torch.float64), drive(torch.float64)
        values = steps(layer, x, change)
        found.append((values, gradients(values, x, layer)))
    assert all(map(torch.equal, found[0][0], found[1][0]))
    close(found[0][1], found[1][1], 1e-12)


def test_a_sequence_that_the_library_rounds_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library computes it, as the trial of a step is against our order of its operations."""

    def step(x: Tensor, v: Tensor, spike: Tensor, *gates: Any) -> tuple[Tensor, Tensor]:
        alpha, beta, gamma, tau, threshold, linear_decay, subreset, conduct, surrogate = gates
        current = x * (1 - beta * (1 - conduct)) - (1 - alpha) * linear_decay
        kept = (1 - alpha * (1 - tau)) * (v - gamma * v * spike)
        h = kept + current - (1 - gamma) * subreset * spike
        return surrogate(h - threshold), h

    name, x = "GatedLIFNode, each channel its own", drive()
    monkeypatch.setattr(functional, "gated_lif_step", step)
    layer = wrapped(name)
    torch.manual_seed(0)
    found, theirs = steps(layer, x), steps(LAYERS[name](), x)
    assert all(map(torch.equal, found, theirs))
    assert took(found) == 0


@pytest.mark.parametrize("size", [1, 3])
def test_a_sequence_of_too_few_steps_is_the_librarys_error(size: int) -> None:
    """Also a single one, which would spread over all."""
    name, x = "GatedLIFNode", drive()[..., None, None]
    layer = wrapped(name)
    layer(x)
    for model in (layer, LAYERS[name]()):
        with pytest.raises(IndexError, match=f"index {size} is out of bounds"):
            model(x[:size])


@pytest.mark.parametrize("engine", ["cpu", "torch"])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (3, 4, 4), (2, 3, 4, 4), (2, 2, 3, 4, 4)], ids=str)
def test_gated_nodes_take_inputs_of_any_number_of_dimensions(
    shape: tuple[int, ...], engine: str
) -> None:
    """Their gates have four, to which the library broadcasts each step by itself."""
    check_gated(shape, engine, times=4)


def test_gated_nodes_take_whole_numbers() -> None:
    """As the library does; torch computes them."""
    spikes = torch.randint(0, 2, (4, 2, 3, 4, 4)).bool()
    torch.manual_seed(0)
    native = neuron.GatedLIFNode(4)
    layer = tssl_adapters.wrap(copy.deepcopy(native))
    assert torch.equal(layer(spikes), native(spikes))
    assert torch.equal(layer.v, native.v)


@pytest.mark.parametrize("engine", ["cpu", "torch"])
def test_gates_that_come_after_a_single_step_have_a_gradient_of_zero(engine: str) -> None:
    check_gated((2, 3, 4, 4), engine, times=1)


def check_gated(shape: tuple[int, ...], engine: str, times: int) -> None:
    """Two calls give the library's values and gradients."""
    torch.manual_seed(0)
    native = neuron.GatedLIFNode(times, init_v_threshold=0.6).double()
    layer = tssl_adapters.wrap(copy.deepcopy(native), rule="native", engine=engine)
    x = 2.0 * torch.randn(times, *shape, dtype=torch.float64)
    weights = torch.randn(times, *(1,) * (4 - len(shape)), *shape, dtype=torch.float64)
    found = []
    for one in (layer, native):
        given = x.clone().requires_grad_()
        out = one(given) + one(given)  # the second call goes on from the first one's state
        found.append([out, *torch.autograd.grad((out * weights).sum(), [given, *one.parameters()])])
    assert torch.equal(found[0][0], found[1][0])
    close(found[0][1:], found[1][1:], 1e-12)


@pytest.mark.parametrize("number", ["v_th", "tau_mem_inv", "beta", "v_reset"])
def test_what_changes_in_a_cell_counts(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYERS, "LSNNCell", lambda: norse.LSNNCell(owned(norse.LSNNParameters())))

    def written(cell: Any) -> None:
        getattr(cell.p, number).data.add_(0.125)

    def replaced(cell: Any) -> None:
        cell.p = cell.p._replace(**{number: getattr(cell.p, number) + 0.125})

    for change in (written, replaced):
        found = []
        for engine in ("cpu", "torch"):
            layer, x = wrapped("LSNNCell", engine=engine), drive()
            values = steps(layer, x, change)
            found.append((values, gradients(values, x, layer)))
        assert all(map(torch.equal, found[0][0], found[1][0]))
        if change is replaced:  # what was written, torch's graph of the steps before sees too
            close(found[0][1], found[1][1], 1e-5)


def test_numbers_that_learn_are_read_at_every_step() -> None:
    """An optimiser's step between two sequences, which decides nothing anew."""
    found = []
    for engine in ("cpu", "torch"):
        layer, x = wrapped("KLIFNode", engine=engine, dtype=torch.float64), drive(torch.float64)
        for _ in range(2):
            steps(layer, x)
            with torch.no_grad():
                layer.k.mul_(1.25)
        decided = layer._tssl_settings.decided
        values = steps(layer, x)
        assert layer._tssl_settings.decided is decided
        assert (decided is not None) == (engine == "cpu")
        if engine == "cpu":
            layer.k.data.mul_(2.0)  # which the steps before do not see
        found.append((values, gradients(values, x, layer)))
    assert all(map(torch.equal, found[0][0], found[1][0]))
    close(found[0][1], found[1][1], 1e-12)


@pytest.mark.parametrize(
    "name", ["RLeaky", "LSNNRecurrentCell", "KLIFNode", "LIFAdExRecurrentCell"]
)
def test_states_may_be_written_to_between_steps(name: str) -> None:
    """As natively, where nothing of them is kept; what was written counts from there on."""
    found = []
    for engine in ("cpu", "torch"):
        layer, x = wrapped(name, engine=engine), drive()
        steps(layer, x)
        states: Any = start(layer) if name == "RLeaky" else ()
        values = []
        for step in x.unbind(0):
            if name == "KLIFNode":
                values.append(layer(step))
                layer.v.mul_(0.5)
                continue
            out, *after = layer(step, *states)
            values.append(out)
            with torch.no_grad():
                (after[-1] if name == "RLeaky" else after[0].v).mul_(0.5)
            states = [out, *after] if name == "RLeaky" else after
        found.append((values, gradients(values, x, layer)))
    assert all(map(torch.equal, found[0][0], found[1][0]))
    close(found[0][1], found[1][1], 1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["RLeaky", "LSNNRecurrentCell"])
def test_states_cut_from_their_graph(name: str, rule: str) -> None:
    """Truncated backpropagation through time."""
    found = []
    for engine in ("cpu", "torch"):
        layer, x = wrapped(name, RULES[rule], engine=engine), drive()
        for _ in range(2):
            states: Any = start(layer) if name == "RLeaky" else ()
            values = []
            for t, step in enumerate(x.unbind(0)):
                out, *after = layer(step, *states)
                values.append(out)
                states = [out, *after] if name == "RLeaky" else after
                if t in (2, 4) and name == "RLeaky":
                    states = [state.detach() for state in states]
                elif t in (2, 4):
                    states = [type(states[0])(*(state.detach() for state in states[0]))]
        found.append((values, gradients(values, x, layer)))
    close(found[0][1], found[1][1], 1e-5)


@pytest.mark.parametrize("name", ["RLeaky", "LIFRecurrentCell", "LSNNCell", "LIFExCell"])
def test_checkpoints(name: str) -> None:
    """From the first step on: what is decided within it holds as it is computed again."""
    found = []
    for kept in (True, False):
        layer, x = wrapped(name), drive()

        def again(*given: Any, layer: Any = layer) -> Any:
            return checkpoint(layer, *given, use_reentrant=False)

        values = steps(layer, x, call=None if kept else again)
        found.append(gradients(values, x, layer))
    close(found[0], found[1], 1e-6)


@pytest.mark.parametrize("kept", [Tensor.double, spaced])
def test_what_hooks_keep_in_another_form(kept: Callable[[Tensor], Tensor]) -> None:
    found = []
    for hooks in (False, True):
        layer, x = wrapped("LSNNCell"), drive()
        if hooks:
            with torch.autograd.graph.saved_tensors_hooks(lambda t: t, kept):
                values = steps(layer, x)
                found.append(gradients(values, x, layer))
        else:
            found.append(gradients(steps(layer, x), x, layer))
    close(found[0], found[1], 1e-6)


def test_there_is_no_second_derivative() -> None:
    layer, x = wrapped("LIFRecurrentCell"), drive()
    values = steps(layer, x)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(values[-1].sum(), x, create_graph=True)


@pytest.mark.parametrize("name", ["LIFRecurrentCell", "KLIFNode", "QIFNode"])
def test_copies_decide_anew(name: str) -> None:
    layer, x = wrapped(name), drive()
    expected = gradients(steps(layer, x), x, layer)
    assert layer._tssl_settings.decided is not None
    copies = [copy.deepcopy(layer)]
    copies += [pickle.loads(pickle.dumps(layer))] if name != "LIFRecurrentCell" else []
    for copied in copies:
        assert copied._tssl_settings.decided is None
        close(gradients(steps(copied, x), x, copied), expected, 1e-6)


def test_what_is_kept_for_backward() -> None:
    """h alone where the rest follows from it: the input is not kept, nor the current."""
    layer, x = wrapped("LIFRecurrentCell"), drive()
    steps(layer, x)
    assert layer._tssl_settings.decided.form.kept == ["h"]
    layer = wrapped("LSNNCell")
    steps(layer, x)
    assert layer._tssl_settings.decided.form.kept == ["h", "s2"]  # the threshold's state
    # Of the PSC one bit per neuron, if the rule asks.
    for rule, kept in (("native", ["h", "s2"]), ("tsslbp", ["h", "s0", "s2", "bits"])):
        layer = wrapped("LSNNCell", rule, tau_s=3.0)
        steps(layer, x)
        assert layer._tssl_settings.decided.form.kept == kept


def test_what_was_decided_holds_on_to_no_graph() -> None:
    """Nor to the states of the step that it was decided in."""
    layer, x = wrapped("LSNNCell"), drive()
    state, held = None, []
    for t, step in enumerate(x.unbind(0)):
        if t == 3:
            layer.p = layer.p._replace(beta=torch.tensor(1.5))
        _, state = layer(step, state)
        held += [weakref.ref(value) for value in state]
    assert layer._tssl_settings.decided is not None
    del state, _
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)


OTHER_FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "half": lambda x: x.half(),
    "order": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "spread": lambda x: x[:, :1, :1].expand(-1, *SHAPE),
}


@pytest.mark.parametrize("form", OTHER_FORMS)
@pytest.mark.parametrize("name", ["KLIFNode", "CUBALIFNode"])
def test_inputs_of_another_kind(name: str, form: str) -> None:
    """Between others; torch computes them."""
    layer, x = wrapped(name), drive().detach()
    torch.manual_seed(0)
    native, values = LAYERS[name](), []
    for model in (layer, native):
        found = []
        for t, step in enumerate(x):
            given = OTHER_FORMS[form](x)[t] if t in (3, 4) else step
            given = given.clone(memory_format=torch.preserve_format).requires_grad_()
            found.append(model(given))
        values.append(found)
    for ours, theirs in zip(*values, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_transforms_and_modes_go_the_long_way() -> None:
    layer, x = wrapped("QIFNode"), drive().detach()
    steps(layer, x.clone().requires_grad_())
    decided = layer._tssl_settings.decided
    assert decided.fits([x[0]], [x[1]], ())
    assert not torch.vmap(lambda a: a * decided.fits([a], [a], ()))(x).any()
    with torch.no_grad():
        assert not decided.fits([x[0]], [x[1]], ())
    assert not decided.fits([x[0]], [x[1].double()], ())
    assert not decided.fits([x[0]], [x[1][:1]], ())
    for other in (
        torch._neg_view(x[0]),
        x[0].to_sparse(),
        x[0].to("meta"),
        torch.nn.Parameter(x[0]),
    ):
        assert not decided.fits([other], [x[1]], ())
        assert not decided.fits([x[0]], [other], ())


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize(
    "name",
    ["LSNNCell", "LIFRefracCell", "LIFRecurrentCell", "RLeaky", "Synaptic at once", "KLIFNode"],
)
def test_what_is_decided_is_not_looked_at_again(
    name: str, tau_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, looked = wrapped(name, tau_s=tau_s), []
    own = type(layer)._tssl_look
    monkeypatch.setattr(type(layer), "_tssl_look", lambda layer: (looked.append(1), own(layer))[1])
    steps(layer, drive())
    # A first step makes its states, a second one may decide.
    assert 1 <= len(looked) <= 2


def test_a_state_of_another_cell_is_refused_by_the_library() -> None:
    x = drive()[0]
    ours, native = wrapped("LSNNCell"), norse.LSNNCell()
    steps(ours, drive())
    other = norse.LIFCell()(x)[1]
    said = []
    for layer in (ours, native):
        with pytest.raises(AttributeError) as error:
            layer(x, other)
        said.append(str(error.value))
    assert said[0] == said[1]


def test_lazily_negated_tensors() -> None:
    """Inputs, and gradients that arrive."""
    grads = []
    for given in (torch.neg, torch._neg_view):
        layer, x = wrapped("QIFNode"), drive()
        out = torch.stack([layer(given(step)) for step in x.unbind(0)])
        grads.append(torch.autograd.grad(out, x, given(torch.ones_like(out)))[0])
    assert grads[0].any()
    assert torch.equal(*grads)


@pytest.mark.parametrize("name", ["RLeaky", "LSNNCell", "KLIFNode"])
def test_loops_that_are_wrong_are_not_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is tried before its first use: a gradient that is off is warned of."""
    monkeypatch.setattr(deciding.launch, "alike", lambda ours, theirs: False)
    layer, x = wrapped(name), drive()
    with pytest.warns(EngineWarning, match="does not give what torch gives"):
        found = steps(layer, x)
    assert layer._tssl_settings.decided is None
    assert took(found) == 0
    slow = wrapped(name, engine="torch")
    close(gradients(found, x, layer), gradients(steps(slow, x), x, slow), 1e-6)


@pytest.mark.parametrize("name", ["RLeaky", "LSNNCell", "KLIFNode"])
def test_the_trial_of_a_loop_covers_its_psc(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell, "trace_after", lambda trace, spike, tau_s: spike / tau_s)
    layer, x = wrapped(name, tau_s=3.0), drive()
    found = steps(layer, x)
    assert took(found) == 0
    slow = wrapped(name, engine="torch", tau_s=3.0)
    assert all(map(torch.equal, found, steps(slow, x)))


def test_a_library_that_rounds_otherwise_goes_on_computing(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(deciding, "identical", lambda ours, theirs: False)
    layer, x = wrapped("LSNNCell"), drive()
    assert took(steps(layer, x)) == 0
    assert not [w for w in recwarn if issubclass(w.category, EngineWarning)]


def recurrent() -> Any:
    return norse.LIFRecurrentCell(SIZE, SIZE)


NOT_COMPILED: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "a rule in torch": (neuron.KLIFNode, {"rule": rules.SurrogateGradient(torch.cos)}),
    "no chain": (neuron.KLIFNode, {"rule": rules.SurrogateGradient(torch.exp, chain=False)}),
    "a window": (recurrent, {"rule": rules.STRSBP(credit="spike")}),
    "what comes after": (recurrent, {"rule": rules.EventProp()}),
    "torch": (neuron.KLIFNode, {"engine": "torch"}),
    "a state in other units": (lambda: neuron.KLIFNode(scale_reset=True), {}),
}


@pytest.mark.parametrize("name", NOT_COMPILED)
def test_what_torch_computes(name: str) -> None:
    make, settings = NOT_COMPILED[name]
    layer, x = tssl_adapters.wrap(make(), **settings), drive()
    assert took(steps(layer, x)) == 0


@pytest.mark.parametrize(
    ("make", "settings", "engine"),
    [
        (neuron.KLIFNode, {}, "cpu"),
        (neuron.KLIFNode, {"tau_s": 3.0}, "cpu"),
        (neuron.KLIFNode, {"engine": "torch"}, "torch"),
        (neuron.KLIFNode, {"rule": rules.SurrogateGradient(torch.cos)}, "torch"),
        (lambda: neuron.KLIFNode(scale_reset=True), {}, "torch"),
        (lambda: norse.LSNNRecurrentCell(3, 3), {}, "cpu"),
        (lambda: norse.LIFAdExRefracCell(), {}, "cpu"),
        (lambda: snntorch.Alpha(0.9, 0.8), {}, "cpu"),
        (lambda: snntorch.Alpha(torch.nn.Parameter(torch.tensor(0.9)), 0.8), {}, "torch"),
    ],
)
def test_a_layer_says_which_engine_it_has(
    make: Callable[[], Any], settings: dict[str, Any], engine: str
) -> None:
    layer = tssl_adapters.wrap(make(), **settings)
    assert f"engine={engine!r}" in str(layer)
    assert f"engine={engine!r}" in tssl_adapters.inspect(layer)[0].detail


@pytest.mark.parametrize("name", ["Leaky, each its own", "RLeaky, each its own"])
def test_numbers_of_each_neuron_that_are_given_other_memory(name: str) -> None:
    """`vector_to_parameters`, say, replaces what is in a parameter."""

    def replaced(layer: Any) -> None:
        layer.beta.data = layer.beta.data * 0.5

    found = []
    for engine in ("cpu", "torch"):
        layer, x = wrapped(name, engine=engine), drive()
        for _ in range(2):
            values = steps(layer, x, replaced)
        found.append((values, gradients(values, x, layer)))
    assert all(map(torch.equal, found[0][0], found[1][0]))
    close(found[0][1], found[1][1], 1e-5)


def test_another_thread_s_batch_does_not_change_a_step_s_numbers() -> None:
    layer = wrapped("Leaky, each its own")
    steps(layer, drive())
    decided = layer._tssl_settings.decided
    mine, other = torch.zeros(2, SIZE), torch.zeros(300, SIZE)

    class Raced(type(decided)):  # type: ignore[misc]
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "in_tensors" and value[0].shape == mine.shape:
                self.numbers_for(other)

    decided.__class__ = Raced
    assert all(numbers.shape == mine.shape for numbers in decided.numbers_for(mine))


@pytest.mark.parametrize("shape", [(SIZE,), (2, SIZE), (2, 3, 4, SIZE)], ids=str)
def test_numbers_of_more_dimensions(shape: tuple[int, ...]) -> None:
    """Natively they give their dimensions to the results, also where a step was compiled before."""
    x = 2.0 * torch.randn(STEPS, *shape, generator=torch.Generator().manual_seed(0))
    found = []
    for wraps in (True, False):
        layer = snntorch.Leaky(0.8, threshold=torch.tensor([[0.5]]))
        layer = tssl_adapters.wrap(layer) if wraps else layer
        values: list[Tensor] = []
        for given in (torch.ones(1, 1), *x):
            values += layer(given.requires_grad_(), *values[-1:])
        found.append(values)
        if wraps and len(shape) > 1:
            assert took(values) > STEPS - 3
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize(
    ("make", "state"),
    [
        (norse.LIFCell, norse.LIFState),
        (norse.LIFBoxCell, LIFFeedForwardState),
        (norse.IAFCell, LIFFeedForwardState),
    ],
)
def test_a_state_of_another_kind_is_read_by_name(make: Any, state: Any) -> None:
    x, found = drive().detach(), []
    for layer in (tssl_adapters.wrap(make()), make()):
        values, after = [], None
        for step in x:
            out, after = layer(step.requires_grad_(), after)
            values += [out, after.v]
        names = [name for name in state._fields if name != "v"]
        more = {name: torch.full_like(after.v, 0.5) for name in names}
        out, after = layer(x[0], state(v=after.v, **{**more, **_shared(after, more)}))
        found.append([*values, out, after.v])
    assert all(map(torch.equal, *found))


def _shared(state: Any, names: Any) -> dict[str, Tensor]:
    return {name: getattr(state, name) for name in names if name in state._fields}


def test_a_trial_that_is_interrupted_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> bool:
        raise KeyboardInterrupt

    layer, x = wrapped("KLIFNode", engine="cpu"), drive()
    with monkeypatch.context() as patch:
        patch.setattr(deciding, "_passes_trial", interrupted)
        with pytest.raises(KeyboardInterrupt):
            layer(x[0])
    layer.reset()
    assert took(steps(layer, x)) > STEPS - 3


def test_why_torch_computes_a_step_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def cannot(*_: Any) -> None:
        raise CannotWriteError("erfinv")

    monkeypatch.setattr(deciding, "lines", cannot)
    layer = wrapped("KLIFNode", engine="cpu")
    with caplog.at_level("DEBUG", logger="tssl_adapters"):
        steps(layer, drive())
    (record,) = caplog.records  # once, not at every step
    assert "'KLIFNode': torch computes its steps" in record.message
    assert "erfinv" in caplog.text


def test_a_step_whose_gradient_is_hidden_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As TorchScript hid it, now and then, in older versions of SpikingJelly."""
    real = deciding.lines

    def hidden(*given: Any) -> Any:
        found = real(*given)
        return found._replace(reached=found.reached | {"out": set()})

    expected, x = wrapped("KLIFNode", engine="torch"), drive()
    outs = steps(expected, x)
    monkeypatch.setattr(deciding, "lines", hidden)
    layer = wrapped("KLIFNode", engine="cpu")
    assert all(map(torch.equal, steps(layer, x), outs))
    assert not any(layer._tssl_settings.loops.values())
