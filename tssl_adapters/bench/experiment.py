"""An experiment: a folder that holds all of its runs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from tssl_adapters import _engines
from tssl_adapters.adapters.library import libraries
from tssl_adapters.bench.known import RESULTS
from tssl_adapters.bench.observer import Record
from tssl_adapters.bench.settings import Settings

CONFIG, ENVIRONMENT = "config.yaml", "environment.json"
FAILURES = "failures.jsonl"
TOLD_APART_BY = ("library", "rule", "tau_s", "data", "network", "seed", "loss")
"""The fields that identify the run of a line of the results."""
PACKAGES = ("torch", "numpy", "llvmlite", "tssl-adapters")
"""Recorded in addition to the libraries."""


class ExperimentError(Exception):
    """A folder holds an experiment of another kind, or from a version that recorded less."""


class Experiment:
    """The files of an experiment.

    ``config.yaml`` holds the options, ``environment.json`` where it ran, ``results.jsonl`` a line
    per epoch, ``failures.jsonl`` a line per failed run; ``runs`` and ``checkpoints`` hold a file
    per run.

    Args:
        folder: the experiment's folder; it need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs, self.checkpoints = folder / "runs", folder / "checkpoints"

    def open(self, config: dict[str, Any], fixed: Iterable[str], command: str = "") -> None:
        """Create the folder, or continue the experiment in it.

        Args:
            config: the options, by name.
            fixed: options that must not change, since a run's name does not contain them.
            command: the command line.

        Raises:
            ExperimentError: a fixed option has changed, or a result does not say which run it
                belongs to.
        """
        self.check_fixed(config, fixed)
        self.results()  # raises before anything is written
        for folder in (self.runs, self.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
        self.describe(config, command)

    def check_fixed(self, config: dict[str, Any], fixed: Iterable[str]) -> None:
        """Check that the fixed options agree with the folder's, if it has some.

        Raises:
            ExperimentError: one does not.
        """
        path = self.folder / CONFIG
        before = yaml.safe_load(path.read_text()) if path.is_file() else config
        for name in fixed:
            if before.get(name) != config.get(name):
                raise ExperimentError(
                    f"{self.folder} was made with {name}: {before.get(name)}, not "
                    f"{config.get(name)}; take another folder"
                )

    def describe(self, config: dict[str, Any], command: str = "") -> None:
        """Write the options, the environment and the command line."""
        self.folder.mkdir(parents=True, exist_ok=True)
        plain = {
            name: str(value) if isinstance(value, Path) else value for name, value in config.items()
        }
        write(self.folder / CONFIG, yaml.safe_dump(plain, sort_keys=False))
        where = {"command": command, **environment()}
        write(self.folder / ENVIRONMENT, json.dumps(where, indent=1) + "\n")

    def checkpoint(self, settings: Settings) -> Path:
        """The path of a run's checkpoint."""
        return self.checkpoints / f"{settings.name}.pt"

    def records(self, settings: Settings) -> list[Record]:
        """A run's epochs so far, up to its last; read from the results if its own file is gone."""
        return self._epochs(settings)[: settings.epochs]

    def _epochs(self, settings: Settings) -> list[Record]:
        """All epochs that were ever trained."""
        path = self.runs / f"{settings.name}.jsonl"
        found = (
            _lines(path)
            if path.is_file()
            else (record for record in self.results() if key(record) == key(asdict(settings)))
        )
        return list(found)

    def results(self) -> list[Record]:
        """All runs' epochs. Incomplete lines are refused: ``collect`` would drop them.

        Raises:
            ExperimentError: there is an incomplete line.
        """
        path = self.folder / RESULTS
        records = list(_lines(path))
        for number, record in enumerate(records, start=1):
            if missing := [name for name in TOLD_APART_BY if name not in record]:
                raise ExperimentError(
                    f"{path}, line {number} has no {', '.join(missing)}, so that its run is not "
                    "known; add it to each such line, or take another folder"
                )
        return records

    def record(self, settings: Settings, records: Iterable[Record]) -> None:
        """Write a run's epochs so far."""
        _write_lines(self.runs / f"{settings.name}.jsonl", records)

    def fail(self, settings: Settings, error: str, traceback: str) -> None:
        """Record that a run failed, and how."""
        failure = {**settings.recorded(), "error": error, "traceback": traceback}
        write(self._failure(settings), json.dumps(failure) + "\n")

    def forgive(self, settings: Settings) -> None:
        """Forget a run's failure before it is tried again."""
        self._failure(settings).unlink(missing_ok=True)

    def _failure(self, settings: Settings) -> Path:
        return self.runs / f"{settings.name}.error.json"

    def check(self, grid: Iterable[Settings]) -> None:
        """Refuse to continue with a different rule of the same name.

        Raises:
            ExperimentError: a user's own rule has changed.
        """
        for settings in (one for one in grid if one.definition):
            for record in self._epochs(settings)[:1]:
                before = record.get("definition", "")
                if before != settings.definition:
                    raise ExperimentError(
                        f"{settings.rule} is {settings.definition}, and {self.folder} has results "
                        f"of it as {before}; give it another name, or take another folder"
                    )

    def others(self, grid: Iterable[Settings]) -> list[Record]:
        """The epochs of runs that are not in the grid."""
        ours = {key(asdict(settings)) for settings in grid}
        return [record for record in self.results() if key(record) not in ours]

    def failures(self) -> list[Record]:
        """The runs that failed and have not been tried again."""
        return list(_lines(self.folder / FAILURES))

    def collect(self, grid: Iterable[Settings]) -> tuple[list[Record], list[Record]]:
        """Write epochs and failures of the grid's runs into one file each, and return them.

        Those of runs that are not in the grid are kept, after the others.
        """
        grid = list(grid)
        trained = [(settings, self._epochs(settings)) for settings in grid]
        records = [record for settings, run in trained for record in run[: settings.epochs]]
        written = [record for _, run in trained for record in run]
        written += self.others(grid)
        paths = [self._failure(settings) for settings in grid]
        failures = [line for path in paths for line in _lines(path)]
        others = sorted({*self.runs.glob("*.error.json")} - {*paths})
        _write_lines(self.folder / RESULTS, written)
        written = failures + [line for path in others for line in _lines(path)]
        _write_lines(self.folder / FAILURES, written)
        return records, failures


def key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What identifies the run of a result or of its settings."""
    return tuple(record[name] for name in TOLD_APART_BY)


def environment() -> dict[str, Any]:
    """Versions, commit, machine and default engine."""
    versions = {found.name.lower().replace("_", "-"): found.version for found in distributions()}
    named = (*PACKAGES, *(library.distribution for library in libraries().values()))
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: versions[name] for name in named if name in versions},
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": psutil.cpu_count(logical=False),
            "memory_bytes": psutil.virtual_memory().total,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "engine": _engines.default(),
    }


def _commit() -> str | None:
    """The commit of this package if it runs from a clone, and whether files have changed."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run([*command, "--abbrev=40"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def write(path: Path, text: str) -> None:
    """Write a file atomically."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def _write_lines(path: Path, records: Iterable[Record]) -> None:
    write(path, "".join(json.dumps(record) + "\n" for record in records))


def _lines(path: Path) -> Iterator[Record]:
    if path.is_file():
        yield from map(json.loads, path.read_text().splitlines())
