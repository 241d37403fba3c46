"""``bench networks``: the suite, its runs and its report."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from bench_cases import lines
from plot_networks import recorded

from tssl_adapters import is_wrapped
from tssl_adapters.bench import known, rules
from tssl_adapters.bench import networks as command
from tssl_adapters.bench.__main__ import main
from tssl_adapters.bench.commands.networks import seeds
from tssl_adapters.bench.experiment import ExperimentError
from tssl_adapters.bench.networks import samples, suite, tables, training
from tssl_adapters.bench.networks.results import Results
from tssl_adapters.bench.networks.spec import Network, Split
from tssl_adapters.bench.networks.training import Job, batches, compared, refusal, start
from tssl_adapters.rules import Step

# The suite shows what comes of it.
pytestmark = pytest.mark.filterwarnings(
    "ignore:tssl_adapters. TSSLBP lets the gradient grow over time"
)

ROOT = Path(__file__).parents[2]
NAMES = [name for names in known.SETS.values() for name in names]
TINY = ("spikingjelly-poisson", "norse-patterns")
SOURCE = "from tssl_adapters.rules import TSSLBP\nmine = TSSLBP(max_slope=2.0)\n"


def first(network: Network, number: int) -> Split:
    """The first samples of a network."""
    return Split(*(tensor[:number] for tensor in network.data(None)))


def tiny(network: Network) -> Network:
    """The same, of few samples, batches and epochs."""
    return replace(network, data=lambda folder: first(network, 48), epochs=3, batch_size=16)


@pytest.fixture
def suite_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite is two tiny networks, of which one is a timing task."""
    found = {name: tiny(suite.networks()[name]) for name in TINY}
    monkeypatch.setattr(suite, "networks", lambda: found)


def run(folder: Path, options: str) -> int:
    words = [*options.split(), "--workers", "0", "--quiet", "--out", str(folder)]
    return main(["networks", *words])


# the suite itself


def test_split_names_each_network_once_and_each_kind_in_each_set() -> None:
    in_suite = [name for name, network in suite.networks().items() if network.kind != "fashion"]
    assert Counter(NAMES) == Counter(in_suite)
    assert len(NAMES) == 20
    for names in known.SETS.values():
        kinds = Counter(suite.networks()[name].kind for name in names)
        assert set(kinds) == {"ordinary", "stress", "timing"}
        assert min(kinds.values()) >= 2
        assert 9 <= len(names) <= 11
    timing = [network for network in suite.chosen(["timing"]) if suite.set_of(network.name)]
    assert len(timing) >= 5
    assert {network.library for network in timing} == {"snntorch", "spikingjelly", "norse"}


def test_words_name_networks() -> None:
    def named(*words: str) -> list[str]:
        return [network.name for network in suite.chosen(words)]

    assert sorted(named("all")) == sorted(NAMES) == sorted(named("choosing", "reporting"))
    assert named("norse-dense", "snntorch-deep") == ["snntorch-deep", "norse-dense"]
    assert {suite.networks()[name].kind for name in named("stress")} == {"stress"}
    with pytest.raises(ValueError, match=r"'nothing' is none of all, choosing, reporting, ordi"):
        named("all", "nothing")


@pytest.mark.parametrize("name", NAMES)
def test_network_has_one_forward_and_another_gradient(name: str) -> None:
    """Native is not wrapped; TSSL-BP is, on the same weights, and its forward is the same."""
    network = suite.networks()[name]
    x, labels, *_ = first(network, 4)
    found = {}
    for rule in ("native", "tsslbp"):
        model = start(network, rule, seed=3, engine="torch")
        assert is_wrapped(model) == (rule != "native")
        outputs = []
        for _ in range(2):  # from rest
            torch.manual_seed(0)
            outputs.append(network.forward(model, x))
        output = outputs[0]
        assert torch.equal(*(network.score(one) for one in outputs))
        loss = network.loss(output, labels)
        loss.backward()
        classes = int(network.data(None).train_y.max()) + 1
        assert network.score(output).shape == (4, classes)
        found[rule] = loss, next(weight.grad for weight in model.parameters() if weight.dim() > 1)
    (native, gradient), (wrapped, other) = found.values()
    assert torch.equal(native, wrapped)
    assert gradient is not None
    assert other is not None
    assert gradient.abs().sum() > 0
    assert not torch.allclose(gradient, other, rtol=1e-3, atol=0)


def test_inputs_of_timing_tasks_fire_once() -> None:
    for split in (samples.latency_digits(), samples.yin_yang()):
        for x in (split.train_x, split.test_x):
            assert x.shape[1] == samples.STEPS
            assert set(x.sum(1).unique().tolist()) == {1.0}
    x, labels, *_ = samples.patterns()
    counts = torch.stack([x[labels == label].sum((1, 2)).mean() for label in range(8)])
    assert counts.max() - counts.min() < 1.5  # of some 47 spikes: their number says nothing
    times = torch.stack([x[labels == label].mean(0) for label in range(8)])
    assert (times.amax(1) > 0.1).all()


def test_yin_yang_figure() -> None:
    """Its classes are balanced, and half a turn swaps yin and yang and keeps the dots."""
    points, labels = samples._yin_yang_points(3000)
    assert torch.bincount(labels).tolist() == [1000, 1000, 1000]
    assert (points - 0.5).norm(dim=1).max() <= 0.5

    def dots(points: torch.Tensor) -> torch.Tensor:
        return torch.stack([(points - torch.tensor([x, 0.5])).norm(dim=1) for x in (0.25, 0.75)])

    assert torch.equal(dots(points).amin(0) <= 0.1, labels == 2)
    left, right = dots(points)
    outside = (left > 0.25) & (right > 0.25) & (labels != 2)
    assert torch.equal(labels[outside] == 1, points[outside, 1] > 0.5)
    ring = labels != 2
    assert (labels[ring & (left <= 0.25)] == 1).all()
    assert (labels[ring & (right <= 0.25)] == 0).all()


# its rules


def step(charged: torch.Tensor, threshold: Any) -> Step:
    return Step(charged > threshold, charged, charged, None, 1.0, threshold, 1.0, True)


@pytest.mark.parametrize("theta", [0.5, torch.tensor([0.5, 2.0])])
def test_arctans_go_with_the_threshold(theta: Any) -> None:
    charged = torch.tensor([[0.3, 1.9], [0.5, 2.0]])
    for narrow in (1, 10, 20):
        rule = rules.contestant(f"arctan-{narrow}").make(lambda x: x)
        z = narrow * (charged - theta) / theta
        expected = 1 / (1 + (torch.pi * z) ** 2) / theta
        torch.testing.assert_close(rule.slope(step(charged, theta)), expected)


def test_superspike_is_of_the_potential_itself() -> None:
    charged = torch.tensor([[1.8, 2.2]])
    for a in (10, 25, 100):
        rule = rules.contestant(f"superspike-{a}").make(lambda x: x)
        expected = torch.full((1, 2), (1 + a * 0.2) ** -2)
        torch.testing.assert_close(rule.slope(step(charged, 2.0)), expected)


def test_descriptions_have_every_option() -> None:
    assert "max_slope=8.0" in rules.describe("tsslbp")
    assert rules.describe("superspike-25") != rules.describe("superspike-10")
    assert " at 0x" not in rules.describe("arctan-10")


# its runs


@pytest.mark.usefixtures("suite_of_two")
def test_a_line_a_run_and_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tmp_path / "own.py", tmp_path / "out"
    source.write_text(SOURCE)
    options = f"--rules native,tsslbp,superspike-10,{source}:mine --seeds"
    assert run(out, f"{options} 1") == 0
    assert run(out, f"{options} 2") == 0
    found = lines(out / "results.jsonl")
    chosen = ["native", "tsslbp", "superspike-10", f"{source}:mine"]
    expected = [(name, rule, seed) for seed in (0, 1) for name in TINY for rule in chosen]
    assert [(line["network"], line["rule"], line["seed"]) for line in found] == expected
    for line in found:
        assert len(line["test_accuracy"]) == len(line["train_loss"]) == line["epochs"] == 3
        assert line["final"] == sum(line["test_accuracy"][-2:]) / 2
        assert line["mean"] == sum(line["test_accuracy"]) / 3
        assert line["engine"] == "torch"
        assert line["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert found[3]["definition"] == "TSSLBP(max_slope=2.0)"
    report = (out / "report.md").read_text()
    rows = re.findall(r"^\| norse-patterns \| (\S+) \|.*\| timing \| reporting \|$", report, re.M)
    assert rows == [*chosen[:3], "own.py:mine"]
    assert re.search(r"^\| ordinary \| tsslbp \| [+-]\d.* \| 1 \| 2 \|$", report, re.M)
    assert "| norse-patterns | tsslbp | superspike-10 |" in report
    assert "Not of the same start" not in report
    assert "<svg" in (out / "report.html").read_text()

    def trained(job: Job) -> None:
        raise AssertionError(job)

    monkeypatch.setattr(command, "run", trained)
    before = (out / "results.jsonl").read_bytes()
    assert run(out, f"{options} 0,1") == 0
    assert (out / "results.jsonl").read_bytes() == before


@pytest.mark.usefixtures("suite_of_two")
def test_a_rule_that_equals_native_has_its_whole_training(tmp_path: Path) -> None:
    """The same start, batches and random inputs: this network's neurons have ATan at theta = 1."""
    options = "--networks spikingjelly-poisson --rules native,arctan-1,tsslbp --seeds 5-6"
    assert run(tmp_path, options) == 0
    native, same, other, later, *_ = lines(tmp_path / "results.jsonl")
    assert (native["seed"], later["seed"]) == (5, 6)
    assert native["first_loss"] == same["first_loss"] == other["first_loss"]
    assert native["test_accuracy"] == same["test_accuracy"]
    assert native["train_loss"] == pytest.approx(same["train_loss"], rel=1e-5)
    assert native["train_loss"] != pytest.approx(other["train_loss"], rel=1e-3)
    for figures in (same["gradient"]["first"], same["gradient"]["all"]):
        assert figures["ratio"] == pytest.approx(1, abs=1e-4)
        assert figures["cosine"] == pytest.approx(1, abs=1e-4)
    assert other["gradient"]["first"]["cosine"] < 0.99


@pytest.mark.usefixtures("suite_of_two")
def test_random_state_and_threads_are_given_back() -> None:
    torch.manual_seed(1)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    training.run(Job(TINY[0], "native", 0))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_start_is_drawn_from_the_seed_alone() -> None:
    network = suite.networks()["spikingjelly-poisson"]

    def weights(rule: str, seed: int) -> torch.Tensor:
        torch.rand(3)
        drawn = start(network, rule, seed, "torch")
        return torch.cat([*(weight.flatten() for weight in drawn.parameters()), torch.rand(2)])

    assert torch.equal(weights("native", 0), weights("tsslbp", 0))
    assert not torch.equal(weights("native", 0), weights("native", 1))


def test_batches_are_drawn_from_the_seed_alone() -> None:
    split = Split(*(torch.arange(10) for _ in range(4)))

    def drawn(seed: int) -> list[list[int]]:
        epochs = batches(split, seed, 4)
        return [torch.cat(next(epochs)).tolist() for _ in range(2)]

    one, other = drawn(0)
    assert one != other
    assert sorted(one) == sorted(other) == list(range(10))
    torch.rand(3)
    assert drawn(0) == [one, other] != drawn(1)


def test_gradients_beside_each_other() -> None:
    one, other = torch.tensor([3.0, 4.0]), torch.tensor([10.0, 0.0])
    expected = {"norm": 5.0, "native_norm": 10.0, "ratio": 0.5, "cosine": pytest.approx(0.6)}
    assert compared(one, other) == expected
    nothing = compared(torch.tensor([float("nan")]), torch.zeros(1))
    assert nothing == {"norm": None, "native_norm": 0.0, "ratio": None, "cosine": None}
    assert "NaN" not in json.dumps(nothing)


def test_rules_that_a_network_refuses_are_left_out(
    tmp_path: Path, suite_of_two: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(suite.networks()["norse-patterns"], "arctan") is not None
    assert run(tmp_path, "--rules native,arctan") == 0
    assert len(lines(tmp_path / "results.jsonl")) == 3
    assert "- arctan in norse-patterns: norse has no arctan" in (tmp_path / "report.md").read_text()
    with pytest.raises(SystemExit):
        run(tmp_path, "--rules arctan --networks norse-patterns")
    assert "nothing is left to train:\n  arctan in norse-patterns" in capsys.readouterr().err


@pytest.mark.usefixtures("suite_of_two")
def test_failed_run_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job: Job) -> Any:
        if job.network == "norse-patterns":
            raise RuntimeError("out of luck")
        return training.run(job)

    with monkeypatch.context() as patched:
        patched.setattr(command, "run", broken)
        assert run(tmp_path, "--rules native") == 1
    (failed,) = lines(tmp_path / "failures.jsonl")
    assert failed["run"] == "norse-patterns, native, seed 0"
    assert failed["error"] == "RuntimeError: out of luck"
    assert "in broken" in failed["traceback"]
    assert "seed 0: RuntimeError: out of luck" in (tmp_path / "report.md").read_text()
    assert run(tmp_path, "--rules native --report") == 0  # which trains nothing
    assert len(lines(tmp_path / "results.jsonl")) == 1
    assert run(tmp_path, "--rules native") == 0
    assert len(lines(tmp_path / "results.jsonl")) == 2
    assert lines(tmp_path / "failures.jsonl") == []


@pytest.mark.usefixtures("suite_of_two")
def test_interrupted_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(job: Job) -> Any:
        if job.rule == "tsslbp":
            raise KeyboardInterrupt
        return training.run(job)

    options = "--networks norse-patterns --rules native,tsslbp"
    with monkeypatch.context() as patched:
        patched.setattr(command, "run", stopped)
        assert run(tmp_path, options) == 130
    assert [line["rule"] for line in lines(tmp_path / "results.jsonl")] == ["native"]
    assert run(tmp_path, options) == 0
    assert [line["rule"] for line in lines(tmp_path / "results.jsonl")] == ["native", "tsslbp"]


def test_workers_run_them_too(tmp_path: Path) -> None:
    words = "--networks spikingjelly-poisson --rules native --quiet --workers 1"
    assert main(["networks", *words.split(), "--out", str(tmp_path)]) == 0
    (line,) = lines(tmp_path / "results.jsonl")
    assert 0.8 < line["final"] < 0.98  # learns, and leaves room


@pytest.mark.usefixtures("suite_of_two")
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_text(path.read_text() + '{"network'), r"results.jsonl, line 2"),
        (
            lambda path: path.write_text(path.read_text().replace("(max_slope=2.0)", "()")),
            r"mine is TSSLBP\(max_slope=2.0\), and .* has results of it as TSSLBP\(\)",
        ),
    ],
)
def test_lines_that_are_not_gone_on_with(
    spoil: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    source = tmp_path / "own.py"
    source.write_text(SOURCE)
    job = Job("norse-patterns", f"{source}:mine", 0, "torch")
    Results(tmp_path).add(training.run(job))
    assert list(Results(tmp_path).of([job])) == [job]
    assert Results(tmp_path).of([replace(job, engine="cpu"), replace(job, seed=1)]) == {}
    spoil(tmp_path / "results.jsonl")
    with pytest.raises(ExperimentError, match=message):
        Results(tmp_path).of([job])


@pytest.mark.parametrize(
    ("text", "meant"),
    [("3", [0, 1, 2]), ("0,2", [0, 2]), ("7,", [7]), ("5-7,1", [5, 6, 7, 1]), ("2,2", [2])],
)
def test_seeds(text: str, meant: list[int]) -> None:
    assert seeds(text) == meant


def test_progress_says_what_its_figures_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = record(TINY[1], "native", 0, 0.736, engine="torch", seconds=111.6, definition="")
    monkeypatch.setattr(command, "run", lambda job: line)
    monkeypatch.setattr(command, "write_page", lambda *given: None)
    monkeypatch.setattr(rules, "describe", lambda rule: "")
    words = f"networks --networks {TINY[1]} --rules native --workers 0 --json --out {tmp_path}"
    assert main(words.split()) == 0
    assert capsys.readouterr().err == (
        f"1/1  {TINY[1]}, native, seed 0: final 73.6%, mean over training 63.6%, "
        "1.0 s of processor time\n"
    )


# its report


def record(network: str, rule: str, seed: int, final: float, **changed: Any) -> dict[str, Any]:
    figures = {"ratio": 1.0, "cosine": None}
    return {
        "network": network, "kind": suite.networks()[network].kind, "rule": rule, "seed": seed,
        "final": final, "mean": final - 0.1, "cpu_seconds": 1.0, "first_loss": float(seed),
        "gradient": {"first": figures, "all": figures}, **changed,
    }  # fmt: skip


RECORDS = [
    *(record("snntorch-dense", "native", seed, 0.8 + 0.1 * seed) for seed in range(2)),
    *(record("snntorch-dense", "tsslbp", seed, 0.81 + 0.12 * seed) for seed in range(3)),
    record("snntorch-deep", "native", 0, 0.5),
    record("snntorch-deep", "tsslbp", 0, 0.44),
    record("norse-patterns", "tsslbp", 0, 0.7),
    record("norse-patterns", "superspike-10", 0, 0.9),
    record("norse-patterns", "superspike-25", 0, 0.8),
]


def test_differences_are_paired_and_pooled() -> None:
    """Two networks, +2 (+1 and +3 by seed) and -6 points; Student's t of one degree is 12.7062."""
    table = tables.frame(RECORDS)
    rows = tables.of_networks(table)
    dense = next(row for row in rows if (row.network, row.rule) == ("snntorch-dense", "tsslbp"))
    assert (dense.seeds, dense.group) == (3, "choosing")
    assert dense.final_difference is not None
    assert dense.final_difference.mean == pytest.approx(0.02)  # of the two seeds that both have
    assert dense.final_difference.half == pytest.approx(12.7062 * 0.01, rel=1e-4)
    pooled = {(row.group, row.rule): row for row in tables.pooled(table)}
    everything = pooled["all", "tsslbp"]
    assert (everything.networks, everything.worst_network) == (2, "snntorch-deep")
    assert everything.final.mean == pytest.approx(-0.02)
    assert everything.final.half == pytest.approx(12.7062 * 0.04, rel=1e-4)
    assert everything.worst == pytest.approx(-0.06)
    assert everything.over_seeds is not None
    assert everything.over_seeds.mean == pytest.approx(-0.025)  # of the one seed of both
    assert everything.over_seeds.half is None
    assert everything.runs == 3
    ordinary = pooled["ordinary", "tsslbp"]
    assert ordinary.over_seeds is not None
    assert ordinary.over_seeds.half == pytest.approx(12.7062 * 0.01, rel=1e-4)
    assert pooled["choosing, ordinary", "tsslbp"].final.mean == pytest.approx(0.02)
    assert pooled["stress", "tsslbp"].final.mean == pytest.approx(-0.06)
    assert ("timing", "tsslbp") not in pooled  # native was not run there


def test_timing_tasks_beside_the_best_narrow_kernel() -> None:
    found = {row.rule: row for row in tables.of_timing(tables.frame(RECORDS))}
    assert {row.best for row in found.values()} == {"superspike-10"}
    assert found["tsslbp"].difference.mean == pytest.approx(-0.2)
    assert set(found) == {"tsslbp", "superspike-25"}


def test_other_starts_are_told() -> None:
    assert tables.other_starts(RECORDS) == []
    spoilt = record("snntorch-deep", "lee", 0, 0.4, first_loss=0.5)
    assert tables.other_starts([*RECORDS, spoilt]) == ["snntorch-deep, lee, seed 0"]


# what was measured with it


def points(values: pd.Series) -> str:
    estimate = tables.estimate(100 * values)
    return f"{estimate.mean:+.1f}" + ("" if estimate.half is None else f" ± {estimate.half:.1f}")


def test_every_networks_line_is_that_of_its_records() -> None:
    """docs/results.md; the native accuracy is of the seeds that the default has."""
    table = recorded()
    differences = tables.paired(table)
    expected = {}
    for name, runs in table.groupby("network"):
        mine = differences[differences["network"] == name]
        default, paper = (mine.loc[mine["rule"] == r] for r in ("smooth-tsslbp", "tsslbp"))
        native = runs[(runs["rule"] == "native") & runs["seed"].isin(default["seed"])]["final"]
        narrow = runs[runs["rule"].isin(tables.NARROW)].groupby("rule")["final"]
        means = narrow.mean()[narrow.count() >= 3]
        best = "" if means.empty else str(means.idxmax())
        cells = (
            str(name),
            ", ".join(filter(None, (runs["kind"].iloc[0], runs["group"].iloc[0]))),
            f"{100 * native.mean():.1f}",
            points(default["final"]),
            str(len(default)),
            best and f"{points(mine.loc[mine['rule'] == best, 'final'])} ({best})",
            "" if paper.empty else points(paper["final"]),
        )
        expected[f"| {name} "] = f"| {' | '.join(cells)} |"
    page = (ROOT / "docs/results.md").read_text().splitlines()
    found = [line for line in page if line.startswith(tuple(expected))]
    assert sorted(found) == sorted(expected.values())


def test_the_table_of_kinds_is_that_of_the_records() -> None:
    """README's first one: each network counts once."""
    differences = tables.paired(recorded())
    by_network = differences.groupby(["kind", "network", "rule"], sort=False)["final"].mean()
    readme = (ROOT / "README.md").read_text()
    for kind in known.KINDS:
        table = by_network[kind].unstack()
        default, worst = table["smooth-tsslbp"], table["smooth-tsslbp"].idxmin()
        paper = f"{100 * table['tsslbp'].mean():+.1f}" if "tsslbp" in table else "not run"
        cells = (len(default), points(default), f"{100 * default[worst]:+.1f} ({worst})", paper)
        assert f"| {' | '.join(map(str, cells))} |" in readme, kind
