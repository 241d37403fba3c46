"""The suite's networks on Fashion-MNIST: their data, their forward, and that all can be wrapped."""

import gzip
import importlib
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from idx import idx
from zoo.torchvision_stub import declare_missing_operators

import tssl_adapters
from tssl_adapters.bench import places
from tssl_adapters.bench.data import images
from tssl_adapters.bench.networks import fashion, suite, training

BATCH = 4
SPIKING_LAYERS = {
    "spikingjelly-fashion-sew-resnet18": 20,
    "spikingjelly-fashion-spikformer": 15,
    "snntorch-fashion-conv": 3,
    "norse-fashion-conv": 2,
}
each_network = pytest.mark.parametrize(
    "network", fashion.NETWORKS, ids=[network.name for network in fashion.NETWORKS]
)


@pytest.fixture
def folder(tmp_path):
    """Small idx files of the data set."""
    draw = np.random.default_rng(0)
    for name, number in zip(places.IDX_FILES, (6, 6, BATCH, BATCH), strict=True):
        shape, highest = ((number, 28, 28), 256) if "images" in name else ((number,), 10)
        array = draw.integers(highest, size=shape).astype(np.uint8)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    return tmp_path


def test_the_first_images_of_both_parts(folder, monkeypatch):
    monkeypatch.setattr(fashion, "TRAIN", 5)
    monkeypatch.setattr(fashion, "TEST", 3)
    data = images.fashion_mnist(folder)
    split = fashion.clothes(folder)
    assert torch.equal(split.train_x * 255, data.train_images[:5].float())
    assert torch.equal(split.test_x * 255, data.test_images[:3].float())
    assert torch.equal(split.train_y, data.train_labels[:5])
    assert torch.equal(split.test_y, data.test_labels[:3])
    small = fashion.small_clothes(folder)
    corner = data.test_images[2, 0, :2, :2].float().mean() / 255
    assert small.test_x.shape == (3, 1, 14, 14)
    torch.testing.assert_close(small.test_x[2, 0, 0, 0], corner)
    assert torch.equal(small.train_y, split.train_y)


@each_network
def test_a_wrapped_network_runs_as_the_library_has_it(network, folder):
    declare_missing_operators()
    x, y, *_ = (part[:BATCH] for part in network.data(folder))
    torch.manual_seed(0)
    model = network.build()
    torch.manual_seed(0)
    wrapped = tssl_adapters.wrap(network.build())
    rows = tssl_adapters.inspect(wrapped)
    assert sum(row.status == "wrapped" for row in rows) == SPIKING_LAYERS[network.name]
    native, output = network.forward(model, x), network.forward(wrapped, x)
    assert torch.equal(output, native)
    assert torch.equal(network.forward(wrapped.eval(), x), network.forward(model.eval(), x))
    assert network.score(output).shape == (BATCH, 10)
    network.loss(output, y).backward()
    assert all(parameter.grad is not None for parameter in wrapped.parameters())


@each_network
def test_each_batch_starts_from_rest(network, folder):
    declare_missing_operators()
    torch.manual_seed(0)
    model, (x, *_) = network.build(), network.data(folder)  # in evaluation none fires yet
    with torch.no_grad():
        first, again = network.forward(model, x), network.forward(model, x)
    assert torch.equal(again, first)


@each_network
def test_a_step_of_the_recipe_lowers_the_loss(network, folder):
    declare_missing_operators()
    x, y, *_ = network.data(folder)
    torch.manual_seed(0)
    model = network.build()
    optimizer = network.optimizer(model)
    losses = []
    for _ in range(8):
        loss = network.loss(network.forward(model, x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_they_are_run_by_name_alone():
    assert suite.chosen(["fashion"]) == list(fashion.NETWORKS)
    assert [network.name for network in fashion.NETWORKS] == list(SPIKING_LAYERS)
    assert not set(suite.chosen(["all"])) & set(fashion.NETWORKS)


def test_what_cannot_be_built_is_left_out_with_its_reason():
    def build():
        raise ImportError("it needs torchvision")

    network = replace(fashion.NETWORKS[0], build=build)
    assert training.refusal(network, "native") == "it needs torchvision"


def test_the_tutorials_loss():
    spikes, labels = (torch.rand(5, 3, 10) < 0.3).float(), torch.tensor([1, 0, 9])
    expected = torch.stack([F.cross_entropy(step, labels) for step in spikes]).mean()
    torch.testing.assert_close(fashion.rate_cross_entropy(spikes, labels), expected)


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'torchvision'"),
        RuntimeError("operator torchvision::nms does not exist"),
    ],
    ids=["missing", "built for another torch"],
)
def test_the_residual_net_says_what_is_missing(error, monkeypatch):
    zoo = importlib.import_module("spikingjelly.activation_based.model")
    monkeypatch.delattr(zoo, "sew_resnet", raising=False)
    monkeypatch.delitem(sys.modules, f"{zoo.__name__}.sew_resnet", raising=False)

    class Finder:
        def find_spec(self, name, path, target=None):
            if name == f"{zoo.__name__}.sew_resnet":
                raise error

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    message = f"SpikingJelly's SEW ResNet needs torchvision, which cannot be imported: {error}"
    with pytest.raises(ImportError, match=f"^{message}$"):
        fashion.sew_resnet18()
