"""Progress of a grid of runs: bars on a terminal, else one line per epoch."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tssl_adapters.bench.observer import describe
from tssl_adapters.bench.runs import Event
from tssl_adapters.bench.settings import Settings


class Display:
    """Bars for the whole grid, in epochs, and for each run in progress, in batches.

    Args:
        pending: the runs to be trained.
        done: how many of their epochs are already done.
        quiet: show nothing.
    """

    def __init__(self, pending: Sequence[Settings], done: int, quiet: bool) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )
        self.epochs = {settings.name: settings.epochs for settings in pending}
        self.grid = self.bars.add_task(
            f"{len(pending)} runs", total=sum(self.epochs.values()), completed=done, unit="epochs"
        )
        self.running: dict[str, TaskID] = {}

    def __enter__(self) -> Display:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def tell(self, event: Event) -> None:
        """Show an event of a run."""
        run = event["run"]
        if "batch" in event:
            self._batch(run, event)
            return
        if (task := self.running.pop(run, None)) is not None:
            self.bars.remove_task(task)
        if "error" in event:
            self.console.print(f"{run} failed: {event['error']}", markup=False, highlight=False)
            return
        self.bars.advance(self.grid)
        line = describe(event["record"], self.epochs[run], event["best"])
        self.console.print(f"{run}  {line}", markup=False, highlight=False, soft_wrap=True)

    def _batch(self, run: str, event: Event) -> None:
        if run not in self.running:
            self.running[run] = self.bars.add_task("", total=event["batches"], unit="batches")
        self.bars.update(
            self.running[run],
            description=f"{run}  epoch {event['epoch'] + 1}/{self.epochs[run]}",
            completed=event["batch"],
            total=event["batches"],
        )
