"""Sequences too large for the caches are written past them: the same values, in the same places."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters.engine.cpu import backend
from tssl_adapters.engine.cpu.function import BLOCK

neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
norse = pytest.importorskip("norse.torch")

LAYERS = {
    "SpikingJelly LIF": lambda: neuron.LIFNode(step_mode="m"),
    "subtracting": lambda: neuron.LIFNode(v_reset=None, detach_reset=True, step_mode="m"),
    "learned": lambda: neuron.ParametricLIFNode(step_mode="m"),
    "keeping": lambda: neuron.IFNode(step_mode="m", store_v_seq=True),
    "Norse LIF": norse.LIF,
    "Norse IAF": norse.IAF,
}
SIZES = {
    "a chunk": (7, 48),
    "chunks": (5, 3, 1040),
    "blocks": (3, 3 * BLOCK + 1040),
    "odd": (7, 3, 5),
}
"""T and the neurons: fewer than are computed at once, more, more than a block for each of two
threads, and rows that do not begin with a cache line."""


@pytest.fixture
def on_two_threads() -> Iterator[pytest.MonkeyPatch]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tssl_adapters.engine.compiled.threads.LEAST", 64)
        torch.set_num_threads(2)
        yield patch
    torch.set_num_threads(threads)


def passed(layer: nn.Module, x: Tensor, weight: Tensor) -> list[Tensor]:
    """A layer's outputs, states and gradients."""
    x = x.clone().requires_grad_()
    made = layer(x)
    out, state = made if isinstance(made, tuple) else (made, (layer.v,))
    kept = [layer.v_seq] if getattr(layer, "store_v_seq", False) else []
    total = (out * weight).sum() + sum((s * s).sum() for s in (*state, *kept))
    grads = torch.autograd.grad(total, [x, *layer.parameters()])
    return [out.detach(), *(s.detach() for s in (*state, *kept)), *grads]


@pytest.fixture(params=[128, 256, 512])
def vectors(request: pytest.FixtureRequest, on_two_threads: pytest.MonkeyPatch) -> Iterator[None]:
    """Loops for machines with vectors of so many bits, which LLVM splits where this one has
    narrower ones.
    """
    on_two_threads.setattr(backend, "vector_bits", lambda: request.param)
    caches = backend._made, backend._backward_loop
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", LAYERS)
def test_what_is_written_past_the_caches(
    on_two_threads: pytest.MonkeyPatch, vectors: None, name: str, size: str
) -> None:
    which = [*LAYERS].index(name) + [*SIZES].index(size)
    dtype, tau_s = [(torch.float32, 1.0), (torch.float64, 3.0), (torch.float32, 3.0)][which % 3]
    torch.manual_seed(0)
    x, weight = 2.0 * torch.randn(SIZES[size], dtype=dtype), torch.randn(SIZES[size], dtype=dtype)
    found = []
    for least in (2**60, 0):
        on_two_threads.setattr(backend.KERNELS, "large", least)
        layer = LAYERS[name]().to(dtype)
        tssl_adapters.wrap(layer, rule="tsslbp", tau_s=tau_s, engine="cpu")
        found.append(passed(layer, x, weight))
    assert found[0][-1].abs().sum() > 0
    for near, far in zip(*found, strict=True):
        assert torch.equal(near, far)
