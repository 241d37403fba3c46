"""Norse as its users write it, in any of its versions: state loops, containers, sparse spikes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import torch
from cases import BATCH, NEURONS
from compat_norse import superspike
from neurons_norse import FORMS, flat, make, start
from norse.torch.functional.lif import LIFParameters
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.adapters.library import libraries
from tssl_adapters.adapters.norse import ADAPTER

STEPS = 8
NATIVE = rules.SurrogateGradient(superspike)
LAYERS = [(name, form) for name, forms in FORMS.items() for form in forms]
SEQUENCES = [("LIF", ""), *((name, form) for name, form in LAYERS if "Cell" not in form)]
CELLS = [("LIF", "Cell"), *((name, form) for name, form in LAYERS if "Cell" in form)]


def data(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (STEPS, BATCH, NEURONS)
    return 0.6 + torch.randn(shape, generator=generator, dtype=torch.float64)


def lively() -> LIFParameters:
    return LIFParameters(v_th=torch.tensor(0.3), tau_mem_inv=torch.tensor(400.0))


def layer(name: str, form: str) -> Any:
    """The same layer at every call."""
    torch.manual_seed(0)
    return make(torch.float64, name, form, learn=False, vector=False, autapses=False)


def begin(layer: Any, x: Tensor) -> Any:
    """A state that the user makes."""
    return start(layer.state_fallback(x), torch.zeros(BATCH, NEURONS, dtype=torch.float64))


def detached(state: Any) -> Any:
    """How a loop over long sequences cuts a state, which is a tuple of tensors or of states."""
    if isinstance(state, Tensor):
        return state.detach()
    return type(state)(*map(detached, state))


Made = Callable[[], Any]
Run = Callable[[Any], tuple[list[Tensor], list[Tensor]]]


def as_natively(made: Made, run: Run) -> None:
    """Wrapped with the library's surrogate, values and gradients are those of a native twin."""
    (theirs, native), (ours, grads) = run(made()), run(tssl_adapters.wrap(made(), rule=NATIVE))
    assert 0.02 < float((ours[0] != 0).double().mean()) < 0.98
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    assert any(float(grad.abs().sum()) > 0 for grad in native)
    for a, b in zip(grads, native, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_every_class_of_this_version_is_wrapped() -> None:
    names = {name.removeprefix("norse.torch.") for name in libraries()["norse"].layers}
    assert {cls.__name__ for cls in ADAPTER.kinds} == {n for n in names if hasattr(norse, n)}


@pytest.mark.parametrize(("name", "form"), CELLS)
def test_truncated_backpropagation(name: str, form: str) -> None:
    """States of the user's own making, cut every third step; a loss on the last state too."""

    def run(cell: Any) -> tuple[list[Tensor], list[Tensor]]:
        x, outs = data().requires_grad_(), []
        state = begin(cell, x[0])
        for t, step in enumerate(x):
            state = detached(state) if t % 3 == 0 else state
            out, state = cell(step, state)
            outs.append(out)
        out, after = torch.stack(outs), [value for _, value in flat(state)]
        loss = (out * data(1)).sum() + sum((value * data(2)[0]).sum() for value in after)
        return [out, *after], list(torch.autograd.grad(loss, [x, *cell.parameters()]))

    as_natively(lambda: layer(name, form), run)


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize(("name", "form"), SEQUENCES)
def test_calls_in_pieces_are_one_call(name: str, form: str, tau_s: float) -> None:
    """Link and trace go along with the state."""

    def run(*cuts: int) -> tuple[Tensor, Tensor]:
        wrapped = tssl_adapters.wrap(layer(name, form), tau_s=tau_s)
        x, outs = data().requires_grad_(), []
        state = begin(wrapped, x)
        for piece in x.split(cuts):
            out, state = wrapped(piece, state)
            outs.append(out)
        out = torch.cat(outs)
        ((out * data(1)).sum() + dict(flat(state))["v"].sum()).backward()
        assert x.grad is not None
        return out, x.grad

    (whole, grad), (pieces, theirs) = run(STEPS), run(2, 1, STEPS - 3)
    assert torch.equal(whole, pieces)
    assert float(grad.abs().sum()) > 0
    torch.testing.assert_close(grad, theirs, rtol=1e-9, atol=1e-9)


def test_containers() -> None:
    """``SequentialState`` carries a list of states, and its hooks see every layer's output."""
    spikes: list[Tensor] = []

    def made() -> Any:
        torch.manual_seed(0)
        model = norse.SequentialState(
            nn.Linear(NEURONS, 6), norse.LIF(lively()), nn.Linear(6, NEURONS),
            norse.LIFRecurrent(NEURONS, NEURONS, lively()), norse.LI(),
        )  # fmt: skip
        with torch.no_grad():
            for weights in (model[0].weight, model[2].weight):
                weights.mul_(4.0)
        return model

    def run(model: Any) -> tuple[list[Tensor], list[Tensor]]:
        spikes.clear()
        model.register_forward_state_hooks(lambda module, given, output: spikes.append(output[0]))
        state, outs = None, []
        for piece in data().float().split([5, 3]):
            out, state = model(piece, state)
            outs.append(out)
        model.remove_forward_state_hooks()
        out = torch.cat(outs)
        loss = (out * data(1).float()).sum()
        return [spikes[0], spikes[1], out], list(torch.autograd.grad(loss, model.parameters()))

    (theirs, native), (ours, grads) = (
        run(model) for model in (made(), tssl_adapters.wrap(made(), rule=NATIVE))
    )
    assert 0.02 < float(ours[0].detach().mean()) < 0.98
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(grads, native, strict=True):
        assert float(b.abs().sum()) > 0
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_lifted_and_regularised() -> None:
    """A convolution lifted over time, and spikes that ``RegularizationCell`` counts."""

    def made() -> Any:
        torch.manual_seed(0)
        conv, cell = norse.Lift(nn.Conv1d(1, 2, 3, padding=1)), norse.LIFCell(lively())
        return nn.ModuleList([conv, cell, norse.RegularizationCell()])

    def run(model: Any) -> tuple[list[Tensor], list[Tensor]]:
        conv, cell, regular = model
        state, count, outs = None, None, []
        for step in conv(4.0 * data().float().unsqueeze(2)):
            out, state = cell(step, state)
            out, count = regular(out, state)
            outs.append(out)
        return [torch.stack(outs), torch.as_tensor(count)], []

    (theirs, _), (ours, _) = run(made()), run(tssl_adapters.wrap(made()))
    assert 0.02 < float(ours[0].detach().mean()) < 0.98
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["LIFCell", "LIF", "LIFRecurrentCell", "LIFRecurrent"])
def test_sparse_spikes(name: str) -> None:
    """The sparse step may be another neuron than the dense one: both are followed."""

    def made() -> Any:
        torch.manual_seed(0)
        sizes = (NEURONS, NEURONS) if "Recurrent" in name else ()
        return getattr(norse, name)(*sizes, lively()).double()

    def run(layer: Any) -> tuple[list[Tensor], list[Tensor]]:
        x = ((data() > 1.0).double() * 2.0).requires_grad_()
        state = begin(layer, x if not name.endswith("Cell") else x[0])
        v = state.v.requires_grad_()
        if "Recurrent" in name:
            state = state._replace(z=state.z.to_sparse())
        if name.endswith("Cell"):
            outs = []
            for step in x:
                out, state = layer(step.to_sparse(), state)
                assert out.is_sparse
                outs.append(out.to_dense())
            out = torch.stack(outs)
        else:
            out, state = layer(x.to_sparse(), state)
            assert out.is_sparse
            out = out.to_dense()
        loss = (out * data(1)).sum() + (state.v + state.i).sum()
        wanted = [v, *layer.parameters()]
        grads = list(torch.autograd.grad(loss, wanted, retain_graph=True))
        if name.endswith("Cell"):  # torch cannot go back through the steps of a sparse sequence
            (grad,) = torch.autograd.grad(loss, [x])
            grads.append(grad * (x.detach() != 0))
        return [out, state.v, state.i], grads

    as_natively(made, run)


@pytest.mark.parametrize(("name", "form"), [("LIF", "Cell"), ("LIF", ""), *LAYERS])
def test_the_input_is_not_lost_without_a_chain(name: str, form: str) -> None:
    """Where the membrane sees it a step late, it still gets there, and no further back."""
    wrapped = tssl_adapters.wrap(
        layer(name, form), rule=rules.SurrogateGradient(superspike, chain=False)
    )
    x, outs = data().requires_grad_(), []
    if "Cell" in form:
        state = begin(wrapped, x[0])
        for step in x:
            out, state = wrapped(step, state)
            outs.append(out)
    else:
        outs = list(wrapped(x, begin(wrapped, x))[0])
    t = STEPS // 2
    (grad,) = torch.autograd.grad(outs[t].sum(), [x])
    reached = [bool(step.any()) for step in grad]
    assert reached.count(True) == 1
    assert reached[t - 1] or reached[t]
