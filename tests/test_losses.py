"""The paper's losses: hand numbers, the authors' golden figures, gradients, error texts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tssl_adapters.losses import (
    psc,
    psc_kernel_loss,
    spike_count_loss,
    target_spike_counts,
    target_spike_train,
)

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def test_psc_hand_numbers():
    spikes = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    expected = torch.tensor([1 / 2, 1 / 4, 5 / 8], dtype=torch.float64)
    torch.testing.assert_close(psc(spikes, 2.0), expected, rtol=0, atol=0)


def test_psc_at_tau_one_is_the_spike_itself():
    spikes = torch.rand(4, 3, 2)
    assert torch.equal(psc(spikes, 1.0), spikes)


def test_psc_of_pixels_is_the_golden_input():
    file = golden("fc_network_t30")
    repeated = file["pixels"].expand(30, -1, -1)
    torch.testing.assert_close(
        psc(repeated, file["tau_s"].item()), file["input_psc"], rtol=1e-14, atol=1e-15
    )


@pytest.mark.parametrize("tau_s", [1.0, 1.5, 3.0])
def test_psc_gradient_against_finite_differences(tau_s):
    spikes = torch.rand(6, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: psc(s, tau_s), spikes)


@pytest.mark.parametrize("tau_s", [0.5, float("nan"), float("inf")])
def test_psc_refuses_the_time_constant(tau_s):
    with pytest.raises(ValueError, match=f"tau_s must be a finite number.* not {tau_s}"):
        psc(torch.zeros(2, 1), tau_s)


def test_psc_refuses_integers():
    with pytest.raises(ValueError, match=r"floating point tensor \[T, ...\], not int64 \[2, 1\]"):
        psc(torch.zeros(2, 1, dtype=torch.int64), 2.0)


@pytest.mark.parametrize(
    ("num_steps", "wanted"),
    [
        (2, [0, 1]),
        (5, [0, 1, 1, 1, 1]),
        (9, [0] + 8 * [1]),
        (11, [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0]),
    ],
)
def test_target_spike_train(num_steps, wanted):
    train = target_spike_train(torch.tensor([2, 0]), num_steps, 3)
    expected = torch.zeros(num_steps, 2, 3)
    expected[:, 0, 2] = expected[:, 1, 0] = torch.tensor(wanted, dtype=torch.float32)
    assert train.dtype == torch.float32
    assert torch.equal(train, expected)


@pytest.mark.parametrize(
    ("labels", "num_steps", "message"),
    [
        (torch.tensor([0]), 1, "2 steps or more to hold a spike, not 1"),
        (torch.tensor([0.0]), 5, r"integers \[batch\], not float32 \[1\]"),
        (torch.tensor([[0]]), 5, r"integers \[batch\], not int64 \[1, 1\]"),
        (torch.tensor([1, 10]), 5, r"lie in 0 ... 9, not \[1, 10\]"),
        (torch.tensor([-1]), 5, r"lie in 0 ... 9, not \[-1\]"),
    ],
)
def test_target_spike_train_refuses(labels, num_steps, message):
    with pytest.raises(ValueError, match=message):
        target_spike_train(labels, num_steps, 10)


@pytest.mark.parametrize("name", ["fc_network_t5", "fc_network_t30"])
def test_kernel_loss_is_the_authors_with_their_target_filtered_twice(name):
    file = golden(name)
    tau_s = file["tau_s"].item()
    train = target_spike_train(file["labels"], len(file["input_psc"]), 10)
    twice = psc(psc(train.double(), tau_s), tau_s)
    torch.testing.assert_close(twice, file["loss_target"], rtol=0, atol=1e-15)
    loss = psc_kernel_loss(file["output_psc"], train, tau_s)
    torch.testing.assert_close(loss, file["losses"][0], rtol=1e-14, atol=0)


def test_kernel_loss_filtered_once():
    output = torch.zeros(2, 1, 1, dtype=torch.float64)
    target = torch.tensor([0.0, 1.0]).reshape(2, 1, 1)
    assert psc_kernel_loss(output, target, 2.0, filters=1).item() == 1 / 8
    assert psc_kernel_loss(output, target, 2.0).item() == 1 / 32


def test_kernel_loss_gradient_is_the_difference():
    output = torch.rand(5, 2, 3, dtype=torch.float64, requires_grad=True)
    train = target_spike_train(torch.tensor([1, 2]), 5, 3)
    psc_kernel_loss(output, train, 3.0, filters=1).backward()
    torch.testing.assert_close(output.grad, output.detach() - psc(train.double(), 3.0))


def test_kernel_loss_refuses():
    with pytest.raises(ValueError, match=r"float32 \[5, 2, 3\] and float32 \[5, 2, 4\]"):
        psc_kernel_loss(torch.zeros(5, 2, 3), torch.zeros(5, 2, 4), 3.0)
    with pytest.raises(ValueError, match="filters must be 1 or 2, not 3"):
        psc_kernel_loss(torch.zeros(5, 2, 3), torch.zeros(5, 2, 3), 3.0, filters=3)


def test_target_spike_counts():
    expected = torch.tensor([[3.0, 15.0, 3.0], [15.0, 3.0, 3.0]])
    assert torch.equal(target_spike_counts(torch.tensor([1, 0]), 3), expected)
    with pytest.raises(ValueError, match="wanted must be above others, not 3 against 3"):
        target_spike_counts(torch.tensor([1, 0]), 3, wanted=3, others=3)


def test_count_loss_hand_numbers_and_gradient():
    # Counts 1, 3, 0 against 3, 1, 1: two too few, two too many, and one below an unwanted target.
    output = torch.tensor([[[1.0, 1, 0]], [[0, 1, 0]], [[0, 1, 0]], [[0, 0, 0]]])
    output = output.double().requires_grad_()
    loss = spike_count_loss(output, target_spike_counts(torch.tensor([0]), 3, wanted=3, others=1))
    assert loss.item() == (2**2 + 2**2) / (2 * 4)
    loss.backward()
    step = torch.tensor([-2 / 4, 2 / 4, 0.0], dtype=torch.float64)
    assert torch.equal(output.grad, step.expand(4, 1, 3))


def test_count_loss_costs_nothing_above_the_wanted_count():
    output = torch.ones(5, 1, 2)
    output[:, :, 1] = 0.0
    targets = target_spike_counts(torch.tensor([0]), 2, wanted=4, others=1)
    assert spike_count_loss(output, targets).item() == 0.0


@pytest.mark.parametrize("shape", [(5, 2), (5, 2, 4), (5, 3, 3)])
def test_count_loss_refuses(shape):
    with pytest.raises(ValueError, match=r"output must be \[T, batch, classes\]"):
        spike_count_loss(torch.zeros(shape), torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_losses_keep_the_dtype_of_the_output(dtype):
    output = torch.rand(5, 2, 3).to(dtype)
    labels = torch.tensor([0, 2])
    assert psc_kernel_loss(output, target_spike_train(labels, 5, 3), 3.0).dtype == dtype
    assert spike_count_loss(output, target_spike_counts(labels, 3)).dtype == dtype
