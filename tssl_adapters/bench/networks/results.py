"""The suite's results: one line per run, so that the same command continues and repeats nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tssl_adapters.bench import rules
from tssl_adapters.bench.experiment import FAILURES, ExperimentError, write
from tssl_adapters.bench.known import RESULTS
from tssl_adapters.bench.networks.training import Job
from tssl_adapters.bench.observer import Record

TOLD_APART_BY = ("network", "rule", "seed", "engine")


class Results:
    """The results in a folder; several commands may add to them at the same time.

    Args:
        folder: the results' folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.failures = folder / RESULTS, folder / FAILURES

    def of(self, jobs: Iterable[Job]) -> dict[Job, Record]:
        """The lines of the jobs that are done.

        Raises:
            ExperimentError: a line is broken, or a rule has changed since it was written.
        """
        known = self._by_key()
        found = {job: known[key] for job in jobs if (key := _key(vars(job))) in known}
        for job, record in found.items():
            if record["definition"] != (now := rules.describe(job.rule)):
                raise ExperimentError(
                    f"{job.rule} is {now}, and {self.path} has results of it as "
                    f"{record['definition']}; give it another name, or take another folder"
                )
        return found

    def others(self, jobs: Iterable[Job]) -> list[Record]:
        """The lines of other runs with the same engine."""
        keys = {_key(vars(job)) for job in jobs}
        engines = {job.engine for job in jobs}
        return [
            record
            for key, record in self._by_key().items()
            if key not in keys and record["engine"] in engines
        ]

    def _by_key(self) -> dict[tuple[Any, ...], Record]:
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        found: dict[tuple[Any, ...], Record] = {}
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                found.setdefault(_key(record), record)
            except (ValueError, KeyError) as error:
                raise ExperimentError(
                    f"{self.path}, line {number} is no run of the suite ({error!r}); delete it, "
                    "and the run is made again"
                ) from error
        return found

    def add(self, record: Record) -> None:
        """Append a run's line, in a single write."""
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def fail(self, failures: Iterable[Record]) -> None:
        """Record which runs of the command failed."""
        write(self.failures, "".join(json.dumps(failure) + "\n" for failure in failures))


def _key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in TOLD_APART_BY)
