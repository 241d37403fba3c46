"""Processes that run cases, so that if one dies no other case is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from fuzzing.case import BLOCK, drawn
from fuzzing.check import check
from fuzzing.outcome import script
from fuzzing.script import body, wrapping

Line = dict[str, Any]
"""A line of the output file."""
COMMAND = [sys.executable, str(Path(__file__).resolve().parent.parent / "fuzz.py"), "--worker"]


def answer(seed: int, engine: str | None = None) -> Line:
    """The outcome of a case, with its own engine or this one."""
    case = drawn(seed)
    if engine is not None:
        case = replace(case, engine=engine)
    verdict = check(case)
    failure = verdict.failure
    if failure is None:
        return {"outcome": verdict.outcome, "failure": None}
    told = {"seed": seed, "kind": failure.kind, "text": failure.text}
    told["script"] = script(case, failure)
    return {"outcome": f"failed: {failure.kind}", "failure": told}


def work(seeds: Iterable[str], engine: str | None) -> None:
    """Answer each seed with a line, until the seeds end."""
    answers = os.dup(1)
    os.dup2(2, 1)  # keeps the libraries' output out of the answers
    with os.fdopen(answers, "w") as out:
        for text in seeds:
            out.write(json.dumps(answer(int(text), engine)) + "\n")
            out.flush()


class Worker:
    """A process that gets seeds and returns the outcome of each; restarted if it dies."""

    def __init__(self, engine: str | None = None) -> None:
        self._command = [*COMMAND, *(() if engine is None else ("--engine", engine))]
        self.process: subprocess.Popen[str] | None = None

    def run(self, seed: int) -> Line:
        """The outcome of a case."""
        if self.process is None:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            pipe, no = subprocess.PIPE, subprocess.DEVNULL
            self.process = subprocess.Popen(
                self._command, stdin=pipe, stdout=pipe, stderr=no, text=True, env=environment
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(f"{seed}\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if line:
            return dict(json.loads(line))
        code = self.process.wait()
        self.process = None
        return _died(seed, code)

    def close(self) -> None:
        """End the process."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait()


def _died(seed: int, code: int) -> Line:
    case, kind = drawn(seed), "the process died"
    program = f"{body(case)}layer = make(); {wrapping(case)}\nloss(run(layer)).backward()\n"
    text = f"the process ended with {code}, by this case or by what one before it did"
    failure = {"seed": seed, "kind": kind, "text": text, "script": program}
    return {"outcome": f"failed: {kind}", "failure": failure}


def blocks(begins: Sequence[int], jobs: int, engine: str | None) -> Iterator[Line]:
    """Run blocks of cases, ``jobs`` at a time, with their own engines or this one."""
    with ThreadPoolExecutor(jobs) as pool:
        free: SimpleQueue[Worker] = SimpleQueue()
        for _ in range(jobs):
            free.put(Worker(engine))

        def run(first: int) -> Line:
            begin, worker = time.time(), free.get()
            try:
                seeds = range(first, first + BLOCK)
                return _line(first, [worker.run(seed) for seed in seeds], begin)
            finally:
                free.put(worker)

        futures = [pool.submit(run, first) for first in begins]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
            for _ in range(jobs):
                free.get().close()


def _line(first: int, answers: list[Line], begin: float) -> Line:
    return {
        "first": first,
        "outcomes": Counter(answer["outcome"] for answer in answers),
        "failures": [answer["failure"] for answer in answers if answer["failure"]],
        "seconds": round(time.time() - begin, 1),
    }
