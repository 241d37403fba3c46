"""Lee's error and threshold regularisation."""

from __future__ import annotations

import pytest
import snntorch
import torch
from compat_norse import box
from rule_layers import golden, relative
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import losses, rules

DATA = {k.removeprefix("network/"): v for k, v in golden("lee").items() if "network/" in k}


def test_lee_against_the_golden_file() -> None:
    spikes = DATA["output_spike"].clone().requires_grad_()
    labels = DATA["label_onehot"].argmax(1)
    losses.lee(spikes, labels, float(DATA["decay"])).backward()
    assert relative(spikes.grad, DATA["grad_output_spike"]) <= 1e-12


def test_lee_hand_numbers() -> None:
    spikes = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]], requires_grad=True)
    loss = losses.lee(spikes, torch.tensor([1]))
    loss.backward()
    # o = (2, 1): delta = (1, 1/2 - 1), at every step.
    assert loss.item() == 1.5
    assert spikes.grad is not None
    assert spikes.grad.tolist() == [[[1.0, -0.5]], [[1.0, -0.5]]]


def test_lee_of_silent_outputs_wants_the_label() -> None:
    spikes = torch.zeros(3, 1, 2, requires_grad=True)
    losses.lee(spikes, torch.tensor([0]), 0.5).backward()
    assert spikes.grad is not None
    assert spikes.grad[:, 0].tolist() == [[-0.25, 0.0], [-0.5, 0.0], [-1.0, 0.0]]


def test_lee_refuses() -> None:
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"labels \[batch\], not float32 \[2, 3, 4\] and int64"):
        losses.lee(torch.zeros(2, 3, 4), labels)
    with pytest.raises(ValueError, match=r"decay must be above 0 and at most 1, not 1\.5"):
        losses.lee(torch.zeros(3, 2, 4), labels, 1.5)


def test_regularised_thresholds_hand_numbers() -> None:
    """Shares of samples 1, 1/2 and 0 of three neurons; several spikes of a sample count once."""
    spikes = torch.zeros(2, 2, 3)
    spikes[:, :, 0] = 1.0
    spikes[1, 0, 1] = 1.0
    threshold = torch.ones(3)
    losses.regularise_thresholds(threshold, spikes, rho=0.1)
    assert threshold.tolist() == pytest.approx([1.15, 1.0, 0.85])
    losses.regularise_thresholds(threshold, spikes, rho=100.0)
    assert threshold.tolist() == pytest.approx([5.0, 1.0, 0.05])


def test_thresholds_that_learn_are_changed_without_a_graph() -> None:
    threshold = nn.Parameter(torch.ones(2))
    losses.regularise_thresholds(threshold, torch.ones(1, 1, 2))
    assert threshold.requires_grad
    assert threshold.grad_fn is None


@pytest.mark.parametrize("threshold", [1.0, torch.ones(()), torch.ones(2)], ids=str)
def test_one_threshold_cannot_be_regularised(threshold: Tensor) -> None:
    with pytest.raises(ValueError, match=r"one value a neuron, \[3\], not .*SpikingJelly's"):
        losses.regularise_thresholds(threshold, torch.zeros(2, 2, 3))


def test_layers_follow_their_thresholds() -> None:
    """The tensors are the layers' own: the next call compares with what was changed."""
    leaky = snntorch.Leaky(beta=0.5, threshold=torch.ones(2))
    lif = box(v_th=torch.ones(2))
    for layer, threshold in ((leaky, leaky.threshold), (lif, lif.p.v_th)):
        tssl_adapters.wrap(layer, rule=rules.Lee())
        spikes = torch.tensor([[[1.0, 0.0]]])
        losses.regularise_thresholds(threshold, spikes, rho=0.5)
        gain = 10.0 if layer is lif else 1.0
        assert layer(torch.full((1, 2), gain))[0].tolist() == [[0.0, 1.0]]
