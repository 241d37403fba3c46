"""Time per step of a long sequence relative to a shorter one."""

from __future__ import annotations

from tssl_adapters.bench.speed import measure
from tssl_adapters.bench.speed.cases import Case, Plan, Row, input_of
from tssl_adapters.bench.speed.contestants import contestants
from tssl_adapters.bench.speed.tasks import LayerTask
from tssl_adapters.bench.speed.works import Work

SHORT, LONG = 100, 1000


def time_growth(work: Work, plan: Plan, neurons: int) -> list[Row]:
    """One row per contestant, none compiled; on one thread."""
    cases = {steps: Case(work, steps, 1, neurons) for steps in (SHORT, LONG)}
    drives = {steps: input_of(case, plan) for steps, case in cases.items()}
    tasks = {
        f"{entry.name}@{steps}": LayerTask(entry.model, entry.run, drive, drive)
        for entry in contestants(work, plan.device, plan.dtype, plan.tau_s, False, plan.rule)
        for steps, drive in drives.items()
    }
    for task in tasks.values():
        measure.once(task, plan.device)
    taken = measure.in_turns(tasks, plan.device, plan.rounds, plan.budget)
    names = dict.fromkeys(name.partition("@")[0] for name in tasks)
    return [
        {
            "work": work.name,
            "title": work.title,
            "neurons": neurons,
            "contestant": name,
            "ratio": SHORT / LONG * measure.ratio(*pair),
            "processor_ratio": SHORT / LONG * measure.ratio(*pair, "processor"),
        }
        for name in names
        for pair in [(taken[f"{name}@{LONG}"], taken[f"{name}@{SHORT}"])]
    ]
