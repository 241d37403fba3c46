"""The package's performance floors, measured: floor, figure, met or not.

One CPU thread, compared by processor time: on a quiet machine it equals the wall-clock time, and
on a busy one it excludes other jobs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Literal

import torch

from tssl_adapters.bench.known import ALL
from tssl_adapters.bench.networks import suite
from tssl_adapters.bench.report.tables import REFERENCE
from tssl_adapters.bench.speed.cases import Case, Plan, Row, run_case
from tssl_adapters.bench.speed.contestants import (
    COMPILED,
    LAYERWISE,
    NATIVE,
    PRODUCTS,
    QUADRATIC,
    QUADRATIC_RULE,
    engines,
    named,
)
from tssl_adapters.bench.speed.first import first_call, first_import
from tssl_adapters.bench.speed.growth import time_growth
from tssl_adapters.bench.speed.training_steps import network_steps
from tssl_adapters.bench.speed.works import Work

Measure = Callable[[Case, Plan], list[Row]]

DEFAULT, OWN = "smooth-tsslbp", "native"
SEQUENCES = (
    ("spikingjelly-lif", 8, 65536, {DEFAULT: 4.2, OWN: 4.2, QUADRATIC_RULE: 3.3}),
    ("spikingjelly-lif", 100, 16384, {DEFAULT: 8.5, OWN: 8.5, QUADRATIC_RULE: 7.0}),
    ("norse-lif", 100, 16384, {DEFAULT: 20.0, OWN: 20.0, QUADRATIC_RULE: 20.0}),
)
"""Work, T, neurons, and the bound of each rule."""
STEPPED, STEP_RULES = ("snntorch-leaky", "norse-lifcell", "spikingjelly-lif-step"), (DEFAULT, OWN)
STEP_SIZES, STEPS = ((32, 512, 3.0), (64, 4096, 2.5)), 32
NETWORK = ("snntorch-network", 50, 32, 3.0)
LEAST_OF_PRODUCTS = 0.85
"""The least speed of a network relative to its connections alone, since the speed-up over native
depends on how fast the processor multiplies matrices."""
QUADRATIC_STEPS, QUADRATIC_NEURONS, QUADRATIC_TAU_S = (100, 200), 2048, 3.0
LEAST_OF_NETWORKS, LEAST_MEAN_OF_NETWORKS = 0.97, 1.3
GPU = ("spikingjelly-lif", 8, 64, 65536)
KEPT = "drives kept for backward, two rows of states beside"
GROWTH_NEURONS, MOST_GROWTH, MOST_KEPT = 1024, 1.2, 1.0
LONGEST_FIRST_CALL, LONGEST_IMPORT = 0.5, 0.1
"""Seconds."""


@dataclass(frozen=True)
class Floor:
    """One line of the table.

    Attributes:
        what: the work and its size.
        figure: what is measured.
        sense: whether the figure must be at least, at most, or above ``bound``.
        bound: the floor.
        measured: the figure; ``None`` if this device cannot measure it.
        by: the engine that achieved it.
    """

    what: str
    figure: str
    sense: Literal["at least", "at most", "above"]
    bound: float
    measured: float | None = None
    by: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the figure, to two decimals, meets the floor; ``None`` if not measured."""
        if self.measured is None:
            return None
        figure = round(self.measured, 2)
        if self.sense == "at most":
            return figure <= self.bound
        return figure >= self.bound if self.sense == "at least" else figure > self.bound

    def record(self) -> Row:
        """For the JSON file."""
        return {**asdict(self), "met": self.met}


def status(floors: Sequence[Floor]) -> int:
    """1 if a floor is missed, else 0."""
    return int(any(floor.met is False for floor in floors))


def best(rows: Sequence[Row], names: Sequence[str], figure: str = "times_less_processor") -> Row:
    """The contestant with the highest figure among those named."""
    return max((row for row in rows if row["contestant"] in names), key=lambda row: row[figure])


def against_floors(
    works: Sequence[Work], plan: Plan, leave_out: Callable[[str], None]
) -> Iterator[Floor]:
    """Measure all floors, one after another.

    Args:
        works: those of the installed libraries.
        plan: how to measure; threads, PSC and dtype are fixed by the floors, and the layers' rules.
        leave_out: receives what could not be measured.
    """
    known = {work.name: work for work in works}
    plain = replace(plan, tau_s=(1.0,), compiled=False, memory=False, dtype=torch.float32)

    def measure(case: Case, how: Plan) -> list[Row]:
        return run_case(case, how, leave_out)

    if plan.device.type == "cuda":
        yield from gpu(known, replace(plain, dtype=torch.float16, compiled=True), measure)
        return
    yield from first_calls(known)
    yield from sequences(known, plain, measure)
    yield from network(known, plain, measure)
    yield from steps(known, plain, measure)
    yield from whole_networks(plain, leave_out)
    yield from over_time([work for work in works if not work.is_network], plain)
    authors = replace(plain, tau_s=(QUADRATIC_TAU_S,), rule=QUADRATIC_RULE)
    yield from against_quadratic(known, authors, measure)
    what = f"GPU, T = {GPU[1]}, {GPU[2]} x {GPU[3]}, float16"
    yield Floor(what, "times faster than SpikingJelly's kernel", "above", 1.0)
    yield Floor(what, "of the copy bandwidth", "at least", 0.8)


def first_calls(known: dict[str, Work]) -> Iterator[Floor]:
    """Layers in fresh processes, and the package's import."""
    for name, rule in product(
        dict.fromkeys([*STEPPED, *(row[0] for row in SEQUENCES)]), STEP_RULES
    ):
        if name in known:
            taken = first_call(name, rule)
            what = f"{known[name].title}, {rule}"
            yield Floor(what, "seconds of a first call", "at most", LONGEST_FIRST_CALL, taken)
    what = "import tssl_adapters"
    yield Floor(what, "seconds beside torch's", "at most", LONGEST_IMPORT, first_import())


def sequences(known: dict[str, Work], plan: Plan, measure: Measure) -> Iterator[Floor]:
    """Layers in multi-step mode, and the memory they keep."""
    for name, steps, neurons, bounds in SEQUENCES:
        for rule, bound in bounds.items() if name in known else ():
            # The T x T recursion has floors of its own.
            case = Case(replace(known[name], recursion=None), steps, 1, neurons)
            yield from _layer(case, replace(plan, rule=rule), measure, bound)


def steps(known: dict[str, Work], plan: Plan, measure: Measure) -> Iterator[Floor]:
    """Layers in single steps, and the memory they keep."""
    for name, size, rule in product(STEPPED, STEP_SIZES, STEP_RULES):
        batch, neurons, bound = size
        if name in known:
            case = Case(known[name], STEPS, batch, neurons)
            yield from _layer(case, replace(plan, rule=rule), measure, bound)


def _layer(case: Case, plan: Plan, measure: Measure, bound: float) -> Iterator[Floor]:
    names = [named(engine, 1.0) for engine in engines(plan.device)]
    rows, what = measure(case, plan), f"{case.title}, {plan.rule}"
    if not rows:
        yield Floor(what, "times faster than native", "at least", bound)
        return
    row = best(rows, names)
    by = row["contestant"]
    faster, kept = row["times_less_processor"], row["drives_kept"]
    yield Floor(what, "times faster than native", "at least", bound, faster, by)
    most = MOST_KEPT + 2 / case.steps
    yield Floor(what, KEPT, "at most", most, kept, by)


def network(known: dict[str, Work], plan: Plan, measure: Measure) -> Iterator[Floor]:
    """A training step of a network, layer by layer, against the native loop."""
    name, steps, batch, bound = NETWORK
    if name not in known:
        return
    case = Case(known[name], steps, batch, 0)
    what = f"{known[name].title}, {LAYERWISE}, T = {steps}, batch {batch}"
    figure = "times faster than the native loop"
    names = [named(engine, 1.0, layerwise=True) for engine in engines(plan.device)]
    rows = measure(case, plan)
    if not rows:
        yield Floor(what, figure, "at least", bound)
        return
    row, products = best(rows, names), best(rows, [PRODUCTS])
    faster, by = row["times_less_processor"], row["contestant"]
    yield Floor(what, figure, "at least", bound, faster, by)
    share = faster / products["times_less_processor"]
    yield Floor(what, f"of the speed of its {PRODUCTS}", "at least", LEAST_OF_PRODUCTS, share, by)


def whole_networks(plan: Plan, leave_out: Callable[[str], None]) -> Iterator[Floor]:
    """A training step of each network of the suite, and the mean over networks, for each rule."""
    rows = list(network_steps(suite.chosen([ALL]), plan, leave_out))
    figure = "times faster than native"
    for rule in dict.fromkeys(row["rule"] for row in rows if row["rule"] != REFERENCE):
        mine = [row for row in rows if row["rule"] == rule]
        for row in mine:
            faster = row["times_less_processor"]
            what = f"{row['network']}, training step, {rule}"
            yield Floor(what, figure, "at least", LEAST_OF_NETWORKS, faster)
        mean = statistics.mean(row["times_less_processor"] for row in mine)
        what = f"mean of {len(mine)} networks, training step, {rule}"
        yield Floor(what, figure, "at least", LEAST_MEAN_OF_NETWORKS, mean)


def over_time(works: Sequence[Work], plan: Plan) -> Iterator[Floor]:
    """Time per step, T = 1000 over T = 100, of each layer's slowest engine."""
    for work in works:
        rows = time_growth(work, plan, GROWTH_NEURONS)
        worst = max(
            (row for row in rows if row["contestant"] != NATIVE),
            key=lambda row: row["processor_ratio"],
        )
        what = f"{work.title}, {GROWTH_NEURONS} neurons"
        figure = "time per step, T = 1000 over T = 100"
        yield Floor(
            what, figure, "at most", MOST_GROWTH, worst["processor_ratio"], worst["contestant"]
        )


def against_quadratic(known: dict[str, Work], plan: Plan, measure: Measure) -> Iterator[Floor]:
    """The engines against the authors' algorithm, which must fall behind as T grows."""
    if "spikingjelly-lif" not in known:
        return
    ratios = []
    for steps in QUADRATIC_STEPS:
        rows = measure(Case(known["spikingjelly-lif"], steps, 1, QUADRATIC_NEURONS), plan)
        fastest = best(rows, [named(engine, QUADRATIC_TAU_S) for engine in engines(plan.device)])
        baseline = best(rows, [f"{QUADRATIC}, tau_s = {QUADRATIC_TAU_S:g}"])
        ratios.append(baseline["processor_s"] / fastest["processor_s"])
    by = fastest["contestant"]
    what = f"T x T recursion, {QUADRATIC_NEURONS} neurons"
    figure = f"times faster at T = {QUADRATIC_STEPS[0]}"
    yield Floor(what, figure, "at least", 10.0, ratios[0], by)
    figure = f"that at T = {QUADRATIC_STEPS[1]} over T = {QUADRATIC_STEPS[0]}"
    yield Floor(what, figure, "above", 1.0, ratios[1] / ratios[0], by)


def gpu(known: dict[str, Work], plan: Plan, measure: Measure) -> Iterator[Floor]:
    """Against SpikingJelly's kernels: its default, and the Triton one that compiling it uses."""
    name, steps, batch, neurons = GPU
    if name not in known:
        return
    case = Case(known[name], steps, batch, neurons)
    rows = measure(case, plan)
    ours = best(rows, [named(engine, 1.0) for engine in engines(plan.device)], "times_faster")
    theirs = best(rows, [NATIVE, COMPILED], "times_faster")
    faster, by = theirs["total_s"] / ours["total_s"], ours["contestant"]
    what = f"GPU, T = {steps}, {batch} x {neurons}, float16"
    yield Floor(what, "times faster than SpikingJelly's kernel", "above", 1.0, faster, by)
    yield Floor(what, "of the copy bandwidth", "at least", 0.8, ours["of_copy"], by)
