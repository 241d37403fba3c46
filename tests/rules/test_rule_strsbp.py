"""ST-RSBP: its golden file, the libraries, silence, recurrence, and whole sequences."""

from __future__ import annotations

from typing import Any

import norse.torch as norse
import pytest
import snntorch
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from rule_layers import LIBRARIES, by_engine, golden, leaky, offered, relative
from torch import Tensor

import tssl_adapters
from tssl_adapters import losses, rules
from tssl_adapters.errors import UnsupportedConfigError
from tssl_adapters.rules import Feedback, Window

DATA = golden("strsbp")
CASES = [f"case{i:02d}" for i in range(int(DATA["n_cases"]))]
KINDS = ("poisson", "regular", "none")


def of(case: str) -> dict[str, Any]:
    return {key.rpartition("/")[2]: v for key, v in DATA.items() if key.startswith(f"{case}/")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_engine(case: str, kind: Any) -> None:
    """The layer's own gradients, and those of weight and senders that torch makes of them."""
    d = of(case)
    decay, gain, theta = (float(d[key]) for key in ("decay", "gain", "threshold"))
    for silent, key in (("zero", f"grad_drive_{kind}"), ("half", f"grad_drive_half_{kind}")):
        psc, weight = (d[name].clone().requires_grad_() for name in ("pre_psc", "weight"))
        threshold = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
        drive = F.linear(psc, weight)
        torch.testing.assert_close(drive, d["drive"], rtol=1e-12, atol=1e-12)
        x = d["drive"].clone().requires_grad_()
        rule = rules.STRSBP(self_effect=kind, silent=silent)  # type: ignore[arg-type]
        out = by_engine(rule, leaky(decay, threshold, "zero", gain), x)
        assert torch.equal(out.detach(), d["spike"])
        out.backward(d["grad_spike"])
        assert relative(x.grad, d[key]) <= 1e-12
        counts = d["spike"].sum(0)
        if silent == "zero":
            assert x.grad is not None
            assert (
                relative(
                    torch.einsum("tbi,tbj->ij", x.grad, d["pre_psc"]), d[f"grad_weight_{kind}"]
                )
                <= 1e-12
            )
            # eps o: eps is what the last spike of a train sends, over the gain.
            eps = (x.grad / gain * d["spike"]).amax(0) + (x.grad / gain * d["spike"]).amin(0)
            assert threshold.grad is not None
            assert float(threshold.grad) == pytest.approx(-float((eps * counts).sum()), rel=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_senders_get_the_papers_error(kind: Any) -> None:
    """delta of the layer below is its spikes' mean gradient through their PSC."""
    for case in CASES:
        d = of(case)
        tau_s = float(d["tau_s"])
        x = d["pre_spike"].clone().requires_grad_()
        drive = F.linear(losses.psc(x, tau_s), d["weight"])
        rule = rules.STRSBP(self_effect=kind, silent="zero")
        neuron = leaky(float(d["decay"]), float(d["threshold"]), "zero", float(d["gain"]))
        by_engine(rule, neuron, drive).backward(d["grad_spike"])
        counts = d["pre_spike"].sum(0)
        assert x.grad is not None
        delta = (x.grad * d["pre_spike"]).sum(0) / counts
        seen = counts > 0
        assert relative(delta[seen], d[f"delta_pre_{kind}"][seen]) <= 1e-12


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("case", CASES)
def test_library(case: str, library: str) -> None:
    """Where a call is one step, with a gradient that is the same at every spike."""
    d = of(case)
    decay, scale = float(d["decay"]), float(d["gain"]) / float(d["threshold"])
    if not offered(library, "zero", decay):
        pytest.skip("this version lacks the neuron")
    make, run = LIBRARIES[library]
    whole = library == "spikingjelly-m"
    for kind in KINDS:
        for silent, key in (("zero", f"grad_drive_{kind}"), ("half", f"grad_drive_half_{kind}")):
            rule = rules.STRSBP(kind, silent, credit="train" if whole else "spike")  # type: ignore[arg-type]
            layer = tssl_adapters.wrap(make(decay, "zero"), rule=rule)
            x = d["drive"].float().requires_grad_()
            out = run(layer, x * scale)
            assert torch.equal(out.detach().double(), d["spike"])
            counts = d["spike"].sum(0)
            grad = (
                d["grad_spike"]
                if whole
                else torch.where(counts > 0, d["delta"], d["grad_spike"].mean(0)).expand_as(
                    d["grad_spike"]
                )
            )
            out.backward(grad.float())
            assert relative(x.grad, d[key]) <= 1e-5


def test_both_credits_agree_where_the_gradient_is_constant() -> None:
    """In one call, step by step and in between; ``"spike"`` whatever the gradient is."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(30, 4, 6, generator=generator, dtype=torch.float64)
    grads = torch.rand(30, 4, 6, generator=generator, dtype=torch.float64)

    def gradient(credit: Any, cuts: Any, grad: Tensor, tau_s: float = 1.0) -> Tensor:
        leaf = x.clone().requires_grad_()
        rule = rules.STRSBP(credit=credit)
        by_engine(rule, leaky(0.9, 2.0, "zero"), leaf, tau_s, cuts).backward(grad)
        assert leaf.grad is not None
        return leaf.grad

    constant = grads[:1].expand(30, 4, 6)
    expected = gradient("train", (), constant)
    assert relative(gradient("spike", "steps", constant), expected) <= 1e-12
    for tau_s in (1.0, 3.0):
        expected = gradient("spike", (), grads, tau_s)
        for cuts in ((7, 20), "steps"):
            assert relative(gradient("spike", cuts, grads, tau_s), expected) <= 1e-12


@pytest.mark.parametrize("reset", ["zero", "subtract"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("drive", "rate"), [(-1.0, 0.0), (0.0, 0.0), (5.0, 1.0)])
@pytest.mark.parametrize("steps", [1, 6])
def test_silent_and_always_firing(
    kind: Any, drive: float, rate: float, steps: int, reset: str
) -> None:
    """Silent: half of delta/theta at every step. Firing at every step: k = 1, T/o = 1."""
    x = torch.full((steps, 2, 3), drive, dtype=torch.float64, requires_grad=True)
    out = by_engine(rules.STRSBP(self_effect=kind), leaky(0.8, 0.5, reset), x)
    assert out.detach().unique().tolist() == [rate]
    out.backward(torch.ones_like(out))
    r = -torch.log(torch.tensor(0.8, dtype=torch.float64)).item()
    left = {"poisson": 1.0 / 1.2, "regular": r / (1.0 / 0.8 - 1.0), "none": 1.0}[kind]
    expected = 1.0 if rate == 0.0 else 2.0 / left
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full_like(x, expected), rtol=1e-12, atol=0.0)


def test_the_self_effect_without_leak_and_without_memory() -> None:
    """beta = 1: S = 0. beta = 0: regular trains' floor."""
    for decay, kind, left in ((1.0, "regular", 1.0), (1.0, "poisson", 1.0), (0.0, "regular", 1e-4)):
        x = torch.full((4, 1, 1), 3.0, dtype=torch.float64, requires_grad=True)
        by_engine(rules.STRSBP(self_effect=kind), leaky(decay, 1.0, "zero"), x).sum().backward()  # type: ignore[arg-type]
        assert x.grad is not None
        assert x.grad.flatten().tolist() == pytest.approx([1.0 / left] * 4)


def test_full_recurrence() -> None:
    """eps = L^-T delta / theta against the golden file, from its counts, weights and shares."""
    d = of("recurrent")
    spike, theta, decay = d["spike"], float(d["threshold"]), float(d["decay"])
    counts = spike.sum(0)
    arriving = torch.cat([torch.zeros_like(spike[:1]), spike[:-1]])
    feedback = Feedback(d["weight_recurrent"], arriving, 1.0)
    active = (counts > 0).double()
    window = Window(counts, active, len(spike), decay, theta, feedback)
    rule = rules.STRSBP(recurrent="full")
    window = window._replace(factor=rule.factor(window))
    grads = [d["delta"]] * len(spike)
    full = rule.cotangent(grads, [*spike], window, None)[0] / theta
    assert relative(full * active, d["error"] * active) <= 1e-12
    alone = window._replace(feedback=None)
    diagonal = rules.STRSBP().cotangent(grads, [*spike], alone, None)[0] / theta
    eps = d["delta"] / (theta * d["one_minus_S"])
    assert relative(diagonal * active, eps * active) <= 1e-12
    published = torch.einsum("bi,bij->ij", diagonal * active, d["s_psp"])
    assert relative(published, d["grad_weight_published"]) <= 1e-12


def test_whole_sequences_come_in_one_call() -> None:
    x = torch.ones(4, 1, 1, requires_grad=True)
    with pytest.raises(UnsupportedConfigError, match=r"STRSBP\(\) needs a sequence in one"):
        by_engine(rules.STRSBP(), leaky(0.8, 1.0, "zero"), x, cuts=(2,))


def test_spikes_of_another_dtype_than_half_weights() -> None:
    """Norse's may be float32, which the library multiplies only by those of a next step."""
    outs = []
    for rule in (None, rules.STRSBP()):
        torch.manual_seed(0)
        p = norse.LIFParameters(v_th=torch.tensor(0.01), method="heavi_erfc")
        layer = norse.LIFRecurrent(4, 4, p).bfloat16()
        if rule is not None:
            tssl_adapters.wrap(layer, rule=rule)
        x = torch.ones(1, 2, 4, dtype=torch.bfloat16, requires_grad=True)
        outs.append(layer(x)[0])
        outs[-1].sum().backward()
        assert x.grad is not None
    assert outs[0].dtype is outs[1].dtype
    assert outs[0].any()
    assert torch.equal(*outs)


def test_a_checkpointed_step_counts_once() -> None:
    """Recomputed spikes are those that were counted."""
    layer = tssl_adapters.wrap(snntorch.Leaky(beta=0.5), rule=rules.STRSBP(credit="spike"))
    drive = torch.rand(6, 2, 5, generator=torch.Generator().manual_seed(3)) * 1.5
    found = []
    for checkpointed in (False, True):
        x = drive.clone().requires_grad_()
        mem, total = layer.init_leaky(), torch.zeros(())
        for step in x:
            if checkpointed:
                spk, mem = torch.utils.checkpoint.checkpoint(layer, step, mem, use_reentrant=False)
            else:
                spk, mem = layer(step, mem)
            total = total + spk.sum()
        found.append(torch.autograd.grad(total, x)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("option", ["self_effect", "silent", "recurrent", "credit"])
def test_arguments(option: str) -> None:
    with pytest.raises(ValueError, match=f"STRSBP: {option} must be one of .*, not 'some'"):
        rules.STRSBP(**{option: "some"})  # type: ignore[arg-type]


def test_a_window_that_grows_between_two_backward_passes() -> None:
    """Each pass counts the spikes that there are by then."""
    layer = tssl_adapters.wrap(snntorch.Leaky(beta=0.5), rule=rules.STRSBP(credit="spike"))
    first = torch.full((1, 1), 2.0, requires_grad=True)
    spk, mem = layer(first, layer.init_leaky())
    spk.backward(retain_graph=True)
    found = [first.grad.item()]  # type: ignore[union-attr]
    layer(torch.zeros(1, 1), mem)
    first.grad = None
    spk.backward()
    found.append(first.grad.item())  # type: ignore[attr-defined]
    # 1 - S = 1 / (1 + (1 - beta) T / o), of one step and of two.
    assert found == pytest.approx([1.5, 2.0])
