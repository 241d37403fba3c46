"""Runs side by side in worker processes; one of them is killed."""

from __future__ import annotations

import logging
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from bench_cases import accuracy, but_seconds, results, settings
from distributed import Client, LocalCluster

from tssl_adapters.bench import runs
from tssl_adapters.bench.display import Display
from tssl_adapters.bench.experiment import Experiment
from tssl_adapters.bench.grid import run_with_dask
from tssl_adapters.bench.runs import Event, Job


@pytest.fixture
def cluster() -> LocalCluster:  # type: ignore[misc]
    """Two workers, as on a cluster that is there already."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address=None,
        silence_logs=logging.CRITICAL,
    ) as cluster:  # fmt: skip
        yield cluster


def test_killed_workers_run_is_taken_up_by_another(cluster: LocalCluster, tmp_path: Path) -> None:
    """From its checkpoint, to what it would have been: no epoch is trained twice."""
    for folder in ("killed", "whole"):
        (tmp_path / folder / "runs").mkdir(parents=True)
    grid = [settings(seed=seed, epochs=12) for seed in range(2)]
    told: list[Event] = []
    with Client(cluster) as client:
        workers = list(client.run(os.getpid).values())

    def tell(event: Event) -> None:
        told.append(event)
        if "record" in event and event["record"]["epoch"] == 3 and len(workers) == 2:
            os.kill(workers.pop(), signal.SIGKILL)  # both workers are busy

    jobs = [Job(run, tmp_path / "killed") for run in grid]
    run_with_dask(jobs, tell, scheduler=cluster.scheduler_address)
    assert len(workers) == 1
    for run in grid:
        runs.run(Job(run, tmp_path / "whole"), lambda event: None)
        found, expected = (
            Experiment(tmp_path / folder).records(run) for folder in ("killed", "whole")
        )
        assert len(found) == 12
        assert but_seconds(found) == but_seconds(expected)
    epochs = Counter(
        (event["run"], event["record"]["epoch"]) for event in told if "record" in event
    )
    assert max(epochs.values()) == 1
    assert len(epochs) >= 2 * 12 - 1  # the one whose end was not told any more


def test_command_with_workers_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same as in this process."""
    options = "--libraries spikingjelly --rules native,tsslbp --seeds 1 --epochs 1"
    assert accuracy(tmp_path / "workers", f"{options} --workers 2") == 0
    assert accuracy(tmp_path / "here", options) == 0
    assert results(tmp_path / "workers") == results(tmp_path / "here")


def test_display_counts_epochs_and_says_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    pending = [settings(seed=seed, epochs=4) for seed in range(2)]
    record = dict.fromkeys(("train_loss", "train_accuracy", "test_accuracy", "seconds"), 0.5)
    with Display(pending, done=3, quiet=False) as display:
        display.tell({"run": pending[0].name, "epoch": 0, "batch": 7, "batches": 9})
        (run,) = display.running.values()
        shown = next(task for task in display.bars.tasks if task.id == run)
        assert (shown.completed, shown.total) == (7, 9)
        assert shown.description.endswith("-0  epoch 1/4")
        event = {"record": {**record, "epoch": 1, "spike_rate": 0.1}, "best": 0.5}
        display.tell({"run": pending[0].name, **event})
        assert not display.running
        display.tell({"run": pending[1].name, "error": "ValueError: why"})
        (grid,) = display.bars.tasks
        assert (grid.completed, grid.total) == (4, 8)
    said = capsys.readouterr().err
    assert "epoch 1/4  loss 0.5000  train 50.00%  test 50.00% (best 50.00%)" in said
    assert f"{pending[1].name} failed: ValueError: why" in said
