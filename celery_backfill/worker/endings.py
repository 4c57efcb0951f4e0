"""Gives the ends that the store decided their Celery side, in a thread of its own (F17)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic, time
from typing import Any, Protocol

from ..events import emit, logger
from .announcement import KINDS, Ended, Fields, Site, TakenOverError
from .outage import Outage

Entry = tuple[bytes, dict[bytes, bytes]]

BLOCK_MS = 1000
IDLE_MS = 30_000
#: For so long a message that this worker cannot read is left to others, which may know its task.
LEFT_SECONDS = 300.0


class Entries(Protocol):
    """The stream of endings as the announcer needs it."""

    def read(self, reader: str, *, count: int, block_ms: int, idle_ms: int) -> Sequence[Entry]: ...
    def hold(self, reader: str, entry_id: bytes) -> bool: ...
    def is_held(self, reader: str, entry_id: bytes) -> bool: ...
    def finish(self, ids: Sequence[bytes]) -> None: ...


class Announcer:
    """Announces ends: results, chord parts, errbacks, signals, events. Any number of announcers at once.

    Each end is announced at least once, by any worker of the namespace, whether it knows the task or not. What keeps
    one from being announced (the result backend or the broker is away) holds up no other; it is tried again, more and
    more rarely, until it is done.
    """

    def __init__(
        self,
        *,
        site: Site,
        endings: Entries,
        reader: str,
        block_ms: int = BLOCK_MS,
        idle_ms: int = IDLE_MS,
        left_seconds: float = LEFT_SECONDS,
    ) -> None:
        """``reader`` names this worker among the stream's readers; ``idle_ms``: when another's entry is taken over."""
        self._site, self._endings, self._reader = site, endings, reader
        self._block_ms, self._idle_ms, self._left_seconds = block_ms, idle_ms, left_seconds
        self._outage = Outage("endings_wait", "endings_flow")
        self._held: dict[bytes, Callable[[], None]] = {}
        self._retry_at = 0.0
        self._done: list[bytes] = []
        self._told: set[bytes] = set()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Announce from now on, in a thread that does not keep the process alive."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="backfill-announcer", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Announce what there is and end; return after ``timeout`` seconds at most. The rest is for other workers.

        With 0 it returns at once; call it again to wait.
        """
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def announce(self) -> int:
        """One tick: try again what could not be announced, if it is time, and the next; how many are done with.

        Raises what the stream raises when the store is away.
        """
        return self._announce(self._block_ms)

    def _run(self) -> None:
        # What users connect to signals may ask for the current app, which each thread has its own.
        self._site.app.set_current()
        while not self._stopping.is_set():
            try:
                self.announce()
            except Exception as error:
                self._stopping.wait(self._outage.failed(error))
            else:
                if not self._held:
                    self._outage.over()
        self._retry_at = 0.0
        with suppress(Exception):
            while self._announce(block_ms=0):
                self._retry_at = float("inf")

    def _announce(self, block_ms: int) -> int:
        self._finish()
        done = self._retry() if self._held and monotonic() >= self._retry_at else 0
        if self._held:
            block_ms = int(min(block_ms, 1000 * max(0.0, self._retry_at - monotonic())))
        # One at a time: another worker may have the next at the same time.
        for entry_id, fields in self._endings.read(self._reader, count=1, block_ms=block_ms, idle_ms=self._idle_ms):
            done += self._take(entry_id, fields)
        return done

    def _retry(self) -> int:
        """Try again what is held, up to the first that still fails, which goes to the end of the line."""
        done = 0
        for entry_id in tuple(self._held):
            is_ours = self._endings.hold(self._reader, entry_id)
            announcement = self._held.pop(entry_id)
            if not is_ours:
                # Another worker has it, or has announced it.
                continue
            done += self._make(entry_id, announcement)
            if entry_id in self._held:
                break
        return done

    def _take(self, entry_id: bytes, fields: Fields) -> bool:
        """Announce an end that was read; whether it is done with."""
        if entry_id in self._held:
            return False
        kind = KINDS.get(fields.get(b"kind", b"").decode("utf-8", "replace"))
        if kind is None:
            self._tell("ending_left", entry_id, "it is of a kind that this version does not know")
            return False
        try:
            ended = self._read(entry_id, fields)
        except _LeftError:
            return False
        return self._make(entry_id, partial(kind, ended) if ended is not None else _nothing)

    def _make(self, entry_id: bytes, announcement: Callable[[], None]) -> bool:
        """Make an announcement, or what is left of it; whether it is done with."""
        try:
            announcement()
        except TakenOverError:
            return False
        except Exception as error:
            self._held[entry_id] = announcement
            self._retry_at = monotonic() + self._outage.failed(error)
            return False
        self._done.append(entry_id)
        self._finish()
        return True

    def _finish(self) -> None:
        """Remove what is announced. Where the store is away just then, later: it must not be announced again."""
        if self._done:
            self._endings.finish(self._done)
            self._done = []

    def _read(self, entry_id: bytes, fields: Fields) -> Ended | None:
        def is_ours() -> bool:
            return self._endings.is_held(self._reader, entry_id)

        try:
            return Ended.read(self._site, fields, is_ours)
        except Exception as error:
            self._tell("ending_unreadable", entry_id, error)
            if self._may_be_read_elsewhere(entry_id, fields):
                raise _LeftError from error
            return Ended.read_bare(self._site, fields, is_ours)

    def _may_be_read_elsewhere(self, entry_id: bytes, fields: Fields) -> bool:
        """Whether a worker that knows the task may read a message that this one cannot (a pickled one, say)."""
        task = fields.get(b"task", b"").decode("utf-8", "replace")
        age = time() - int(entry_id.partition(b"-")[0]) / 1000
        return task != "" and task not in self._site.app.tasks and age < self._left_seconds

    def _tell(self, action: str, entry_id: bytes, why: Any) -> None:
        """Say what is wrong with an entry, once."""
        if entry_id not in self._told:
            self._told.add(entry_id)
            emit(action, logging.ERROR, entry=entry_id.decode(), error=str(why))


class WorkerEvents:
    """A worker's event dispatcher, for a thread of our own: where there is an event loop, it sends in the loop."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    @property
    def enabled(self) -> bool:
        """Whether there is one at hand, and somebody listens."""
        dispatcher = self._dispatcher()
        return dispatcher is not None and bool(dispatcher.enabled)

    def send(self, kind: str, **fields: Any) -> None:
        """Send an event, soon; one that cannot be sent is lost, as Celery's own are."""
        hub = getattr(self._worker, "hub", None)
        if hub is None:
            self._send(kind, fields)
        else:
            hub.call_soon(self._send, kind, fields)

    def _send(self, kind: str, fields: dict[str, Any]) -> None:
        try:
            self._dispatcher().send(kind, **fields)
        except Exception:
            logger.debug("the event %s was not sent", kind, exc_info=True)

    def _dispatcher(self) -> Any:
        return getattr(getattr(self._worker, "consumer", None), "event_dispatcher", None)


def _nothing() -> None:
    """All that is to be done for an entry that says nothing."""


class _LeftError(Exception):
    """Another worker may read it."""
