"""What no other test notices of faults put in on purpose: corners where one makes no difference to
random numbers.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import norse.torch as norse
import numpy as np
import pytest
import snntorch
import torch
from compat_norse import superspike
from norse.torch.functional.lif import LIFFeedForwardState, LIFParameters
from norse.torch.functional.lif_box import LIFBoxFeedForwardState, LIFBoxParameters
from spikingjelly.activation_based import neuron, surrogate
from torch import Tensor
from torch._subclasses import FakeTensorMode

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.elementwise import at_least, greater
from tssl_adapters.engine import probe
from tssl_adapters.engine.attach import attach
from tssl_adapters.engine.call.settings import Settings
from tssl_adapters.engine.probe import NativeForward
from tssl_adapters.errors import LostLinkWarning, LostTraceError, NativeGradientWarning
from tssl_adapters.neuron import LinearCharge, Neuron
from tssl_adapters.resets import Subtract, ToValue


@pytest.mark.parametrize(("tau_s", "loud"), [(1.0, 1), (2.0, 3), (3.0, 4)])
def test_silent_is_below_the_gate_and_not_at_it(tau_s: float, loud: int) -> None:
    """a = 1/2, 1/4, 1/8 after a spike at tau_s = 2, where the gate is 1/8 exactly."""
    layer: Any = neuron.IFNode(v_reset=0.0, step_mode="m").double()
    tssl_adapters.wrap(layer, tau_s=tau_s, rule="tsslbp")
    x = torch.tensor([2.0] + 7 * [0.0], dtype=torch.float64, requires_grad=True)
    layer(x[:, None]).sum().backward()
    G = 1.0 - (1.0 - 1.0 / tau_s) ** torch.arange(8.0, 0.0, -1.0, dtype=torch.float64)
    z = math.exp(5.0)  # h = 0, theta = 1, width 0.2
    expected = torch.where(torch.arange(8) < loud, 0.0, G * z / (0.2 * (1.0 + z) ** 2))
    expected[0] = G[0] / 2.0
    torch.testing.assert_close(x.grad, expected)


RULE = rules.TSSLBP(reset_path="reference")
TIMINGS = ["immediate", "delayed", "both"]


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("reset", ["value", "subtract"])
@pytest.mark.parametrize("sequence", [True, False])
def test_numbers_and_tensors_make_one_neuron(timing: Any, reset: str, sequence: bool) -> None:
    """A record of plain numbers, of scalar tensors and of full ones: the same gradients."""

    def gradients(value: Callable[[float], Any]) -> list[Tensor]:
        decay, gain, offset, theta = value(0.7), value(1.3), value(0.1), value(0.5)
        to = value(-0.2 if timing == "immediate" else 0.0)
        charge = LinearCharge(decay, gain, offset, lambda v, x: decay * v + gain * x + offset)
        cell = Neuron(charge, ToValue(to) if reset == "value" else Subtract(), theta, timing)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(9, 2, 5, generator=generator, dtype=torch.float64).requires_grad_()
        v = torch.rand(2, 5, generator=generator, dtype=torch.float64).requires_grad_()
        settings, state, outs = Settings("layer", RULE, 1.0), v, []
        for part in [x] if sequence else x:
            result = attach(settings, cell, part, state, None, None, sequence=sequence)
            state = result.state
            outs.append(result.out)
        out = outs[0] if sequence else torch.stack(outs)
        weight = torch.randn(out.shape, generator=generator, dtype=torch.float64)
        return [*torch.autograd.grad((out * weight).sum() + state.sum(), [x, v]), out.detach()]

    numbers = gradients(lambda number: number)
    for shape in ((), (5,), (2, 5)):
        tensors = gradients(lambda number, s=shape: torch.full(s, number, dtype=torch.float64))
        for ours, theirs in zip(tensors, numbers, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    assert 0.1 < float(numbers[-1].mean()) < 0.9


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_layers_sum_in_float32(step_mode: str, dtype: torch.dtype) -> None:
    """Each step's spike adds one to lambda; bfloat16 cannot count beyond 256."""
    layer: Any = neuron.IFNode(v_reset=None, step_mode=step_mode).to(dtype)
    tssl_adapters.wrap(layer, rule="tsslbp")
    steps = 3000 if dtype == torch.float16 else 300
    x = torch.ones(steps, 2, dtype=dtype, requires_grad=True)
    out = layer(x) if step_mode == "m" else torch.stack([layer(step) for step in x])
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert torch.equal(x.grad[:, 0], torch.arange(steps, 0, -1).to(dtype))


@pytest.mark.parametrize("threshold", [0.5, torch.tensor(0.5), torch.tensor([0.5, 0.5, 0.5])])
def test_comparisons_at_the_threshold(threshold: float | Tensor) -> None:
    potential = torch.tensor([0.25, 0.5, 0.75])
    assert greater(potential, threshold).tolist() == [0.0, 0.0, 1.0]
    assert at_least(potential, threshold).tolist() == [0.0, 1.0, 1.0]
    assert potential.tolist() == [0.25, 0.5, 0.75]


@pytest.mark.parametrize("sequence", [True, False])
def test_the_library_s_spikes_where_it_rounds_otherwise(
    sequence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library spikes where the record's potential stays just below the threshold."""
    monkeypatch.setattr(probe.Record, "reproduces", lambda self, native: False)
    cell = Neuron(LinearCharge(1.0, 1.0, 0.0, lambda v, x: v + x), ToValue(0.0), 1.0)
    x = torch.tensor([[1.0 - 1e-6, 0.5]], requires_grad=True)
    drive = x.unsqueeze(0) if sequence else x
    spikes = torch.tensor([[1.0, 0.0]])
    native = NativeForward(
        drive, lambda: (spikes.expand_as(drive).clone(), torch.zeros(1, 2)), lambda x, v: (x, x, v)
    )
    settings = Settings("layer", RULE, 1.0)
    result = attach(settings, cell, drive, torch.zeros(1, 2), None, native, sequence=sequence)
    result.out.sum().backward()
    assert x.grad is not None
    assert float(x.grad[0, 0]) == pytest.approx(1.0, abs=1e-5)  # 1/d; the fallback gives 1.25
    assert float(x.grad[0, 1]) == pytest.approx(5.0 * 0.0701, abs=1e-3)


@pytest.mark.parametrize("tau_s", [1.0, 1.25, 3.0])
@pytest.mark.parametrize("library", ["spikingjelly", "norse"])
def test_a_library_that_the_record_does_not_reproduce(
    library: str, tau_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its spikes are then known from the PSC that was emitted, whatever came in with the state."""

    def run() -> tuple[Tensor, Tensor]:
        layer: Any = neuron.LIFNode(v_reset=None, step_mode="m")
        layer = norse.LIF() if library == "norse" else layer
        tssl_adapters.wrap(layer, tau_s=tau_s, rule="tsslbp")
        x = torch.randn(9, 40, generator=torch.Generator().manual_seed(0)).double()
        x = (x * (5.0 if library == "norse" else 2.0) + 1.0).requires_grad_()
        state, outs = None, []
        for part in (x[:5], x[5:]):
            out, state = layer(part, state) if library == "norse" else (layer(part), None)
            outs.append(out)
        out = torch.cat(outs)
        weight = torch.linspace(-1.0, 2.0, out.numel(), dtype=out.dtype).view_as(out)
        (grad,) = torch.autograd.grad((out * weight).sum(), x)
        return out.detach(), grad

    out, grad = run()
    assert 0.2 < float((out > 0.25).double().mean()) < 0.9
    monkeypatch.setattr(probe.Record, "reproduces", lambda self, native: False)
    torch.testing.assert_close(run(), (out, grad), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cls", [norse.LIFCell, norse.LIF])
def test_without_a_chain_norse_s_current_ends_too(cls: Any) -> None:
    """``chain=False``: dE/dx[t] = dt tau_mem_inv sigma'(h[t] - theta) g[t], nothing else."""
    layer = tssl_adapters.wrap(
        cls(LIFParameters(tau_mem_inv=torch.tensor(500.0))),
        rule=rules.SurrogateGradient(lambda x: 0.0 * x + 3.0, chain=False),
    )
    x = torch.linspace(0.0, 2.0, 24, dtype=torch.float64).view(6, 4).requires_grad_()
    start = LIFFeedForwardState(
        v=torch.full((4,), 0.5).double().requires_grad_(),
        i=torch.full((4,), 0.2).double().requires_grad_(),
    )
    g = torch.linspace(-1.0, 1.0, 24, dtype=torch.float64).view(6, 4)
    if cls is norse.LIF:
        out, _ = layer(x, start)
    else:
        state, outs = start, []
        for step in x:
            out, state = layer(step, state)
            outs.append(out)
        out = torch.stack(outs)
    assert 0.0 < float(out.detach().mean()) < 1.0
    grad, *of_start = torch.autograd.grad((out * g).sum(), [x, *start], allow_unused=True)
    torch.testing.assert_close(grad, 0.5 * 3.0 * g)
    # The first step adds i to x; nothing else of the state is passed back.
    assert all(each is None or not each.any() for each in of_start)


LEAKS = LIFParameters(v_leak=torch.tensor(0.25), v_reset=torch.tensor(-0.5))
AT_REST = {
    "LIFCell": (lambda: norse.LIFCell(LEAKS), [0.0, 0.25, -0.5]),
    "LIF": (lambda: norse.LIF(LEAKS), [0.0, 0.25, -0.5]),
    "LIFNode": (lambda: neuron.LIFNode(v_reset=-0.5), [0.0, -0.5]),
    "LIFNode by subtraction": (lambda: neuron.LIFNode(v_reset=None), [0.0]),
    "Leaky": (lambda: snntorch.Leaky(beta=0.9), [0.0]),
}


@pytest.mark.parametrize("name", AT_REST)
def test_a_potential_at_rest_that_is_handed_in_starts_a_trace(name: str) -> None:
    """At 0, v_reset and v_leak: a[0] = s[0] / tau_s. Anywhere else it is refused."""
    make, rests = AT_REST[name]
    x = torch.full((2, 3), 50.0)

    def first_out(rest: float) -> list[float]:
        layer: Any = tssl_adapters.wrap(make(), tau_s=4.0)
        v = torch.full((2, 3), rest)
        if isinstance(layer, neuron.BaseNode):
            layer.v = v
            return layer(x).unique().tolist()  # type: ignore[no-any-return]
        state = v if name == "Leaky" else LIFFeedForwardState(v, torch.zeros(2, 3))
        out, _ = layer(x[None] if name == "LIF" else x, state)
        return out.unique().tolist()  # type: ignore[no-any-return]

    assert [first_out(rest) for rest in rests] == [[0.25]] * len(rests)
    with pytest.raises(LostTraceError, match="nor at rest"):
        first_out(0.125)


def test_one_layer_in_several_dtypes() -> None:
    """snnTorch's spikes are float32 whatever comes in, which its record's are not."""
    native: Any = snntorch.Leaky(beta=0.9, threshold=0.5)
    layer: Any = tssl_adapters.wrap(copy.deepcopy(native))
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float32):
        x = torch.randn(64, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
        ours, theirs = (each(x, torch.zeros(64, dtype=dtype)) for each in (layer, native))
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        assert 0 < ours[0].sum() < 64


@pytest.mark.parametrize("where", ["spikes", "membrane potentials"])
@pytest.mark.parametrize("used", [False, True])
def test_a_library_that_changed(where: str, used: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other spikes, or potentials only, are noticed, also by a layer pickled before the change, and
    the library goes on alone.
    """
    layer: Any = tssl_adapters.wrap(neuron.IFNode())
    x = torch.rand(4, 5)
    if used:
        layer(x)
        layer.reset()
    layer = pickle.loads(pickle.dumps(layer))
    native = neuron.IFNode.functional_forward

    def functional_forward(self: Any, inputs: Any, states: Any, **kwargs: Any) -> Any:
        (spikes,), (v,) = native(self, inputs, states, **kwargs)
        return ((1.0 - spikes,), (v,)) if where == "spikes" else ((spikes,), (v - 0.1,))

    monkeypatch.setattr(neuron.IFNode, "functional_forward", functional_forward)
    with pytest.warns(NativeGradientWarning, match=f"layer 'IFNode' .* 100.0% of its {where}"):
        out = layer(x)
    assert torch.equal(out, neuron.IFNode()(x))


@pytest.mark.parametrize(("beta", "bound"), [(1.5, 1.0), (-0.5, 0.0)])
def test_snntorch_s_beta_is_clamped(beta: float, bound: float) -> None:
    """Outside [0, 1] the layer is the one at the bound, and beta gets no gradient."""
    x = torch.randn(9, 20, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def run(layer: Any) -> tuple[Tensor, ...]:
        mem, total = torch.full((20,), 0.4), torch.zeros(())
        for t, step in enumerate(x):
            spikes, mem = layer(step, mem)
            total = total + (t + 1.0) * (spikes + mem**2).sum()
        return (total.detach(), *torch.autograd.grad(total, [x, layer.beta]))

    settings: dict[str, Any] = {"learn_beta": True, "reset_mechanism": "zero", "threshold": 0.5}
    outside = tssl_adapters.wrap(snntorch.Leaky(beta=beta, **settings))
    inside = tssl_adapters.wrap(snntorch.Leaky(beta=bound, **settings))
    loss, grad, of_beta = run(outside)
    expected_loss, expected_grad, of_bound = run(inside)
    assert torch.equal(loss, expected_loss)
    assert torch.equal(loss, run(tssl_adapters.unwrap(outside))[0])
    assert torch.equal(grad, expected_grad)
    assert of_beta.item() == 0.0
    assert of_bound.item() != 0.0


def test_a_transposed_state_is_another_state() -> None:
    """The same memory in another order: its trace would belong to other neurons."""
    layer: Any = tssl_adapters.wrap(snntorch.Leaky(beta=0.9), tau_s=3.0)
    x = torch.linspace(-1.0, 3.0, 9).view(3, 3)
    with torch.no_grad():
        _, mem = layer(x, layer.reset_mem())
        layer(x, mem.view(3, 3))
        with pytest.raises(LostTraceError, match="is not one that the layer returned"):
            layer(x, mem.t())


@pytest.mark.parametrize("shape", [(), (4,), (1, 4), (3, 4)])
@pytest.mark.parametrize("name", ["LIFCell", "LIF", "LIFBoxCell"])
def test_a_learned_offset_of_every_shape(name: str, shape: tuple[int, ...]) -> None:
    """The offset's gradient is summed over what it broadcasts to, also where that is nothing."""

    def gradient(wrapped: bool) -> Tensor:
        leak = torch.full(shape, 0.1, dtype=torch.float64, requires_grad=True)
        parameters = LIFBoxParameters if name == "LIFBoxCell" else LIFParameters
        layer: Any = getattr(norse, name)(parameters(v_leak=leak, v_th=torch.tensor(0.3)))
        if wrapped:
            tssl_adapters.wrap(layer, rule=rules.SurrogateGradient(superspike))
        x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0)).double() * 9.0
        zero = torch.zeros(3, 4, dtype=torch.float64)
        state: Any = LIFBoxFeedForwardState if "Box" in name else LIFFeedForwardState
        state = state(**dict.fromkeys(state._fields, zero))
        if name == "LIF":
            out = layer(x, state)[0]
        else:
            outs = []
            for step in x:
                one, state = layer(step, state)
                outs.append(one)
            out = torch.stack(outs)
        assert out.any()
        (grad,) = torch.autograd.grad((out * torch.linspace(-1, 2, 60).view_as(out)).sum(), leak)
        return grad

    torch.testing.assert_close(gradient(True), gradient(False), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("threshold", [0.7, 0.9, 0.1])
@pytest.mark.parametrize("node", [neuron.IFNode, neuron.LIFNode])
def test_a_drive_without_dimensions(node: Any, threshold: float) -> None:
    """A lone neuron exactly at its threshold, which float32 rounds to another number."""
    settings = {} if node is neuron.IFNode else {"decay_input": False}
    x = torch.tensor(threshold, requires_grad=True)
    out = tssl_adapters.wrap(node(v_threshold=threshold, v_reset=None, **settings))(x)
    assert torch.equal(out, node(v_threshold=threshold, v_reset=None, **settings)(x))
    assert out == 1.0
    out.backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_numbers_are_not_kept_from_a_dispatch_mode() -> None:
    """A fake tensor that was kept would break every later call."""
    with FakeTensorMode():
        greater(torch.zeros(3), 0.123)
    assert greater(torch.ones(3), 0.123).tolist() == [1.0, 1.0, 1.0]


def test_the_warning_points_at_the_user_s_line() -> None:
    layer = tssl_adapters.wrap(snntorch.Leaky(0.8), rule="tsslbp")
    x = torch.ones(2, 3, requires_grad=True)
    _, mem = layer(x)
    with pytest.warns(LostLinkWarning) as caught:
        layer(x, mem * 1.0)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("spikes", [snntorch.surrogate.atan(), surrogate.Sigmoid()])
def test_a_spike_function_is_no_derivative(spikes: Any) -> None:
    with pytest.raises(ValueError, match=r"makes spikes; pass the derivative"):
        rules.SurrogateGradient(spikes)


def test_a_pattern_that_matches_nothing() -> None:
    layers = OrderedDict(lif1=snntorch.Leaky(0.9), lif2=snntorch.Leaky(0.9))
    model = torch.nn.Sequential(layers)
    with pytest.warns(UserWarning, match=r"matches nothing") as caught:
        tssl_adapters.wrap(model, skip=["*.haed.*", "lf1", "lif2"])
    assert [str(warning.message) for warning in caught] == [
        "tssl_adapters: skip: '*.haed.*' matches nothing in Sequential and skips nothing.",
        "tssl_adapters: skip: 'lf1' matches nothing in Sequential and skips nothing; did you mean "
        "'lif1'?",
    ]
    assert all(warning.filename == __file__ for warning in caught)
    assert [tssl_adapters.is_wrapped(layer) for layer in model] == [True, False]


def test_numbers_of_every_kind() -> None:
    for tau_s in (np.int64(3), np.float32(3.0), Fraction(3)):
        layer = tssl_adapters.wrap(snntorch.Leaky(0.9), tau_s=tau_s)  # type: ignore[arg-type]
        assert layer._tssl_settings.tau_s == 3.0
    assert rules.TSSLBP(max_slope=np.float32(4.0)).max_slope == 4.0
    with pytest.raises(TypeError, match=r"max_slope must be a number, not True"):
        rules.TSSLBP(max_slope=True)


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
def test_the_last_potential_is_not_a_part_of_those_stored(tau_s: float) -> None:
    node: Any = tssl_adapters.wrap(neuron.LIFNode(step_mode="m", store_v_seq=True), tau_s=tau_s)
    node(torch.rand(4, 2, 3, requires_grad=True))
    stored = node.v_seq.detach().clone()
    assert stored[-1].any()
    node.v.detach_()
    node.v.zero_()
    assert torch.equal(node.v_seq.detach(), stored)


def test_layers_do_not_drop_each_other_s_traces() -> None:
    """Each layer files the trace of its state; all are there when the states are detached."""
    layers = [tssl_adapters.wrap(snntorch.Leaky(0.8), tau_s=3.0) for _ in range(3)]
    x = torch.ones(2, 3, requires_grad=True)
    mems = [layer(x)[1] for layer in layers]
    for layer, mem in zip(layers, mems, strict=True):
        out, _ = layer(x, mem.detach())
        assert out.any()


@pytest.mark.parametrize("name", ["LIFBoxCell", "IAFCell", "IAF"])
def test_sparse_input_where_the_library_has_no_sparse_step(name: str) -> None:
    layer: Any = tssl_adapters.wrap(getattr(norse, name)())
    x = torch.tensor([[[0.0, 30.0, 0.0], [30.0, 0.0, 30.0]]]).repeat(4, 1, 1)
    x = x if name == "IAF" else x[0]
    out, _ = layer(x.to_sparse().requires_grad_())
    assert torch.equal(out, layer(x.requires_grad_())[0])
    assert out.any()


@pytest.mark.parametrize("engine", ["cpu", "torch"])
def test_an_infinite_gradient_does_not_pass_a_reset(engine: str) -> None:
    """A spike's reset to a value passes on 0 times what comes back."""
    node: Any = neuron.IFNode(step_mode="m", detach_reset=True)
    tssl_adapters.wrap(node, rule="native", engine=engine)
    x = torch.tensor([[2.0], [0.5]], requires_grad=True)
    node(x).backward(torch.tensor([[1.0], [math.inf]]))
    assert x.grad is not None
    sigmoid = 1.0 / (1.0 + math.exp(-4.0))  # h = 2, alpha = 4
    assert x.grad[0].item() == pytest.approx(4.0 * sigmoid * (1.0 - sigmoid), rel=1e-5)
    assert x.grad[1].item() == math.inf
