"""What PyTorch offers, with every neuron of every library; the core's layers have it elsewhere.

One case a class, of those in tests/neurons_*.py.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import compiler
import pytest
import torch
from cases import Case
from layers import CASES as CORE
from neurons import CASES
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from usage import no_lost_links, own_instances  # noqa: F401

import tssl_adapters
from tssl_adapters.testing import close, drive, flat, made

TAUS = [1.0, 3.0]


def sampled() -> Iterator[Case]:
    """One case a class: the first that learns, or the first."""
    found: dict[str, Case] = {}
    for case in [*CASES, *CORE]:
        key = "-".join(case.name.split("-")[:2])
        if key not in found or ("learn" in case.name and "learn" not in found[key].name):
            found[key] = case
    yield from found.values()


SAMPLE = list(sampled())
every = pytest.mark.parametrize("case", SAMPLE, ids=str)
both = pytest.mark.parametrize("tau_s", TAUS)


def wrapped(case: Case, tau_s: float = 1.0, dtype: torch.dtype = torch.float64) -> nn.Module:
    return tssl_adapters.wrap(made(case, dtype), tau_s=tau_s if case.psc else 1.0)


def weighed(tensors: list[Tensor]) -> Tensor:
    """A loss that tells every number from every other."""
    generator = torch.Generator().manual_seed(4)
    terms = [(t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in tensors]
    return torch.stack([term.double() for term in terms]).sum()


def numbers(case: Case, layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and states, then the gradients of the input and of what learns."""
    x = x if x.requires_grad else x.clone().requires_grad_()
    values = flat(case.run(layer, x, None))
    wanted = [x, *case.params(layer)]
    grads = torch.autograd.grad(weighed(values), wanted, allow_unused=True)
    zeros = (torch.zeros_like(w) if g is None else g for w, g in zip(wanted, grads, strict=True))
    return [*values, *zeros]


def equal(left: list[Tensor], right: list[Tensor]) -> None:
    assert len(left) == len(right)
    for ours, theirs in zip(left, right, strict=True):
        assert torch.equal(ours, theirs)


def near(left: list[Tensor], right: list[Tensor], tolerance: float = 1e-12) -> None:
    assert len(left) == len(right)
    for ours, theirs in zip(left, right, strict=True):
        close(ours, theirs, tolerance)


# --- graphs -----------------------------------------------------------------------------------


@pytest.mark.singly
@both
@every
def test_a_checkpointed_sequence(case: Case, tau_s: float) -> None:
    """Run again in the backward pass: the same numbers, and no link or trace is lost."""
    layer, x = wrapped(case, tau_s), drive()[0]
    with torch.no_grad():  # RLeaky's first spikes have another dtype than those that it keeps
        case.run(layer, x, None)

    def grads(saved: bool) -> list[Tensor]:
        leaf = x.clone().requires_grad_()

        def run(x: Tensor) -> tuple[Tensor, ...]:
            return tuple(flat(case.run(layer, x, None)))

        values = checkpoint(run, leaf, use_reentrant=False) if saved else run(leaf)
        wanted = [leaf, *case.params(layer)]
        found = torch.autograd.grad(weighed(list(values)), wanted, allow_unused=True)
        return [torch.zeros(()) if grad is None else grad for grad in found]

    if "Lapicque" in case.name and "learn" in case.name:
        pytest.skip("its C is made of beta once, with a graph for one backward pass")
    near(grads(True), grads(False))


@every
def test_a_second_derivative_is_refused(case: Case) -> None:
    layer, x = wrapped(case, 1.0), drive()[0].requires_grad_()
    out = case.run(layer, x, None).out
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(out.double().square().sum(), x, create_graph=True)


@every
def test_two_graphs_at_once(case: Case) -> None:
    """Sequences forward one after the other, then backward: each has its own gradient."""
    if "Lapicque" in case.name and "learn" in case.name:
        pytest.skip("its C is made of beta once, with a graph for one backward pass")
    layer = wrapped(case, 3.0)
    inputs = [drive()[0], 0.8 * drive()[0].flip(0)]
    alone = [numbers(case, layer, x)[-1 - len(case.params(layer)) :] for x in inputs]
    leaves = [x.clone().requires_grad_() for x in inputs]
    total = torch.stack([weighed(flat(case.run(layer, x, None))) for x in leaves]).sum()
    params = case.params(layer)
    found = torch.autograd.grad(total, [*leaves, *params], allow_unused=True)
    sums = [a + b for a, b in zip(alone[0][1:], alone[1][1:], strict=True)]
    expected = [alone[0][0], alone[1][0], *sums]
    for ours, theirs in zip(found, expected, strict=True):
        close(torch.zeros_like(theirs) if ours is None else ours, theirs, 1e-6)


COMPILED = ("Synaptic-",)


@both
@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name: str, tau_s: float) -> None:
    """torch.compile breaks its graph at the layer; values and gradients are the same."""
    case = next(case for case in SAMPLE if name in f"{case.name}-" and "conv" not in case.name)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(5, 5).double()
            self.layer = wrapped(case, tau_s)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return tuple(flat(case.run(self.layer, 3.0 * self.fc(x), None)))

    def run(model: Any, parameters: list[Tensor]) -> list[Tensor]:
        values = list(model(drive()[0]))
        return [*values, *torch.autograd.grad(weighed(values), parameters)]

    plain, model = Model(), Model()
    compiler.forget()
    compiled = torch.compile(model, backend="aot_eager")
    near(run(compiled, list(model.fc.parameters())), run(plain, list(plain.fc.parameters())))


# --- copies and weights -----------------------------------------------------------------------


@every
def test_weights_by_state_dict_and_by_call(case: Case) -> None:
    """Loaded, or handed over for one call: the same as in the layer that has them."""
    layer, other = wrapped(case, 3.0), wrapped(case, 3.0)
    if "Lapicque" in case.name and "learn" in case.name:
        pytest.skip("its C is made of beta once")
    assert list(layer.state_dict()) == list(made(case).state_dict())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(0.9)
    expected = numbers(case, layer, drive()[0])
    other.load_state_dict(layer.state_dict())
    if len(list(layer.parameters())) == len(case.params(layer)):  # Norse's p is not in it
        equal(numbers(case, other, drive()[0]), expected)

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = wrapped(case, 3.0)

        def forward(self, x: Tensor) -> list[Tensor]:
            return flat(case.run(self.layer, x, None))

    weights = {
        f"layer.{name}": parameter.detach().clone().requires_grad_()
        for name, parameter in layer.named_parameters()
    }
    values = torch.func.functional_call(Called(), weights, (drive()[0],))
    equal(values, expected[: len(values)])


@every
def test_averaged_copies(case: Case) -> None:
    """An exponential moving average is a wrapped layer, and trains."""
    layer = wrapped(case)
    with torch.no_grad():
        case.run(layer, drive()[0], None)
    try:
        copy.deepcopy(made(case))
    except Exception:
        pytest.skip("cannot be copied natively")
    average = torch.optim.swa_utils.AveragedModel(
        layer, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    average.update_parameters(layer)
    assert tssl_adapters.is_wrapped(average)
    with torch.no_grad():
        expected = flat(case.run(layer, drive()[0], None))
        equal(flat(case.run(average.module, drive()[0], None)), expected)
    if "autapses" not in case.name and "Recurrent" not in case.name:  # copies lose their hooks
        expected = numbers(case, layer, drive()[0])
        equal(numbers(case, average.module, drive()[0]), expected)


# --- inputs -----------------------------------------------------------------------------------


@every
def test_non_contiguous_input(case: Case) -> None:
    """Batch and features transposed, and every second of a larger tensor."""
    x = drive()[0]
    expected = numbers(case, wrapped(case, 3.0), x)
    transposed = x.transpose(1, 2).contiguous().transpose(1, 2)
    spread = torch.stack([x, -x], dim=-1)[..., 0]
    # snnTorch adds up a threshold's gradient in float32, and by the order in memory.
    finely = not (case.name.startswith("snntorch") and "subtract" in case.name)
    for given in (transposed, spread):
        assert not given.is_contiguous()
        found = numbers(case, wrapped(case, 3.0), given.detach().requires_grad_())
        near(found, expected, 1e-12 if finely else 1e-6)


@pytest.mark.singly
@both
@every
def test_one_step_and_no_batch(case: Case, tau_s: float) -> None:
    """T = 1, and an empty batch; the layer is none the worse for them."""
    if "Gated" in case.name or "conv" in case.name:
        pytest.skip("its run is made for one shape")
    layer, native = wrapped(case, tau_s), made(case)
    x = drive()[0][:1]
    ours, theirs = flat(case.run(layer, x, None)), flat(case.run(native, x, None))
    equal(ours[1:], theirs[1:])
    if tau_s == 1.0 or not case.psc:
        assert torch.equal(ours[0], theirs[0])
    for grad in numbers(case, layer, x)[len(ours) :]:
        assert torch.isfinite(grad).all()
    empty = drive()[0][:, :0]
    try:
        expected = flat(case.run(native, empty, None))
    except Exception as error:
        with pytest.raises(type(error)):
            case.run(layer, empty, None)
        return
    found = numbers(case, layer, empty)
    assert [v.shape for v in found[: len(expected)]] == [v.shape for v in expected]
    assert not any(grad.any() for grad in found[len(expected) :])
    again = numbers(case, layer, drive()[0]) if "Lapicque" not in case.name else []
    equal(again, numbers(case, wrapped(case, tau_s), drive()[0]) if again else [])


@every
def test_bfloat16(case: Case) -> None:
    """The library's own values and dtypes; gradients are finite and those of float64, roughly."""
    x = drive()[0].bfloat16()
    native, layer = (
        made(case, torch.bfloat16),
        wrapped(case, 1.0, torch.bfloat16),
    )
    try:
        expected = flat(case.run(native, x, None))
    except Exception as error:
        with pytest.raises(type(error)):
            case.run(layer, x, None)
        return
    found = numbers(case, layer, x)
    for ours, theirs in zip(found[1 : len(expected)], expected[1:], strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    assert torch.equal(found[0], expected[0])
    for grad in found[len(expected) :]:
        assert torch.isfinite(grad).all()
    assert found[len(expected)].any()
    assert found[len(expected)].dtype == torch.bfloat16


def test_the_sample_has_every_class() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampled = {type(made(case)) for case in SAMPLE}
    kinds = {cls for adapter in tssl_adapters.adapters.loaded() for cls in adapter.kinds}
    assert kinds <= sampled
