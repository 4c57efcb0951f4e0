"""The tasks' own record of what ran when, and the sweep over it.

Every run of a task appends one line when it starts and one when it ends, each with a single write, to a file that all
worker processes share. This is what the demo measures by; it asks the library nothing. Times are nanoseconds of
``CLOCK_MONOTONIC``, which all processes of a machine share.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .source import Counts

READY = "ready"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one task. ``ended`` is None when its end was never written: its process was killed, or it still runs.

    A run that ended has either ``counts`` or ``error``, the name of the exception's class.
    """

    task_id: str
    pid: int
    started: int
    ended: int | None = None
    counts: Counts | None = None
    error: str | None = None


class MarksFile:
    """The file of marks, for the tasks that write it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def ready(self, worker: str) -> None:
        """Mark that ``worker`` takes tasks now."""
        self._append({"event": READY, "worker": worker})

    @contextmanager
    def run(self, task_id: str, **details: Any) -> Iterator[Outcome]:
        """Mark the start of a run and, however it ends, its end."""
        outcome = Outcome({"task_id": task_id, "pid": os.getpid(), "started": time.monotonic_ns()})
        self._append({"event": "start", **details, **outcome.fields})
        try:
            yield outcome
        except BaseException as exc:
            outcome.fields["error"] = type(exc).__name__
            raise
        finally:
            self._append({"event": "end", **outcome.fields, "ended": time.monotonic_ns()})

    def _append(self, mark: Mapping[str, Any]) -> None:
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, json.dumps(mark).encode() + b"\n")
        finally:
            os.close(handle)


@dataclass(slots=True)
class Outcome:
    """What the end mark of a run will say."""

    fields: dict[str, Any]

    def counted(self, counts: Counts) -> None:
        self.fields["counts"] = asdict(counts)


class MarksReader:
    """Follows the file of marks while it grows, from where it ends now. Only the runs of ``task_ids`` are taken up."""

    def __init__(self, path: Path, task_ids: Iterable[str]) -> None:
        path.touch()
        self._path = path
        self._offset = path.stat().st_size
        self._runs: dict[tuple[str, int, int], Run] = {}
        self._wanted = frozenset(task_ids)
        self.ready: set[str] = set()
        self.done: set[str] = set()

    def read(self) -> int:
        """Take up what was written since the last call; answers how many lines that was."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        self._offset += sum(map(len, whole))
        for line in whole:
            self._take(json.loads(line))
        return len(whole)

    def runs(self) -> dict[str, list[Run]]:
        """All runs so far by task id, in the order of their start."""
        by_task: dict[str, list[Run]] = defaultdict(list)
        for run in sorted(self._runs.values(), key=lambda run: run.started):
            by_task[run.task_id].append(run)
        return dict(by_task)

    def _take(self, mark: Mapping[str, Any]) -> None:
        if mark["event"] == READY:
            self.ready.add(mark["worker"])
            return
        run = Run(mark["task_id"], mark["pid"], mark["started"])
        if run.task_id not in self._wanted:
            return
        if mark["event"] == "end":
            counts = Counts(**mark["counts"]) if "counts" in mark else None
            run = replace(run, ended=mark["ended"], counts=counts, error=mark.get("error"))
            if counts is not None:
                self.done.add(run.task_id)
        self._runs[run.task_id, run.pid, run.started] = run


def most_at_once(runs: Iterable[Run]) -> int:
    """The largest number of ``runs`` that were going on at one moment.

    A run without an end counts until the next run of its task starts, for that is when its process was known dead.
    """
    steps: list[tuple[int, int]] = []
    for run, following in _with_following(runs):
        ended = run.ended if run.ended is not None else following
        steps.append((run.started, 1))
        steps.extend([(ended, -1)] if ended is not None else [])
    now = most = 0
    for _, step in sorted(steps):  # of two at the same nanosecond the end comes first
        now += step
        most = max(most, now)
    return most


def _with_following(runs: Iterable[Run]) -> Iterator[tuple[Run, int | None]]:
    by_task: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.started):
        by_task[run.task_id].append(run)
    for of_task in by_task.values():
        starts: list[int | None] = [run.started for run in of_task[1:]]
        yield from zip(of_task, [*starts, None], strict=True)
