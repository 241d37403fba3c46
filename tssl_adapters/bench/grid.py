"""Run an experiment's jobs: in this process, or scheduled by Dask."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event as Flag
from types import FrameType
from typing import Any

import torch
from distributed import Client, LocalCluster, as_completed, get_worker

from tssl_adapters.bench.experiment import Experiment
from tssl_adapters.bench.runs import Job, Tell, run

TOPIC = "tssl_adapters.bench"
ANY_PORT = "127.0.0.1:0"
"""The scheduler's web server runs even without a dashboard; it would take port 8787."""


@contextmanager
def held_back() -> Iterator[Flag]:
    """Delay the first Ctrl-C until a run can be continued later."""
    pressed = Flag()

    def press(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def run_here(jobs: Sequence[Job], tell: Tell) -> None:
    """Run the jobs one after the other in this process.

    Raises:
        InterruptedRunError: after a batch, because of Ctrl-C.
    """
    with held_back() as pressed:
        for job in jobs:
            run(job, tell, pressed.is_set)


def run_with_dask(
    jobs: Sequence[Job], tell: Tell, workers: int = 1, scheduler: str | None = None
) -> None:
    """Run the jobs in single-threaded workers; if one dies, another takes over its run.

    Args:
        jobs: the runs. Workers on other machines must see the experiment's folder and the data
            under the same path.
        tell: is told of their progress, in another thread.
        workers: how many processes to start on this machine.
        scheduler: address of a Dask scheduler, whose workers are used instead.
    """
    with cluster_client(workers, scheduler) as client:
        client.subscribe_topic(TOPIC, lambda event: tell(event[1]))
        futures = {client.submit(_run_on_worker, job, pure=False): job for job in jobs}
        for future in as_completed(futures):
            if future.status != "finished":  # its workers died repeatedly
                _record_failure(futures[future], future, tell)


@contextmanager
def cluster_client(workers: int, scheduler: str | None) -> Iterator[Client]:
    """A client of single-threaded workers on this machine, or of a running scheduler.

    Raises:
        ValueError: a worker of the scheduler has several threads.
    """
    if scheduler is not None:
        with Client(scheduler) as client:
            for worker, threads in client.nthreads().items():
                if threads > 1:  # torch's random state is global to the process
                    raise ValueError(
                        f"The worker {worker} of the Dask cluster {scheduler} has {threads} "
                        "threads, and runs in one process would share its random numbers. "
                        "Start workers with --nthreads 1, and more of them by --nworkers."
                    )
            yield client
        return
    cluster = LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        memory_limit=0,
        dashboard_address=None,
        scheduler_kwargs={"dashboard_address": ANY_PORT},
        silence_logs=logging.CRITICAL,
    )
    with cluster, Client(cluster) as client:
        yield client


def _run_on_worker(job: Job) -> None:
    """Run a job on a worker."""
    torch.set_num_threads(1)
    worker = get_worker()
    run(job, lambda event: worker.log_event(TOPIC, event))


def _record_failure(job: Job, future: Any, tell: Tell) -> None:
    said = f"{future.status}: {future.exception()}"
    Experiment(job.folder).fail(job.settings, said, traceback="")
    tell({"run": job.settings.name, "error": said})
