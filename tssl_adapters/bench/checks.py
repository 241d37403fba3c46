"""Checks before the first run: one line says what is missing, instead of an error from each run."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tssl_adapters.bench import known, places
from tssl_adapters.bench.options import losses_of
from tssl_adapters.bench.source import parts

if TYPE_CHECKING:
    from tssl_adapters.bench.data import Data
    from tssl_adapters.bench.settings import Settings

SECONDS_TO_ANSWER = 5


def at_once(args: Namespace) -> None:
    """Check what can be checked before importing the code that runs a command.

    An existing experiment may need nothing but its report.

    Raises:
        ValueError: a file, folder or device is missing, or options conflict; says what, where
            and what to do.
    """
    for name, there, what in (
        ("data_dir", Path.is_dir, "folder; name the one that holds the data's files"),
        ("checkpoint", Path.is_file, "file; name one of an experiment's checkpoints"),
    ):
        path = getattr(args, name, None)
        if path is not None and not there(path):
            raise ValueError(f"--{name.replace('_', '-')} {path}: there is no such {what}")
    if args.out is not None:
        _can_be_written(args.out)
    if "model" in args:
        parts(args.model, "build")
    if "losses" in args:
        for tau_s in args.tau_s:
            losses_of(args, tau_s)
    if args.out is None or not (args.out / known.RESULTS).is_file():
        for data in _data_of(args):
            _files(data, getattr(args, "data_dir", None), getattr(args, "time_steps", 0))
    if getattr(args, "device", "cpu") != "cpu":
        device_is_there(args.device)


def _can_be_written(folder: Path) -> None:
    """Check that a folder exists or can be made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"--out {folder}: {there} is a file; name a folder, which may be new")
    if not os.access(there, os.W_OK):
        raise ValueError(f"--out {folder}: you may not write in {there}; name another folder")


def _data_of(args: Namespace) -> list[str]:
    """The data sets that the options name."""
    if "experiments" in args:
        return [known.EXPERIMENTS[name] for name in args.experiments]
    if "data" not in args and {"fashion", *known.FASHION} & {*getattr(args, "networks", ())}:
        return ["fashion-mnist"]
    return getattr(args, "data", [])


def _files(name: str, folder: Path | None, num_steps: int) -> None:
    try:
        places.check(name, folder, num_steps)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise ValueError(str(error)) from error


def before_the_first_run(
    pending: Iterable[Settings], data_dir: Path | None, device: str, scheduler: str | None
) -> None:
    """Check that device, scheduler and data are there, and that the networks fit the data.

    Args:
        pending: the runs to be trained.
        data_dir: folder of the data files, if given.
        device: torch's name of the device.
        scheduler: address of a Dask scheduler, if one is used.

    Raises:
        ValueError: something is missing or does not fit; says what, where and what to do.
    """
    import torch

    from tssl_adapters.bench.architectures import connections

    pending = list(pending)
    if not pending:
        return
    device_is_there(device)
    scheduler_answers(scheduler)
    for name, steps, validation in dict.fromkeys(
        (run.data, run.time_steps, run.validation) for run in pending
    ):
        samples = _loaded(name, data_dir, steps, validation)
        for network in dict.fromkeys(run.network for run in pending if run.data == name):
            with torch.device("meta"):
                connections(network, samples.sample_shape, samples.num_classes)


def device_is_there(name: str) -> None:
    """Check that torch can compute on a device.

    Raises:
        ValueError: it cannot.
    """
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        said = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"--device {name}: torch {torch.__version__} cannot compute there ({said}); take "
            "--device cpu, or a machine and a build of torch that have it"
        ) from error


def scheduler_answers(address: str | None) -> None:
    """Check that a Dask scheduler answers.

    Raises:
        ValueError: it does not.
    """
    if address is None:
        return
    from distributed import Client

    try:
        Client(address, timeout=SECONDS_TO_ANSWER).close()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--scheduler {address}: no Dask scheduler answers there; start one with `dask "
            "scheduler`, and give the address that it prints"
        ) from error


def _loaded(name: str, folder: Path | None, steps: int, validation: int | None) -> Data:
    """Load a data set; it is cached for later calls in this process."""
    from tssl_adapters.bench import data

    try:
        whole = data.load(name, folder, steps)
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        raise ValueError(f"--data {name}: {error}") from error
    try:
        return whole.held_out(validation)
    except ValueError as error:
        raise ValueError(f"--validation, {name}: {error}") from error
