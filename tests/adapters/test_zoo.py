"""The zoo's tool: a quick selection of models through it, what it tells apart, and its record."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import port_zoo
import pytest
import torch
from torch import Tensor, nn
from zoo import table
from zoo.check import check
from zoo.entry import Entry, Row
from zoo.for_spikingjelly import PACKAGE

import tssl_adapters

ROOT = Path(__file__).parents[2]
ENTRIES = list(port_zoo.entries())
BY_NAME = {entry.name: entry for entry in ENTRIES}
WORKS = {
    "spikingjelly: sew_resnet.sew_resnet18 [ADD]": 20,
    "spikingjelly: sew_resnet.SEWResNet [IAND]": 12,
    "spikingjelly: spiking_vgg.spiking_vgg11_bn": 10,
    "spikingjelly: parametric_lif_net.MNISTNet": 4,
    "spikingjelly: parametric_lif_net.MNISTNet [step mode s]": 4,
    "spikingjelly: spikformer.Spikformer": 15,
    "snntorch: fully_connected_learned": 2,
    "snntorch: convolutional_nested": 3,
    "norse: conv_classifier": 3,
    "norse: lifted_vgg": 2,
}
"""A model, and how many of its layers are wrapped."""


@pytest.mark.parametrize("name", WORKS)
def test_a_model_works(name: str) -> None:
    row = check(BY_NAME[name])
    assert (row.verdict, row.reason) == ("works", "")
    assert (row.wrapped, row.refused) == (WORKS[name], 0)
    assert row.taught == row.weights > 0


# Accounting


def listed_in_sources(package: str) -> set[str]:
    """The names in ``__all__`` of a package's modules, read without importing them."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    names = set()
    for path in Path(spec.origin).parent.glob("[!_]*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names |= {f"{path.stem}.{name}" for name in ast.literal_eval(node.value)}
    return names


def test_every_constructor_has_an_entry() -> None:
    entered = {entry.constructor for entry in ENTRIES}
    listed = listed_in_sources(PACKAGE)
    assert len(listed) > 70
    assert listed <= entered
    norse = {f"models.{name}" for name in listed_in_sources("norse.torch.models")}
    assert len(norse) == 11
    assert norse <= entered
    assert len(BY_NAME) == len(ENTRIES)
    assert not [entry.name for entry in ENTRIES if entry.make is None and not entry.note]
    assert not [entry.name for entry in ENTRIES if entry.note == "no recipe"]


def test_the_record_is_complete() -> None:
    rows = table.read(ROOT / "benchmarks" / "zoo.json")
    assert [row.name for row in rows] == [entry.name for entry in ENTRIES]
    assert not [row for row in rows if row.verdict in port_zoo.FAULTS]
    document = (ROOT / "docs" / "zoo.md").read_text()
    assert document.count("\n| `") == len(rows)
    tried = ", ".join(dict.fromkeys(f"`{row.rule}`" for row in rows))
    assert f"under the rule {tried}." in document


# What it tells apart


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from spikingjelly.activation_based import neuron

        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
        self.node = neuron.LIFNode(v_threshold=0.2, step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.node(self.first(x)))
        return out


def small(make: Callable[[], nn.Module] = Small) -> Entry:
    return Entry("spikingjelly", "small", make, shape=(3, 8, 4))


def test_a_sound_model() -> None:
    ran: list[str] = []

    def run(model: nn.Module, x: Tensor) -> Tensor:
        ran.append(str(model))
        out: Tensor = model(x)
        return out

    row = check(replace(small(), run=run))
    assert (row.verdict, row.wrapped, row.weights, row.taught) == ("works", 1, 2, 2)
    assert row.rule == "smooth-tsslbp"
    assert ["SmoothTSSLBP()" in text for text in ran] == [False, True]
    assert row.parameters == 4 * 6 + 6 + 6 * 3 + 3


def tampered(model: nn.Module, rule: str, tamper: Callable[[nn.Module], None]) -> nn.Module:
    real = tssl_adapters.wrap(model, rule=rule)
    tamper(real)
    return real


def other_weight(model: nn.Module) -> None:
    with torch.no_grad():
        model.second.weight.add_(1e-3)


def no_gradient(model: nn.Module) -> None:
    model.node.register_forward_hook(lambda module, args, out: out.detach())


def zero_gradient(model: nn.Module) -> None:
    model.first.weight.register_hook(torch.zeros_like)


def infinite_gradient(model: nn.Module) -> None:
    model.first.weight.register_hook(lambda gradient: gradient / 0)


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (other_weight, "CheckError: forward differs from the native one by up to"),
        (no_gradient, "gradients lost: first.weight: none"),
        (zero_gradient, "gradients lost: first.weight: zero"),
        (infinite_gradient, "gradient not finite: first.weight"),
    ],
)
def test_a_fault_is_found(
    monkeypatch: pytest.MonkeyPatch, tamper: Callable[[nn.Module], None], reason: str
) -> None:
    monkeypatch.setattr("zoo.check.tssl_adapters", _Faulty(tamper))
    row = check(small())
    assert row.verdict == "fails"
    assert row.reason.startswith(reason)


class _Faulty:
    """The package, with a ``wrap`` that breaks what it wraps."""

    def __init__(self, tamper: Callable[[nn.Module], None]) -> None:
        self.wrap = partial(tampered, tamper=tamper)
        self.inspect, self.unwrap = tssl_adapters.inspect, tssl_adapters.unwrap


def test_an_overflow_is_told_from_a_wrong_gradient() -> None:
    class Steep(Small):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            factor = 1e30 if tssl_adapters.is_wrapped(self) else 1.0
            return out.detach() + factor * (factor * (out - out.detach()))

    row = check(small(Steep))
    assert row.verdict == "overflows"
    assert "in float64 finite, up to" in row.reason


def test_the_library_s_own_errors() -> None:
    def broken() -> nn.Module:
        raise ValueError("no such network\nsecond line")

    row = check(small(broken))
    assert (row.verdict, row.reason) == ("library error", "ValueError: no such network")


def test_refusals_carry_the_reason() -> None:
    row = check(BY_NAME["snntorch: spiking_lstm"])
    assert row.verdict == "refused"
    assert row.reason.startswith("SLSTM: an LSTM cell has gates")
    assert row.refused == 2


def test_silent_natively() -> None:
    """What no signal reaches natively is no fault, and is said."""

    class Dead(Small):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(2, 2)

    row = check(small(Dead))
    assert row.verdict == "works, part silent"
    assert row.reason == "1 weights without a native gradient (1 none): unused.weight"


def test_nothing_to_wrap() -> None:
    assert check(small(partial(nn.Linear, 4, 2))).verdict == "nothing to wrap"


# The command


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str) -> list[Row]:
    out, document = tmp_path / "zoo.json", tmp_path / "zoo.md"
    paths = ["--out", str(out), "--table", str(document)]
    monkeypatch.setattr(sys, "argv", ["port_zoo.py", *paths, *arguments])
    with pytest.raises(SystemExit) as ended:
        port_zoo.main()
    rows = table.read(out)
    assert ended.value.code == any(row.verdict in port_zoo.FAULTS for row in rows)
    assert document.read_text().count("\n| `") == len(rows)
    return rows


def test_the_walk_resumes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried: list[str] = []

    def counted(entry: Entry) -> Row:
        tried.append(entry.constructor)
        return replace(check(small()), library=entry.library, model=entry.constructor)

    monkeypatch.setattr(port_zoo, "check", counted)
    threads = torch.get_num_threads()
    first = run(monkeypatch, tmp_path, "--select", "snntorch: reg*")
    both = run(monkeypatch, tmp_path, "--select", "snntorch: [rl]*")
    assert [row.model for row in first] == ["regression", "regression_recurrent"]
    assert both == first  # brackets stand for themselves
    run(monkeypatch, tmp_path, "--select", "snntorch: regression")
    assert tried == ["regression", "regression_recurrent"]
    run(monkeypatch, tmp_path, "--select", "snntorch: regression", "--fresh")
    run(monkeypatch, tmp_path, "--select", "snntorch: regression", "--again", "works")
    assert tried[2:] == ["regression", "regression"]
    torch.set_num_threads(threads)
