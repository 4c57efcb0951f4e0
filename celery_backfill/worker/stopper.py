"""Stops runs whose leases are lost, and strict ones whose leases can no longer be counted on.

A prefork process stops its own strict run as well (``inside``), since a stopped parent enforces nothing. Where tasks
share the worker's process, a run is told; one that is strict and does not end takes the whole process with it, which is
the only way to stop it for sure.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Event, Lock, Thread
from time import monotonic, sleep

from ..events import emit, logger
from ..ledger import Stage
from .deadman import DeadMansTimer
from .inside import interrupt
from .lane import Held
from .notice import send_to_child
from .target import Ticket
from .timing import Timing


class Stopper:
    """One worker's. ``in_processes``: each run has a process of its own. ``strict``: some task of the worker is.

    Strict deadlines have a thread of their own: the heartbeat may be waiting for a store that does not answer.
    """

    def __init__(
        self, timing: Timing, all_held: Callable[[], Iterable[Held]], *, in_processes: bool, strict: bool
    ) -> None:
        self._timing, self._all_held, self._in_processes = timing, all_held, in_processes
        self._timer = DeadMansTimer() if strict and not in_processes else None
        self._arming = Lock()
        self._closed = False
        self._changed = Event()
        self._thread = Thread(target=self._loop, name="backfill-stopper", daemon=True) if strict else None

    def start(self) -> None:
        """Look at strict deadlines from now on."""
        if self._thread is not None:
            self._thread.start()

    def watch(self) -> None:
        """The runs or their deadlines have changed: see that this process does not outlive a strict one."""
        if self._thread is None:
            return
        self._changed.set()
        if self._timer is None:
            return
        with self._arming:
            ends = [held.until for held in self._all_held() if held.runs and held.request.task.is_strict]
            if ends and not self._closed:
                self._timer.arm(min(ends) + self._timing.margin)
            else:
                self._timer.disarm()

    def ticket(self, held: Held) -> Ticket:
        """What goes with a run to where it runs."""
        margin = self._timing.margin if held.request.task.is_strict else None
        return Ticket(held.attempt, held.token, None if held.row is None else held.row.index, margin)

    def enforce(self) -> float | None:
        """Stop what has to be stopped now; seconds until the next strict deadline, None when there is none."""
        now = monotonic()
        deadlines = [
            found for held in self._all_held() if held.runs and (found := self._enforce_on(held, now)) is not None
        ]
        return min(deadlines) - now if deadlines else None

    def close(self) -> None:
        """No run is left."""
        self._closed = True
        self._changed.set()
        with self._arming:
            if self._timer is not None:
                self._timer.close()

    def _loop(self) -> None:
        while not self._closed:
            self._changed.clear()
            wait = None
            try:
                wait = self.enforce()
            except Exception:
                logger.exception("strict deadlines could not be looked at once")
            # Deadlines only move away: until the next known one, only a first run can make an earlier one.
            if wait is None:
                self._changed.wait()
            else:
                sleep(max(0.0, wait))

    def _enforce_on(self, held: Held, now: float) -> float | None:
        """The next monotonic time at which this one has to be looked at."""
        task = held.request.task
        if held.lost and not held.stopped:
            self._stop(held, kill=task.when_lease_lost == "kill")
        if not task.is_strict:
            return None
        if now < held.until:
            return held.until
        if not held.stopped:
            emit("lease_uncertain", logging.ERROR, task=task.name, attempt=held.attempt, token=held.token)
            self._stop(held, kill=False)
        if now >= held.until + self._timing.margin:
            self._kill(held)
            return None
        return held.until + self._timing.margin

    def _stop(self, held: Held, *, kill: bool) -> None:
        if not self._in_processes:
            held.stopped = interrupt(held.token)
        elif held.request.worker_pid:
            held.stopped = True
            if kill:
                self._kill(held)
            else:
                send_to_child(held.request.worker_pid)

    def _kill(self, held: Held) -> None:
        """Kill the process of a run. It may have ended just now, and the process be another run's."""
        row = held.row
        if self._in_processes and held.request.worker_pid and row is not None and row.stage is Stage.RUNNING:
            emit("run_killed", logging.ERROR, attempt=held.attempt, token=held.token, pid=held.request.worker_pid)
            with suppress(ProcessLookupError):
                os.kill(held.request.worker_pid, signal.SIGKILL)
