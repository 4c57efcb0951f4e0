"""What tasks write while they run: a mark at the start, one every few milliseconds, one at the end.

A mark is one line of JSON in a file that all workers of a world append to. Times are CLOCK_MONOTONIC, which all
processes of one machine share. A run that was killed has no end; a run that was frozen has a gap.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

TICK_SECONDS = 0.02


class PlannedError(Exception):
    """What a task raises because it was told to. Anything else comes from outside and stops it."""


class Scribe:
    """Writes marks. Opens the file for each, so that it may be used on both sides of a fork."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, mark: str, **facts: Any) -> None:
        """Append one line, whole."""
        line = json.dumps({"mark": mark, **facts, "at": time.monotonic()}, default=str) + "\n"
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    @contextmanager
    def run(self, task: Any, **about: Any) -> Iterator[Ticker]:
        """Mark a task's run from its start to its end, however it ends short of a kill."""
        lease, request = task.lease, task.request
        run = {"run": uuid4().hex[:12], "token": lease.token}
        about = {**about, "attempt": lease.attempt, "retries": request.retries, "worker": request.hostname}
        self.write("start", **run, id=request.id, task=task.name, pid=os.getpid(), **about)
        how, stopped = "ok", False
        try:
            yield Ticker(self, run)
        except BaseException as error:
            how, stopped = type(error).__name__, not isinstance(error, PlannedError)
            raise
        finally:
            self.write("end", **run, how=how, stopped=stopped)


class Ticker:
    """The work of a run: nothing but marks, one a tick."""

    def __init__(self, scribe: Scribe, run: dict[str, Any]) -> None:
        self._scribe, self._run = scribe, run

    def tick(self) -> None:
        """Work for one tick. A run that was frozen has all its remaining ticks still to do."""
        time.sleep(TICK_SECONDS)
        self._scribe.write("tick", **self._run)
