"""Random models: wrapped, they train and give the native numbers back; or they are refused whole.

Each model is drawn as plain data (:mod:`random_models`) and made twice, native and ours.
``TSSL_EXAMPLES=5000 pytest tests/engine/test_random_models.py --hypothesis-seed=7`` goes further.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import snntorch
import torch
from cases import atan, sigmoid
from compat_norse import superspike
from hypothesis import HealthCheck, event, given, settings
from models import anatomy, assert_same_anatomy
from neurons_spikingjelly import rect
from random_models import Net, Recipe, recipes
from torch import Tensor

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.errors import (
    LostLinkWarning,
    NoSpikingLayersError,
    TSSLAdaptersError,
    UnsupportedLayerError,
)

EXAMPLES = int(os.environ.get("TSSL_EXAMPLES", "150"))
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="TSSL_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@contextmanager
def own_instances() -> Iterator[None]:
    """snnTorch keeps every layer that was ever made."""
    before = snntorch.SpikingNeuron.instances
    snntorch.SpikingNeuron.instances = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", LostLinkWarning)
        yield
    snntorch.SpikingNeuron.instances = before


def leaves(net: Net) -> list[Tensor]:
    """Parameters, and those that Norse hides in a layer's ``p``."""
    found: dict[int, Tensor] = {id(p): p for p in net.parameters()}
    for module in net.modules():
        stack = [getattr(module, "p", ())]
        while stack:
            value = stack.pop()
            if isinstance(value, tuple):
                stack += value
            elif isinstance(value, Tensor) and value.requires_grad:
                found[id(value)] = value
    return list(found.values())


def forward(net: Net, x: Tensor) -> list[Tensor]:
    torch.manual_seed(2)
    outs, final = net(x)
    return [*outs, *final]


def total(values: list[Tensor]) -> Tensor:
    """A loss on every output and every state."""
    generator = torch.Generator().manual_seed(3)
    terms = [(v * torch.randn(v.shape, generator=generator).to(v)).sum() for v in values]
    return torch.stack([term.double() for term in terms]).sum()


def gradients(net: Net, x: Tensor, values: list[Tensor]) -> list[Tensor | None]:
    return list(torch.autograd.grad(total(values), [x, *leaves(net)], allow_unused=True))


def same(left: list[Tensor], right: list[Tensor]) -> None:
    assert len(left) == len(right)
    for ours, theirs in zip(left, right, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


def wrapped(recipe: Recipe, net: Net) -> bool:
    """Wrap, leaving native what is refused. ``False`` where nothing remains."""
    skip = [recipe.skip] if recipe.skip else []
    before = anatomy(net)
    refused = [row.path for row in tssl_adapters.inspect(net, skip=skip) if row.status == "refused"]
    options: dict[str, Any] = {"tau_s": recipe.tau_s, "rule": recipe.rule}
    error = attempt(lambda: tssl_adapters.wrap(net, skip=skip, **options))
    if refused:
        event("refused")
        assert isinstance(error, UnsupportedLayerError)
        assert all(path in str(error) for path in refused)
        assert_same_anatomy(anatomy(net), before)
        error = attempt(lambda: tssl_adapters.wrap(net, skip=[*skip, *refused], **options))
    if error is net:
        return True
    assert isinstance(error, NoSpikingLayersError)
    assert_same_anatomy(anatomy(net), before)
    return False


def attempt(run: Callable[[], Any]) -> Any:
    """What comes out, or the exception."""
    try:
        return run()
    except Exception as error:
        return error


@SETTINGS
@given(recipes())
def test_random_models(recipe: Recipe) -> None:
    with own_instances():
        check(recipe)


def check(recipe: Recipe) -> None:
    native, ours = recipe.make(recipe.tau_s), recipe.make()
    if not wrapped(recipe, ours):
        return
    native.filtered = {
        neuron
        for neuron, our in zip(native.neurons, ours.neurons, strict=True)
        if tssl_adapters.is_wrapped(our)
    }
    x, our_x = recipe.input(), recipe.input()
    values = attempt(lambda: forward(native, x))
    if isinstance(values, Exception):
        event(f"native forward: {type(values).__name__}")
        allowed(attempt(lambda: forward(ours, our_x)), values)
        return
    found = forward(ours, our_x)
    same(found, values)
    grads = attempt(lambda: gradients(native, x, values))
    if isinstance(grads, Exception):
        event(f"native backward: {type(grads).__name__}")
        allowed(attempt(lambda: gradients(ours, our_x, found)), grads)
        return
    our_grads = gradients(ours, our_x, found)
    for our_grad, grad in zip(our_grads, grads, strict=True):
        if our_grad is None:
            assert grad is None or not recipe.rule.chain
        elif grad is None or bool(torch.isfinite(grad).all()):
            assert torch.isfinite(our_grad).all()
    trained(recipe, native, ours, our_grads)


def allowed(ended: Any, natively: Exception) -> None:
    """Where the library fails, so may we, in the same way or with an explanation."""
    if isinstance(ended, Exception):
        assert isinstance(ended, (type(natively), TSSLAdaptersError))


def trained(recipe: Recipe, native: Net, ours: Net, grads: list[Tensor | None]) -> None:
    """A step, which the native model takes too; then the native model again."""
    with torch.no_grad():
        for theirs, parameter, grad in zip(leaves(native), leaves(ours), grads[1:], strict=True):
            if grad is not None:
                parameter -= 1e-3 * grad.nan_to_num().clamp(-1.0, 1.0)
                theirs.copy_(parameter)
        values = attempt(lambda: forward(native, recipe.input()))
        if isinstance(values, Exception):  # RSynaptic keeps its float32 spikes from the last run
            allowed(attempt(lambda: forward(ours, recipe.input())), values)
        else:
            same(forward(ours, recipe.input()), values)
    tssl_adapters.unwrap(ours)
    assert not tssl_adapters.is_wrapped(ours)
    native.tau_s = 1.0
    x, our_x = recipe.input(), recipe.input()
    values = attempt(lambda: forward(native, x))
    if isinstance(values, Exception):
        return
    found = forward(ours, our_x)
    same(found, values)
    native_grads = attempt(lambda: gradients(native, x, values))
    if isinstance(native_grads, Exception):
        return
    for left, right in zip(gradients(ours, our_x, found), native_grads, strict=True):
        assert (left is None) == (right is None)
        if left is not None and right is not None:
            same([left], [right])


# The native gradient


RECT = ("ComplementaryLIFNode", "CUBALIFNode")
DERIVATIVES = {"snntorch": atan, "spikingjelly": sigmoid, "norse": superspike}


def wrap_each(recipe: Recipe, net: Net) -> int:
    """Wrap every neuron with its library's own surrogate, where that is the default one."""
    count = 0
    for unit, neuron in zip(recipe.units, net.neurons, strict=True):
        layer = unit.layer
        if layer is None or layer.settings.get("method", "super") != "super":
            continue
        if layer.settings.get("spike_grad") or layer.settings.get("surrogate_function"):
            continue
        if layer.name == "ComplementaryLIFNode" and not recipe.training:
            continue  # whose library cuts the gradient there
        derivative = rect if layer.name in RECT else DERIVATIVES[layer.library]
        with suppress(TSSLAdaptersError):
            tssl_adapters.wrap(neuron, rule=rules.SurrogateGradient(derivative))
            count += 1
    return count


@SETTINGS
@given(recipes())
def test_the_native_gradient(recipe: Recipe) -> None:
    """Each library's surrogate as the rule of its layers: what flows through all is native."""
    with own_instances():
        check_identity(recipe)


def check_identity(recipe: Recipe) -> None:
    native, ours = recipe.make(), recipe.make()
    if not wrap_each(recipe, ours):
        return
    x, our_x = recipe.input(), recipe.input()
    values = attempt(lambda: forward(native, x))
    grads = (
        values if isinstance(values, Exception) else attempt(lambda: gradients(native, x, values))
    )
    if isinstance(grads, Exception):
        return
    found = forward(ours, our_x)
    same(found, values)
    scale = max([1.0, *(float(g.abs().max()) for g in grads if g is not None and g.numel())])
    if not scale < 1e6:  # a charge of its own that overflows
        return
    tolerance = 1e-5 if recipe.double else 1e-3
    for our_grad, grad in zip(gradients(ours, our_x, found), grads, strict=True):
        if our_grad is None or grad is None:
            assert all(g is None or not g.any() for g in (our_grad, grad))
        elif grad.numel():
            assert float((our_grad - grad).abs().max()) <= tolerance * scale
