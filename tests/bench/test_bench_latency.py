"""The benchmark's loss of spike times: inputs and neurons that fire once, and STDBP among rules."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from bench_cases import settings
from torch import Tensor, nn

from tssl_adapters import losses
from tssl_adapters.bench import architectures, choices, data, gradients, options, rules, runs
from tssl_adapters.bench.__main__ import main
from tssl_adapters.bench.experiment import Experiment
from tssl_adapters.bench.method import batch_loss, encode, init_weights, scores
from tssl_adapters.bench.runs import Job

STEPS = 20
SURROGATES_LACKING: dict[str, set[str]] = {"spikingjelly": set(), "norse": {"arctan"}}
"""Of the libraries that have neurons that fire once."""

every_library = pytest.mark.parametrize("library", SURROGATES_LACKING)
every_network = pytest.mark.parametrize("network", ["30", "4C3p1-P2-20"])


def built(
    library: str, rule: str, network: str = "30"
) -> tuple[architectures.Network, Tensor, Tensor]:
    """A network of the benchmark under a rule, an input for it, and the labels."""
    chosen = settings(library=library, rule=rule, network=network, loss="latency", time_steps=STEPS)
    samples = data.load("digits", None, STEPS, limit=60)
    x = encode(samples.train_images, STEPS, 1.0, once=True)
    return runs.network(chosen, samples), x, samples.train_labels


def test_pixels_fire_once_the_earlier_the_brighter() -> None:
    """At 10 (1 - p/255), rounded; black does not."""
    pixels = torch.tensor([255, 250, 128, 64, 1, 0], dtype=torch.uint8).reshape(1, 1, 2, 3)
    x = encode(pixels, STEPS, 1.0, once=True)
    assert x.shape == (STEPS, 1, 1, 2, 3)
    assert x.dtype == torch.float32
    assert x.sum(0).flatten().tolist() == [1, 1, 1, 1, 1, 0]
    assert x.argmax(0).flatten().tolist()[:5] == [0, 0, 5, 7, 10]


def test_scores_are_what_is_left_of_the_window() -> None:
    """Over two steps; the loss is the mean of their cross-entropy, as it is of minus the times."""
    times, labels = torch.tensor([[0, 3, 5], [2, 5, 5]]), torch.tensor([1, 0])  # 5: silent
    spikes = F.one_hot(times, 6)[..., :5].movedim(-1, 0).double()
    assert scores("latency", spikes).tolist() == [[2.5, 1.0, 0.0], [1.5, 0.0, 0.0]]
    expected = F.cross_entropy(-times / 2.0, labels)
    torch.testing.assert_close(batch_loss("latency", spikes, labels, 1.0), expected.double())
    assert scores("count", spikes).tolist() == [[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]


@every_network
@every_library
def test_stdbps_gradient_is_that_of_the_spike_times(library: str, network: str) -> None:
    """The ramp of one common loss gives it what `losses.first_spike_time` would."""
    found = []
    for reads_times in (False, True):
        (model, forward, _), x, labels = built(library, "stdbp", network)
        list(model.parameters())[-1].data[:3].neg_()
        output = forward(model.double(), x.double())
        silent = output.sum(0) == 0
        assert silent[:, :3].all()
        assert not silent[:, 3:].all()
        if reads_times:
            F.cross_entropy(-losses.first_spike_time(output) / 2.0, labels).backward()
        else:
            batch_loss("latency", output, labels, 1.0).backward()
        found.append([weight.grad for weight in model.parameters()])
    for loss_of_all, loss_of_times in zip(*found, strict=True):
        assert loss_of_times is not None
        assert loss_of_times.norm() > 0
        torch.testing.assert_close(loss_of_all, loss_of_times, rtol=1e-11, atol=1e-14)


@every_network
def test_libraries_agree_and_fire_at_most_once(network: str) -> None:
    outputs, found = [], []
    for library in SURROGATES_LACKING:
        (model, forward, neuron), x, labels = built(library, "stdbp", network)
        fired: list[Tensor] = []
        for layer in (module for module in model.modules() if isinstance(module, neuron)):
            layer.register_forward_hook(
                lambda _, __, out, fired=fired: fired.append(
                    (out[0] if isinstance(out, tuple) else out).detach().sum(0)
                )
            )
        outputs.append(forward(model, x))
        assert len(fired) == network.count("-") + 2 - ("P2" in network)
        assert all(counts.max() == 1 for counts in fired)
        assert all(counts.mean() > 0.5 for counts in fired)  # the first weights see to that
        batch_loss("latency", outputs[-1], labels, 1.0).backward()
        found.append([weight.grad for weight in model.parameters()])
    assert torch.equal(*outputs)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.*no synaptic current:tssl_adapters.errors.RuleWarning")
@every_library
def test_rules_have_one_forward_and_a_gradient(library: str) -> None:
    """The reset out of the threshold's reach multiplies none of them, and divides none."""
    found = {}
    for rule in rules.RULES:
        if rules.why_not(library, rule, 1.0, once=True):
            continue
        (model, forward, _), x, labels = built(library, rule)
        output = forward(model, x)
        batch_loss("latency", output, labels, 1.0).backward()
        norms = [weight.grad.norm().item() for weight in model.parameters()
                 if weight.grad is not None]  # fmt: skip
        found[rule] = output, norms
    left_out = {"native-complete-reset", "native-compiled", "smooth-tsslbp", "lee", "strsbp"}
    assert set(rules.RULES) - set(found) == left_out | SURROGATES_LACKING[library]
    for output, norms in found.values():
        assert torch.equal(output, found["stdbp"][0])
        assert len(norms) == 2
        assert all(0.01 < norm < 1000 for norm in norms)
    assert len({f"{norms[0]:.4g}" for _, norms in found.values()}) >= 6


@every_library
def test_a_kernel_as_wide_as_the_reset_is_left_out(library: str, tmp_path: Path) -> None:
    """Of the user's own, too; where a reset is one the rule is taken."""
    own = tmp_path / "own.py"
    own.write_text("from tssl_adapters.rules import SmoothTSSLBP\nmine = SmoothTSSLBP(memory=3)\n")
    for rule in ("smooth-tsslbp", f"{own}:mine"):
        reason = rules.why_not(library, rule, once=True)
        assert reason is not None
        assert reason.startswith("it reckons with what a reset takes from the potential")
        assert rules.why_not(library, rule) is None


def test_first_weights() -> None:
    """Their mean and deviation, for each kind of connection."""
    model = nn.Sequential(nn.Linear(400, 200, bias=False), nn.Conv2d(40, 50, 5, bias=False))
    init_weights(model, 0, once=True)
    for layer, fan_in in zip(model, (400, 1000), strict=True):
        assert layer.weight.mean().item() == pytest.approx(1 / fan_in, rel=0.1)
        assert layer.weight.std().item() == pytest.approx(0.2 / fan_in**0.5, rel=0.02)


# Runs


def test_stdbp_learns_digits(tmp_path: Path) -> None:
    """Through both libraries, alike."""
    Experiment(tmp_path).runs.mkdir()
    found = []
    for library in SURROGATES_LACKING:
        run = settings(
            library=library, rule="stdbp", loss="latency", time_steps=STEPS, network="40",
            lr=2e-3, epochs=2, limit=600,
        )  # fmt: skip
        runs.run(Job(run, tmp_path), lambda event: None)
        first, last = Experiment(tmp_path).records(run)
        assert last["loss"] == "latency"
        assert last["train_loss"] < 0.7 * first["train_loss"]
        assert 0 < last["spike_rate"] <= 1 / STEPS
        found.append(last["test_accuracy"])
    assert min(found) > 0.6
    assert found[0] == pytest.approx(found[1], abs=0.05)


def test_rules_that_refuse_a_setting_are_left_out() -> None:
    """Rather than tried, to fail."""
    parser = ArgumentParser()
    options.add_grid_options(parser)
    options.add_training_options(parser)
    chosen = "--libraries norse --rules lee,stdbp,strsbp --tau-s 1,3 --seeds 2"
    grid, left_out = choices.settings_of(parser.parse_args(chosen.split()))
    found = [(run.rule, run.tau_s, run.loss, run.seed) for run in grid]
    assert found == [
        ("lee", 1.0, "cross-entropy", 0), ("strsbp", 1.0, "cross-entropy", 0),
        ("strsbp", 3.0, "kernel", 0), ("lee", 1.0, "cross-entropy", 1),
        ("strsbp", 1.0, "cross-entropy", 1), ("strsbp", 3.0, "kernel", 1),
    ]  # fmt: skip
    potential, lee, stdbp = left_out
    assert potential.startswith(
        "stdbp in norse, cross-entropy, tau_s = 1: its potential leaks, and STDBP's equations"
    )
    assert lee.startswith(
        "lee in norse, kernel, tau_s = 3: Lee is made for layers that emit spikes; use tau_s=1"
    )
    assert stdbp == (
        "stdbp in norse, kernel, tau_s = 3: STDBP is made for layers that emit spikes; use tau_s=1"
    )


def test_gradients_are_those_of_a_training_step() -> None:
    group = [
        settings(rule=rule, loss="latency", time_steps=STEPS, batch_size=60)
        for rule in ("stdbp", "tsslbp")
    ]
    found = gradients.compare(group, None)
    for run in group:
        (model, forward, _), x, labels = built("spikingjelly", run.rule, run.network)
        batch_loss("latency", forward(model, x), labels, 1.0).backward()
        norms = [
            weight.grad.norm().item() for weight in model.parameters() if weight.grad is not None
        ]
        assert found["norm"][run.rule] == pytest.approx(norms)
    assert found["loss"] == "latency"
    assert 0 < found["cosine"][1][0][1] < 1


@pytest.mark.parametrize(
    ("command", "chosen", "said"),
    [
        ("accuracy", "--loss latency --time-steps 3", "latency needs --time-steps 4 or more"),
        ("accuracy", "--loss latency --tau-s 1,3",
         "--loss latency needs layers that emit spikes, --tau-s 1"),
        ("accuracy", "--loss latency --data digits,shd",
         "--loss latency needs images, not the events of shd"),
        ("accuracy", "--rules stdbp --libraries norse",
         "nothing is left to train:\n  stdbp in norse, cross-entropy, tau_s = 1: its potential"),
        ("gradients", "--rules lee,strsbp --loss latency --libraries spikingjelly",
         "lee in spikingjelly, latency, tau_s = 1: Lee divides by what a spike takes"),
        ("paper", "--rules stdbp",
         "stdbp in snntorch, kernel, tau_s = 3: STDBP is made for layers that emit spikes"),
    ],
)  # fmt: skip
def test_refusals(
    command: str, chosen: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is written."""
    with pytest.raises(SystemExit, match="2"):
        main([command, *chosen.split(), "--quiet", "--out", str(tmp_path / "out")])
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
