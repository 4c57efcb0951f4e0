"""What tasks write while they run, and what it shows: how many at once, how often, in which order.

A mark is one line of JSON in a file that all workers append to. Times are CLOCK_MONOTONIC, which all processes of one
machine share.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a task; ``ended`` is None when it was cut off."""

    task_id: str
    task: str
    key: str
    started: float
    ended: float | None
    pid: int
    token: int
    retries: int
    worker: str
    facts: dict[str, Any]


class Marks:
    """The marks in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: list[dict[str, Any]] = []
        self._read_to = 0

    def write(self, **mark: Any) -> None:
        """Append one line, whole."""
        line = json.dumps({**mark, "at": time.monotonic(), "pid": os.getpid()}) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    @contextmanager
    def around(self, task: Any, key: str, **facts: Any) -> Iterator[None]:
        """Mark the start of a task's run and its end, however it ends short of a kill."""
        request = task.request
        about = {
            "id": request.id,
            "task": task.name,
            "key": key,
            "token": task.lease.token if task.lease else 0,
            "retries": request.retries,
            "worker": request.hostname,
        }
        self.write(what="start", **about, facts=facts)
        try:
            yield
        finally:
            self.write(what="end", **about)

    def lines(self) -> list[dict[str, Any]]:
        """All marks, in the order written."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._read_to)
                # What is being written at this moment may be seen in part.
                whole = file.read().rpartition(b"\n")[0]
            self._known += map(json.loads, whole.splitlines())
            self._read_to += len(whole) + 1 if whole else 0
        return self._known

    def runs(self, key: str | None = None) -> list[Run]:
        """All runs (of one key), by start."""
        lines = [line for line in self.lines() if key is None or line.get("key") == key]
        ends = {(line["id"], line["token"], line["pid"], line["retries"]): line["at"] for line in _of(lines, "end")}
        runs = [
            Run(
                task_id=line["id"],
                task=line["task"],
                key=line["key"],
                started=line["at"],
                ended=ends.get((line["id"], line["token"], line["pid"], line["retries"])),
                pid=line["pid"],
                token=line["token"],
                retries=line["retries"],
                worker=line["worker"],
                facts=line["facts"],
            )
            for line in _of(lines, "start")
        ]
        return sorted(runs, key=lambda run: run.started)

    def runs_of(self, task_id: str) -> list[Run]:
        """All runs of one task, by start."""
        return [run for run in self.runs() if run.task_id == task_id]

    def order(self, key: str) -> list[str]:
        """The ids of a key's tasks as they started."""
        return [run.task_id for run in self.runs(key)]


def _of(lines: Iterable[dict[str, Any]], what: str) -> Iterator[dict[str, Any]]:
    return (line for line in lines if line["what"] == what)


def largest_at_once(runs: Iterable[Run], cut_off_at: float = float("inf")) -> int:
    """The largest number of these runs at one moment; one without an end lasted until ``cut_off_at``."""
    steps: list[tuple[float, int]] = []
    for run in runs:
        steps += [(run.started, 1), (cut_off_at if run.ended is None else run.ended, -1)]
    now = largest = 0
    for _, step in sorted(steps):
        now += step
        largest = max(largest, now)
    return largest
