"""Wrapped, a layer's forward pass is the library's: every value, state and dtype, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import norse.torch as norse
import pytest
import snntorch
import torch
from layers import CASES, NEURONS, Case
from models import BATCH, INPUTS, MODELS
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

import tssl_adapters

BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
MODES = [
    (torch.float32, "grad"),
    (torch.float64, "grad"),
    (torch.float32, "no_grad"),
    (torch.float64, "no_grad"),
    (torch.float32, "inference"),
    (torch.float32, "input without grad"),
]

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def context(mode: str) -> AbstractContextManager[Any]:
    return {"no_grad": torch.no_grad, "inference": torch.inference_mode}.get(mode, nullcontext)()


def pair(case: Case, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """A native layer and its wrapped twin."""
    torch.manual_seed(0)
    native = case.make(dtype)
    return native, tssl_adapters.wrap(copy.deepcopy(native))


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Equal bits (any NaN equals any other), shapes, dtypes, and the same need of a gradient."""
    assert list(ours) == list(theirs)
    for name, b in theirs.items():
        a = ours[name]
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert a.requires_grad == b.requires_grad, name
        same = a.detach().contiguous().view(BITS[a.dtype]) == b.detach().contiguous().view(
            BITS[b.dtype]
        )
        assert (same | (a.isnan() & b.isnan())).all(), name


def in_a_row(layer: Any, chunks: list[Tensor], v0: Tensor | None) -> Iterator[dict[str, Tensor]]:
    """Call a layer on one ``[T, ...]`` sequence after the other, as one carries its state on."""
    if isinstance(layer, snntorch.Leaky):
        mem = layer.reset_mem() if v0 is None else v0
        if layer.init_hidden:
            layer.mem = mem
        for x in torch.cat(chunks):
            result = layer(x) if layer.init_hidden else layer(x, mem)
            out, mem = result if isinstance(result, tuple) else (result, layer.mem)
            yield {"out": out, "mem": mem, "layer.mem": layer.mem}
    elif isinstance(layer, neuron.BaseNode):
        layer.reset()
        layer.v = layer.v if v0 is None else v0
        sequences = layer.step_mode == "m"
        for x in chunks if sequences else torch.cat(chunks):
            yield {
                "out": layer(x),
                "v": layer.v,
                **({} if layer.v_seq is None else {"v_seq": layer.v_seq}),
            }
    else:
        state = None if v0 is None else layer.state_fallback(chunks[0])._replace(v=v0)
        sequences = isinstance(layer, norse.LIF)
        layer.record_states = False
        for x in chunks if sequences else torch.cat(chunks):
            out, state = layer(x, state)
            yield {"out": out, **state._asdict()}


def assert_same_in_a_row(
    wrapped: nn.Module, native: nn.Module, chunks: list[Tensor], v0: Tensor | None
) -> Tensor:
    outs = []
    calls = zip(in_a_row(wrapped, chunks, v0), in_a_row(native, chunks, v0), strict=True)
    for ours, theirs in calls:
        assert_same(ours, theirs)
        outs.append(theirs["out"].detach().flatten())
    return torch.cat(outs)


def drive(steps: int, dtype: torch.dtype, mode: str = "") -> Tensor:
    x = 0.7 + 1.5 * torch.randn(steps, BATCH, NEURONS, dtype=dtype)
    return x.requires_grad_(mode == "grad")


def unusual_layouts(dtype: torch.dtype) -> list[Tensor]:
    """Permuted, strided, expanded, reversed in memory."""
    x = drive(8, dtype)
    return [
        x[:3].permute(2, 1, 0).contiguous().permute(2, 1, 0),
        x[::3],
        x[:1].expand(2, BATCH, NEURONS),
        torch.randn(2, BATCH, 2 * NEURONS, dtype=dtype)[..., ::2],
    ]


def unusual_values(dtype: torch.dtype) -> Tensor:
    """NaN, infinities, the largest and smallest numbers and both zeros, each after normal ones."""
    x = drive(8, dtype).detach()
    info = torch.finfo(dtype)
    values = [torch.nan, torch.inf, -torch.inf, info.max, info.min, info.tiny, -info.tiny, -0.0]
    for i, value in enumerate(values):
        x[i % 5 + 1, i] = value
    return x


@every_case
@pytest.mark.parametrize(("dtype", "mode"), MODES)
def test_bit_equal(case: Case, dtype: torch.dtype, mode: str) -> None:
    """From rest and from a given state, in calls of three, one and two steps, in odd layouts."""
    native, wrapped = pair(case, dtype)
    v0 = 0.3 + 0.5 * torch.randn(BATCH, NEURONS, dtype=dtype)
    with context(mode):
        for training, start in ((True, v0), (False, None)):
            native.train(training)
            wrapped.train(training)
            chunks = [drive(steps, dtype, mode) for steps in (3, 1, 2)]
            if mode == "grad" and not training:
                chunks += unusual_layouts(dtype)
            out = assert_same_in_a_row(wrapped, native, chunks, start)
            assert 0.05 < float((out != 0).double().mean()) < 0.95


@every_case
@pytest.mark.parametrize(
    ("dtype", "drive_dtype"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.float64, torch.float32),
        (torch.float32, torch.int64),
    ],
    ids=str,
)
def test_bit_equal_in_other_dtypes(
    case: Case, dtype: torch.dtype, drive_dtype: torch.dtype
) -> None:
    """Half precision, and drives of another dtype than the layer's."""
    native, wrapped = pair(case, dtype)
    x = (1.0 + 2.0 * torch.randn(3, BATCH, NEURONS)).to(drive_dtype)
    x.requires_grad_(drive_dtype.is_floating_point)
    assert assert_same_in_a_row(wrapped, native, [x], None).any()


@every_case
@every_dtype
def test_bit_equal_by_the_case_s_own_loop(case: Case, dtype: torch.dtype) -> None:
    """Stacked potentials and currents of every step, recorded by the layer where it can."""
    native, wrapped = pair(case, dtype)
    x, v0 = drive(4, dtype, "grad"), torch.randn(BATCH, NEURONS, dtype=dtype)
    for start in (None, v0):
        ours, theirs = case.run(wrapped, x, start), case.run(native, x, start)
        runs = [
            {"out": r.out, "v": r.membrane, **{f"{i}": o for i, o in enumerate(r.others)}}
            for r in (ours, theirs)
        ]
        assert_same(*runs)


@every_case
@every_dtype
@pytest.mark.parametrize("mode", ["grad", "no_grad"])
def test_bit_equal_on_unusual_numbers(case: Case, dtype: torch.dtype, mode: str) -> None:
    """NaN and infinite drives and states take the way they take natively."""
    native, wrapped = pair(case, dtype)
    x = unusual_values(dtype).requires_grad_(mode == "grad")
    v0 = drive(1, dtype)[0]
    v0.view(-1)[-4:] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])
    with context(mode):
        for start in (None, v0):
            out = assert_same_in_a_row(wrapped, native, [x[:5], x[5:]], start)
            assert (out == 1).any() or (out == 1.7).any()


@every_case
def test_bit_equal_in_other_shapes(case: Case) -> None:
    """An empty batch, images, and no batch at all."""
    native, wrapped = pair(case, torch.float32)
    for shape in [(0, NEURONS), (2, 3, 2, NEURONS), (NEURONS,)]:
        x = (1.0 + torch.randn(3, *shape)).requires_grad_()
        out = assert_same_in_a_row(wrapped, native, [x[:2], x[2:]], None)
        assert out.any() or out.numel() == 0


@every_case
def test_native_again_after_unwrap(case: Case) -> None:
    """Values and gradients, after the wrapped layer ran in both modes."""
    dtype = torch.float32
    native, wrapped = pair(case, dtype)
    x = drive(4, dtype, "grad")
    case.run(wrapped, x, None)
    with torch.no_grad():
        case.run(wrapped, x, None)
    layer = tssl_adapters.unwrap(wrapped)
    assert type(layer) is type(native)
    out = assert_same_in_a_row(layer, native, [drive(4, dtype), drive(2, dtype)], None)
    assert out.any()
    grads = []
    for each in (layer, native):
        run = case.run(each, x, None)
        loss = run.out.sum() + (run.membrane**2).sum()
        grads.append(torch.autograd.grad(loss, [x, *case.params(each)], allow_unused=True))
    for ours, theirs in zip(*grads, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", ["grad", "no_grad"])
def test_whole_models(name: str, mode: str) -> None:
    """Containers, dropout and readouts around the layers see nothing of the wrapping."""
    torch.manual_seed(0)
    native = MODELS[name]()
    wrapped = tssl_adapters.wrap(copy.deepcopy(native))
    x = 0.5 + torch.randn(6, BATCH, INPUTS)
    with context(mode):
        for training in (True, False, True):
            native.train(training)
            wrapped.train(training)
            found = []
            for model in (wrapped, native):
                torch.manual_seed(1)
                found.append({str(i): t for i, t in enumerate(model(x))})
            assert_same(*found)
            assert len(found[1]) >= 2
