"""The oracle against the authors' numbers, torch autograd, finite differences and small sums."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import run

GOLDEN = Path(__file__).parents[1] / "golden" / "lif_psc_layer.npz"
RESETS = ("value", "subtract", "never")
TIMINGS = ("immediate", "delayed", "both")
FORWARD = ("spikes", "charged", "membrane", "psc")
PARAMETERS = ("v0", "a0", "decay", "gain", "offset", "threshold", "reset_value")
GRADIENTS = ("drive", *PARAMETERS)
LOSSES = {"output": (1.0, 0.0), "membrane": (0.0, 1.0), "both": (1.0, 1.0)}


def assert_close(actual: Any, expected: Any, what: str, tolerance: float = 1e-12) -> None:
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, what
    scale = np.abs(expected).max(initial=0.0)
    worst = np.abs(actual - expected).max(initial=0.0)
    # An expected zero must be met as a zero, up to the rounding of numbers near one.
    assert worst <= tolerance * (scale or 1.0), f"{what}: {worst:.3g} off, scale {scale:.3g}"


# ---------------------------------------------------------------------- the authors' code


def golden_cases() -> list[int]:
    with np.load(GOLDEN) as data:
        return list(range(int(data["n_cases"])))


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as data:
        return dict(data)


def test_golden_file_holds_all_cases() -> None:
    assert len(golden_cases()) == 46


@pytest.mark.parametrize("case", golden_cases())
@pytest.mark.parametrize("timing", TIMINGS)
def test_golden(golden: dict[str, np.ndarray], case: int, timing: str) -> None:
    # The three timings of a reset to zero are one neuron, seen from outside, if it starts at rest.
    part = {k.split("/")[1]: v for k, v in golden.items() if k.startswith(f"case{case:02d}/")}
    result = run(
        drive=part["drive"],
        decay=1.0 - 1.0 / part["tau_m"],
        threshold=part["theta"],
        reset="value",
        timing=timing,
        tau_s=float(part["tau_s"]),
        grad_out=part["grad_psc"],
    )
    assert_close(result["psc"], part["psc"], "psc")
    assert_close(result["drive"], part["grad_drive"], "grad_drive")


# ---------------------------------------------------------------------- autograd


class Spike(torch.autograd.Function):
    """A step whose derivative is the tensor it is given."""

    @staticmethod
    def forward(ctx: Any, shifted: torch.Tensor, slope: torch.Tensor, strict: bool) -> Any:
        ctx.save_for_backward(slope)
        return (shifted > 0 if strict else shifted >= 0).to(shifted.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad * ctx.saved_tensors[0], None, None


def arctan(shifted: Any) -> Any:
    return 1.0 / (1.0 + (np.pi * shifted) ** 2)


def autograd(
    case: dict[str, Any],
    *,
    reset: str,
    timing: str,
    reset_path: str,
    chain: bool = True,
    tau_s: float = 1.0,
    strict: bool = True,
    spike_time_slope: float | None = None,
) -> dict[str, np.ndarray]:
    """A library's step in a torch loop; `spike_time_slope` sets phi = s clip(1/d), else arctan."""
    leaf = {k: torch.tensor(case[k], requires_grad=True) for k in GRADIENTS}
    beta, theta, v, a = leaf["decay"], leaf["threshold"], leaf["v0"], leaf["a0"]

    def fire(h: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        shifted = h - theta
        if spike_time_slope is None:
            slope = arctan(shifted.detach())
        else:
            hit = shifted > 0 if strict else shifted >= 0
            slope = (hit * torch.clamp(1.0 / d, 0.0, spike_time_slope)).detach()
        return Spike.apply(shifted, slope, strict)

    nothing = torch.zeros_like(leaf["drive"][0])
    # r at the first step comes from the incoming state: a constant.
    r = (v > theta if strict else v >= theta).to(nothing.dtype) + nothing
    last_spike = removed = nothing
    out: dict[str, list[torch.Tensor]] = {k: [] for k in FORWARD}
    for x in leaf["drive"]:
        if not chain:
            v, r = v.detach(), r.detach()
        current = leaf["gain"] * x + leaf["offset"]
        if timing == "both":
            r = (v > theta if strict else v >= theta).to(nothing.dtype)
        if timing == "immediate" or reset == "never":
            h = beta * v + current
            d = h - v
        elif reset == "value":
            h = beta * ((1.0 - r) * v) + current
            d = h - (v if timing == "both" else (1.0 - r) * v)
        else:
            h = beta * v + current - theta * r
            d = h - (v if timing == "both" else v - theta / beta * r)
        if reset_path == "reference":
            # The authors' reset term, (1-F_v) R towards the last spike, added at no value.
            f_v = beta * (1.0 - r) if timing == "both" and reset == "value" else beta + nothing
            h = h + ((1.0 - f_v) * removed).detach() * (last_spike - last_spike.detach())
        s = fire(h, d)
        z = s if reset_path == "complete" else s.detach()
        last_spike, removed = s, nothing
        if reset == "value":
            removed = h - leaf["reset_value"]
        elif reset == "subtract":
            removed = theta / beta if timing == "delayed" else theta
        if timing == "immediate":
            if reset == "value":
                v = (1.0 - z) * h + z * leaf["reset_value"]
            else:
                v = h - z * theta if reset == "subtract" else h
        elif timing == "delayed":
            v, r = h, z
        elif reset == "never":
            v = h
        else:
            taken = h if reset == "value" else theta
            v = h - (z - r) * taken
        a = s if tau_s == 1.0 else a + (s - a) / tau_s
        for name, value in zip(FORWARD, (s, h, v, a), strict=True):
            out[name].append(value)
    stacked = {k: torch.stack(values) for k, values in out.items()}
    loss = (stacked["psc"] * torch.tensor(case["grad_out"])).sum()
    loss = loss + (stacked["membrane"] * torch.tensor(case["grad_membrane"])).sum()
    gradients = torch.autograd.grad(loss, list(leaf.values()), allow_unused=True)
    result = {k: v.detach().numpy() for k, v in stacked.items()}
    for (name, tensor), gradient in zip(leaf.items(), gradients, strict=True):
        result[name] = (torch.zeros_like(tensor) if gradient is None else gradient).numpy()
    return result


def random_case(seed: int, steps: int, timing: str, loss: str = "both") -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    batch, neurons = 4, 5
    on_output, on_membrane = LOSSES[loss]
    shape = (steps, batch, neurons)
    return {
        "drive": rng.normal(0.5, 0.8, shape),
        "decay": rng.uniform(0.5, 0.98, neurons),
        "gain": np.asarray(rng.uniform(0.5, 1.5)),
        "offset": rng.normal(0.0, 0.2, (batch, 1)),
        "threshold": rng.uniform(0.5, 1.2, (1, neurons)),
        "reset_value": rng.normal(0.0, 0.2, neurons) * (timing == "immediate"),
        "v0": rng.normal(0.5, 0.8, (batch, neurons)),
        "a0": rng.uniform(0.0, 0.6, (batch, neurons)),
        "grad_out": on_output * rng.normal(size=shape),
        "grad_membrane": on_membrane * rng.normal(size=shape),
    }


def compare(actual: dict[str, Any], expected: dict[str, Any], where: str = "") -> None:
    for name in FORWARD + GRADIENTS:
        if name == "reset_value" and not np.any(expected[name]):
            assert not np.any(actual[name]), f"{where} reset_value"
        assert_close(actual[name], expected[name], f"{where} {name}")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reset_path", ["none", "complete"])
@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("reset", RESETS)
def test_surrogate_equals_autograd(reset: str, timing: str, reset_path: str, loss: str) -> None:
    for seed, (steps, tau_s, strict, chain) in enumerate(
        [
            (1, 1.0, True, True),
            (2, 1.0, True, True),
            (6, 2.5, False, True),
            (30, 1.0, True, True),
            (5, 3.0, True, False),
        ]
    ):
        case = random_case(seed, steps, timing, loss)
        how = {
            "reset": reset,
            "timing": timing,
            "reset_path": reset_path,
            "tau_s": tau_s,
            "strict": strict,
        }
        actual = run(rule="surrogate", derivative=arctan, chain=chain, **how, **case)
        if steps == 30:
            assert 0.15 < actual["spikes"].mean() < 0.95
        compare(actual, autograd(case, chain=chain, **how), f"T={steps}")
        if timing != "immediate":
            assert (case["v0"] > case["threshold"]).any()
        if not chain:
            assert not np.any(actual["v0"])
            if loss != "membrane":
                assert np.any(actual["a0"])


@pytest.mark.parametrize("reset_path", ["none", "complete", "reference"])
@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("reset", RESETS)
def test_spike_time_chain_equals_autograd(reset: str, timing: str, reset_path: str) -> None:
    """TSSL-BP without its fallback is autograd with the slope s clip(1/d).

    The reference reset term belongs to lambda alone: there without a loss on the membrane.
    """
    loss = "output" if reset_path == "reference" else "both"
    for seed, (steps, tau_s, max_slope) in enumerate(
        [(1, 1.0, 8.0), (8, 3.0, 2.0), (20, 1.0, 8.0)]
    ):
        case = random_case(100 + seed, steps, timing, loss)
        how = {"reset": reset, "timing": timing, "reset_path": reset_path, "tau_s": tau_s}
        actual = run(fallback=False, max_slope=max_slope, **how, **case)
        assert np.any(actual["lambda"])
        compare(actual, autograd(case, spike_time_slope=max_slope, **how), f"T={steps}")


def test_reset_to_zero_within_and_after_the_charge_in_numbers() -> None:
    """Timing "both" with r = 1 within the window, by hand."""
    beta, theta = 0.5, 1.0
    # v0 = 2 is above: r[0] = 1, h[0] = 0.9, silent, and mem = (1 - (0 - 1)) h = 1.8, above again.
    # r[1] = 1, h[1] = 2, a spike, mem = h = 2 (no second reset), r[2] = 1, h[2] = 2.5, a spike.
    result = run(
        drive=np.array([[0.9], [2.0], [2.5]]),
        decay=beta,
        threshold=theta,
        reset="value",
        timing="both",
        v0=np.array([2.0]),
        fallback=False,
        grad_out=np.array([[3.0], [5.0], [7.0]]),
        grad_membrane=np.array([[0.0], [11.0], [0.0]]),
    )
    np.testing.assert_allclose(result["charged"][:, 0], [0.9, 2.0, 2.5])
    np.testing.assert_allclose(result["membrane"][:, 0], [1.8, 2.0, 2.5])
    # d = -1.1 (silent), 2 - 1.8, 2.5 - 2; F_v = 0 throughout, so (1-F_v) R phi = 2 * 5 in step 1.
    np.testing.assert_allclose(result["phi"][:, 0], [0.0, 5.0, 2.0])
    np.testing.assert_allclose(result["lambda"][:, 0], [0.0, 5 * 5 + 14 * 2 * 5, 7 * 2])
    np.testing.assert_allclose(result["mu"][:, 0], [0.0, 11.0, 0.0])
    np.testing.assert_allclose(result["decay"], 0.0)
    # No r = 1: F_v = beta and du/dh = 1 - s, as with the immediate reset.
    result = run(
        drive=np.array([[1.5], [1.25]]),
        decay=beta,
        threshold=theta,
        reset="value",
        timing="both",
        v0=np.array([0.5]),
        fallback=False,
        grad_out=np.array([[3.0], [5.0]]),
    )
    # h[0] = 1.75, d = 1.25; mem = 0; h[1] = 1.25 = d.
    last = 5 / 1.25
    np.testing.assert_allclose(
        result["lambda"][:, 0], [3 / 1.25 + last * (1 - beta) * 1.75 / 1.25, last]
    )
    np.testing.assert_allclose(result["v0"], beta * result["lambda"][0])


# ---------------------------------------------------------------------- finite differences


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("reset", RESETS)
def test_membrane_loss_equals_finite_differences(reset: str, timing: str) -> None:
    """At fixed spikes the membrane is smooth: mu (reference path) is its true derivative."""
    case = random_case(7, 5, timing, "membrane")
    case["threshold"] = case["threshold"] + 0.1
    result = run(reset=reset, timing=timing, **case)
    assert 0 < result["spikes"].sum() < result["spikes"].size
    step = 1e-6

    def loss(changed: dict[str, Any]) -> float:
        moved = run(reset=reset, timing=timing, **changed)
        assert np.array_equal(moved["spikes"], result["spikes"])
        return float((moved["membrane"] * case["grad_membrane"]).sum())

    for name in GRADIENTS:
        if name == "a0" or (name == "reset_value" and timing != "immediate"):
            continue
        every = {"drive": 13, "v0": 3}.get(name, 1)  # enough of its elements, to save time
        for index in itertools.islice(np.ndindex(*case[name].shape), 0, None, every):
            ends = []
            for sign in (1.0, -1.0):
                moved = case[name].copy()
                moved[index] += sign * step
                ends.append(loss({**case, name: moved}))
            numeric = (ends[0] - ends[1]) / (2 * step)
            assert numeric == pytest.approx(result[name][index], abs=1e-7), name
    assert_close(result["a0"], np.zeros_like(case["a0"]), "a0")


def test_trace_gradient_equals_finite_differences() -> None:
    case = random_case(8, 9, "immediate", "output")
    how = {"reset": "value", "tau_s": 3.0}
    result = run(**how, **case)
    direction = np.random.default_rng(0).normal(size=case["a0"].shape)
    ends = [
        (run(**how, **{**case, "a0": case["a0"] + k * direction})["psc"] * case["grad_out"]).sum()
        for k in (1.0, -1.0)
    ]
    assert (result["a0"] * direction).sum() == pytest.approx((ends[0] - ends[1]) / 2, rel=1e-12)


# ---------------------------------------------------------------------- TSSL-BP in small


def one_step(drive: float, **options: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "decay": 0.8,
        "threshold": 1.0,
        "reset": "value",
        "grad_out": np.array([[3.0]]),
    }
    return run(drive=np.array([[drive]]), **{**settings, **options})


def test_slope_is_clipped() -> None:
    assert one_step(1.25)["drive"].item() == pytest.approx(3.0 / 1.25)
    # From v0 = 1.2, by subtraction: h = 1.01, d = 0.05, and 1/d = 20 is clipped.
    near = {"v0": np.array([1.2]), "reset": "subtract", "decay": 0.8}
    assert one_step(0.09, **near)["drive"].item() == 0.0  # d < 0
    assert one_step(0.29, **near)["drive"].item() == pytest.approx(3.0 * 8.0)
    assert one_step(0.29, max_slope=2.0, **near)["drive"].item() == pytest.approx(3.0 * 2.0)


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_no_increment_at_a_spike_counts_as_the_upper_bound(zero: float) -> None:
    result = one_step(zero, v0=np.array([1.5]), decay=1.0, reset="never", max_slope=5.0)
    assert result["spikes"].item() == 1.0
    assert result["drive"].item() == 15.0


def test_comparison_at_the_threshold() -> None:
    assert one_step(1.0)["spikes"].item() == 0.0
    assert one_step(1.0, strict=False)["spikes"].item() == 1.0
    later = {"v0": np.array([1.0]), "timing": "delayed"}
    assert one_step(0.5, **later)["charged"].item() == 1.3
    assert one_step(0.5, strict=False, **later)["charged"].item() == 0.5


@pytest.mark.parametrize("tau_s", [1.0, 2.0, 3.0])
def test_gate_of_the_fallback(tau_s: float) -> None:
    """One spike, then silence: the fallback takes over where the trace is below 1/(4 tau_s)."""
    drive = np.full((12, 1), 0.1)
    drive[2] = 2.0
    g = np.linspace(1.0, 2.0, 12)[:, None]
    how = {
        "drive": drive,
        "decay": 0.8,
        "threshold": 1.0,
        "reset": "value",
        "tau_s": tau_s,
        "grad_out": g,
    }
    result, without = run(**how), run(fallback=False, **how)
    since = np.arange(12) - 2
    trace = np.where(since < 0, 0.0, (1 - 1 / tau_s) ** np.abs(since)) / tau_s
    np.testing.assert_allclose(result["psc"][:, 0], trace)
    silent = trace < 1 / (4 * tau_s)  # at tau_s = 2 the trace meets 1/8 exactly: not silent
    assert silent.tolist() == [
        not 0 <= k <= {1.0: 0, 2.0: 2, 3.0: 3}[tau_s] for k in since.tolist()
    ]
    z = np.exp(np.clip((1.0 - result["charged"][:, 0]) / 0.2, -8, 8))
    expected = result["G"][:, 0] * z / (0.2 * (1 + z) ** 2)
    np.testing.assert_allclose(result["drive"][silent, 0], expected[silent], rtol=1e-14)
    np.testing.assert_allclose(result["drive"][~silent], result["lambda"][~silent], rtol=0)
    # The chain never sees the fallback.
    for name in ("lambda", "mu", "v0", "a0", "phi"):
        np.testing.assert_array_equal(result[name], without[name])
    np.testing.assert_array_equal(without["drive"], without["lambda"])


def test_fallback_in_numbers() -> None:
    assert one_step(1.0)["drive"].item() == pytest.approx(3.0 / (0.2 * 4))
    assert one_step(1.0, fallback_width=0.5)["drive"].item() == pytest.approx(3.0 / (0.5 * 4))
    far = one_step(-50.0, max_slope=1.0)["drive"].item()  # the exponent's clip is not max_slope
    assert far == pytest.approx(3.0 * np.exp(8) / (0.2 * (1 + np.exp(8)) ** 2))
    # The gain multiplies on the way back; the threshold takes the same slope with a minus.
    result = one_step(0.25, gain=4.0)
    assert result["drive"].item() == pytest.approx(4 * 3.0 / 0.8)
    assert result["threshold"].item() == pytest.approx(-3.0 / 0.8)


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("reset", RESETS)
def test_membrane_loss_reaches_silent_steps(reset: str, timing: str) -> None:
    result = run(
        drive=np.array([[0.2], [0.3]]),
        decay=0.5,
        threshold=1.0,
        reset=reset,
        timing=timing,
        grad_out=np.zeros((2, 1)),
        grad_membrane=np.array([[0.0], [4.0]]),
    )
    np.testing.assert_allclose(result["drive"][:, 0], [2.0, 4.0])
    assert result["v0"].item() == pytest.approx(1.0)


def test_two_steps_by_delayed_subtraction() -> None:
    """R = theta/beta: h[1] = beta h[0] + x - theta, u[0] = h[0] - theta/beta."""
    beta, theta, g = 0.5, 1.0, np.array([[3.0], [5.0]])
    result = run(
        drive=np.array([[2.0], [2.5]]),
        decay=beta,
        threshold=theta,
        reset="subtract",
        timing="delayed",
        v0=np.array([1.5]),
        grad_out=g,
        grad_membrane=np.array([[7.0], [11.0]]),
    )
    # h[0] = 0.75 + 2 - 1 = 1.75 from u[-1] = -0.5,
    # h[1] = 0.875 + 2.5 - 1 = 2.375 from u[0] = -0.25.
    np.testing.assert_allclose(result["charged"][:, 0], [1.75, 2.375])
    last = 5 / 2.625
    first = 3 / 2.25 + last * (beta + (1 - beta) * (theta / beta) / 2.25)
    np.testing.assert_allclose(result["lambda"][:, 0], [first, last])
    np.testing.assert_allclose(result["mu"][:, 0], [7 + beta * 11, 11])
    e = [first + 12.5, last + 11]
    assert result["decay"].item() == pytest.approx(e[0] * 1.5 + e[1] * 1.75)
    assert result["threshold"].item() == pytest.approx(-first + last * beta - last - e[0] - e[1])
    assert result["v0"].item() == pytest.approx(beta * e[0])


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("reset", RESETS)
def test_linear_in_the_losses_and_fallback_outside_the_chain(reset: str, timing: str) -> None:
    case = random_case(11, 15, timing)
    how = {"reset": reset, "timing": timing, "tau_s": 2.5}
    nothing = np.zeros_like(case["drive"])
    whole = run(**how, **case)
    spikes = run(**how, **{**case, "grad_membrane": nothing})
    membrane = run(**how, **{**case, "grad_out": nothing})
    assert not np.any(spikes["mu"])
    assert not np.any(membrane["lambda"])
    for name in GRADIENTS:
        assert_close(whole[name], spikes[name] + membrane[name], name)
    without = run(fallback=False, **how, **case)
    for name in ("lambda", "mu", "v0", "a0", "reset_value"):
        np.testing.assert_array_equal(whole[name], without[name], err_msg=name)
    # What the fallback changes, where it acts (there s = 0, and so phi = 0).
    silent = whole["psc"] < 1 / (4 * 2.5)
    z = np.exp(np.clip((case["threshold"] - whole["charged"]) / 0.2, -8, 8))
    smooth = np.where(silent, whole["G"] * z / (0.2 * (1 + z) ** 2), 0.0)
    change = smooth - np.where(silent, whole["lambda"], 0.0)
    before = np.concatenate([case["v0"][None], whole["membrane"][:-1]])
    if reset == "value" and timing != "immediate":
        before = before * (before <= case["threshold"])
    assert np.any(change)
    by_hand = {
        "drive": case["gain"] * change,
        "gain": (change * case["drive"]).sum(),
        "offset": change.sum((0, 2))[:, None],
        "decay": (change * before).sum((0, 1)),
        "threshold": -smooth.sum((0, 1))[None],
    }
    for name, expected in by_hand.items():
        assert_close(whole[name] - without[name], expected, name, 1e-11)


@pytest.mark.parametrize("reset_path", ["none", "complete"])
@pytest.mark.parametrize("timing", ["immediate", "both"])
@pytest.mark.parametrize("reset", RESETS)
def test_cut_into_calls_equals_one_call(reset: str, timing: str, reset_path: str) -> None:
    """Where the two adjoints need no link: their sum is the cotangent of the carried state."""
    case = random_case(13, 14, timing)
    how = {
        "reset": reset,
        "timing": timing,
        "reset_path": reset_path,
        "fallback": False,
        "tau_s": 2.0,
    }
    sequences = ("drive", "grad_out", "grad_membrane")
    whole = run(**how, **case)
    early = {**case, **{k: case[k][:6].copy() for k in sequences}}
    forward = run(**how, **early)
    late = {**case, **{k: case[k][6:] for k in sequences}}
    late |= {"v0": forward["membrane"][-1], "a0": forward["psc"][-1]}
    second = run(**how, **late)
    early["grad_membrane"][-1] += second["v0"]
    early["grad_out"][-1] += second["a0"]
    first = run(**how, **early)
    assert_close(np.concatenate([first["drive"], second["drive"]]), whole["drive"], "drive")
    for name in ("v0", "a0"):
        assert_close(first[name], whole[name], name)
    for name in ("decay", "gain", "offset", "threshold", "reset_value"):
        assert_close(first[name] + second[name], whole[name], name)


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="unknown reset"):
        one_step(1.0, reset="zero")
    with pytest.raises(ValueError, match="unknown timing"):
        one_step(1.0, timing="later")
    with pytest.raises(ValueError, match="no reset_path 'reference'"):
        one_step(1.0, rule="surrogate", derivative=arctan)
    with pytest.raises(ValueError, match="derivative belongs"):
        one_step(1.0, derivative=arctan)
    with pytest.raises(ValueError, match="infinite"):
        one_step(1.0, timing="delayed", reset="subtract", decay=0.0)
    with pytest.raises(ValueError, match="tau_s"):
        one_step(1.0, tau_s=0.5)
