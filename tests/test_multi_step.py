"""``multi_step_forward`` against the libraries' own loops over time."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch as snn
import torch
from cases import atan
from hypothesis import given, settings
from hypothesis import strategies as st
from sequential_models import IMAGES, MODELS, dyadic, held, inputs, loop, tensors
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import tssl_adapters
from tssl_adapters.errors import LostTraceError
from tssl_adapters.rules import SurrogateGradient

EVERY = {**MODELS, **IMAGES}


def sequence_for(name: str, seed: int = 0) -> Tensor:
    if name in IMAGES:
        return inputs(1, 4, 4, seed=seed)
    return inputs(seed=seed)


def made(name: str, **wrap: Any) -> nn.Module:
    torch.manual_seed(0)
    model = dyadic(EVERY[name]())
    return tssl_adapters.wrap(model, **wrap) if wrap else model


def ran(run: Any, name: str, model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Two calls in a row, the second from the states that the first left: values, gradients."""
    torch.manual_seed(3)
    xs = [sequence_for(name, seed).requires_grad_() for seed in (0, 1)]
    first = run(model, xs[0])
    threaded = name.startswith("norse") and isinstance(first, tuple)
    state = first[1] if threaded else None
    outs = [*tensors(first)]  # before the second call writes to the list of states
    outs += tensors(run(model, xs[1], state) if threaded else run(model, xs[1]))
    states = [value for value in held(model).values() if isinstance(value, Tensor)]
    values = [*outs, *states]
    generator = torch.Generator().manual_seed(4)
    loss = torch.zeros(())
    for value in values:
        if value.requires_grad:
            loss = loss + (value * torch.randn(value.shape, generator=generator)).sum()
    wanted = [*xs, *model.parameters()]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    return values, [torch.zeros(1) if g is None else g for g in grads]


def assert_alike(name: str, ours: nn.Module, theirs: nn.Module, atol: float = 0.0) -> None:
    values, grads = ran(tssl_adapters.multi_step_forward, name, ours)
    expected, native = ran(loop, name, theirs)
    assert [value.dtype for value in values] == [value.dtype for value in expected]
    for value, wanted in zip(values, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=atol)
    assert held(ours).keys() == held(theirs).keys()
    for grad, wanted in zip(grads, native, strict=True):
        scale = float(wanted.abs().max()) or 1.0
        torch.testing.assert_close(grad / scale, wanted / scale, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", EVERY)
def test_native_models_give_what_the_loop_gives(name: str) -> None:
    ours = made(name)
    assert_alike(name, ours, made(name))


WRAPPED = [name for name in EVERY if name != "spikingjelly: user's node"]


ENGINES = [("smooth-tsslbp", "torch"), ("tsslbp", "torch"), ("tsslbp", "cpu")]


@pytest.mark.parametrize(("rule", "engine"), ENGINES)
@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_models_give_what_the_loop_gives(name: str, rule: str, engine: str) -> None:
    ours = made(name, rule=rule, engine=engine)
    assert_alike(name, ours, made(name, rule=rule, engine="torch"))


@pytest.mark.parametrize(
    "name",
    ["snntorch: Leaky-zero-now", "snntorch: Synaptic-subtract-delay", "norse: cells", "mixed"],
)
@pytest.mark.parametrize(
    "wrap",
    [
        {"tau_s": 3.0},
        {"tau_s": 3.0, "rule": "tsslbp"},
        {"rule": SurrogateGradient(atan, chain=False)},
        {"skip": ["1"], "rule": "tsslbp"},
    ],
    ids=["psc", "psc of the paper", "no chain", "half"],
)
def test_other_gradients(name: str, wrap: dict[str, Any]) -> None:
    ours, theirs = made(name, engine="cpu", **wrap), made(name, **wrap)
    assert_alike(name, ours, theirs, atol=2e-6 if "tau_s" in wrap else 0.0)  # thirds are summed


def test_without_a_graph() -> None:
    name = "snntorch: Synaptic-subtract-delay"
    with torch.no_grad():
        model = made(name, engine="cpu", rule="tsslbp")
        found = tssl_adapters.multi_step_forward(model, sequence_for(name))
        expected = loop(made(name), sequence_for(name))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("steps", [1, 2])
def test_short_sequences(steps: int) -> None:
    for name in ("snntorch: Leaky-subtract-delay", "snntorch: Leaky-subtract-now", "norse: cells"):
        ours, theirs, x = made(name, engine="torch"), made(name), sequence_for(name)[:steps]
        found = tensors(tssl_adapters.multi_step_forward(ours, x))
        for one, other in zip(found, tensors(loop(theirs, x)), strict=True):
            assert torch.equal(one, other)
        left, right = held(ours), held(theirs)
        assert all(torch.equal(left[key], right[key]) for key in left if right[key] is not None)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    reset=st.sampled_from(["subtract", "zero", "none"]),
    delay=st.booleans(),
    output=st.booleans(),
    rule=st.sampled_from([None, "smooth-tsslbp", "tsslbp"]),
)
def test_any_stack_of_leaky_layers(
    sizes: list[int],
    shape: tuple[int, int],
    reset: str,
    delay: bool,
    output: bool,
    rule: str | None,
) -> None:
    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for index, size in enumerate(sizes):
            shows = output and index == len(sizes) - 1
            layers += [
                nn.Linear(3 if index == 0 else sizes[index - 1], size),
                snn.Leaky(
                    beta=0.75, reset_mechanism=reset, reset_delay=delay, init_hidden=True,
                    output=shows, threshold=0.5,
                ),
            ]  # fmt: skip
        model = dyadic(nn.Sequential(*layers))
        return tssl_adapters.wrap(model, rule=rule) if rule else model

    x = torch.randint(-8, 9, (*shape, 3), generator=torch.Generator().manual_seed(sum(sizes))) / 4
    ours, theirs = make(), make()
    found, expected = tensors(tssl_adapters.multi_step_forward(ours, x)), tensors(loop(theirs, x))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(held(ours).values(), held(theirs).values(), strict=True):
        assert one is other is None or torch.equal(one, other)


def test_dropout_draws_a_mask_a_step() -> None:
    model = nn.Sequential(nn.Dropout(0.25), nn.Dropout(0.0))
    torch.manual_seed(0)
    out = tssl_adapters.multi_step_forward(model, torch.ones(50, 4, 100))
    assert not any(torch.equal(out[t], out[t + 1]) for t in range(49))
    assert set(out.unique().tolist()) == {0.0, torch.tensor(4 / 3).item()}
    assert (out == 0).float().mean() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_random_weights_agree_to_rounding(batch: int) -> None:
    layer = nn.Linear(33, 17)
    x = torch.randn(9, batch, 33)
    found = tssl_adapters.multi_step_forward(layer, x)
    torch.testing.assert_close(found, loop(layer, x), rtol=0, atol=4e-6)


STATELESS = {
    "flatten": lambda: nn.Flatten(-2),
    "flatten all": lambda: nn.Flatten(0),
    "softmax over the batch": lambda: nn.Softmax(0),
    "softmax": lambda: nn.Softmax(dim=-1),
    "unflatten": lambda: nn.Unflatten(1, (2, 2)),
    "layer norm": lambda: nn.LayerNorm(4),
    "instance norm": lambda: nn.InstanceNorm2d(4),
    "instance norm, eval": lambda: nn.InstanceNorm2d(4, track_running_stats=True).eval(),
    "batch norm, eval": lambda: nn.BatchNorm2d(4).eval(),
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv2d(4, 3, 1)),
    "spectral norm, eval": lambda: parametrizations.spectral_norm(nn.Conv2d(4, 3, 1)).eval(),
    "transposed": lambda: nn.ConvTranspose2d(4, 2, 2),
    "average": lambda: nn.AdaptiveAvgPool2d(1),
    "upsample": lambda: nn.Upsample(scale_factor=2),
    "nothing": nn.Sequential,
}


@pytest.mark.parametrize("name", STATELESS)
def test_layers_without_a_state(name: str) -> None:
    torch.manual_seed(0)
    layer = STATELESS[name]()
    x = torch.randn(5, 4, 4, 4, 4)
    found = tssl_adapters.multi_step_forward(layer, x)
    torch.testing.assert_close(found, loop(layer, x), rtol=1e-5, atol=1e-6)


def test_steps_without_a_batch() -> None:
    model = dyadic(nn.Sequential(nn.Linear(8, 5), snn.Leaky(beta=0.5, init_hidden=True)))
    x = inputs()[:, 0]
    found = tssl_adapters.multi_step_forward(model, x)
    model[1].reset_mem()
    assert torch.equal(found, loop(model, x))


def test_a_node_is_given_its_step_mode_back() -> None:
    model = tssl_adapters.wrap(nn.Sequential(neuron.LIFNode(), neuron.IFNode()), tau_s=3.0)
    tssl_adapters.multi_step_forward(model, inputs())
    model[0].v = torch.full((5, 8), 0.3)
    with pytest.raises(LostTraceError, match="Layer '0'"):
        tssl_adapters.multi_step_forward(model, inputs())
    assert [node.step_mode for node in model] == ["s", "s"]


def test_models_made_for_sequences_are_called_as_they_are() -> None:
    model = nn.Sequential(
        layer.BatchNorm1d(8, step_mode="m"), neuron.LIFNode(step_mode="m", v_threshold=0.3)
    )
    seen: list[Any] = []
    model[0].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    x = inputs()[..., None]
    found = tssl_adapters.multi_step_forward(model, x)
    assert seen == [x.shape]
    assert 0 < found.mean() < 1
