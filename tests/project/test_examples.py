"""The training scripts: data, options, log, checkpoints; all three start and learn alike."""

import gzip
import json
import os
import signal
from argparse import Namespace
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import common
import numpy as np
import pytest
import snntorch
import torch
import train_sew_resnet
import train_with_norse
import train_with_snntorch
import train_with_spikingjelly
from idx import idx
from norse.torch.functional.threshold import threshold
from quick import SMALL
from spikingjelly.activation_based import surrogate
from torch import Tensor, nn
from zoo.torchvision_stub import declare_missing_operators

import tssl_adapters
from tssl_adapters import losses, rules
from tssl_adapters.bench import places
from tssl_adapters.bench.data import images, load
from tssl_adapters.bench.measures import SpikeRate
from tssl_adapters.bench.method import batch_loss

GOLDEN = Path(__file__).parents[1] / "golden"
LOG_KEYS = [
    "library", "library_version", "rule", "tau_s", "data", "network", "seed", "epoch",
    "train_loss", "train_accuracy", "test_accuracy", "seconds", "spike_rate",
]  # fmt: skip

LIBRARIES: dict[str, tuple[Any, common.Forward]] = {
    "snntorch": (train_with_snntorch, train_with_snntorch.Net.forward),
    "spikingjelly": (train_with_spikingjelly, train_with_spikingjelly.run),
    "norse": (train_with_norse, train_with_norse.run),
}
every_library = pytest.mark.parametrize("library", LIBRARIES)


def write_fashion_mnist(folder: Path, compress: bool) -> None:
    folder.mkdir(parents=True)
    for i, name in enumerate(places.IDX_FILES):
        array = np.full((3, 28, 28) if "images" in name else 3, i, np.uint8)
        path = folder / (f"{name}.gz" if compress else name)
        path.write_bytes(gzip.compress(idx(array)) if compress else idx(array))


# Data


@pytest.mark.parametrize("compress", [False, True])
def test_idx_files_read_back(tmp_path, compress):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / ("file.gz" if compress else "file")
    path.write_bytes(gzip.compress(idx(array)) if compress else idx(array))
    assert torch.equal(images.read_idx(path), torch.from_numpy(array))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an idx file of unsigned bytes"),
        (b"\0\0\x0d\1\0\0\0\0", "is not an idx file of unsigned bytes"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], r"holds 5 bytes, \[2, 3\] were announced"),
    ],
)
def test_idx_reader_refuses(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        images.read_idx(path)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("layout", ["", "FashionMNIST/raw"])
def test_fashion_mnist_is_found_in_the_data_dir(tmp_path, layout, compress):
    write_fashion_mnist(tmp_path / "root" / layout, compress)
    data = images.fashion_mnist(tmp_path / "root")
    assert [len(tensor) for tensor in data] == [3, 3, 3, 3]
    assert [int(tensor.flatten()[0]) for tensor in data] == [0, 1, 2, 3]
    assert data.train_images.shape == (3, 1, 28, 28)


def test_fashion_mnist_is_found_in_the_usual_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "DATASETS_FOLDER", tmp_path / "debian")
    write_fashion_mnist(tmp_path / "data/FashionMNIST/raw", compress=False)
    assert places.find_idx_files("Fashion-MNIST", None) == Path("data/FashionMNIST/raw")
    write_fashion_mnist(tmp_path / "debian/fashion-mnist", compress=True)
    assert places.find_idx_files("Fashion-MNIST", None) == tmp_path / "debian/fashion-mnist"


def test_error_where_fashion_mnist_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "DATASETS_FOLDER", tmp_path / "debian")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(FileNotFoundError) as caught:
        places.find_idx_files("Fashion-MNIST", None)
    folders = [
        "debian/fashion-mnist",
        *(f"{root}FashionMNIST/raw" for root in ("", "data/", "home/data/")),
    ]
    said = str(caught.value)
    for text in [
        *(str(tmp_path / folder) for folder in folders),
        places.IDX_FILES[0],
        "apt-get install dataset-fashion-mnist",
        "torchvision.datasets.FashionMNIST('data', download=True)",
        "--data-dir",
    ]:
        assert text in said
    assert "\n" not in said


def test_script_ends_with_that_error_and_looks_in_no_other_folder(tmp_path):
    with pytest.raises(SystemExit) as caught:
        train_with_snntorch.main(["--data", "fashion-mnist", "--data-dir", str(tmp_path)])
    looked_in = f"are not in {tmp_path}, {tmp_path}/FashionMNIST/raw; name their folder"
    assert looked_in in str(caught.value)


@pytest.mark.parametrize(
    ("name", "train", "test"), [("digits", 1438, 359), ("mnist5k", 4000, 1000)]
)
def test_embedded_data(name, train, test):
    data = load(name, None, 5)
    assert (len(data.train_labels), len(data.test_labels)) == (train, test)
    assert data.train_images.dtype == torch.uint8
    assert int(data.train_images.max()) == 255
    assert sorted(set(data.test_labels[:100].tolist())) == list(range(10))


def test_input_is_normalised_repeated_and_filtered():
    pixels = torch.tensor([[0, 255]], dtype=torch.uint8)
    normalised = torch.tensor([[-0.1307, 0.8693]]) / 0.3081
    torch.testing.assert_close(common.encode(pixels, 2, 1.0), normalised.expand(2, 1, 2))
    filtered = common.encode(pixels, 2, 3.0)
    torch.testing.assert_close(filtered, torch.stack([normalised / 3, normalised * 5 / 9]))


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--tau-s 0.5", "--tau-s must be a finite number, 1 or more, not 0.5"),
        ("--tau-s nan", "--tau-s must be a finite number, 1 or more, not nan"),
        ("--network 400-x", "--network must be cnn or sizes such as 400-400, not 400-x"),
        ("--network cnn --data digits", "--network cnn needs images of 28 x 28"),
        ("--tau-s 3 --time-steps 1", "--loss kernel needs --time-steps 2 or more"),
        ("--epochs 0", "--epochs: must be 1 or more, not 0"),
    ],
)
def test_options_refused(capsys, options, message):
    with pytest.raises(SystemExit):
        common.parse_args("norse", "", options.split())
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "loss", "batch_size"),
    [
        ("", "cross-entropy", 100),
        ("--tau-s 3", "kernel", 100),
        ("--network cnn --tau-s 3 --loss count", "count", 50),
    ],
)
def test_defaults_that_follow_other_options(options, loss, batch_size):
    args = common.parse_args("norse", "", options.split())
    assert (args.loss, args.batch_size) == (loss, batch_size)


def test_rule_that_the_model_is_wrapped_with():
    def chosen(options: str) -> object:
        args = common.parse_args("norse", "", options.split())
        return common.chosen_rule(args, train_with_norse.superspike_derivative)

    assert chosen("--rule native") is None
    assert chosen("--rule native --tau-s 3") == rules.SurrogateGradient(
        train_with_norse.superspike_derivative
    )
    assert chosen("--rule tsslbp --tau-s 3") == chosen("--rule tsslbp") == rules.TSSLBP()
    assert chosen("--rule smooth-tsslbp") == chosen("--tau-s 3") == rules.SmoothTSSLBP()
    assert chosen("") == rules.SmoothTSSLBP()


# The three networks


@pytest.mark.parametrize(
    ("derivative", "spike"),
    [
        (train_with_snntorch.arctan_derivative, snntorch.Leaky(0.5).spike_grad),
        (train_with_spikingjelly.sigmoid_derivative, surrogate.Sigmoid()),
        (
            train_with_norse.superspike_derivative,
            lambda x: threshold(x, "super", torch.tensor(100)),
        ),
    ],
    ids=LIBRARIES,
)
def test_native_derivative_is_the_librarys(derivative, spike: Callable[[Tensor], Tensor]):
    x = torch.linspace(-2, 2, 41, requires_grad=True)
    spike(x).sum().backward()
    torch.testing.assert_close(derivative(x.detach()), x.grad)


@pytest.mark.parametrize("network", ["20-30", "cnn"])
def test_weights_start_equal(network):
    weights = []
    for module, _ in LIBRARIES.values():
        model = module.build_network(network, 784)
        common.init_weights(model, seed=1)
        weights.append(list(model.parameters()))
    for first, *others in zip(*weights, strict=True):
        assert first.std() > 0
        for other in others:
            assert torch.equal(first, other)


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize(
    "rule", [rules.SmoothTSSLBP(reset_path="complete"), rules.TSSLBP()], ids=str
)
@pytest.mark.parametrize("network", ["20-30", "cnn"])
def test_networks_compute_and_learn_the_same(network, rule, tau_s):
    """Under a rule that says what goes through the reset; libraries differ in that."""
    pixels = torch.randint(256, (4, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    found = []
    for module, run in LIBRARIES.values():
        model = module.build_network(network, 784)
        common.init_weights(model, seed=1)
        tssl_adapters.wrap(model, rule=rule, tau_s=tau_s)
        output = run(model, common.encode(pixels, 5, tau_s))
        batch_loss("count", output, torch.arange(4), tau_s).backward()
        found.append((output, [weight.grad for weight in model.parameters()]))
    for output, gradients in found[1:]:
        torch.testing.assert_close(output, found[0][0])
        for gradient, first in zip(gradients, found[0][1], strict=True):
            assert first.norm() > 0
            assert (gradient - first).norm() <= 1e-5 * first.norm()


@every_library
def test_first_step_gradients_are_the_authors(library):
    module, run = LIBRARIES[library]
    with np.load(GOLDEN / "fc_network_t5.npz") as arrays:
        golden = {key: torch.from_numpy(arrays[key]).float() for key in arrays.files}
    model = module.build_network("64-64", 48)
    tssl_adapters.wrap(model, rule="tsslbp", tau_s=golden["tau_s"].item())
    with torch.no_grad():
        for i, weight in enumerate(model.parameters()):
            weight.copy_(golden[f"weight{i}_initial"])
    output = run(model, golden["input_psc"])
    torch.testing.assert_close(output, golden["output_psc"])
    loss = batch_loss("kernel", output, golden["labels"].long(), golden["tau_s"].item())
    torch.testing.assert_close(loss, golden["losses"][0])
    loss.backward()
    for i, weight in enumerate(model.parameters()):
        expected = golden[f"weight{i}_grad_first_step"]
        assert (weight.grad - expected).norm() <= 1e-5 * expected.norm()


def test_pooling_sums_times_1_1():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    expected = 1.1 * torch.tensor([[[[10.0, 18.0], [42.0, 50.0]]]])
    torch.testing.assert_close(common.SumPool2d()(x), expected)
    torch.testing.assert_close(common.SumPool2d()(x[None]), expected[None])


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
@pytest.mark.parametrize("stepwise", [False, True])
def test_spike_rate_from_what_is_emitted(tau_s, stepwise):
    spikes = (torch.rand(5, 4, 6) < 0.3).float()
    layer = nn.Identity()
    with SpikeRate(nn.Sequential(layer), nn.Identity, tau_s) as spike_rate:
        emitted = losses.psc(spikes, tau_s)
        for output in emitted if stepwise else [emitted]:
            layer(output)
        spike_rate.end_sequence(num_steps=5)
    assert spike_rate.rate == pytest.approx(spikes.mean().item(), rel=1e-5)
    assert not layer._forward_hooks


# Runs


def run_script(library: str, folder: Path, *options: str) -> tuple[list[common.Record], Any]:
    """Train on a few digits; the records, and the checkpoint left behind."""
    checkpoint = folder / "run.pt"
    where = ["--checkpoint", str(checkpoint), "--log", str(folder / "log" / "run.jsonl")]
    records = LIBRARIES[library][0].main([*SMALL, *where, *options])
    return records, torch.load(checkpoint, weights_only=True)


def read_log(folder: Path) -> list[common.Record]:
    return [json.loads(line) for line in (folder / "log" / "run.jsonl").read_text().splitlines()]


def but_seconds(records: list[common.Record]) -> list[common.Record]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def assert_equal_state(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if key == "records":
            assert but_seconds(found[key]) == but_seconds(value)
            continue
        if isinstance(value, dict):
            assert_equal_state(found[key], value)
        elif isinstance(value, Tensor):
            assert torch.equal(found[key], value), key
        elif key != "seconds":
            assert found[key] == value, key


@every_library
def test_log(library, tmp_path):
    records, _ = run_script(library, tmp_path, "--epochs", "1", "--tau-s", "3")
    (logged,) = read_log(tmp_path)
    assert list(logged) == LOG_KEYS
    assert [logged] == records
    settings = {key: logged[key] for key in ("library", "rule", "tau_s", "data", "network", "seed")}
    assert settings == {
        "library": library, "rule": "smooth-tsslbp", "tau_s": 3.0, "data": "digits",
        "network": "20", "seed": 3,
    }  # fmt: skip
    assert logged["epoch"] == 1
    assert logged["train_loss"] > 0 < logged["seconds"]
    for key in ("train_accuracy", "test_accuracy", "spike_rate"):
        assert 0 < logged[key] < 1


@pytest.mark.parametrize("tau_s", ["1", "3"])
@pytest.mark.parametrize("rule", ["native", "smooth-tsslbp", "tsslbp"])
@every_library
def test_scripts_learn(library, rule, tau_s, tmp_path):
    options = f"--rule {rule} --tau-s {tau_s}"
    options += " --data mnist5k --limit 500 --network 60 --lr 0.003 --epochs 5"
    records, checkpoint = run_script(library, tmp_path, *options.split())
    assert records[-1]["test_accuracy"] > 0.5
    assert records[-1]["train_loss"] < 0.7 * records[0]["train_loss"]
    assert checkpoint["progress"]["best"] == max(record["test_accuracy"] for record in records)


@pytest.mark.parametrize("tau_s", ["1", "3"])
@every_library
def test_resumed_run_equals_an_uninterrupted_one(library, tau_s, tmp_path):
    options = ["--tau-s", tau_s, "--epochs"]
    whole, expected = run_script(library, tmp_path / "whole", *options, "2")
    first, _ = run_script(library, tmp_path / "parts", *options, "1")
    second, found = run_script(library, tmp_path / "parts", *options, "2", "--resume")
    assert but_seconds(first + second) == but_seconds(whole)
    assert read_log(tmp_path / "parts") == first + second
    assert_equal_state(found, expected)


@pytest.fixture
def ctrl_c_works():
    """A shell ignores ctrl-C for what it starts in the background, the tests perhaps."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("batches", [2, 4, 5])
def test_ctrl_c_leaves_a_checkpoint_that_goes_on_exactly(
    ctrl_c_works, batches, tmp_path, monkeypatch
):
    _, expected = run_script("spikingjelly", tmp_path / "whole", "--epochs", "2")
    train_batch = common.Trainer._train_batch
    done = []

    def press(self: common.Trainer, inputs: Tensor, labels: Tensor) -> None:
        done.append(labels)
        if len(done) == batches:  # of 4 an epoch; the batch goes on to its end
            os.kill(os.getpid(), signal.SIGINT)
        train_batch(self, inputs, labels)

    monkeypatch.setattr(common.Trainer, "_train_batch", press)
    with pytest.raises(SystemExit, match=r"interrupted; --resume goes on from .*run\.pt"):
        run_script("spikingjelly", tmp_path / "parts", "--epochs", "2")
    assert len(done) == batches
    _, found = run_script("spikingjelly", tmp_path / "parts", "--epochs", "2", "--resume")
    assert len(done) == 8
    assert_equal_state(found, expected)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_second_ctrl_c_does_not_wait(ctrl_c_works):
    with common.Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.pressed
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_checkpoint_is_kept_where_writing_a_new_one_fails(tmp_path, monkeypatch):
    _, before = run_script("spikingjelly", tmp_path, "--epochs", "1")

    def fail(checkpoint: object, path: Path) -> None:
        path.write_bytes(b"half a check")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        run_script("spikingjelly", tmp_path, "--epochs", "2", "--resume")
    assert_equal_state(torch.load(tmp_path / "run.pt", weights_only=True), before)


def test_resume_refuses(tmp_path):
    with pytest.raises(SystemExit, match=r"no checkpoint at .*run\.pt to resume"):
        run_script("spikingjelly", tmp_path, "--resume")
    run_script("spikingjelly", tmp_path, "--epochs", "1")
    with pytest.raises(SystemExit, match=r"was made with --tau-s 1\.0, not 3\.0"):
        run_script("spikingjelly", tmp_path, "--resume", "--tau-s", "3")


def test_weights_are_clamped_and_gradients_clipped():
    args: Namespace = common.parse_args("norse", "", [*SMALL, "--lr", "100"])
    model = train_with_norse.build_network("20", 64)
    common.init_weights(model, seed=0)
    data = common.load_data(args)
    trainer = common.make_trainer(
        args, model, train_with_norse.run, data, train_with_norse.norse.LIFBoxCell
    )
    trainer._train_batch(data.train_images[:50], data.train_labels[:50])
    weights = list(model.parameters())
    assert max(weight.abs().max().item() for weight in weights) == 4.0
    norm = torch.stack([weight.grad.norm() for weight in weights]).norm().item()
    assert norm <= 1 + 1e-5


# SEW ResNet


def test_sew_resnet_starts_alike_under_every_rule(tmp_path, monkeypatch):
    """The same weights, another gradient in the first convolution, and a record of each."""
    declare_missing_operators()
    monkeypatch.chdir(tmp_path)
    small = "--data digits --limit 8 --batch-size 8 --epochs 1 --time-steps 2 --quiet".split()
    seen: list[nn.Module] = []
    build = train_sew_resnet.build_network
    monkeypatch.setattr(train_sew_resnet, "build_network", lambda: seen.append(build()) or seen[-1])
    chosen = ("native", "smooth-tsslbp", "tsslbp")
    records = [train_sew_resnet.main([*small, "--rule", rule]) for rule in chosen]
    assert [record["network"] for (record,) in records] == ["sew_resnet18"] * 3
    assert [record["rule"] for (record,) in records] == list(chosen)
    assert [tssl_adapters.is_wrapped(model) for model in seen] == [False, True, True]
    weights = [model.conv1.weight for model in seen]
    lr = 2 * 5e-4  # as far as one step of AdamW can go
    for one, other in combinations(weights, 2):
        assert not torch.equal(one, other)
        assert torch.allclose(one, other, atol=2 * lr)
    assert len({record["train_loss"] for (record,) in records}) == 1


def test_sew_resnet_emits_spikes_only():
    with pytest.raises(SystemExit, match="--tau-s 1"):
        train_sew_resnet.main(["--data", "digits", "--tau-s", "3"])
