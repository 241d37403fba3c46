"""Every class of every library under every rule, in every engine and precision: each two together.

What a case comes to is held to the library's values and to the recursion of the fuzz, in float64.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from itertools import product

import pytest
from fuzzing import layers
from fuzzing.case import Case, drawn
from fuzzing.chance import Chance
from fuzzing.check import check
from fuzzing.layers import WIDTH, Layer
from fuzzing.outcome import script
from pairs import pairwise, singly

CLASSES = [f"{library}.{name}" for library, names in layers.CLASSES.items() for name in names]
RULES = {
    "default": "None",
    "native": "rules.Native()",
    "tsslbp": "rules.TSSLBP()",
    "surrogate": "rules.SurrogateGradient(OWN)",
    "eventprop": "rules.EventProp()",
    "lee": "rules.Lee(gate='active')",
    "stdbp": "rules.STDBP(strict=False)",
    "strsbp": "rules.STRSBP(credit='spike')",
}
DTYPES = ("float32", "float64", "float16", "bfloat16")
AXES = (
    *(tuple(RULES), ("torch", "cpu"), DTYPES),
    *(("tau 1.0", "tau 3.0"), ("whole", "cut"), ("loss out", "loss all"), ("rest", "tensor")),
)
STEPS = 6


@dataclass(frozen=True)
class Row:
    """What a case is made of."""

    cls: str
    rule: str
    engine: str
    dtype: str
    tau_s: str
    cut: str
    losses: str
    state: str


def rows() -> dict[str, list[Row]]:
    """A few for each class."""
    every = [*product(CLASSES, *AXES)]
    found = defaultdict(list)
    for place in pairwise(every):
        found[every[place][0]].append(Row(*every[place]))
    return found


ROWS = rows()


def layer_of(row: Row, chance: Chance) -> Layer:
    library, name = row.cls.split(".")
    if library == "spikingjelly":
        return layers.spikingjelly(chance, name, STEPS)
    if library == "norse":
        return layers.norse(chance, name, True)
    return layers.snntorch(chance, name, True, f"torch.{row.dtype}")


def case_of(row: Row, seed: int) -> Case:
    layer = layer_of(row, Chance(seed))
    shape: tuple[int, ...] = (3, WIDTH)
    if layer.facts.get("conv"):
        shape = (2, 1, 3, WIDTH)
    elif layer.name == "GatedLIFNode":
        shape = (2, 2, 2, 3)
    whole = row.cut == "whole" or layer.name == "GatedLIFNode"
    whole = whole or layer.settings.get("record_states") == "True"
    return replace(
        drawn(seed),
        layer=layer,
        rule=RULES[row.rule],
        tau_s=float(row.tau_s.removeprefix("tau ")),
        engine=row.engine,
        dtype=f"torch.{row.dtype}",
        input_dtype=f"torch.{row.dtype}",
        steps=STEPS,
        shape=shape,
        form="plain",
        state="none" if row.state == "rest" else "tensor",
        loop="sequence" if layer.sequence else "steps",
        cuts=() if whole else (2,),
        detach=False,
        losses=row.losses.removeprefix("loss "),
        autocast=False,
        training=True,
    )


@pytest.mark.parametrize("cls", CLASSES)
def test_each_two_together(cls: str) -> None:
    """A failure prints itself as a script."""
    outcomes: Counter[str] = Counter()
    told = []
    for number, row in enumerate(ROWS[cls]):
        case = case_of(row, 1000 * CLASSES.index(cls) + number)
        verdict = check(case)
        outcomes[verdict.outcome] += 1
        if verdict.failure is not None:
            failure = verdict.failure
            told.append(f"{row}: {failure.kind}: {failure.text}\n{script(case, failure)}")
    assert not told, "\n".join(told)
    assert outcomes["equal"] >= 2, outcomes


def test_every_pair_is_there() -> None:
    found = {pair for mine in ROWS.values() for row in mine for pair in _pairs(row)}
    wanted = set(product(CLASSES, RULES))
    wanted |= {(one, engine) for one in CLASSES for engine in AXES[1]}
    wanted |= set(product(RULES, AXES[1])) | set(product(RULES, DTYPES))
    assert wanted <= found
    assert sum(map(len, ROWS.values())) < 1.3 * len(CLASSES) * len(RULES)


def test_each_setting_once_and_none_more_than_it_has_to_be() -> None:
    """What `pytest --pairwise` leaves of two tests of a file that are marked `singly`."""
    cases = [*product(CLASSES, ("tau 1.0", "tau 3.0"))]
    seen: Counter[tuple[str, ...]] = Counter()
    first, second = ({cases[place] for place in singly(cases, seen)} for _ in range(2))
    assert not first & second
    for left in (first, second):
        assert sorted(cls for cls, _ in left) == sorted(CLASSES)
        counts = Counter(tau_s for _, tau_s in left)
        assert len(counts) == 2
        assert max(counts.values()) - min(counts.values()) <= 1
    assert singly([("a", "b", "c"), ("a", "b", "d"), ("e",)], Counter()) == [0, 1, 2]


def _pairs(row: Row) -> set[tuple[str, str]]:
    settings = list(vars(row).values())
    return {(a, b) for a in settings for b in settings}
