"""``bench model``: a user's own builder, in each library."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bench_cases import results
from spikingjelly.activation_based import neuron, surrogate
from torch import nn

import tssl_adapters
from tssl_adapters.bench import user
from tssl_adapters.bench.__main__ import main

HEAD = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from tssl_adapters.bench.user import Task

def loaders():
    x, y = torch.rand(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    data = TensorDataset(4 * x + 4 * torch.nn.functional.one_hot(y, 3).repeat(1, 2), y)
    return DataLoader(data, batch_size=10, shuffle=True), DataLoader(data, batch_size=20)
"""
BUILDERS = {
    "spikingjelly": """
from spikingjelly.activation_based import neuron

class Net(torch.nn.Sequential):
    def forward(self, x):
        return super().forward(x.expand(4, *x.shape))

def build():
    lif = lambda: neuron.LIFNode(v_threshold=0.3, step_mode="m", decay_input=False)
    return Net(torch.nn.Linear(6, 20), lif(), torch.nn.Linear(20, 3), lif()), *loaders()
""",
    "snntorch": """
import snntorch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = torch.nn.Linear(6, 20), snntorch.Leaky(0.9, init_hidden=True)
        self.fc2, self.lif2 = torch.nn.Linear(20, 3), snntorch.Leaky(0.9, init_hidden=True)

    def forward(self, x):
        return torch.stack([self.lif2(self.fc2(self.lif1(self.fc1(x)))) for _ in range(4)])

def build():
    return Net(), *loaders()
""",
    "norse": """
import norse.torch as norse

def forward(model, x):
    outputs, state = [], None
    for _ in range(4):
        output, state = model(3 * x, state)
        outputs.append(output)
    return torch.stack(outputs)

def build():
    model = norse.SequentialState(
        torch.nn.Linear(6, 20), norse.LIFBoxCell(), norse.LILinearCell(20, 3)
    )
    train, test = loaders()
    adam = lambda parameters: torch.optim.Adam(parameters, lr=0.01)
    return Task(model, train, test, forward=forward, optimizer=adam)
""",
}  # fmt: skip


def write_builder(folder: Path, library: str) -> str:
    path = folder / "mine.py"
    path.write_text(HEAD + BUILDERS[library])
    return f"{path}:build"


def command(source: str, folder: Path, options: str) -> int:
    where = ["--workers", "0", "--quiet", "--out", str(folder)]
    return main(["model", source, *options.split(), *where])


@pytest.mark.filterwarnings("ignore:tssl_adapters. TSSLBP lets the gradient grow over time")
@pytest.mark.parametrize("library", BUILDERS)
def test_own_model_is_compared_and_goes_on(library: str, tmp_path: Path) -> None:
    source = write_builder(tmp_path, library)
    options = "--rules native,tsslbp --seeds 2 --epochs"
    assert command(source, tmp_path / "whole", f"{options} 2") == 0
    assert command(source, tmp_path / "parts", f"{options} 1") == 0
    assert command(source, tmp_path / "parts", f"{options} 2") == 0
    found, parts = (results(tmp_path / folder) for folder in ("whole", "parts"))
    for line in (*found, *parts):
        assert line.pop("kept_bytes") > 0  # a state's first value is another after a reset
    assert found == parts
    assert [line["seed"] for line in found] == [0] * 4 + [1] * 4
    assert {(line["library"], line["data"], line["loss"]) for line in found} == {
        (library, "mine", "own")
    }
    losses = {rule: [line["train_loss"] for line in found if line["rule"] == rule]
              for rule in ("native", "tsslbp")}  # fmt: skip
    assert losses["native"] != losses["tsslbp"]
    assert all(0 < line["spike_rate"] < 1 for line in found)
    assert "| tsslbp |" in (tmp_path / "whole" / "report.md").read_text()


def test_native_of_a_psc_emitting_model_is_each_layers_own_surrogate() -> None:
    """Not the library's default, where the model was made with another."""
    made = surrogate.ATan()
    model = nn.Sequential(nn.Linear(4, 4), neuron.LIFNode(surrogate_function=made))
    user.apply_rule(model, "native", 3.0)
    (row,) = [row for row in tssl_adapters.inspect(model) if row.status == "wrapped"]
    assert "tau_s=3" in row.detail
    x = torch.linspace(-1, 1, 9)
    derivative = model[1]._tssl_settings.rule.derivative
    torch.testing.assert_close(derivative(x), 1 / (1 + (torch.pi * x) ** 2))


def test_native_is_left_alone_at_tau_s_1() -> None:
    model = nn.Sequential(nn.Linear(4, 4), neuron.LIFNode())
    user.apply_rule(model, "native", 1.0)
    assert not tssl_adapters.is_wrapped(model)


def test_stdbp_is_wrapped_onto_layers_that_suit_it() -> None:
    """Others are refused by name, as `wrap` does."""
    model = nn.Sequential(nn.Linear(4, 4), neuron.IFNode())
    user.apply_rule(model, "stdbp", 1.0)
    assert str(model[1]._tssl_settings.rule) == "STDBP()"
    with pytest.raises(tssl_adapters.errors.UnsupportedConfigError, match=r"1 \(spiking.*leaks"):
        user.apply_rule(nn.Sequential(nn.Linear(4, 4), neuron.LIFNode()), "stdbp", 1.0)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "missing.py:build",
            "missing.py:build: there is no file missing.py",
        ),
        ("mine.py:nothing", "mine.py has no nothing"),
        ("mine.py:__name__", "mine.py:__name__ is no function"),
        ("mine.py:loaders", "must return model, train batches and test batches"),
    ],
)
def test_refusals(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write_builder(tmp_path, "spikingjelly")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        command(source, tmp_path / "out", "")
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_model_without_spiking_layers() -> None:
    with pytest.raises(user.BuilderError, match="Linear: no layer to wrap"):
        user.library_of(nn.Linear(2, 2))
