"""The runs that the marks show."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

#: A run without a mark for so long was frozen: it counts up to its last mark before, and from its next one on.
GAP_SECONDS = 0.5


@dataclass(slots=True)
class Run:
    """One run of a task. ``spans`` are when it was on, without gaps; ``how`` it ended is None when it was cut off."""

    task_id: str
    task: str
    key: str
    limit: int
    strict: bool
    attempt: str
    token: int
    retries: int
    worker: str
    pid: int
    spans: list[tuple[float, float]]
    how: str | None = None

    @property
    def started(self) -> float:
        return self.spans[0][0]

    @property
    def last_seen(self) -> float:
        return self.spans[-1][1]

    def marked(self, at: float) -> None:
        """It has written another mark."""
        began, last = self.spans[-1]
        if at - last > GAP_SECONDS:
            self.spans.append((at, at))
        else:
            self.spans[-1] = (began, at)

    def was_on_at(self, at: float) -> bool:
        """Whether it had started by then and wrote a mark, or ended, no earlier than shortly before."""
        return self.started <= at and self.last_seen >= at - GAP_SECONDS


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the library told of: its action, who told it, when, and the facts."""

    action: str
    worker: str
    at: float
    facts: dict[str, Any]


@dataclass(slots=True)
class History:
    """The marks in one file, read as it grows. Threads may share it."""

    path: Path
    runs: list[Run] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    #: Tasks of which a run came to its own end.
    ended: set[str] = field(default_factory=set)
    _by_run: dict[str, Run] = field(default_factory=dict)
    _read_to: int = 0
    _reading: Lock = field(default_factory=Lock)

    def read(self) -> History:
        """Take up what was written since."""
        with self._reading:
            if self.path.exists():
                with self.path.open("rb") as file:
                    file.seek(self._read_to)
                    # What is being written at this moment may be seen in part.
                    whole = file.read().rpartition(b"\n")[0]
                self._read_to += len(whole) + 1 if whole else 0
                for line in whole.splitlines():
                    self._take(json.loads(line))
        return self

    def running(self, seen_since: float = 0.0) -> list[Run]:
        """Runs without an end. Those that were cut off are among them, unless they were not seen since then."""
        return [run for run in list(self._by_run.values()) if run.last_seen >= seen_since]

    def runs_of(self, task_id: str) -> list[Run]:
        """All runs of a task, by start."""
        return [run for run in list(self.runs) if run.task_id == task_id]

    def _take(self, mark: dict[str, Any]) -> None:
        kind, at = mark["mark"], mark["at"]
        if kind == "event":
            self.events.append(Event(mark["action"], mark["worker"], at, mark["facts"]))
        elif kind == "start":
            self._by_run[mark["run"]] = run = _run(mark)
            self.runs.append(run)
        elif mark["run"] in self._by_run:
            run = self._by_run[mark["run"]]
            stopped = kind == "end" and mark["stopped"]
            if not stopped:
                # That a run was stopped is no effect of it.
                run.marked(at)
            if kind == "end":
                run.how = mark["how"]
                del self._by_run[mark["run"]]
                if not stopped:
                    self.ended.add(run.task_id)


def _run(mark: dict[str, Any]) -> Run:
    return Run(
        task_id=mark["id"],
        task=mark["task"],
        key=mark["key"],
        limit=mark["limit"],
        strict=mark["strict"],
        attempt=mark["attempt"],
        token=mark["token"],
        retries=mark["retries"],
        worker=mark["worker"],
        pid=mark["pid"],
        spans=[(mark["at"], mark["at"])],
    )
