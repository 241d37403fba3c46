"""``bench accuracy``: the grid, its files, going on; rules differ in the gradient alone."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import norse.torch as norse
import pytest
import snntorch
import torch
import train_with_norse
import train_with_snntorch
import train_with_spikingjelly
import yaml
from bench_cases import LOG_KEYS, accuracy, lines, results, settings
from spikingjelly.activation_based import neuron
from torch import Tensor

import tssl_adapters
from tssl_adapters import _engines
from tssl_adapters.bench import architectures, data, known, rules, runs
from tssl_adapters.bench.__main__ import command_of
from tssl_adapters.bench.architectures import connections
from tssl_adapters.bench.experiment import Experiment, environment
from tssl_adapters.bench.method import batch_loss, encode
from tssl_adapters.bench.observer import Progress
from tssl_adapters.bench.runs import Job
from tssl_adapters.bench.trainer import InterruptedRunError, Trainer

every_library = pytest.mark.parametrize("library", known.LIBRARIES)
both_tau_s = pytest.mark.parametrize("tau_s", [1.0, 3.0])


# Networks and rules


ALIKE = {
    "snntorch": [
        {"native", "native-compiled", "native-detached", "arctan", "smooth-tsslbp", "arctan-1"},
        {"fast-sigmoid", "superspike-25"},
    ],
    "spikingjelly": [
        {"native", "native-compiled", "native-complete-reset"},
        {"arctan", "smooth-tsslbp", "arctan-1"},
    ],
    "norse": [
        {"native", "native-compiled", "native-complete-reset", "fast-sigmoid"},
        {"smooth-tsslbp", "arctan-1"},
    ],
}
"""Rules that are equal by their formulas at a threshold of 1 and over 5 steps. Detached or not,
native is one of two settings of the reset; without a potential between spike and reset, TSSL-BP's
chain is its reset term at tau_s = 1."""


@pytest.mark.singly
@pytest.mark.filterwarnings("ignore:.*no synaptic current:tssl_adapters.errors.RuleWarning")
@both_tau_s
@every_library
def test_rules_have_one_forward_and_one_start(library: str, tau_s: float) -> None:
    """The same weights, and the same output bit for bit; not all the same gradient."""
    samples = data.load("digits", None, 5, limit=20)
    x = encode(samples.train_images, 5, tau_s)
    found = {}
    for rule in rules.RULES:
        if rules.why_not(library, rule, tau_s):
            continue
        network = runs.network(settings(library=library, rule=rule, tau_s=tau_s), samples)
        output = network.forward(network.model, x)
        batch_loss("count", output, samples.train_labels, tau_s).backward()
        found[rule] = output, [(weight, weight.grad) for weight in network.model.parameters()]
    first_output, first_weights = found["native"]
    assert first_output.abs().sum() > 0
    alike: dict[tuple[str, ...], set[str]] = {}
    for rule, (output, weights) in found.items():
        assert torch.equal(output, first_output)
        for (weight, _), (first, _) in zip(weights, first_weights, strict=True):
            assert torch.equal(weight, first)
        norms = tuple(f"{gradient.norm():.4g}" for _, gradient in weights)
        alike.setdefault(norms, set()).add(rule)
    expected = ALIKE[library] + ([{"tsslbp-no-chain", "tsslbp-no-reset"}] if tau_s == 1 else [])
    assert [names for names in alike.values() if len(names) > 1] == expected


@pytest.mark.parametrize("command", ["accuracy", "gradients", "model", "networks"])
def test_rules_unless_others_are_named(command: str) -> None:
    """The library itself, and what ``wrap`` gives its layers."""
    native, ours = command_of(command)[1].get_default("rules")
    assert native == "native"
    default = tssl_adapters.wrap(neuron.LIFNode())._tssl_settings.rule
    assert rules.contestant(ours).make(torch.abs) == default


@pytest.mark.parametrize(
    ("library", "by_hand"),
    [
        ("snntorch", train_with_snntorch.arctan_derivative),
        ("spikingjelly", train_with_spikingjelly.sigmoid_derivative),
        ("norse", train_with_norse.superspike_derivative),
    ],
)
def test_derivative_is_taken_from_the_library(library: str, by_hand) -> None:  # type: ignore[no-untyped-def]
    x = torch.linspace(-2, 2, 41)
    slope = architectures.derivative(architectures.library(library).SURROGATES["native"])
    torch.testing.assert_close(slope(x), by_hand(x))


@pytest.mark.parametrize(
    ("library", "layer"),
    [("snntorch", snntorch.Leaky), ("spikingjelly", neuron.LIFNode), ("norse", norse.LIFBoxCell)],
)
def test_native_is_the_library_untouched(library: str, layer: type) -> None:
    """At tau_s = 1; above it, the library's surrogate is the rule of the same neurons."""
    samples = data.load("digits", None, 5, limit=20)
    plain = runs.network(settings(library=library, rule="native"), samples)
    assert not tssl_adapters.is_wrapped(plain.model)
    assert plain.neuron is layer
    wrapped = runs.network(settings(library=library, rule="native", tau_s=3.0), samples)
    rows = [row for row in tssl_adapters.inspect(wrapped.model) if row.status == "wrapped"]
    assert len(rows) == 2
    assert all("SurrogateGradient" in row.detail and "tau_s=3" in row.detail for row in rows)


def test_norse_has_no_arctan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert accuracy(tmp_path, "--libraries norse --rules arctan,tsslbp --seeds 1 --epochs 1") == 0
    assert [line["rule"] for line in results(tmp_path)] == ["tsslbp"]
    with pytest.raises(rules.UnknownRuleError, match="norse has no arctan surrogate; it has nat"):
        rules.build("norse", "arctan", 1.0, [])


def test_connections_of_the_papers_networks() -> None:
    weights = {
        name: [tuple(weight.shape) for part in connections(name, shape, 10)
               for weight in part.parameters()]
        for name, shape in {"cnn": (1, 28, 28), "cnn-fashion": (1, 28, 28),
                            "cnn-nmnist": (2, 34, 34), "30": (1, 8, 8)}.items()
    }  # fmt: skip
    assert weights == {
        "cnn": [(15, 1, 5, 5), (40, 15, 5, 5), (300, 640), (10, 300)],
        "cnn-fashion": [(32, 1, 5, 5), (64, 32, 5, 5), (1024, 3136), (10, 1024)],
        "cnn-nmnist": [(12, 2, 5, 5), (64, 12, 5, 5), (10, 2304)],
        "30": [(30, 64), (10, 30)],
    }


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("400-x", "must be one of cnn, cnn-fashion, cnn-nmnist or layers such as"),
        ("400-15C5", "must be one of"),
        ("cnn", r"cnn is too deep for images of \(8, 8\)"),
    ],
)
def test_networks_that_are_refused(network: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        connections(network, (1, 8, 8), 10)


# The grid


def test_command_of_the_readme_and_again(tmp_path: Path) -> None:
    """Three libraries, two rules: a line each; run again, nothing is repeated."""
    options = "--libraries snntorch,spikingjelly,norse --rules native,tsslbp --seeds 1 --epochs 1"
    assert accuracy(tmp_path, options) == 0
    (first, *others) = lines(tmp_path / "results.jsonl")
    assert set(first) == LOG_KEYS | {"loss", "kept_bytes"}
    found = {(line["library"], line["rule"]) for line in [first, *others]}
    assert len(others) == 5
    assert len(found) == 6
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("checkpoints/*")}
    before = (tmp_path / "results.jsonl").read_text()
    assert accuracy(tmp_path, options) == 0
    assert (tmp_path / "results.jsonl").read_text() == before
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("checkpoints/*")} == written


def test_more_epochs_and_seeds_go_on_where_it_was_left(tmp_path: Path) -> None:
    options = "--libraries spikingjelly --rules tsslbp"
    assert accuracy(tmp_path / "parts", f"{options} --seeds 1 --epochs 1") == 0
    first = lines(tmp_path / "parts" / "results.jsonl")
    assert accuracy(tmp_path / "parts", f"{options} --seeds 2 --epochs 2") == 0
    assert lines(tmp_path / "parts" / "results.jsonl")[:1] == first
    assert accuracy(tmp_path / "whole", f"{options} --seeds 2 --epochs 2") == 0
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


def test_results_keep_what_another_grid_trained(tmp_path: Path) -> None:
    options = "--libraries spikingjelly --seeds 1 --rules"
    assert accuracy(tmp_path, f"{options} tsslbp --epochs 2") == 0
    first = lines(tmp_path / "results.jsonl")
    assert accuracy(tmp_path, f"{options} native --epochs 1") == 0
    native, *others = lines(tmp_path / "results.jsonl")
    assert native["rule"] == "native"
    assert others == first
    assert "| tsslbp |" in (tmp_path / "report.md").read_text()
    assert accuracy(tmp_path, f"{options} tsslbp --epochs 1") == 0
    assert lines(tmp_path / "results.jsonl") == [*first, native]
    found = json.loads((tmp_path / "gradients.json").read_text())
    assert [group["rules"] for group in found] == [["native", "tsslbp"]]


def test_failures_keep_what_another_grid_met(tmp_path: Path) -> None:
    experiment, failed = Experiment(tmp_path), settings(seed=1)
    experiment.open({}, ())
    experiment.fail(failed, "an error", "")
    assert experiment.collect([settings(seed=2)]) == ([], [])
    assert [line["seed"] for line in lines(tmp_path / "failures.jsonl")] == [1]


def test_another_setting_needs_another_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--libraries spikingjelly --rules tsslbp --seeds 1 --epochs 1"
    assert accuracy(tmp_path, options) == 0
    with pytest.raises(SystemExit):
        accuracy(tmp_path, f"{options} --lr 0.1")
    assert f"{tmp_path} was made with lr: 0.0005, not 0.1; take another" in capsys.readouterr().err


@pytest.mark.parametrize("batches", [3, 4, 6])
def test_interrupted_run_goes_on_exactly(
    batches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ctrl-C after so many of four batches an epoch."""
    options = "--libraries spikingjelly --rules tsslbp --seeds 1 --epochs 2 --schedule cosine"
    assert accuracy(tmp_path / "whole", options) == 0
    train_batch, done = Trainer._train_batch, []

    def press(self: Trainer, inputs: Tensor, labels: Tensor) -> None:
        done.append(labels)
        if len(done) == batches:
            os.kill(os.getpid(), signal.SIGINT)
        train_batch(self, inputs, labels)

    monkeypatch.setattr(Trainer, "_train_batch", press)
    assert accuracy(tmp_path / "parts", options) == 130
    assert len(results(tmp_path / "parts")) == batches // 4
    assert accuracy(tmp_path / "parts", options) == 0
    assert len(done) == 8
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


@pytest.mark.parametrize(
    ("batches", "untimed", "expected"), [(4, 0, 8.0), (4, 1, 4 * 8.0 / 3), (1, 1, 8.0)]
)
def test_batches_that_were_compiled_count_as_the_others(
    batches: int, untimed: int, expected: float
) -> None:
    progress = Progress(batch=batches, untimed=untimed, seconds=8.0)
    assert progress.epoch_seconds == pytest.approx(expected)


def test_the_first_batch_of_a_process_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0.0)  # each batch takes a second
    fake = SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr("tssl_adapters.bench.trainer.time", fake)
    seen: list[int] = []
    train_epoch = Trainer._train_epoch

    def watched(self: Trainer) -> None:
        train_epoch(self)
        seen.append(self.progress.untimed)

    monkeypatch.setattr(Trainer, "_train_epoch", watched)
    options = "--libraries spikingjelly --rules native --seeds 1 --epochs 2"
    assert accuracy(tmp_path, options) == 0
    assert seen == [1, 0]
    records = lines(tmp_path / "results.jsonl")
    assert [record["seconds"] for record in records] == pytest.approx([4.0, 4.0])


def test_run_that_dies_between_checkpoint_and_record_loses_nothing(tmp_path: Path) -> None:
    """Its epochs are in the checkpoint."""
    experiment = Experiment(tmp_path)
    experiment.runs.mkdir()
    job = Job(settings(epochs=2), tmp_path)
    runs.run(job, lambda event: None)
    written = experiment.records(job.settings)
    experiment.record(job.settings, written[:1])
    runs.run(job, lambda event: None)
    assert experiment.records(job.settings) == written


def test_failed_run_is_recorded_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = "--libraries norse,spikingjelly --rules tsslbp --seeds 1 --epochs 1"
    library = architectures.library

    def broken(name: str) -> architectures.Library:
        if name == "norse":
            raise ModuleNotFoundError("No module named 'norse'")
        return library(name)

    with monkeypatch.context() as patched:
        patched.setattr(architectures, "library", broken)
        assert accuracy(tmp_path, options) == 1
    assert [line["library"] for line in results(tmp_path)] == ["spikingjelly"]
    (failure,) = lines(tmp_path / "failures.jsonl")
    assert (failure["library"], failure["rule"], failure["seed"]) == ("norse", "tsslbp", 0)
    assert failure["error"] == "ModuleNotFoundError: No module named 'norse'"
    assert "in broken" in failure["traceback"]
    assert accuracy(tmp_path, options) == 0
    assert len(results(tmp_path)) == 2
    assert lines(tmp_path / "failures.jsonl") == []


def test_interrupt_is_no_failure(tmp_path: Path) -> None:
    Experiment(tmp_path).runs.mkdir(parents=True)
    with pytest.raises(InterruptedRunError):
        runs.run(Job(settings(), tmp_path), lambda event: None, stops=lambda: True)
    assert not list(tmp_path.glob("runs/*.error.json"))


def test_options_from_a_file(tmp_path: Path) -> None:
    """Lists as lists; those of the command line come first; the folder says what was used."""
    path = tmp_path / "options.yaml"
    options = {"libraries": ["norse"], "rules": ["tsslbp", "native"], "seeds": 1, "tau_s": [1, 3]}
    path.write_text(yaml.safe_dump(options))
    assert accuracy(tmp_path / "out", f"--config {path} --epochs 1 --rules tsslbp") == 0
    found = [(line["library"], line["rule"], line["tau_s"]) for line in results(tmp_path / "out")]
    assert found == [("norse", "tsslbp", 1.0), ("norse", "tsslbp", 3.0)]
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert config["rules"] == ["tsslbp"]
    assert config["tau_s"] == [1.0, 3.0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--data cifar", "'cifar' is none of digits"),
        ("--rules tsslpb", "'tsslpb' is none of native"),
        ("--tau-s 0.5", "must be a finite number, 1 or more, not 0.5"),
        ("--loss kernel --time-steps 1", "--loss kernel needs --time-steps 2 or more"),
        ("--config missing.yaml", "--config missing.yaml: [Errno 2] No such file"),
    ],
)
def test_refusals(
    options: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        accuracy(tmp_path, options)
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_results_alone_are_enough_to_repeat_nothing(tmp_path: Path) -> None:
    """A clone has no checkpoints."""
    options = "--libraries spikingjelly --rules tsslbp,native --seeds 1 --epochs 1"
    assert accuracy(tmp_path, options) == 0
    written = (tmp_path / "results.jsonl").read_text()
    for folder in ("checkpoints", "runs"):
        shutil.rmtree(tmp_path / folder)
    assert accuracy(tmp_path, options) == 0
    assert (tmp_path / "results.jsonl").read_text() == written


@pytest.mark.parametrize("missing", ["loss", "seed"])
def test_results_that_do_not_say_whose_they_are_are_kept(
    missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of an older version: nothing in the folder is written over."""
    options = "--libraries spikingjelly --rules tsslbp --seeds 1 --epochs 1"
    assert accuracy(tmp_path, options) == 0
    shutil.rmtree(tmp_path / "runs")
    (line,) = lines(tmp_path / "results.jsonl")
    del line[missing]
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match="2"):
        accuracy(tmp_path, options)
    assert f"results.jsonl, line 1 has no {missing}, so that" in capsys.readouterr().err
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("asked", "installed", "engine"),
    [("torch", True, "torch"), ("cpu", True, "cpu"), ("", True, "cpu"), ("", False, "torch")],
)
def test_recorded_engine_is_that_of_wrap(
    asked: str, installed: bool, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(_engines.VARIABLE, asked)
    monkeypatch.setattr(_engines, "find_spec", lambda name: object() if installed else None)
    layer = tssl_adapters.wrap(neuron.LIFNode())
    assert environment()["engine"] == layer._tssl_settings.engine == engine
