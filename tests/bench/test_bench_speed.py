"""``bench speed``: figures that no machine moves, its file, its plots, its verdicts."""

from __future__ import annotations

import json
import platform
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreter import python
from spikingjelly.activation_based import functional, neuron

import tssl_adapters
from tssl_adapters.adapters import Wrapped
from tssl_adapters.bench.__main__ import main
from tssl_adapters.bench.speed import (
    cases,
    contestants,
    first,
    floors,
    measure,
    plots,
    tables,
    works,
)
from tssl_adapters.bench.speed.cases import Case, Plan, run_case
from tssl_adapters.bench.speed.floors import Floor, best, status
from tssl_adapters.bench.speed.measure import Timing
from tssl_adapters.bench.speed.quadratic import QuadraticTSSLBP
from tssl_adapters.rules import BY_NAME

pytestmark = pytest.mark.filterwarnings(
    "ignore:tssl_adapters. TSSLBP lets the gradient grow over time"
)

CPU = torch.device("cpu")
PLAN = Plan(CPU, rounds=1, compiled=False, memory=False)
ENGINES = ("torch", "cpu")
RULE = PLAN.rule


def work(name: str) -> works.Work:
    return works.load([name])[0][0]


@pytest.mark.parametrize("tau_s", [1.0, 3.0])
def test_quadratic_recursion_has_our_gradient(tau_s: float) -> None:
    layer = neuron.LIFNode(tau=5.0, decay_input=False, v_reset=0.0, step_mode="m").double()
    tssl_adapters.wrap(layer, rule="tsslbp", tau_s=tau_s)
    theirs = QuadraticTSSLBP(0.8, 1.0, 1.0, tau_s)
    generator = torch.Generator().manual_seed(3)
    x, gradient = torch.randn(2, 13, 3, 7, generator=generator, dtype=torch.float64)
    outs, grads = [], []
    for model in (layer, theirs):
        functional.reset_net(model)
        drive = x.clone().requires_grad_()
        out = model(drive)
        outs.append(out)
        grads.append(torch.autograd.grad(out, drive, gradient)[0])
    assert 0.05 < (outs[0] > 0).double().mean() < 0.95
    assert torch.equal(*outs)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["spikingjelly-lif", "norse-lif"])
def test_sequences_keep_the_drive_and_a_row_of_their_state(name: str) -> None:
    """At rest, Norse's potential and current are one tensor of zeros."""
    steps, neurons = 10, 64
    rows = {
        row["contestant"]: row for row in run_case(Case(work(name), steps, 1, neurons), PLAN, print)
    }
    for engine in ENGINES:
        for tau_s in (1.0, 3.0):
            kept = rows[contestants.named(engine, tau_s)]["drives_kept"]
            assert kept == pytest.approx(1 + 1 / steps, abs=0.01)
    assert rows["native"]["drives_kept"] == pytest.approx(3.0, abs=0.05)


def test_every_contestant_runs_the_same_forward() -> None:
    for mine in works.load()[0]:
        x = torch.randn(4, 3, works.INPUTS).mul_(mine.gain)
        entries = list(contestants.contestants(mine, CPU, torch.float32, [1.0], False, RULE))
        assert len(entries) >= 1 + len(ENGINES)
        expected = mine.run(entries[0].model, x)
        assert mine.is_network or expected.any()
        for entry in entries:
            if entry.name != contestants.PRODUCTS:
                assert torch.equal(entry.run(entry.model, x), expected), (mine.name, entry.name)


def test_wrapped_contestants_have_the_rule_that_the_page_names() -> None:
    page = (Path(__file__).parents[2] / "docs/speed.md").read_text()
    named = re.findall(r'^\*\*Time and memory\*\* under `rule="([\w-]+)"`', page, re.M)
    assert named == [RULE]
    rule = [BY_NAME[name]() for name in named]
    for mine in works.load()[0]:
        for entry in contestants.contestants(mine, CPU, torch.float32, [1.0, 3.0], False, RULE):
            layers = [layer for layer in entry.model.modules() if isinstance(layer, Wrapped)]
            assert bool(layers) == entry.name.startswith(ENGINES), entry.name
            assert all([layer._tssl_settings.rule] == rule for layer in layers)


def test_connections_alone_have_the_networks_weights() -> None:
    for mine in works.load()[0]:
        native, *others = contestants.contestants(mine, CPU, torch.float32, [1.0], False, RULE)
        alone = [entry for entry in others if entry.name == contestants.PRODUCTS]
        assert len(alone) == mine.is_network
        for entry in alone:
            theirs = [p for p in native.model.parameters() if p.dim()]
            assert [p.shape for p in entry.model.parameters()] == [p.shape for p in theirs]
            assert all(map(torch.equal, entry.model.parameters(), theirs))
            assert entry.run(entry.model, torch.ones(4, 3, works.INPUTS)).shape == (4, 3, 10)


def test_medians_of_rounds() -> None:
    native = [Timing(1.0, 3.0, 9.0), Timing(10.0, 30.0, 3.0), Timing(1.0, 3.0, 1.0)]
    ours = [Timing(1.0, 1.0, 3.0), Timing(5.0, 5.0, 3.0), Timing(0.25, 0.25, 0.2)]
    assert measure.median(native) == 4.0
    assert measure.ratio(native, ours) == 4.0  # of 2, 4 and 8
    assert measure.ratio(native, ours, "forward") == 2.0  # of 1, 2 and 4
    assert measure.ratio(native, ours, "processor") == 3.0  # of 3, 1 and 5


def test_turns_and_budget() -> None:
    calls: list[str] = []

    class Told:
        def __init__(self, name: str) -> None:
            self.name = name

        def forward(self) -> None:
            calls.append(self.name)

        def backward(self, out: None) -> None:
            calls.append(self.name.upper())

    taken = measure.in_turns({"a": Told("a"), "b": Told("b")}, CPU, rounds=9, budget=0.0)
    assert calls == ["a", "A", "b", "B"] * 3
    assert [len(runs) for runs in taken.values()] == [3, 3]


PEAK = """
import torch
from tssl_adapters.bench.speed.memory import keep_freed_memory, peak_bytes

class Hungry:
    def forward(self):
        for _ in range(4):
            torch.ones(2**24)
    def backward(self, out):
        pass

torch.ones(2**25)
keep_freed_memory()  # as the command does
print(json.dumps(peak_bytes(Hungry(), torch.device("cpu"))))
"""


def test_peak_memory_is_what_a_run_holds_at_once() -> None:
    """64 MiB come and go four times; 128 MiB are held by nobody before. In a process of its own, as
    what the heap looks like after other tests counts too.
    """
    peak = python(PEAK)
    if peak is None:
        pytest.skip("this system does not tell")
    assert peak / 2**20 == pytest.approx(64, abs=4)


FAULTS = """
import resource, torch
from tssl_adapters.bench.speed.memory import keep_freed_memory
keep_freed_memory()
for _ in range(4):  # until the heap has a place that fits
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_at_hand_again() -> None:
    """64 MiB, as often as not 16,384 page faults, come from the heap again and again."""
    assert python(FAULTS) < 16


def row(contestant: str, **figures: float) -> dict[str, Any]:
    return {"contestant": contestant, **figures}


@pytest.mark.parametrize(
    ("sense", "bound", "measured", "met"),
    [
        ("at least", 4.0, 4.0, True),
        ("at least", 4.0, 3.98, False),
        ("at most", 1.2, 1.204, True),
        ("at most", 1.2, 1.21, False),
        ("above", 1.0, 1.0, False),
        ("above", 1.0, 1.01, True),
        ("above", 1.0, None, None),
    ],
)
def test_verdicts(sense: Any, bound: float, measured: float | None, met: bool | None) -> None:
    floor = Floor("a layer", "times faster", sense, bound, measured)
    assert floor.met is met
    assert floor.record()["met"] is met
    assert status([floor]) == int(met is False)
    assert list(tables.verdicts([floor]).columns[-1].cells) == [tables.VERDICTS[met]]


def test_best_of_the_engines() -> None:
    figures = [("native", 9.0), ("a", 2.0), ("b", 3.0)]
    rows = [row(name, times_less_processor=value) for name, value in figures]
    assert best(rows, ["a", "b"])["contestant"] == "b"


def test_floors_are_the_tables_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """On made-up figures: each engine four times the native speed, the T x T recursion hopeless."""
    names = [contestants.named(engine, tau, layerwise) for engine in ENGINES
             for tau in (1.0, 3.0) for layerwise in (False, True)]  # fmt: skip
    made_up = [
        row(name, times_less_processor=4.0, processor_s=1.0, drives_kept=1.01) for name in names
    ]

    def run(case: Case, plan: Plan, leave_out: Any) -> list[dict[str, Any]]:
        return [
            *made_up,
            row("T x T, tau_s = 3", processor_s=float(case.steps), times_less_processor=0.1),
            row("connections alone", times_less_processor=8.0),
        ]

    def grown(layer: works.Work, plan: Plan, neurons: int) -> list[dict[str, Any]]:
        return [row("native", processor_ratio=9.0), row("torch, tau_s = 1", processor_ratio=1.1)]

    monkeypatch.setattr(floors, "run_case", run)

    def stepped(*_: Any) -> list[dict[str, Any]]:
        faster = {"native": 1.0, "smooth-tsslbp": 2.0, "native-compiled": 0.9}
        return [
            {"network": "a-network", "rule": rule, "times_less_processor": ratio}
            for rule, ratio in faster.items()
        ]

    monkeypatch.setattr(floors, "first_call", lambda name, rule: 0.6 if rule == RULE else 0.2)
    monkeypatch.setattr(floors, "first_import", lambda: 0.05)
    monkeypatch.setattr(floors, "time_growth", grown)
    monkeypatch.setattr(floors, "network_steps", stepped)
    found = list(floors.against_floors(works.load()[0], PLAN, print))
    verdicts = [(floor.bound, floor.measured, floor.met) for floor in found]
    faster = [verdict for floor, verdict in zip(found, verdicts, strict=True)
              if floor.figure.startswith("times faster than")]  # fmt: skip
    assert faster == [
        (4.2, 4.0, False), (4.2, 4.0, False), (3.3, 4.0, True),
        (8.5, 4.0, False), (8.5, 4.0, False), (7.0, 4.0, False), *[(20.0, 4.0, False)] * 3,
        (3.0, 4.0, True),
        *[(3.0, 4.0, True), (3.0, 4.0, True), (2.5, 4.0, True), (2.5, 4.0, True)] * 3,
        (0.97, 2.0, True), (1.3, 2.0, True),
        (0.97, 0.9, False), (1.3, 0.9, False), (1.0, None, None),
    ]  # fmt: skip
    assert [v for v in verdicts if v[0] == 0.85] == [(0.85, 0.5, False)]
    assert [v for v in verdicts if v[0] == 1.2] == [(1.2, 1.1, True)] * 6
    assert verdicts[-4:-2] == [(10.0, 100.0, True), (1.0, 2.0, True)]
    assert [floor.met for floor in found if floor.what.startswith("GPU")] == [None, None]
    kept = [floor.met for floor in found if floor.figure.startswith("drives kept")]
    assert kept == [True] * 21
    began = [verdict for floor, verdict in zip(found, verdicts, strict=True)
             if floor.figure.startswith("seconds")]  # fmt: skip
    assert began == [*[(0.5, 0.6, False), (0.5, 0.2, True)] * 5, (0.1, 0.05, True)]
    assert status(found) == 1


def test_first_calls_are_timed_in_fresh_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first, "PROCESSES", 1)
    assert 0.0 < first.first_import() < 0.05 < first.first_call("norse-lifcell", "native") < 5.0


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sizes, contestants and figures are all in the file; plots are there, tables printed."""
    options = (
        "--works spikingjelly-lif,snntorch-network --steps 2,3 --neurons 5,8 "
        f"--network-steps 2 --threads 1 --rounds 1 --no-compile --rule tsslbp --out {tmp_path}"
    )
    threads = torch.get_num_threads()
    assert main(["speed", *options.split()]) == 0
    assert torch.get_num_threads() == threads
    record = json.loads((tmp_path / "speed.json").read_text())
    assert record["versions"]["torch"] == torch.__version__
    assert record["left_out"] == []
    assert record["rule"] == "tsslbp"
    layerwise = {
        contestants.named(engine, tau, True) for engine, tau in product(ENGINES, (1.0, 3.0))
    }
    ours = {contestants.named(engine, tau) for engine in ENGINES for tau in (1.0, 3.0)}
    for name, names, sizes in [
        (
            "spikingjelly-lif",
            {"native", "copy", "T x T, tau_s = 3", *ours},
            product((2, 3), (5, 8)),
        ),
        ("snntorch-network", {"native", "connections alone", *ours, *layerwise}, [(2, None)]),
    ]:
        found = {(row["contestant"], row["steps"], row["neurons"]) for row in record["results"]
                 if row["work"] == name}  # fmt: skip
        assert found == {(name, *size) for name, size in product(names, sizes)}
    for row in record["results"]:
        if row["contestant"] != "copy":
            assert min(row["forward_s"], row["backward_s"], row["times_faster"]) > 0
    assert {path.stem for path in tmp_path.glob("*.png")} == {
        "time_over_steps", "time_over_neurons", "roofline",
    }  # fmt: skip
    printed = capsys.readouterr().out
    told = [line.rstrip() for line in printed.splitlines()]
    assert "snnTorch 64-512-512-10, training step; threads: 1; T = 2, batch = 32" in told
    assert "SpikingJelly LIFNode, sequence; threads: 1; T = 3, batch = 1, neurons = 8" in told
    for row in record["results"]:
        assert any(line.startswith(f" {row['contestant']}  ") for line in told)  # in one line
    assert max(map(len, told)) <= 100
    assert {printed.count(name) for name in ("GB/s", "of copy")} == {4}  # not of networks


def test_a_training_step_of_the_suites_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Native, the rule and the library's own gradient compiled, or why not."""
    names = "norse-lsnn,spikingjelly-delays"
    options = f"--networks {names} --rounds 1 --rule tsslbp --out {tmp_path}"
    assert main(["speed", *options.split()]) == 0
    record = json.loads((tmp_path / "speed.json").read_text())
    rows = {(row["network"], row["rule"]): row for row in record["networks"]}
    assert {*rows} == set(product(names.split(","), ("native", "tsslbp", "native-compiled")))
    for row in rows.values():
        assert row["rounds"] == 1
        assert min(row["total_s"], row["processor_s"], row["times_less_processor"]) > 0
        assert row["rule"] != "native" or row["times_faster"] == 1.0
    assert "results" not in record
    assert "spikingjelly-delays" in capsys.readouterr().out


def test_plots_name_their_units() -> None:
    import pandas as pd

    table = pd.DataFrame([
        {"title": "a layer", "steps": steps, "neurons": neurons, "contestant": name,
         "total_s": 0.001 * steps, "bytes_per_s": 1e9, "drive_bytes": steps * neurons}
        for steps in (1, 2) for neurons in (4, 8) for name in ("native", "copy")
    ])  # fmt: skip
    (axis,) = plots.over(table, "steps", "neurons", "time steps T").axes  # type: ignore[union-attr]
    assert axis.get_title() == "a layer\nneurons = 8"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("time steps T", "forward + backward (ms)")
    (line,) = axis.get_lines()
    assert line.get_ydata().tolist() == pytest.approx([1.0, 2.0])
    (roof,) = plots.roofline(table).axes  # type: ignore[union-attr]
    assert "MiB" in roof.get_xlabel()
    assert "GB/s" in roof.get_ylabel()


def test_unknown_work(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["speed", "--works", "nonsense"])
    assert stopped.value.code == 2
    assert "'nonsense' is none of spikingjelly-lif," in capsys.readouterr().err


def test_compiler_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = contestants.why_not_compiled(CPU)
    assert reason == "torch.compile needs a C++ compiler, and there is no no-such-compiler"


def test_too_large_a_case_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "_free_bytes", lambda device: 1000)
    said: list[str] = []
    assert run_case(Case(work("norse-lif"), 3, 1, 4), PLAN, said.append) == []
    assert run_case(Case(work("snntorch-network"), 3, 32, 0), PLAN, said.append) == []
    assert said == [
        "Norse LIF, sequence, T = 3, 1 x 4: too little memory",
        "snnTorch 64-512-512-10, training step, T = 3, batch 32: too little memory",
    ]
