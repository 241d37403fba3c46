"""What is Norse's alone: refusals, sparse spikes, containers, refractoriness, hooks, calls in
pieces.
"""

from __future__ import annotations

import pickle
from typing import Any

import norse.torch as norse
import pytest
import torch
from cases import BATCH, NEURONS
from compat_norse import superspike
from neurons_norse import CASES, FORMS, flat, make, start
from norse.torch.functional import lif, lif_adex, lif_box, lif_ex, lif_refrac, lsnn
from norse.torch.module.snn import SNN, SNNRecurrent
from torch import Tensor

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.adapters.library import libraries
from tssl_adapters.adapters.norse import ADAPTER
from tssl_adapters.errors import LostTraceError, UnsupportedConfigError, UnsupportedLayerError

STEPS = 9
LAYERS = [(name, form) for name, forms in FORMS.items() for form in forms]
SEQUENCES = [(name, form) for name, form in LAYERS if form in ("", "Recurrent")]


def layer(name: str, form: str, **settings: Any) -> Any:
    """The same layer at every call, in float64."""
    torch.manual_seed(0)
    given = {"learn": False, "vector": False, "autapses": False, **settings}
    return make(torch.float64, name, form, **given)


def data(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (STEPS, BATCH, NEURONS)
    return 0.6 + torch.randn(shape, generator=generator, dtype=torch.float64)


def test_every_class_is_known_and_has_its_mode() -> None:
    ours = {f"norse.torch.{cls.__name__}" for cls in ADAPTER.kinds}
    assert ours == set(libraries()["norse"].layers)
    for name, form in LAYERS:
        mode = "sequence" if form in ("", "Recurrent") else "step"
        assert libraries()["norse"].layers[f"norse.torch.{name}{form}"] == mode
        assert tssl_adapters.inspect(layer(name, form))[0].detail.startswith(f"{mode}: ")


REFUSED = {
    "CobaLIFCell": (lambda: norse.CobaLIFCell(3, 3), "overwrites the conductances"),
    "LIFMCRecurrentCell": (lambda: norse.LIFMCRecurrentCell(3, 3), "g_coupling"),
    "LIFMCRefracRecurrentCell": (lambda: norse.LIFMCRefracRecurrentCell(3, 3), "g_coupling"),
    "LIFCorrelation": (lambda: norse.LIFCorrelation(3, 3), "correlation sensors"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_classes(name: str) -> None:
    made, why = REFUSED[name]
    with pytest.raises(UnsupportedLayerError, match=why):
        tssl_adapters.wrap(made())


def _other_step(*args: Any) -> Any:
    return lif_ex.lif_ex_feed_forward_step(*args)


def _with_other_step() -> Any:
    made = norse.LIFExCell()
    made.activation = _other_step
    return made


def _with_sparse_step() -> Any:
    made = norse.IAFCell()
    made.activation_sparse = _other_step
    return made


ADJOINT = lif.LIFParameters(method="adjoint")
SETTINGS = {
    "LSNNCell": (lambda: norse.LSNNCell(adjoint=True), "adjoint=True is a learning rule"),
    "LSNNRecurrent": (lambda: norse.LSNNRecurrent(3, 3, adjoint=True), "adjoint=True"),
    "LIFRecurrentCell": (lambda: norse.LIFRecurrentCell(3, 3, ADJOINT), "method='adjoint'"),
    "LIFRefracCell": (
        lambda: norse.LIFRefracCell(lif_refrac.LIFRefracParameters(ADJOINT)),
        "method='adjoint'",
    ),
    "own step": (_with_other_step, "its activation is _other_step rather than lif_ex_feed"),
    "own sparse step": (_with_sparse_step, "its activation is _other_step rather than None"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_refused_settings(name: str) -> None:
    made, why = SETTINGS[name]
    with pytest.raises(UnsupportedConfigError, match=why):
        tssl_adapters.wrap(made())


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize(("name", "form"), SEQUENCES)
def test_calls_in_pieces_are_one_call(name: str, form: str, tau_s: float) -> None:
    """Link and trace go along with the state, also through a refractory period."""
    weights = data(1)

    def run(*cuts: int) -> tuple[Tensor, Tensor]:
        wrapped = tssl_adapters.wrap(layer(name, form), tau_s=tau_s)
        x, state, outs = data().requires_grad_(), None, []
        for piece in x.split(cuts):
            out, state = wrapped(piece, state)
            outs.append(out)
        out = torch.cat(outs)
        ((out * weights).sum() + dict(flat(state))["v"].sum()).backward()
        assert x.grad is not None
        return out, x.grad

    (whole, grad), (pieces, their_grad) = run(STEPS), run(2, 1, STEPS - 3)
    assert torch.equal(whole, pieces)
    assert float(grad.abs().sum()) > 0
    torch.testing.assert_close(their_grad, grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "form"), LAYERS)
def test_without_a_chain_nothing_goes_back_over_time(name: str, form: str) -> None:
    wrapped = tssl_adapters.wrap(
        layer(name, form), rule=rules.SurrogateGradient(superspike, chain=False)
    )
    x = data().requires_grad_()
    if isinstance(wrapped, SNN | SNNRecurrent):
        last = wrapped(x)[0][-1]
    else:
        state = None
        for step in x:
            last, state = wrapped(step, state)
    last.sum().backward()
    assert x.grad is not None
    reaching = [t for t in range(STEPS) if x.grad[t].any()]
    # LSNN's membrane sees its input a step later.
    assert reaching == [STEPS - 2 if name == "LSNN" else STEPS - 1]


@pytest.mark.parametrize(("name", "form"), LAYERS)
def test_an_unknown_state_has_lost_its_trace(name: str, form: str) -> None:
    """A potential at rest starts anew; any other raises, and names the layer."""
    wrapped = tssl_adapters.wrap(layer(name, form), tau_s=3.0)
    sequence = isinstance(wrapped, SNN | SNNRecurrent)
    x = data() if sequence else data()[0]
    rest = wrapped.state_fallback(x)
    assert torch.equal(wrapped(x, rest)[0], wrapped(x)[0])
    with pytest.raises(LostTraceError, match=f"'{name}{form}'"):
        wrapped(x, start(rest, data()[0]))


@pytest.mark.parametrize("method", ["heaviside", "super"])
def test_a_refractory_neuron_s_chain_skips_the_steps_it_sits_out(method: str) -> None:
    """Where its refractoriness has no gradient of its own, it is a neuron that lacks these steps.

    The derivative through the reset; the oracle is the box neuron, given only the steps that each
    neuron takes. (The authors' term sees F_v = 1 in a step that is sat out.)
    """
    settings = {"tau_mem_inv": torch.tensor(300.0), "v_th": torch.tensor(0.3)}
    p = lif.LIFParameters(tau_syn_inv=torch.tensor(1000.0), method=method, **settings)
    rule = rules.TSSLBP(reset_path="complete")
    refractory = norse.LIFRefracCell(lif_refrac.LIFRefracParameters(p, torch.tensor(2.0)))
    cell = tssl_adapters.wrap(refractory, rule=rule)
    box = tssl_adapters.wrap(norse.LIFBoxCell(lif_box.LIFBoxParameters(**settings)), rule=rule)
    x, weights = (1.5 * data(seed).reshape(STEPS, -1) for seed in (0, 1))
    x.requires_grad_()

    state = cell.state_fallback(x[0])
    outs, held = [], []
    for step in x:
        held.append(state.rho > 0)
        out, state = cell(step, state)
        outs.append(out)
    out, taken = torch.stack(outs), ~torch.stack(held)
    (grad,) = torch.autograd.grad((out * weights).sum() + state.lif.v.sum(), x)
    assert 0.1 < float((~taken).double().mean()) < 0.9
    assert not out[~taken].any()

    same = True
    for n in range(x.shape[1]):
        v, loss = None, torch.zeros((), dtype=torch.float64)
        own = x[taken[:, n], n].detach().requires_grad_()
        for drive, weight, spike in zip(
            own, weights[taken[:, n], n], out[taken[:, n], n].detach(), strict=True
        ):
            fired, v = box(drive[None], v)
            assert float(fired.detach()) == float(spike.detach())
            loss = loss + (fired * weight).sum()
        (expected,) = torch.autograd.grad(loss + v.v.sum(), own)
        close = torch.allclose(grad[taken[:, n], n], expected, rtol=1e-10, atol=1e-10)
        same = same and close and not grad[~taken[:, n], n].any()
    assert same == (method == "heaviside")


def test_tsslbp_s_chain_goes_with_the_charge_s_own_slope() -> None:
    """LIFEx by the recursion written out: F_v of the step after, and the fallback."""
    rate, width, reset = 0.3, torch.tensor(0.3), torch.tensor(-0.2)
    p = lif_ex.LIFExParameters(
        width, torch.tensor(1000.0), torch.tensor(300.0), v_th=torch.tensor(0.4), v_reset=reset
    )
    cell = tssl_adapters.wrap(norse.LIFExCell(p), rule="tsslbp")
    x, weights = (1.5 * data(seed) for seed in (0, 1))
    x.requires_grad_()
    state, outs, potentials = cell.state_fallback(x[0]), [], [torch.zeros_like(x[0])]
    for step in x:
        out, state = cell(step, state)
        outs.append(out)
        potentials.append(state.v.detach())
    out = torch.stack(outs)
    (grad,) = torch.autograd.grad((out * weights).sum(), x)

    expected, chain = torch.zeros_like(x), torch.zeros_like(x[0])
    later = torch.zeros_like(chain)  # the next step's F_v
    for t in reversed(range(STEPS)):
        v, s = potentials[t], out[t].detach()
        runaway = ((v - p.v_th) / width).exp()
        h = v + rate * (-v + width * runaway + x[t].detach())
        phi = s * (1.0 / (h - v)).clamp(0.0, 8.0)
        carry = later * (1.0 - s) + (1.0 - later) * (h - reset) * phi
        chain = phi * weights[t] + chain * carry
        z = ((p.v_th - h) / 0.2).clamp(-8.0, 8.0).exp()
        silent = weights[t] * z / (0.2 * (1.0 + z) ** 2)
        expected[t] = rate * torch.where(s > 0, chain, silent)
        later = 1.0 + rate * (runaway - 1.0)
    assert 0.1 < float(out.detach().mean()) < 0.9
    torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-7)


def test_sparse_spikes_in_and_out() -> None:
    """``LIFRecurrent`` has a step for them, whose reset is not detached."""
    p = lif.LIFParameters(v_th=torch.tensor(0.3), tau_mem_inv=torch.tensor(400.0))
    x = (data() > 0.8).double() * 2.0
    for cls in (norse.LIFRecurrent, norse.LIFRecurrentCell):
        grads, outs = [], []
        for wrap in (True, False):
            torch.manual_seed(0)
            made = cls(NEURONS, NEURONS, p).double()
            if wrap:
                tssl_adapters.wrap(made, rule=rules.SurrogateGradient(superspike))
            if cls is norse.LIFRecurrent:
                out, state = made(x.to_sparse())
                steps = list(out.to_dense())
            else:
                state, steps = None, []
                for step in x:
                    out, state = made(step.to_sparse(), state)
                    steps.append(out.to_dense())
            assert out.is_sparse
            assert state.z.is_sparse
            outs.append(torch.stack(steps))
            loss = (outs[-1] * data(1)).sum() + (state.v + state.i).sum()
            grads.append(torch.autograd.grad(loss, [made.input_weights, made.recurrent_weights]))
        assert torch.equal(*outs)
        assert 0.05 < float(outs[0].detach().mean()) < 0.95
        for ours, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("autapses", [True, False])
@pytest.mark.parametrize(("name", "form"), [c for c in LAYERS if "Recurrent" in c[1]])
def test_autapses_take_no_gradient(name: str, form: str, autapses: bool) -> None:
    wrapped = tssl_adapters.wrap(layer(name, form, autapses=autapses))
    if isinstance(wrapped, SNNRecurrent):
        out = wrapped(data())[0]
    else:
        outs, state = [], None
        for step in data():
            out, state = wrapped(step, state)
            outs.append(out)
        out = torch.stack(outs)
    (out * data(1)).sum().backward()
    grad = wrapped.recurrent_weights.grad
    assert bool(grad.diagonal().any()) == autapses
    assert grad.any()


def test_containers() -> None:
    """``SequentialState`` and ``RecurrentSequential`` carry the wrapped layers' states."""

    def build() -> Any:
        torch.manual_seed(0)
        cells = [layer("LIFEx", "Cell"), layer("LSNN", "RecurrentCell")]
        weights = [torch.nn.Linear(NEURONS, NEURONS).double() for _ in cells]
        with torch.no_grad():
            for linear in weights:
                linear.weight.mul_(4.0)
        last = layer("LIFAdExRefrac", "Cell")
        return norse.RecurrentSequential(
            norse.SequentialState(cells[0], weights[0], cells[1], weights[1], last)
        )

    def run(model: Any) -> tuple[Tensor, list[Tensor]]:
        outs, state = [], None
        for step in data():
            out, state = model(step, state)
            outs.append(out)
        (torch.stack(outs) * data(1)).sum().backward()
        return torch.stack(outs), [w.grad for w in model.parameters()]

    (theirs, native), (ours, grads) = (
        run(model)
        for model in (
            build(),
            tssl_adapters.wrap(build(), rule=rules.SurrogateGradient(superspike)),
        )
    )
    assert torch.equal(theirs, ours)
    assert 0.05 < float(ours.detach().mean()) < 0.95
    for a, b in zip(grads, native, strict=True):
        assert float(b.abs().sum()) > 0
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", [c for c in CASES if "learn" not in c.name], ids=str)
def test_pickles_where_it_does_natively(case: Any) -> None:
    try:
        pickle.dumps(case.make(torch.float64))
    except Exception:
        pytest.skip("not natively")
    wrapped = tssl_adapters.wrap(case.make(torch.float64), tau_s=2.0)
    copied = pickle.loads(pickle.dumps(wrapped))
    assert type(copied) is type(wrapped)
    assert torch.equal(case.run(copied, data(), None).out, case.run(wrapped, data(), None).out)
    assert any(name in case.name for name in ("IAF", "LIFEx", "LIFAdEx", "LSNN", "Izhikevich"))


@pytest.mark.parametrize("made", [norse.LIFExCell, norse.LIFAdExCell, norse.LSNNCell], ids=str)
def test_functional_gradient(made: Any) -> None:
    """``torch.func.grad`` through two steps, as through autograd."""
    wrapped = tssl_adapters.wrap(made())

    def loss(x: Tensor) -> Tensor:
        state, total = None, torch.zeros(())
        for step in x:
            out, state = wrapped(step, state)
            total = total + (out * data(1)[0].float()).sum() + state.v.sum()
        return total

    x = 12.0 * data()[:3].float()
    expected = torch.autograd.grad(loss(leaf := x.clone().requires_grad_()), leaf)[0]
    assert float(expected.abs().sum()) > 0
    torch.testing.assert_close(torch.func.grad(loss)(x), expected, rtol=1e-5, atol=1e-6)


def test_float64_parameters_of_a_float32_layer() -> None:
    """The library starts some states in float32 whatever the input, and so do we."""
    for made in (norse.LIFRecurrentCell, norse.LIFRefracRecurrent):
        torch.manual_seed(0)
        native = made(NEURONS, NEURONS).double()
        torch.manual_seed(0)
        wrapped = tssl_adapters.wrap(made(NEURONS, NEURONS).double())
        x = 20.0 * (data() if made is norse.LIFRefracRecurrent else data()[0])
        (out, state), (theirs, their_state) = wrapped(x), native(x)
        assert torch.equal(out, theirs)
        for (_, a), (_, b) in zip(flat(state), flat(their_state), strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def test_the_reset_of_lsnn_differs_between_its_steps() -> None:
    """A guard for what the adapter relies on in the library."""
    p = lsnn.LSNNParameters()
    x = torch.full((1, 1), 30.0)
    v = torch.full((1, 1), 20.0, requires_grad=True)
    given = {"v": v, "i": x, "b": torch.ones(1, 1)}
    _, fed = lsnn.lsnn_feed_forward_step(x, lsnn.LSNNFeedForwardState(**given), p)
    eye = torch.ones(1, 1)
    _, recurrent = lsnn.lsnn_step(x, lsnn.LSNNState(z=0 * x, **given), eye, eye, p)
    assert torch.autograd.grad(fed.v, v)[0] != 0
    assert torch.autograd.grad(recurrent.v, v)[0] == 0
    assert recurrent.b.requires_grad is False
    assert fed.b.requires_grad
    assert lif_adex.LIFAdExParameters().method == "super"
