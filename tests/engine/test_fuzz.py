"""The fuzz: a short run with fixed seeds, what it draws, and whether it sees faults."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import fuzz
import pytest
import torch
from fuzzing import layers, outcome
from fuzzing.case import BLOCK, Case, drawn
from fuzzing.chance import Chance
from fuzzing.check import check
from fuzzing.outcome import Failure, Verdict, script
from fuzzing.trial import names_of, ran
from fuzzing.workers import Worker

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.engine.step import recursion

SEEDS = range(600)


def test_a_short_run() -> None:
    """A failure prints itself as a script; ``python tools/fuzz.py --seed N`` runs it alone."""
    verdicts = {seed: check(drawn(seed)) for seed in SEEDS}
    failed = {seed: v.failure for seed, v in verdicts.items() if v.failure}
    told = [f"{seed}: {f.kind}: {f.text}\n{script(drawn(seed), f)}" for seed, f in failed.items()]
    assert not told, "\n".join(told)
    outcomes = Counter(verdict.outcome for verdict in verdicts.values())
    assert outcomes["equal"] + outcomes["equal, compiled"] > 0.65 * len(SEEDS), outcomes
    assert outcomes["equal, compiled"] > 0.15 * len(SEEDS), outcomes


def test_a_case_comes_of_its_seed_alone() -> None:
    assert drawn(7) == drawn(7)
    assert len({repr(drawn(seed)) for seed in range(100)}) == 100


def test_every_class_is_drawn() -> None:
    drawn_names = {
        f"{layers.MODULES[library]}.{name}"
        for library, names in layers.CLASSES.items()
        for name in names
    }
    assert drawn_names == {row.layer for row in tssl_adapters.supported()}
    seen = {drawn(seed).layer.name for seed in range(3000)}
    assert seen == {name for names in layers.CLASSES.values() for name in names}


@pytest.mark.parametrize(
    ("library", "name"), [(lib, name) for lib, names in layers.CLASSES.items() for name in names]
)
def test_every_setting_is_drawn(library: str, name: str) -> None:
    """Each argument of the constructor, as the installed version has it."""
    module = __import__(layers.MODULES[library], fromlist=[name])
    found = set()
    for seed in range(60):
        chance = Chance(seed)
        made = {
            "snntorch": lambda c: layers.snntorch(c, name, True, "torch.float32"),
            "spikingjelly": lambda c: layers.spikingjelly(c, name, 4),
            "norse": lambda c: layers.norse(c, name, True),
        }[library](chance)
        found |= set(made.settings)
    arguments = set(signature(getattr(module, name).__init__).parameters) - {
        "self",
        "args",
        "kwargs",
    }
    assert arguments - found <= layers.ELSEWHERE


def test_every_rule_is_drawn() -> None:
    text = " ".join(drawn(seed).rule for seed in range(6000))
    for name in rules.__all__:
        kind = getattr(rules, name)
        if isinstance(kind, type) and issubclass(kind, rules.Rule) and kind is not rules.Rule:
            assert f"rules.{name}(" in text
    assert all(f"'{name}'" in text for name in rules.BY_NAME)


# --- whether it sees faults ------------------------------------------------------------------


def first_found(seeds: Iterator[int]) -> tuple[Case, Failure]:
    for seed in seeds:
        verdict: Verdict = check(drawn(seed))
        if verdict.failure is not None:
            return drawn(seed), verdict.failure
    raise AssertionError("not found")


@contextmanager
def exchanged(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def test_a_fault_is_found_and_its_script_shows_it(tmp_path: Path) -> None:
    """The bound on 1/d left out: the gradient is another one, and the script fails by itself."""

    def unbounded(self: rules.TSSLBP, step: rules.Step) -> torch.Tensor:
        return step.increment.reciprocal().clamp_(0.0, 1.5).mul_(step.spike)

    with exchanged(rules.TSSLBP, "slope", unbounded):
        case, failure = first_found(iter(SEEDS))
        assert failure.kind == "gradient"
        program = script(case, failure)
        with pytest.raises(AssertionError):
            exec(compile(program, "<script>", "exec"), {})
    assert check(case).failure is None
    exec(compile(program, "<script>", "exec"), {})
    assert len(program.splitlines()) < 60


@pytest.mark.parametrize("kind", outcome._ENDINGS)
def test_every_kind_of_failure_ends_a_program(kind: str) -> None:
    case = drawn(SEEDS[0])
    more = {"key": ("out", 0), "steps": 1, "leaf": "x", "index": "", "expected": 0, "allowed": 0}
    failure = Failure(kind, "off", outcome.ending(case, kind, **more))
    compile(script(case, failure), "<script>", "exec")


def test_another_value_is_found() -> None:
    """A spike that comes back in another dtype."""
    from tssl_adapters.adapters.spikingjelly.node import Node

    plain = Node.forward

    def wider(self: Any, *args: Any, **kwargs: Any) -> Any:
        return plain(self, *args, **kwargs).double()

    with exchanged(Node, "forward", wider):
        _, failure = first_found(iter(SEEDS))
    assert failure.kind in ("forward", "trace")


def test_a_surrogates_own_rounding_is_no_failure_and_hides_none() -> None:
    """1 - sigmoid(z) keeps few digits in float32. One neuron's gradient is made of that, and the
    recursion has it to three of them all the same.
    """
    case = drawn(672990)
    assert "SurrogateGradient(OWN" in case.rule
    assert check(case).outcome == "equal"
    slope = rules.SurrogateGradient.slope
    with exchanged(rules.SurrogateGradient, "slope", lambda *given: 1.001 * slope(*given)):
        failure = check(case).failure
    assert failure is not None
    assert failure.kind == "gradient"


OVERFLOWS = 7129
"""A float32 layer under its own surrogate, whose gradient is natively NaN in a few places."""


def test_a_nan_that_the_library_has_not_is_found() -> None:
    """The loss reads potentials alone, and a surrogate overflows."""
    assert check(drawn(38047)).outcome == "equal"
    with exchanged(recursion, "passed", recursion.product):
        failure = check(drawn(38047)).failure
    assert failure is not None
    assert "nan, not -0.49" in failure.text


def test_what_is_beside_a_nan_of_the_librarys_is_compared() -> None:
    case = drawn(OVERFLOWS)
    names = names_of(case)
    names["layer"] = names["make"]()
    natively = ran(case, names).grads["x"]
    assert natively is not None
    assert 0 < int(natively.isnan().sum()) < natively.numel() / 2
    assert check(case).outcome == "equal"
    slope = rules.Native.slope
    with exchanged(rules.Native, "slope", lambda rule, step: 1.1 * slope(rule, step)):
        failure = check(case).failure
    assert failure is not None
    assert failure.kind == "gradient"


# --- the command -----------------------------------------------------------------------------


def test_the_command_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each block; a line that was cut off is run again."""
    ran: list[int] = []

    def blocks(begins: list[int], jobs: int, engine: None) -> Iterator[dict[str, Any]]:
        for first in begins:
            ran.append(first)
            failure = {"seed": first, "kind": "gradient", "text": "off", "script": "print(1)"}
            failures = [failure] if first == BLOCK else []
            outcomes = {"equal": BLOCK - len(failures), "failed: gradient": len(failures)}
            yield {"first": first, "outcomes": outcomes, "failures": failures, "seconds": 1.0}

    out = tmp_path / "fuzz.jsonl"
    monkeypatch.setattr(fuzz, "blocks", blocks)
    arguments = ["--cases", str(3 * BLOCK), "--out", str(out)]
    assert fuzz.main(arguments) == 1
    assert ran == [0, BLOCK, 2 * BLOCK]
    text = out.read_text()
    out.write_text(text[:-20])
    assert fuzz.main(arguments) == 1
    assert ran[3:] == [2 * BLOCK]
    assert [json.loads(line)["first"] for line in text.splitlines()] == ran[:3]
    shown = capsys.readouterr().out
    assert "print(1)" in shown
    assert f"{3 * BLOCK} cases" in shown


def test_a_process_that_dies() -> None:
    """It is started anew, and said so."""
    worker = Worker()
    try:
        assert worker.run(SEEDS[0])["failure"] is None
        assert worker.process is not None
        worker.process.kill()
        assert worker.run(SEEDS[1])["failure"]["kind"] == "the process died"
        assert worker.run(SEEDS[1])["failure"] is None
    finally:
        worker.close()
