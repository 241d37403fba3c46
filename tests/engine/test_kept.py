"""What a time loop keeps for backward: h of each step, which stands for drive and state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any

import norse.torch as norse
import pytest
import snntorch
import torch
from norse.torch.functional.lif_box import LIFBoxParameters
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.bench.measures import KeptForBackward
from tssl_adapters.engine import attach
from tssl_adapters.engine.torch import bits

STEPS, BATCH, FEATURES = 6, 4, 33
Loop = Callable[[nn.Module, Tensor], Tensor]


def explicit(layer: Any, x: Tensor) -> Tensor:
    """A loop over a layer that is passed its state."""
    state, outs = None, []
    for step in x:
        given = layer.init_leaky() if isinstance(layer, snntorch.Leaky) and state is None else state
        out, state = layer(step, given)
        outs.append(out)
    return torch.stack(outs)


def held(layer: Any, x: Tensor) -> Tensor:
    """A loop over a layer that holds its state."""
    return torch.stack([layer(step) for step in x])


def leaky(**settings: Any) -> nn.Module:
    return snntorch.Leaky(beta=0.8, **settings)


def box() -> nn.Module:
    return norse.LIFBoxCell(LIFBoxParameters(tau_mem_inv=torch.tensor(300.0)))


ONE: dict[str, tuple[Callable[[], nn.Module], Loop]] = {
    "Leaky": (leaky, explicit),
    "Leaky zero": (lambda: leaky(reset_mechanism="zero"), explicit),
    "Leaky learned": (lambda: leaky(learn_beta=True, learn_threshold=True), explicit),
    "Leaky hidden": (lambda: leaky(init_hidden=True), held),
    "LIFNode": (lambda: neuron.LIFNode(tau=1.5, decay_input=False), held),
    "LIFNode soft": (lambda: neuron.LIFNode(tau=1.5, v_reset=None), held),
    "IFNode": (lambda: neuron.IFNode(), held),
    "LIFCell": (norse.LIFCell, explicit),
    "LIFBoxCell": (box, explicit),
}
TWO = {
    "Leaky without delay": (lambda: leaky(reset_delay=False), explicit),
    "ParametricLIFNode": (lambda: neuron.ParametricLIFNode(), held),
}
RULES = (
    rules.TSSLBP(),
    rules.TSSLBP(reset_path="complete"),
    rules.SurrogateGradient(lambda x: 1 / (1 + x.abs()) ** 2),
)
COMPILED = ("Leaky", "LIFNode")
"""One of each way to hand on a state."""


def on_engines(cases: Iterable[str]) -> pytest.MarkDecorator:
    """Each with torch and with compiled loops."""
    chosen = [(case, "torch") for case in cases]
    chosen += [(case, "cpu") for case in cases]
    return pytest.mark.parametrize(("case", "engine"), chosen)


def settings(engine: str) -> Iterator[tuple[rules.Rule, float]]:
    """Rules and time constants; few for compiled loops."""
    yield from product(RULES, (1.0, 3.0)) if engine == "torch" else [(RULES[0], 1.0)]


def gradients(
    make: Callable[[], nn.Module], loop: Loop, engine: str, tau_s: float, rule: rules.Rule
) -> tuple[list[Tensor], int]:
    """Those of a loop's drive and of the layer's parameters, and the bytes that the loop kept."""
    torch.manual_seed(0)
    layer = tssl_adapters.wrap(make(), engine=engine, tau_s=tau_s, rule=rule)
    x = (2.0 * torch.randn(STEPS, BATCH, FEATURES)).requires_grad_()
    with KeptForBackward() as kept:
        out = loop(layer, x)
    assert 0.02 < float((out.detach() > 0).float().mean()) < 0.98
    leaves = [x, *layer.parameters()]
    return list(torch.autograd.grad((out * torch.randn_like(out)).sum(), leaves)), kept.num_bytes


@on_engines([*ONE, *TWO])
def test_the_kept_potential_stands_for_the_state(
    case: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, loop = (ONE | TWO)[case]
    for rule, tau_s in settings(engine):
        with_it, _ = gradients(make, loop, engine, tau_s, rule)
        with monkeypatch.context() as patch:
            patch.setattr(attach, "charged_of", lambda state, reset: None)
            without, _ = gradients(make, loop, engine, tau_s, rule)
        for found, expected in zip(with_it, without, strict=True):
            assert torch.equal(found, expected)
        assert with_it[0].abs().sum() > 0


@on_engines(ONE)
@pytest.mark.parametrize("tau_s", [1.0, 3.0])
def test_a_loop_keeps_a_drive_and_a_row_of_states(case: str, engine: str, tau_s: float) -> None:
    """Of a trace, whether the neuron is active by it: a bit."""
    make, loop = ONE[case]
    _, kept = gradients(make, loop, engine, tau_s, rules.TSSLBP())
    row, packed = 4 * BATCH * FEATURES, -(-BATCH * FEATURES // 8)
    few = 64 * STEPS  # thresholds and the like
    assert kept <= (STEPS + 1) * row + few + (0 if tau_s == 1.0 else STEPS * packed)


@pytest.mark.parametrize("engine", ["torch", "cpu"])
def test_bits_lie_where_the_drive_does(engine: str) -> None:
    """Whatever the default device is."""
    make, loop = ONE["Leaky"]
    expected, _ = gradients(make, loop, engine, 3.0, rules.TSSLBP())
    layer = tssl_adapters.wrap(make(), engine=engine, tau_s=3.0, rule="tsslbp")
    torch.manual_seed(0)
    x = (2.0 * torch.randn(STEPS, BATCH, FEATURES)).requires_grad_()
    state, weight = layer.init_leaky(), torch.randn_like(x)
    outs = []
    torch.set_default_device("meta")
    try:
        for step in x:
            out, state = layer(step, state)
            outs.append(out)
        found = torch.autograd.grad((torch.stack(outs) * weight).sum(), x)
    finally:
        torch.set_default_device(None)
    assert torch.equal(found[0], expected[0])


def test_evaluation_keeps_no_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    make, loop = ONE["LIFNode"]
    layer = tssl_adapters.wrap(make(), engine="torch", tau_s=3.0, rule="tsslbp")
    monkeypatch.setattr(tssl_adapters.engine.torch.step, "pack", None)
    with torch.no_grad():
        loop(layer, torch.randn(STEPS, BATCH, FEATURES))
    with pytest.raises(TypeError, match="not callable"):
        loop(layer, torch.randn(STEPS, BATCH, FEATURES))


def last_potential(layer: Any, x: Tensor) -> Tensor:
    """What a loop over a layer leaves in it."""
    state = layer.init_leaky() if isinstance(layer, snntorch.Leaky) else None
    for step in x:
        if state is None:
            layer(step)
        else:
            _, state = layer(step, state)
    return layer.v if state is None else state


@pytest.mark.parametrize("case", COMPILED)
def test_a_loss_on_the_last_potential_reaches_the_first_step(case: str) -> None:
    """With a delayed reset through the link alone."""
    make, _ = ONE[case]
    (found, _), (expected, _) = (
        gradients(make, last_potential, engine, 1.0, rules.TSSLBP()) for engine in ("cpu", "torch")
    )
    assert expected[0][0].abs().sum() > 0
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", COMPILED)
def test_a_trace_gates_a_step_by_its_bits_alike_on_every_engine(case: str) -> None:
    make, loop = ONE[case]
    found, expected = (
        gradients(make, loop, engine, 3.0, rules.TSSLBP())[0] for engine in ("cpu", "torch")
    )
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (3, 5, 11), (64,)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_flags_come_back_from_their_bits(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    flags = (torch.rand(shape) < 0.5).to(dtype)
    packed = bits.pack(flags)
    assert packed.nbytes == -(-flags.numel() // 8)
    assert torch.equal(bits.unpack(packed, flags.shape, dtype), flags)


@pytest.mark.parametrize("case", TWO)
def test_the_state_or_the_drive_is_kept_too_where_the_potential_does_not_tell_it(
    case: str,
) -> None:
    make, loop = TWO[case]
    _, kept = gradients(make, loop, "torch", 1.0, rules.TSSLBP())
    row = 4 * BATCH * FEATURES
    assert 1.8 * STEPS * row < kept < 2.2 * STEPS * row


@on_engines(["Leaky", "LIFBoxCell"])
def test_states_may_be_written_to_once_they_were_passed_on(case: str, engine: str) -> None:
    make, loop = ONE[case]
    expected, _ = gradients(make, loop, engine, 1.0, rules.TSSLBP())

    def writing(layer: Any, x: Tensor) -> Tensor:
        state, outs, before = None, [], None
        if isinstance(layer, snntorch.Leaky):
            state = layer.init_leaky()
        for step in x:
            out, state = layer(step, state)
            outs.append(out)
            if before is not None:
                before.zero_()
            before = getattr(state, "v", state).detach()
        return torch.stack(outs)

    found, _ = gradients(make, writing, engine, 1.0, rules.TSSLBP())
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def in_chunks(cut: Callable[[Tensor], Tensor]) -> Loop:
    """Truncated backpropagation: an optimizer's step after every second time step."""

    def loop(layer: Any, x: Tensor) -> Tensor:
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.003)
        state, outs = None, []
        for t, step in enumerate(x):
            out, state = layer(step, state)
            outs.append(out)
            if t % 2:
                (grad,) = torch.autograd.grad(out.sum(), [layer.p.v_th], retain_graph=True)
                state = norse.LIFBoxFeedForwardState(cut(state.v))
                layer.p.v_th.grad = grad
                optimizer.step()
        return torch.stack(outs[-2:])

    return loop


def learned_box() -> nn.Module:
    p = LIFBoxParameters(tau_mem_inv=torch.tensor(300.0), v_th=nn.Parameter(torch.tensor(0.7)))
    layer = norse.LIFBoxCell(p)
    layer.register_parameter("v_th", p.v_th)
    return layer


def raised(layer: Any, x: Tensor) -> Tensor:
    """Another threshold at every step."""
    outs = []
    for step in x:
        outs.append(layer(step))
        layer.v_threshold += 0.3
    return torch.stack(outs)


def hurried(layer: Any, x: Tensor) -> Tensor:
    """Without delay from the fourth step on."""
    outs = []
    for t, step in enumerate(x):
        layer.reset_delay = t < 3
        outs.append(layer(step))
    return torch.stack(outs)


def exchanged(layer: Any, x: Tensor) -> Tensor:
    """States whose memory is exchanged behind autograd's back."""
    outs = []
    for step in x:
        outs.append(layer(step))
        layer.v.data = layer.v.detach().clamp(max=0.3)
    return torch.stack(outs)


@pytest.mark.parametrize(
    ("make", "loop"),
    [
        (ONE["LIFNode soft"][0], raised),
        (ONE["Leaky hidden"][0], hurried),
        (ONE["LIFNode"][0], exchanged),
        (learned_box, in_chunks(Tensor.detach_)),
    ],
    ids=["another threshold", "another timing", "another memory", "an optimizer's step"],
)
def test_the_kept_potential_is_left_where_the_neuron_or_the_state_is_another(
    make: Any, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The potential was reset by the neuron that there was then, to the state that there was."""
    found, _ = gradients(make, loop, "torch", 1.0, rules.TSSLBP())
    monkeypatch.setattr(attach, "charged_of", lambda state, reset: None)
    expected, _ = gradients(make, loop, "torch", 1.0, rules.TSSLBP())
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_detaching_in_place_or_not_is_the_same() -> None:
    found = [
        gradients(learned_box, in_chunks(cut), "torch", 1.0, rules.TSSLBP())[0]
        for cut in (Tensor.detach_, Tensor.detach)
    ]
    assert all(map(torch.equal, *found))


def test_a_state_holds_no_graph_of_the_neurons() -> None:
    layer = tssl_adapters.wrap(norse.LIFBoxCell(), engine="torch", rule="tsslbp")
    threshold = nn.Parameter(torch.tensor(0.7))
    layer.p = layer.p._replace(v_th=2.0 * threshold)
    _, state = layer(torch.randn(3, 5, requires_grad=True), None)
    kept = state.v._tssl_tag.charged
    assert kept.potential.grad_fn is None
    assert not any(isinstance(part, Tensor) for part in kept.reset)


@pytest.mark.parametrize("engine", ["torch", "cpu"])
@pytest.mark.parametrize("of_each", [False, True])
def test_a_threshold_written_to_between_steps(engine: str, of_each: bool) -> None:
    """As natively: a step's gradient is that of the threshold it compared with."""

    def grad_of(layer: Any) -> Tensor:
        x = torch.randn(STEPS, BATCH, FEATURES, generator=torch.Generator().manual_seed(0))
        x.requires_grad_()
        mem, outs = torch.zeros(BATCH, FEATURES), []
        for step in x:
            spikes, mem = layer(step, mem)
            outs.append(spikes)
            layer.threshold.add_(0.1)
        torch.stack(outs).square().sum().backward()
        assert x.grad is not None
        return x.grad

    def made() -> nn.Module:
        return leaky(threshold=torch.full((FEATURES,), 0.5) if of_each else 0.5)

    expected = grad_of(made())
    ours = tssl_adapters.wrap(made(), rule="native", engine=engine)  # type: ignore[arg-type]
    torch.testing.assert_close(grad_of(ours), expected)
    windowed = tssl_adapters.wrap(made(), rule=rules.EventProp(), engine=engine)  # type: ignore[arg-type]
    assert grad_of(windowed).isfinite().all()
