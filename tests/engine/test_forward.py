"""Wrapped, a layer's forward pass is the library's: every value, state and dtype, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import compat_snntorch
import norse.torch as norse
import pytest
import snntorch
import torch
from cases import NEURONS, Case
from compat_norse import HAS_BOX, box
from compat_spikingjelly import cuts_in_evaluation, neuron, node, stores
from compat_spikingjelly import sequences as takes_sequences
from layers import CASES
from models import BATCH, INPUTS, LIVELY, MODELS
from norse.torch.functional.lif import LIFParameters
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
    (torch.float32, "inference"),
    (torch.float32, "input without grad"),
]

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def context(mode: str) -> AbstractContextManager[Any]:
    return {"no_grad": torch.no_grad, "inference": torch.inference_mode}.get(mode, nullcontext)()


def pair(case: Case, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """A native layer and its wrapped twin."""
    native, twin = twins(lambda: case.make(dtype))
    return native, tssl_adapters.wrap(twin)


def twins(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Two equal layers; some versions' new layers cannot be copied."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(make())
    return made[0], made[1]


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], *, grads: bool = True) -> None:
    """Equal bits (any NaN equals any other), shapes, dtypes, and the same need of a gradient."""
    assert list(ours) == list(theirs)
    for name, b in theirs.items():
        a = ours[name]
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert a.requires_grad == b.requires_grad or not grads, name
        same = a.detach().contiguous().view(BITS[a.dtype]) == b.detach().contiguous().view(
            BITS[b.dtype]
        )
        assert (same | (a.isnan() & b.isnan())).all(), name


def in_a_row(layer: Any, chunks: list[Tensor], v0: Tensor | None) -> Iterator[dict[str, Tensor]]:
    """Call a layer on one ``[T, ...]`` sequence after the other, as one carries its state on."""
    if isinstance(layer, snntorch.Leaky):
        mem = compat_snntorch.start(layer)[0] if v0 is None else v0
        if layer.init_hidden:
            layer.mem = mem
        for x in torch.cat(chunks):
            result = layer(x) if layer.init_hidden else layer(x, mem)
            out, mem = result if isinstance(result, tuple) else (result, layer.mem)
            yield {"out": out, "mem": mem, "layer.mem": getattr(layer, "mem", mem)}
    elif isinstance(layer, neuron.BaseNode):
        layer.reset()
        layer.v = layer.v if v0 is None else v0
        sequences = takes_sequences(layer)
        for x in chunks if sequences else torch.cat(chunks):
            yield {
                "out": layer(x),
                "v": layer.v,
                **({} if getattr(layer, "v_seq", None) is None else {"v_seq": layer.v_seq}),
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
    """In evaluation, too, where some libraries' spikes have no gradient, and the rule's have."""
    grads = native.training or not cuts_in_evaluation(native)
    outs = []
    calls = zip(in_a_row(wrapped, chunks, v0), in_a_row(native, chunks, v0), strict=True)
    for ours, theirs in calls:
        assert_same(ours, theirs, grads=grads)
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
    if "snntorch" in case.name and compat_snntorch.new_states_learn() and not x.requires_grad:
        for layer in (native, wrapped):
            with pytest.raises(RuntimeError, match="floating point"):
                list(in_a_row(layer, [x], None))
        return
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
@pytest.mark.parametrize(("dtype", "mode"), MODES[:3])
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


def changed(name: str, value: Any) -> Callable[[Any], None]:
    """An attribute set to another value."""
    return lambda layer: setattr(layer, name, value)


def with_p(**values: float) -> Callable[[Any], None]:
    """Norse's parameters replaced."""
    return lambda layer: setattr(
        layer, "p", layer.p._replace(**{k: torch.tensor(v) for k, v in values.items()})
    )


def frozen_leaky() -> nn.Module:
    beta, threshold = torch.full((NEURONS,), 0.9), torch.full((NEURONS,), 0.5)
    layer = snntorch.Leaky(beta, threshold=threshold, learn_beta=True, learn_threshold=True)
    return layer.requires_grad_(False)


def to_double(layer: nn.Module) -> None:
    layer.double()


def loaded(layer: nn.Module) -> None:
    layer.load_state_dict({k: 0.5 * v for k, v in layer.state_dict().items()})


def leaky(**settings: Any) -> Callable[[], nn.Module]:
    return lambda: snntorch.Leaky(**{"beta": 0.9, "threshold": 0.5} | settings)


def plif() -> nn.Module:
    return neuron.ParametricLIFNode(init_tau=3.0, v_threshold=0.3)


def cell_of_its_own() -> nn.Module:
    """Norse's cells hold the very tensors of their parameters, defaults among them, uncopied."""
    return norse.LIFCell(copy.deepcopy(LIFParameters(**LIVELY)))


CHANGES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Any]]] = {
    "beta set": (leaky(), changed("beta", torch.tensor(0.4))),
    "beta filled": (leaky(), lambda layer: layer.beta.fill_(0.4)),
    "beta's data filled": (leaky(), lambda layer: layer.beta.data.fill_(0.4)),
    "beta's data scaled": (frozen_leaky, lambda layer: layer.beta.data.mul_(0.5)),
    "beta's data set": (
        frozen_leaky,
        lambda layer: setattr(layer.beta, "data", 0.5 * layer.beta.data),
    ),
    "threshold filled": (leaky(), lambda layer: layer.threshold.fill_(0.9)),
    "threshold's data filled": (frozen_leaky, lambda layer: layer.threshold.data.fill_(0.9)),
    "learnt beta's data filled": (
        leaky(learn_beta=True),
        lambda layer: layer.beta.data.fill_(0.4),
    ),
    "graded spikes": (leaky(), lambda layer: layer.graded_spikes_factor.fill_(2.0)),
    "graded spikes' data": (leaky(), lambda layer: layer.graded_spikes_factor.data.fill_(2.0)),
    "no delay": (leaky(reset_mechanism="zero"), changed("reset_delay", False)),
    "reset after it was bound": (leaky(), changed("reset_mechanism", "zero")),
    "frozen, to double": (frozen_leaky, to_double),
    "buffers to double": (leaky(beta=torch.full((5,), 0.9)), to_double),
    "snnTorch's checkpoint": (frozen_leaky, loaded),
    "tau": (lambda: neuron.LIFNode(tau=2.0, v_threshold=0.3), changed("tau", 5.0)),
    "v_threshold": (neuron.LIFNode, changed("v_threshold", 0.3)),
    "v_reset": (neuron.IFNode, changed("v_reset", -0.4)),
    "soft reset": (neuron.IFNode, changed("v_reset", None)),
    "decay_input": (neuron.LIFNode, changed("decay_input", False)),
    "w's data filled": (plif, lambda layer: layer.w.data.fill_(1.5)),
    "frozen w's data filled": (
        lambda: plif().requires_grad_(False),
        lambda layer: layer.w.data.fill_(1.5),
    ),
    "frozen w to double": (lambda: plif().requires_grad_(False), to_double),
    "SpikingJelly's checkpoint": (lambda: plif().requires_grad_(False), loaded),
    "p replaced": (lambda: norse.LIF(LIFParameters(**LIVELY)), with_p(v_th=0.1, v_reset=-0.2)),
    "p's tensor filled": (
        cell_of_its_own,
        lambda layer: layer.p.v_th.fill_(0.1),
    ),
    "p's tensor's data filled": (
        cell_of_its_own,
        lambda layer: layer.p.tau_syn_inv.data.fill_(50.0),
    ),
    "dt": (lambda: box(**LIVELY), changed("dt", 0.002)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_settings_changed_between_calls(name: str) -> None:
    """A wrapped layer goes by its settings as they are, however they came to be so."""
    make, change = CHANGES[name]
    native, twin = twins(make)
    wrapped = tssl_adapters.wrap(twin)
    assert_same_in_a_row(wrapped, native, [drive(3, torch.float32, "grad")], None)
    before = assert_same_in_a_row(wrapped, native, [x := drive(4, torch.float32, "grad")], None)
    for layer in (native, wrapped):
        change(layer)
    after = assert_same_in_a_row(wrapped, native, [x], None)
    unseen = ("no delay", "reset after it was bound", "frozen, to double", "buffers to double")
    assert name in (*unseen, "frozen w to double") or not torch.equal(before, after)


BOX = {"tau_mem_inv": torch.tensor(500.0), "v_th": torch.tensor(0.5)}
AT_THRESHOLD: dict[str, Callable[[], nn.Module]] = {
    **{
        f"Leaky {reset} {delay}": leaky(
            beta=0.5, reset_mechanism=reset, **compat_snntorch.delay(snntorch.Leaky, delay)
        )
        for reset in ("subtract", "zero", "none")
        for delay in compat_snntorch.delays(snntorch.Leaky)
    },
    **{
        f"{name} {mode} {v_reset}": lambda name=name, mode=mode, v_reset=v_reset: node(
            name, v_threshold=0.5, v_reset=v_reset, step_mode=mode
        )
        for name in ("LIFNode", "IFNode", "ParametricLIFNode")
        for mode in ("s", "m")
        for v_reset in (0.0, None)
    },
    "LIFCell": lambda: norse.LIFCell(LIFParameters(**BOX)),
    "LIF": lambda: norse.LIF(LIFParameters(**BOX)),
    **({"LIFBoxCell": lambda: box(**BOX)} if HAS_BOX else {}),
}
"""Every number is a power of two, so that potentials land on the threshold exactly."""


@pytest.mark.parametrize("name", AT_THRESHOLD)
@pytest.mark.parametrize("mode", ["grad", "no_grad"])
def test_potentials_exactly_at_the_threshold(name: str, mode: str) -> None:
    """SpikingJelly spikes there, snnTorch and Norse do not."""
    native = AT_THRESHOLD[name]()
    wrapped = tssl_adapters.wrap(copy.deepcopy(native))
    grid = torch.randint(-4, 9, (6, BATCH, NEURONS)) / 4.0
    halved = getattr(native, "p", None) is not None or "LIFNode" in name
    grid[0, 0] = 1.0 if halved else 0.5
    grid.requires_grad_(mode == "grad")
    with context(mode):
        out = assert_same_in_a_row(wrapped, native, [grid[:4], grid[4:]], None)
    assert bool(out[:NEURONS].all()) == bool(out[:NEURONS].any()) == ("Node" in name)
    assert out.any()


@pytest.mark.parametrize("name", ["LIFNode", "IFNode", "ParametricLIFNode"])
@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("mode", ["grad", "no_grad"])
def test_spikingjelly_s_stored_potentials(
    name: str, step_mode: str, store: bool, tau_s: float, mode: str
) -> None:
    """``v_seq`` grows step by step, or holds the last sequence, or is not there."""
    native: Any = node(name, v_threshold=0.4, step_mode=step_mode, store_v_seq=store)
    wrapped: Any = tssl_adapters.wrap(copy.deepcopy(native), tau_s=tau_s)
    chunks = [drive(steps, torch.float32, mode) for steps in (3, 1, 2)]
    lengths = []
    with context(mode):
        rows = zip(in_a_row(wrapped, chunks, None), in_a_row(native, chunks, None), strict=True)
        for ours, theirs in rows:
            if tau_s > 1:
                del ours["out"], theirs["out"]
            assert_same(ours, theirs)
            lengths.append(len(ours.get("v_seq", ())))
    grown = [1, 2, 3, 4, 5, 6] if step_mode == "s" else [3, 1, 2]
    assert lengths == (grown if stores(step_mode, store) else [0] * len(grown))
    wrapped.reset()
    assert getattr(wrapped, "v_seq", None) is None


@every_case
@pytest.mark.parametrize("mode", ["grad", "no_grad"])
def test_psc_of_the_native_spikes(case: Case, mode: str) -> None:
    """At tau_s > 1 the output is filtered, call after call, and every state is native."""
    (native, twin), tau_s = twins(lambda: case.make(torch.float64)), 3.0
    wrapped = tssl_adapters.wrap(twin, tau_s=tau_s)
    chunks = [drive(steps, torch.float64, mode) for steps in (3, 1, 2)]
    psc = torch.zeros(BATCH, NEURONS, dtype=torch.float64)
    with context(mode):
        rows = zip(in_a_row(wrapped, chunks, None), in_a_row(native, chunks, None), strict=True)
        for ours, theirs in rows:
            out, spikes = ours.pop("out"), theirs.pop("out")
            assert (out.dtype, out.shape) == (spikes.dtype, spikes.shape)
            assert_same(ours, theirs)
            for a, s in zip(*(t.reshape(-1, BATCH, NEURONS) for t in (out, spikes)), strict=True):
                psc = psc + (s - psc) / tau_s
                assert torch.allclose(a.double(), psc, rtol=1e-6, atol=1e-7)
        assert psc.unique().numel() > 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_snntorch_s_reset_attribute(dtype: torch.dtype) -> None:
    """snnTorch leaves the reset it did on the layer, in its spikes' dtype."""
    for case in CASES:
        if "snntorch" not in case.name:
            continue
        native, wrapped = pair(case, dtype)
        rows = zip(
            in_a_row(wrapped, [x := drive(3, dtype, "grad")], None),
            in_a_row(native, [x], None),
            strict=True,
        )
        for _ in rows:
            assert_same({"reset": wrapped.reset}, {"reset": native.reset})


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", ["grad", "no_grad"])
def test_whole_models(name: str, mode: str) -> None:
    """Containers, dropout and readouts around the layers see nothing of the wrapping."""
    native, twin = twins(MODELS[name])
    wrapped = tssl_adapters.wrap(twin)
    x = 0.5 + torch.randn(6, BATCH, INPUTS)
    with context(mode):
        for training in (True, False, True):
            native.train(training)
            wrapped.train(training)
            found = []
            for model in (wrapped, native):
                torch.manual_seed(1)
                found.append({str(i): t for i, t in enumerate(model(x))})
            grads = training or not any(map(cuts_in_evaluation, native.modules()))
            assert_same(*found, grads=grads)
            assert len(found[1]) >= 2
