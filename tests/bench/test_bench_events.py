"""Event data, from a folder as tonic leaves it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bench_cases import accuracy, results

from tssl_adapters.bench import data
from tssl_adapters.bench.method import encode

pytest.importorskip("tonic")
h5py = pytest.importorskip("h5py")

UNITS = 700


@pytest.fixture
def shd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve recordings of 1 s: recording i, of class i % 3, spikes in unit i alone.

    At 0, 0.6, 0.8 and 0.99 s; to tonic the last event is where the last frame ends.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "data" / "SHD"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        with h5py.File(folder / f"shd_{part}.h5", "w") as file:
            times = file.create_dataset("spikes/times", (12,), h5py.vlen_dtype(np.float32))
            units = file.create_dataset("spikes/units", (12,), h5py.vlen_dtype(np.int32))
            for i in range(12):
                times[i] = np.array([0.0, 0.6, 0.8, 0.99], np.float32)
                units[i] = np.full(4, i, np.int32)
            file["labels"] = np.arange(12) % 3
            file["extra/keys"] = np.array([b"a", b"b", b"c"])
            file["extra/speaker"] = np.zeros(12)
        (folder / f"shd_{part}.h5.zip").write_bytes(b"")
    return tmp_path / "data"


def test_events_are_counted_into_frames(shd: Path) -> None:
    found = data.load("shd", shd, 2)
    assert found.train_images.shape == (12, 2, 1, 1, UNITS)
    assert found.sample_shape == (1, 1, UNITS)
    assert found.num_classes == 3
    fired = found.train_images[:, 0, 0, 0].argmax(1)
    assert sorted(fired.tolist()) == list(range(12))
    assert fired.tolist() != list(range(12))  # sets that come class by class are mixed
    assert torch.equal(found.train_labels, fired % 3)
    assert torch.equal(found.test_labels, found.train_labels)
    expected = torch.zeros(12, 2, UNITS, dtype=torch.uint8)
    for i, unit in enumerate(fired):
        expected[i, 0, unit], expected[i, 1, unit] = 1, 2
    assert torch.equal(found.train_images.flatten(2), expected)
    x = encode(found.train_images, 2, 1.0)
    assert x.shape == (2, 12, 1, 1, UNITS)
    assert x[1, 5, 0, 0, fired[5]] == 2


def test_frames_are_made_once(shd: Path) -> None:
    first = data.load("shd", shd, 2)
    again = data.load("shd", Path("/nowhere"), 2, limit=5)
    assert torch.equal(again.train_images, first.train_images[:5])


def test_training_on_events(shd: Path, tmp_path: Path) -> None:
    options = f"--data shd --data-dir {shd} --libraries spikingjelly --rules tsslbp"
    assert accuracy(tmp_path / "out", f"{options} --seeds 1 --epochs 1 --batch-size 4") == 0
    (line,) = results(tmp_path / "out")
    assert line["data"] == "shd"


@pytest.mark.parametrize("there", [False, True])
def test_nothing_is_downloaded(
    there: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nor is anything written where the folder is missing, or holds no recordings."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if there:
        (tmp_path / "NMNIST").mkdir()
    options = f"--data n-mnist --data-dir {tmp_path} --libraries norse --rules tsslbp --seeds 1"
    with pytest.raises(SystemExit, match="2"):
        accuracy(tmp_path / "out", f"{options} --epochs 1")
    said = capsys.readouterr().err
    assert f"n-mnist's recordings are not in {tmp_path}/NMNIST; name the folder that was" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
