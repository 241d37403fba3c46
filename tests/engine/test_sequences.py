"""Compiled sequences: the same, once decided, as those that decide everything anew."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import norse.torch as norse
import pytest
import torch
from cell_layers import RULES
from norse.torch.functional.iaf import IAFFeedForwardState
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.engine.compiled.sequences import Sequences

STEPS, SHAPE = 9, (3, 43)
"""Odd sizes, so that a vector and a block are filled in part."""

LAYERS: dict[str, Callable[[], Any]] = {
    "LIFNode": lambda: neuron.LIFNode(step_mode="m"),
    "LIFNode by subtraction": lambda: neuron.LIFNode(
        v_reset=None, detach_reset=True, step_mode="m"
    ),
    "IFNode": lambda: neuron.IFNode(v_reset=-0.2, step_mode="m"),
    "LIF": lambda: norse.LIF(norse.LIFParameters(v_th=torch.tensor(0.3))),
    "LIF with a leak": lambda: norse.LIF(norse.LIFParameters(v_leak=torch.tensor(0.2))),
}
layers = pytest.mark.parametrize("name", LAYERS)
by_rule = pytest.mark.parametrize("rule", RULES)
NORSE = [name for name in LAYERS if name.startswith("LIF") and "Node" not in name]


def wrapped(name: str, rule: str = "TSSL-BP", engine: str = "cpu") -> Any:
    return tssl_adapters.wrap(LAYERS[name](), rule=RULES[rule], engine=engine)


def drive(shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return (2.0 * torch.randn(STEPS, *shape, generator=generator)).to(dtype).requires_grad_()


def run(layer: nn.Module, x: Tensor, state: Any = None) -> tuple[Tensor, Any, list[Tensor]]:
    """A sequence; its output, its state, and the states' values."""
    if isinstance(layer, neuron.BaseNode):
        return layer(x), None, [layer.v]
    out, state = layer(x, state)
    return out, state, [value for value in state if isinstance(value, Tensor)]


def numbers(layer: nn.Module, x: Tensor, cuts: Sequence[int] = ()) -> list[Tensor]:
    """The values of a sequence in one call or several, from rest, and the drive's gradient."""
    if isinstance(layer, neuron.BaseNode):
        functional.reset_net(layer)
    outs, state, states = [], None, []
    for part in x.tensor_split(cuts):
        out, state, states = run(layer, part, state)
        outs.append(out)
    found = [torch.cat(outs), *states]
    generator = torch.Generator().manual_seed(1)
    loss = sum((torch.randn(t.shape, generator=generator).to(t) * t).sum() for t in found)
    return [*(t.detach() for t in found), *torch.autograd.grad(loss, x)]  # type: ignore[arg-type]


def same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours[:-1], theirs[:-1], strict=True):
        assert torch.equal(one, other)
    tolerance = 1e-4 if ours[-1].dtype == torch.float32 else 1e-12
    torch.testing.assert_close(ours[-1], theirs[-1], rtol=tolerance, atol=tolerance)


def decided(layer: Any) -> Any:
    return layer._tssl_settings.decided


@by_rule
@layers
@pytest.mark.parametrize("cuts", [(), (4,), (2, 6)], ids=str)
def test_every_call_is_as_in_torch(name: str, rule: str, cuts: Sequence[int]) -> None:
    layer = wrapped(name, rule)
    expected = numbers(wrapped(name, rule, "torch"), drive(), cuts)
    assert 0.02 < float(expected[0].mean()) < 0.98
    same(numbers(layer, drive(), cuts), expected)
    known = decided(layer)
    assert isinstance(known, Sequences)
    for _ in range(2):
        same(numbers(layer, drive(), cuts), expected)
    assert decided(layer) is known


@layers
def test_other_inputs_come_between(name: str) -> None:
    layer, plain = wrapped(name), wrapped(name, engine="torch")
    for x in (
        drive(),
        drive((2, 5)),
        drive((4,)),
        drive(()),
        drive(dtype=torch.float64),
        drive((43, 3)).transpose(1, 2),
        drive()[:1],
        drive(),
        drive((2, 3, 4, 4)).to(memory_format=torch.channels_last_3d),
        drive((2, 5)),
    ):
        given = x.detach().requires_grad_()
        same(numbers(layer, given), numbers(plain, given))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "LIFNode": lambda layer: setattr(layer, "v_threshold", 0.4),
    "LIFNode by subtraction": lambda layer: setattr(layer, "tau", 3.0),
    "IFNode": lambda layer: setattr(layer, "v_reset", 0.1),
    "LIF": lambda layer: layer.p.v_th.fill_(0.1),
    "LIF with a leak": lambda layer: layer.p.v_leak.fill_(-0.1),
}


@layers
def test_a_changed_neuron_is_decided_anew(name: str) -> None:
    layer, plain = wrapped(name), wrapped(name, engine="torch")
    before = numbers(layer, drive())
    known = decided(layer)
    for one in (layer, plain):
        CHANGES[name](one)
    after = numbers(layer, drive())
    same(after, numbers(plain, drive()))
    assert not torch.equal(after[-1], before[-1])
    assert isinstance(decided(layer), Sequences)
    assert decided(layer) is not known


@layers
def test_without_gradient_the_library_computes(name: str) -> None:
    layer, native = wrapped(name), LAYERS[name]()
    numbers(layer, drive())
    if isinstance(layer, neuron.BaseNode):
        functional.reset_net(layer)
    with torch.no_grad():
        ours, theirs = run(layer, drive()), run(native, drive())
    assert torch.equal(ours[0], theirs[0])
    assert not ours[0].requires_grad


@layers
def test_nothing_is_written_to_the_zeros_that_layers_share(name: str) -> None:
    layer, other = wrapped(name), wrapped(name)
    first = numbers(layer, drive())
    for one in (layer, other):
        same(numbers(one, drive()), first)
        same(numbers(one, drive()), first)
    known, beside = decided(layer).zeros, decided(other).zeros
    if name != "IFNode":  # whose potential rests elsewhere
        assert known is beside
        assert known is not None
    out, _, states = run(layer, drive())
    with torch.no_grad():
        for written in (out, *states):
            written.fill_(7.0)
    same(numbers(layer, drive()), first)
    assert known is None or not known.tensor.any()


@pytest.mark.parametrize("given", [(0, 0), (0.3, 0.1)], ids=str)
@pytest.mark.parametrize("name", NORSE)
def test_gradients_of_states_that_are_given(name: str, given: tuple[float, float]) -> None:
    def grads(layer: nn.Module) -> list[Tensor]:
        v, i = (torch.full(SHAPE, float(value), requires_grad=True) for value in given)
        out, state = layer(drive(), norse.LIFFeedForwardState(v, i))
        loss = (out * torch.linspace(-1.0, 1.0, 43)).sum() + state.v.sum() + 2.0 * state.i.sum()
        return [out.detach(), *torch.autograd.grad(loss, (v, i))]

    layer = wrapped(name)
    numbers(layer, drive())
    for _ in range(2):
        for ours, theirs in zip(grads(layer), grads(wrapped(name, engine="torch")), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert isinstance(decided(layer), Sequences)


@pytest.mark.parametrize("reentrant", [False, True])
@layers
def test_checkpoints(name: str, reentrant: bool) -> None:
    """The first call in one, whose repetition is decided, and later ones."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(STEPS, *SHAPE, generator=generator)
    x = drive()
    plain = wrapped(name, "default", "torch")
    (alone,) = torch.autograd.grad((run(plain, x)[0] * weights).sum(), x)
    layer = wrapped(name, "default")
    for _ in range(2):

        def forward(x: Tensor) -> Tensor:
            if isinstance(layer, neuron.BaseNode):
                functional.reset_net(layer)
            return run(layer, x)[0]

        x = drive()
        (checkpoint(forward, x, use_reentrant=reentrant) * weights).sum().backward()
        assert x.grad is not None
        torch.testing.assert_close(x.grad, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["apart", "float64"])
@layers
def test_what_is_saved_may_change_its_form(name: str, form: str) -> None:
    layer = wrapped(name)
    expected = numbers(layer, drive())

    def changed(tensor: Tensor) -> Tensor:
        return tensor.double() if form == "float64" else torch.stack([tensor, tensor], -1)[..., 0]

    for _ in range(2):
        with saved_tensors_hooks(lambda tensor: tensor, changed):
            found = numbers(layer, drive())
        same(found, expected)


@layers
def test_a_hook_that_gives_back_another_shape_is_an_error(name: str) -> None:
    layer = wrapped(name)
    numbers(layer, drive())
    hooks = saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor[:1])
    said = pytest.raises(RuntimeError, match="a hook on saved tensors gave back one of shape")
    with hooks, said:
        numbers(layer, drive())


LOSSES: dict[str, Callable[[list[Tensor], Tensor], Tensor]] = {
    "outputs": lambda found, weights: (found[0] * weights).sum(),
    "outputs, the same at every step": lambda found, weights: (found[0] * weights[0]).sum(),
    "potential": lambda found, weights: (found[1] * weights[1]).sum(),
    "current": lambda found, weights: (found[-1] * weights[2]).sum(),
    "outputs and potential": lambda found, weights: (found[0].sum(0) * found[1]).sum(),
}


@pytest.mark.parametrize("cuts", [(), (4,)], ids=str)
@pytest.mark.parametrize("start", ["at rest", "given", "learned"])
@pytest.mark.parametrize("rule", ["default", "TSSL-BP"])
@layers
def test_a_loss_on_some_results(name: str, rule: str, start: str, cuts: Sequence[int]) -> None:
    """In turns, so that what the backward pass of one needs is there for another."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(STEPS, *SHAPE, generator=generator)
    level = torch.linspace(-0.2, 0.3, SHAPE[-1]).expand(SHAPE)
    ours, plain = wrapped(name, rule), wrapped(name, rule, "torch")

    def grads(layer: Any, loss: str) -> list[Tensor]:
        x, v = drive(), level.clone().requires_grad_(start == "learned")
        state: Any = None
        if isinstance(layer, neuron.BaseNode):
            functional.reset_net(layer)
            layer.v = v if start != "at rest" else layer.v
        elif start != "at rest":
            state = norse.LIFFeedForwardState(v, v.detach())
        outs, states = [], []
        for part in x.tensor_split(cuts):
            out, state, states = run(layer, part, state)
            outs.append(out)
        total = LOSSES[loss]([torch.cat(outs), *states], weights)
        to = [x, *([v] if v.requires_grad else [])]
        return list(torch.autograd.grad(total, to, materialize_grads=True))

    for loss in [*LOSSES, *LOSSES]:
        for one, other in zip(grads(ours, loss), grads(plain, loss), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@layers
def test_copies_decide_for_themselves(name: str) -> None:
    layer = wrapped(name)
    expected = numbers(layer, drive())
    if name not in NORSE:
        functional.reset_net(layer)
    copies = [copy.deepcopy(layer)]
    if name not in NORSE:  # whose functions cannot be pickled
        copies.append(pickle.loads(pickle.dumps(layer)))
    for copied in copies:
        assert decided(copied) is None
        same(numbers(copied, drive()), expected)


@layers
def test_a_second_derivative_is_refused(name: str) -> None:
    layer = wrapped(name)
    numbers(layer, drive())
    x = drive()
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.grad(run(layer, x)[0].sum(), x, create_graph=True)


@pytest.mark.parametrize("name", NORSE)
def test_an_input_without_gradient(name: str) -> None:
    """The potential at rest has one natively, and with it all that comes of it."""
    layer, native = wrapped(name), LAYERS[name]()
    numbers(layer, drive())
    x = drive().detach()
    for _ in range(2):
        (out, state), (expected, beside) = layer(x), native(x)
        assert torch.equal(out, expected)
        for ours, theirs in ((out, expected), (state.v, beside.v), (state.i, beside.i)):
            assert ours.requires_grad == theirs.requires_grad
    layer, weight = wrapped(name), torch.ones(43, requires_grad=True)
    for _ in range(3):
        found = checkpoint(lambda x: layer(x)[0] * weight, x, use_reentrant=False)
        found.sum().backward()
    assert weight.grad is not None


class Elsewhere(norse.LIF):
    """Starts from a state of its own."""

    def initial_state(self, input_tensor: Tensor) -> Any:
        v, i = (torch.full(input_tensor.shape[1:], value) for value in (0.2, 0.1))
        v.requires_grad = True
        return norse.LIFFeedForwardState(v, i)


class Filled(neuron.LIFNode):
    """Makes another tensor of a number."""

    def materialize_states(self, inputs: Any, states: Any, step_mode: str) -> Any:
        (v,) = states
        if isinstance(v, float):
            v = torch.full_like(inputs[0][0].detach(), 0.7)
        return (v,)


def of_class(make: Callable[[], Any], like: type) -> list[Any]:
    """A native one and, wrapped, one for each engine."""
    layers = [make() for _ in range(3)]
    tssl_adapters.register(type(layers[0]), like=like)
    for layer, engine in zip(layers[1:], ("cpu", "torch"), strict=True):
        tssl_adapters.wrap(layer, rule="tsslbp", engine=engine)
    return layers


@pytest.mark.parametrize(
    ("make", "like"),
    [(Elsewhere, norse.LIF), (lambda: Filled(step_mode="m"), neuron.LIFNode)],
    ids=["norse", "spikingjelly"],
)
def test_a_class_of_the_users_own_starts_where_it_says(make: Callable[[], Any], like: type) -> None:
    native, ours, plain = of_class(make, like)
    for _ in range(3):
        found = [numbers(layer, drive()) for layer in (native, ours, plain)]
        for values in found[1:]:
            assert all(map(torch.equal, values[:-1], found[0][:-1]))
        same(found[1], found[2])


def test_a_start_of_the_users_own_is_asked_for_once() -> None:
    def start(x: Tensor) -> Any:
        return norse.LIFFeedForwardState(torch.rand(x.shape[1:]), torch.zeros(x.shape[1:]))

    native, layer, other = norse.LIF(), wrapped("LIF"), wrapped("LIF with a leak")
    native.p = layer.p
    numbers(layer, drive())
    for one in (native, layer):
        one.state_fallback = start
    for x in (drive(), drive().detach(), drive((43, 3)).transpose(1, 2), drive()[:1]):
        for _ in range(2):
            found = []
            for one in (native, layer):
                torch.manual_seed(1)
                found.append(one(x)[0])
            assert torch.equal(*found)
    layer.state_fallback = other.state_fallback  # of another neuron
    native.state_fallback = other.state_fallback
    for _ in range(2):
        assert torch.equal(layer(drive())[0], native(drive())[0])


@layers
def test_inference_mode_leaves_nothing_behind(name: str) -> None:
    layer, other = wrapped(name), wrapped(name)
    expected = numbers(layer, drive((2, 5)))
    if isinstance(layer, neuron.BaseNode):
        functional.reset_net(layer)
    # The potential of Norse's has a gradient, for which autograd will not keep such an input.
    fails = pytest.raises(RuntimeError, match="Inference") if name in NORSE else nullcontext()
    with torch.inference_mode(), torch.enable_grad(), fails:
        run(layer, drive((4, 7)).detach().clone())
    for one in (layer, other):
        same(numbers(one, drive((2, 5))), expected)
        for _ in range(2):
            numbers(one, drive((4, 7)))


def test_a_parameter_that_is_added() -> None:
    layer = wrapped("LIFNode")
    expected = numbers(layer, drive())
    layer.register_parameter("scale", nn.Parameter(torch.ones(3)))
    for _ in range(2):
        same(numbers(layer, drive()), expected)


@pytest.mark.parametrize("value", [0, True, None], ids=str)
def test_what_is_no_state_natively(value: Any) -> None:
    layer = wrapped("LIFNode")
    numbers(layer, drive())
    for one in (layer, LAYERS["LIFNode"]()):
        one.v = value
        with pytest.raises((TypeError, AttributeError, ValueError)):
            one(drive())


def test_one_layer_in_many_places() -> None:
    """Shapes take turns while graphs hold the zeros of others."""
    layer, narrow, wide = wrapped("LIF"), nn.Linear(43, 5), nn.Linear(5, 43)
    for _ in range(4):
        x, held = drive(), []
        for part in (narrow, wide, narrow, wide):
            x = part(layer(x)[0])
            held.append(x)
        held[-1].sum().backward()


def test_what_is_kept_for_each_step_is_not_decided() -> None:
    layer = tssl_adapters.wrap(
        neuron.LIFNode(step_mode="m", store_v_seq=True), rule="tsslbp", engine="cpu"
    )
    layer(drive())
    assert decided(layer) is None
    layer.store_v_seq = False
    functional.reset_net(layer)
    layer(drive())
    assert isinstance(decided(layer), Sequences)
    layer.v_seq = torch.zeros(2)
    functional.reset_net(layer)
    layer(drive())
    assert layer.v_seq is None


def test_states_of_each_step_are_not_decided() -> None:
    layer, native = norse.IAF(), norse.IAF()
    tssl_adapters.wrap(layer, rule="tsslbp", engine="cpu")
    for one in (layer, native):
        one.record_states = True
    for _ in range(2):
        start = IAFFeedForwardState(torch.zeros(SHAPE))
        (ours,), (theirs,) = (one(drive(), start)[1] for one in (layer, native))
        assert torch.equal(ours, theirs)
    assert decided(layer) is None


def test_single_steps_and_sequences_take_turns() -> None:
    layer, plain = (wrapped("LIFNode", engine=engine) for engine in ("cpu", "torch"))
    x = drive()
    for mode in ("m", "s", "m"):
        for one in (layer, plain):
            functional.set_step_mode(one, mode)
            functional.reset_net(one)
        if mode == "m":
            same(numbers(layer, x), numbers(plain, x))
            continue
        outs = [torch.stack([one(step) for step in x.unbind(0)]) for one in (layer, plain)]
        assert torch.equal(*outs)
        torch.testing.assert_close(*(torch.autograd.grad(out.sum(), x)[0] for out in outs))


@pytest.mark.parametrize(
    "rule", [rules.STRSBP(credit="spike"), rules.STDBP(strict=False), rules.EventProp()], ids=str
)
def test_rules_that_look_at_other_steps_are_not_decided(rule: rules.Rule) -> None:
    layer = tssl_adapters.wrap(LAYERS["LIFNode"](), rule=rule, engine="cpu")
    layer(drive())
    assert decided(layer) is None
