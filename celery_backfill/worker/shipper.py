"""Carries failures and resolutions from the outbox to PostgreSQL, in a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from ..deadletters.record import Fact, Failure, parse
from ..errors import LetterRefusedError
from ..events import emit
from .outage import Outage

Entry = tuple[bytes, dict[bytes, bytes]]

BATCH = 200
BLOCK_MS = 1000
IDLE_MS = 30_000


class Entries(Protocol):
    """The outbox as the shipper needs it."""

    def read(self, reader: str, *, count: int, block_ms: int, idle_ms: int) -> Sequence[Entry]: ...

    def finish(self, ids: Sequence[bytes]) -> None: ...


class Recorder(Protocol):
    """The letters as the shipper needs them."""

    def record(self, facts: Sequence[Fact]) -> Sequence[str]: ...


class Shipper:
    """Ships the outbox's entries, any number of shippers at once, each entry at least once and recorded once.

    While PostgreSQL or Redis is away the entries stay in the outbox. An entry that PostgreSQL refuses for its data
    holds up no other: it is recorded in a reduced form or, failing that, left in the outbox and told of.
    """

    def __init__(
        self,
        *,
        outbox: Entries,
        letters: Recorder,
        reader: str,
        batch: int = BATCH,
        block_ms: int = BLOCK_MS,
        idle_ms: int = IDLE_MS,
    ) -> None:
        """``reader`` names this worker among the outbox's readers; ``idle_ms``: when another's entry is taken over."""
        self._outbox = outbox
        self._letters = letters
        self._reader = reader
        self._batch, self._block_ms, self._idle_ms = batch, block_ms, idle_ms
        self._held: Sequence[Entry] = ()
        self._left: set[bytes] = set()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def left(self) -> int:
        """How many entries this shipper had to leave in the outbox for ever, unless a newer version takes them."""
        return len(self._left)

    def start(self) -> None:
        """Ship from now on, in a thread that does not keep the process alive."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="backfill-shipper", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Ship once more and end; return after ``timeout`` seconds at most. What is not shipped stays in the outbox."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def ship(self) -> int:
        """One tick: take a batch, record it, remove it from the outbox; how many entries are done with.

        Raises what the outbox or the letters raise when one of them is away; the batch is then kept for the next tick.
        """
        return self._ship(self._block_ms)

    def _run(self) -> None:
        outage = Outage("dead_letters_wait", "dead_letters_flow")
        while not self._stopping.is_set():
            try:
                self.ship()
            except Exception as error:
                self._stopping.wait(outage.failed(error))
            else:
                outage.over()
        with suppress(Exception):
            self._ship(block_ms=0)

    def _ship(self, block_ms: int) -> int:
        if not self._held:
            self._held = self._outbox.read(self._reader, count=self._batch, block_ms=block_ms, idle_ms=self._idle_ms)
        done = self._record(self._held)
        if done:
            self._outbox.finish(done)
        self._held = ()
        return len(done)

    def _record(self, entries: Sequence[Entry]) -> list[bytes]:
        """Record what can be; the ids of the entries that are recorded."""
        facts = [(entry_id, fact) for entry_id, fields in entries if (fact := self._read(entry_id, fields))]
        if not facts:
            return []
        try:
            self._letters.record([fact for _, fact in facts])
        except LetterRefusedError:
            return [entry_id for entry_id, fact in facts if self._record_alone(entry_id, fact)]
        return [entry_id for entry_id, _ in facts]

    def _read(self, entry_id: bytes, fields: Mapping[bytes, bytes]) -> Fact | None:
        try:
            fact = parse(entry_id, fields)
        except Exception as error:
            self._leave(entry_id, error)
            return None
        if fact is None:
            self._leave(entry_id, "it is of a kind that this version does not know")
        return fact

    def _record_alone(self, entry_id: bytes, fact: Fact) -> bool:
        try:
            self._letters.record([fact])
        except LetterRefusedError as refusal:
            return self._record_reduced(entry_id, fact, refusal)
        return True

    def _record_reduced(self, entry_id: bytes, fact: Fact, refusal: LetterRefusedError) -> bool:
        if not isinstance(fact, Failure):
            self._leave(entry_id, refusal)
            return False
        try:
            self._letters.record([fact.reduced(str(refusal))])
        except LetterRefusedError as again:
            self._leave(entry_id, again)
            return False
        emit("dead_letter_reduced", logging.ERROR, task_id=fact.task_id, task=fact.task, error=str(refusal))
        return True

    def _leave(self, entry_id: bytes, why: Any) -> None:
        """Leave an entry in the outbox; said once an entry."""
        if entry_id not in self._left:
            self._left.add(entry_id)
            emit("dead_letter_left", logging.ERROR, entry=entry_id.decode(), left=self.left, error=str(why))
