"""``bench gradients``: its figures, on networks small enough to count by hand."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from bench_cases import settings
from torch import Tensor, nn

from tssl_adapters.bench import data, gradients, known, runs
from tssl_adapters.bench.__main__ import main
from tssl_adapters.bench.method import batch_loss, encode
from tssl_adapters.bench.spread import cosines, spread


class Neuron(nn.Module):
    """Emits its drive as it is, so that a test says what it fires."""

    def forward(self, x: Tensor) -> Tensor:
        """The same."""
        return x * 1.0


# T = 2, two samples, three neurons, the last of them dead; 3 spikes of 12.
SPIKES = torch.tensor([[[1.0, 0, 0], [0, 0, 0]], [[1.0, 0, 0], [0, 1.0, 0]]])


@pytest.mark.parametrize("stepwise", [False, True])
def test_activity_and_drive_norms_counted_by_hand(stepwise: bool) -> None:
    model = nn.Sequential(Neuron())
    weights = torch.arange(1.0, 13.0).reshape(2, 2, 3)

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        return torch.stack([model(step) for step in x]) if stepwise else model(x)

    x = SPIKES.clone().requires_grad_()
    drive = x * 1.0  # no leaf, as a connection's output
    found = spread(model, forward, Neuron, drive, lambda out: (weights * out).sum(), 1.0)
    (activity,) = found.activity
    assert activity.silent == pytest.approx(9 / 12)
    assert activity.gated == pytest.approx(9 / 12)
    assert activity.dead == pytest.approx(1 / 3)
    expected = [math.sqrt(sum(n * n for n in part)) for part in (range(1, 7), range(7, 13))]
    if not stepwise:
        assert found.drive[0].tolist() == pytest.approx(expected)


def test_gate_and_spikes_of_pscs() -> None:
    """tau_s = 2: a[t] = a[t-1] + (s[t] - a[t-1])/2; the gate is at 1/8, spikes are recovered."""
    spikes = torch.tensor([0.0, 1, 0, 0, 0, 1]).reshape(6, 1, 1)
    psc = torch.tensor([0.0, 0.5, 0.25, 0.125, 0.0625, 0.53125]).reshape(6, 1, 1)
    x = (psc * 1.0).requires_grad_()
    found = spread(
        nn.Sequential(Neuron()), lambda model, x: model(x), Neuron, x * 1.0, Tensor.sum, 2.0
    )
    (activity,) = found.activity
    assert activity.silent == pytest.approx(1 - spikes.mean().item())
    assert activity.gated == pytest.approx(2 / 6)  # 0 and 0.0625
    assert activity.dead == 0


def test_cosines() -> None:
    first, second, third = torch.tensor([1.0, 0]), torch.tensor([1.0, 1]), torch.zeros(2)
    half = 0.5**0.5
    expected = [[1, half, 0], [half, 1, 0], [0, 0, 0]]
    torch.testing.assert_close(
        torch.tensor(cosines([first, second, third])), torch.tensor(expected, dtype=torch.float32)
    )


@pytest.mark.parametrize("library", known.LIBRARIES)
def test_norms_are_those_of_a_training_step(library: str) -> None:
    """And the drives' gradients add up, over time, to the last weight's bias-like sum."""
    group = [settings(library=library, rule=rule, tau_s=3.0, loss="kernel", batch_size=30)
             for rule in ("native", "tsslbp")]  # fmt: skip
    found = gradients.compare(group, None)
    samples = data.load("digits", None, 5, limit=30)
    for run in group:
        model, forward, _ = runs.network(run, samples)
        output = forward(model, encode(samples.train_images, 5, 3.0))
        batch_loss("kernel", output, samples.train_labels, 3.0).backward()
        norms = [
            weight.grad.norm().item() for weight in model.parameters() if weight.grad is not None
        ]
        assert found["norm"][run.rule] == pytest.approx(norms)
    assert found["rules"] == ["native", "tsslbp"]
    assert [len(found["drive_norm"][rule]) for rule in found["rules"]] == [2, 2]
    for matrix in found["cosine"]:
        assert matrix[0][0] == pytest.approx(1)
        assert 0 < matrix[0][1] == pytest.approx(matrix[1][0])
        assert matrix[0][1] < 1


def test_command(tmp_path: Path) -> None:
    """Figures as JSON, and a report with their plots."""
    options = "--data digits --networks 20-20 --rules native,tsslbp --seeds 1 --batch-size 20"
    out = ["--quiet", "--out", str(tmp_path)]
    assert main(["gradients", *options.split(), *out]) == 0
    found = json.loads((tmp_path / "gradients.json").read_text())
    assert [group["library"] for group in found] == list(known.LIBRARIES)
    activity = [group["activity"] for group in found]
    assert activity[0] == activity[1] == activity[2]  # one network, three libraries
    page = (tmp_path / "report.html").read_text()
    assert page.count("<figure") == 3
    assert "<h1>Gradients of native, tsslbp on digits</h1>" in page
    for label in ("norm of the weight gradient", "norm of the drive gradient", "time step"):
        assert label in page
    _, _, neurons = (tmp_path / "report.md").read_text().partition("## What the neurons do")
    rows = [line for line in neurons.splitlines() if re.match(r"\| \w+ \| \d \| \d", line)]
    assert len(rows) == 3 * 3
    assert [row.split(" | ")[0] for row in rows[::3]] == [f"| {name}" for name in known.LIBRARIES]
