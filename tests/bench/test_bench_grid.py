"""Runs side by side in worker processes; one of them is killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from bench_cases import accuracy, but_seconds, results, settings
from distributed import Client, LocalCluster

from tssl_adapters.bench import runs
from tssl_adapters.bench.display import Display
from tssl_adapters.bench.experiment import Experiment
from tssl_adapters.bench.grid import cluster_client, run_with_dask
from tssl_adapters.bench.runs import Event, Job


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a scheduler with two workers, by the commands of the page on it."""
    page = (Path(__file__).parents[2] / "docs/scaling.md").read_text()
    scheduler, worker = re.findall(r"^    (dask .*)$", page, re.M)
    file = str(tmp_path_factory.mktemp("dask") / "scheduler.json")
    scheduler = scheduler.replace("--port 8786", f"--port 0 --no-dashboard --scheduler-file {file}")
    worker = worker.replace("ADDRESS", f"--scheduler-file {file} --no-dashboard")
    with ExitStack() as processes:
        for command in (scheduler, worker):
            words = [sys.executable, "-m", *command.split()]
            process = processes.enter_context(subprocess.Popen(words, stderr=subprocess.DEVNULL))
            processes.callback(process.terminate)
        with Client(scheduler_file=file) as client:
            client.wait_for_workers(2, timeout=120)
            yield client.scheduler.address


def test_cluster_of_processes_gives_what_this_one_gives(tmp_path: Path, address: str) -> None:
    options = "--libraries norse --rules native,smooth-tsslbp --seeds 1 --epochs 2"
    assert accuracy(tmp_path / "cluster", f"{options} --scheduler {address}") == 0
    assert accuracy(tmp_path / "here", options) == 0
    there, here = results(tmp_path / "cluster"), results(tmp_path / "here")
    for record in (*there, *here):
        record.pop("kept_bytes")  # counted by addresses, which a process may use twice
    assert len(here) == 2 * 2
    assert there == here


def test_killed_workers_run_is_taken_up_by_another(address: str, tmp_path: Path) -> None:
    """From its checkpoint, to what it would have been: no epoch is trained twice."""
    for folder in ("killed", "whole"):
        (tmp_path / folder / "runs").mkdir(parents=True)
    grid = [settings(seed=seed, epochs=12) for seed in range(2)]
    told: list[Event] = []
    with Client(address) as client:
        workers = list(client.run(os.getpid).values())

    def tell(event: Event) -> None:
        told.append(event)
        if "record" in event and event["record"]["epoch"] == 3 and len(workers) == 2:
            os.kill(workers.pop(), signal.SIGKILL)  # both workers are busy

    jobs = [Job(run, tmp_path / "killed") for run in grid]
    run_with_dask(jobs, tell, scheduler=address)
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


def test_workers_with_threads_are_refused() -> None:
    """Runs in one process would draw from one generator."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster,
        pytest.raises(ValueError, match=r"has 2 threads.*--nthreads 1"),
        cluster_client(1, cluster.scheduler_address),
    ):
        raise AssertionError("not refused")


def test_command_with_workers_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same as in this process."""
    options = "--libraries spikingjelly --rules native,tsslbp --seeds 1 --epochs 1"
    assert accuracy(tmp_path / "workers", f"{options} --workers 2") == 0
    assert accuracy(tmp_path / "here", options) == 0
    assert results(tmp_path / "workers") == results(tmp_path / "here")


def test_the_schedulers_web_server_takes_no_port_that_is_in_use() -> None:
    """It warns where it does, and many a Dask cluster is at its usual one."""
    with socket.socket() as other, warnings.catch_warnings():
        with suppress(OSError):  # then it is in use already
            other.bind(("127.0.0.1", 8787))
            other.listen()
        warnings.simplefilter("error")
        with cluster_client(1, None) as client:
            assert client.cluster.scheduler.http_server.address == "127.0.0.1"


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
