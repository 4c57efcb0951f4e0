"""Watches a run until every file is counted or dead."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .backlog import Backlog
from .corpus import SourceFile
from .errors import DemoFailedError
from .letters import DemoLetters
from .marks import MarksReader
from .progress import BusyKey, Progress
from .publisher import Publisher
from .view import View
from .workers import Workers

LOOK_SECONDS = 0.2
ASK_SECONDS = 1.0  # the servers are asked less often: each answer takes time from the tasks
READY_SECONDS = 60.0
STALL_SECONDS = 60.0


def wait_until_ready(workers: Workers, marks: MarksReader) -> None:
    """Wait until all ``workers`` take tasks. Raises ``DemoFailedError`` when one ends or none comes."""
    deadline = time.monotonic() + READY_SECONDS
    while not workers.names <= marks.ready:
        workers.check()
        if time.monotonic() > deadline:
            raise DemoFailedError(f"no worker was ready after {READY_SECONDS:.0f} s. {workers.tails()}")
        time.sleep(LOOK_SECONDS)
        marks.read()


class Follower:
    """One run as seen from outside: the tasks' marks often, the servers now and then."""

    def __init__(
        self, files: Sequence[SourceFile], *, publisher: Publisher, marks: MarksReader, letters: DemoLetters
    ) -> None:
        self._all = frozenset(file.task_id for file in files)
        self._publisher = publisher
        self._marks = marks
        self._letters = letters
        self._backlog = Backlog()
        self._began = self._asked = self._moved = time.monotonic()
        self._left = self._backlog.counts()
        self._busiest: tuple[BusyKey, ...] = ()
        self._dead: frozenset[str] = frozenset()

    def follow(self, view: View, workers: Workers) -> str | None:
        """Return when all files have ended and the store is empty; or, when nothing moves any more, with what is left.

        Raises ``DemoFailedError`` when a worker dies or publishing breaks off.
        """
        while not self._finished():
            workers.check()
            self._publisher.check()
            if time.monotonic() - self._moved > STALL_SECONDS:
                return f"{self._stall()}; see {', '.join(workers.logs)}"
            time.sleep(LOOK_SECONDS)
            self._look()
            view.running(self.progress())
        return None

    def progress(self) -> Progress:
        """The latest moment."""
        return Progress(
            files=len(self._all),
            published=self._publisher.published,
            done=len(self._marks.done),
            dead=len(self._dead),
            running=self._left.running,
            blocked=self._left.blocked,
            scheduled=self._left.scheduled,
            seconds=time.monotonic() - self._began,
            busiest=self._busiest,
        )

    def _finished(self) -> bool:
        left = self._left
        return self._ended() and not (left.running or left.blocked or left.scheduled or left.outbox)

    def _ended(self) -> bool:
        return self._all <= self._marks.done | self._dead

    def _look(self) -> None:
        before = (self._left, self._dead)
        new_marks = self._marks.read()
        if self._ended() or time.monotonic() - self._asked > ASK_SECONDS:
            self._ask()
        if new_marks or before != (self._left, self._dead):
            self._moved = time.monotonic()

    def _ask(self) -> None:
        self._dead = self._all.intersection(letter.task_id for letter in self._letters.list())
        self._left = self._backlog.counts()
        self._busiest = self._backlog.busiest()
        self._asked = time.monotonic()

    def _stall(self) -> str:
        missing = len(self._all - self._marks.done - self._dead)
        return (
            f"nothing happened for {STALL_SECONDS:.0f} s with {missing} files not ended; the store holds "
            f"{self._left.running} running, {self._left.blocked} blocked, {self._left.scheduled} scheduled, "
            f"{self._left.outbox} in the outbox"
        )
