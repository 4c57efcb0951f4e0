"""The worker's calls to the store, one after the other, and the book of leases that came of them.

Every call has the next nonce. The book and the last nonce answered change together, so that a renewal never names less
than what was granted by then (F1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from time import monotonic
from typing import Any, NamedTuple

from ..errors import StoreUnavailableError
from ..leases.store import Admission, Answer, Call, Ending, Grant, LeaseStore
from ..ledger import Ledger, Row
from .timing import Timing


class Held:
    """One lease of this worker: from its grant until it is settled."""

    __slots__ = (
        "asked_before", "attempt", "dispatched", "end", "grant", "lease_seconds", "lost", "request", "row", "stopped",
        "token", "until",
    )  # fmt: skip

    def __init__(self, attempt: str, token: int, lease_seconds: float, until: float, grant: Grant | None) -> None:
        self.attempt = attempt
        self.token = token
        self.lease_seconds = lease_seconds
        #: The monotonic time until which it can be counted on.
        self.until = until
        self.grant = grant
        self.row: Row | None = None
        self.request: Any = None
        self.end: Any = None
        self.dispatched = False
        self.lost = False
        #: Its run was told to stop.
        self.stopped = False
        #: It was settled before, and no answer came: it may have been done.
        self.asked_before = False

    @property
    def runs(self) -> bool:
        """Whether the pool has it, and no end of it is known."""
        return self.dispatched and self.end is None


class Settlement(NamedTuple):
    """The answer to a settled lease: what it handed on, and the answer and lease of the message that followed."""

    answer: Answer
    granted: list[Held]
    admitted: Answer | None
    lease: Held | None


class Begun(NamedTuple):
    """A settlement sent: its nonce, when and in which epoch."""

    nonce: int
    held: Held
    following: Admission | None
    sent: float
    epoch: str


class Lane:
    """One worker's calls to the store. Threads may share it; calls go one at a time."""

    def __init__(self, store: LeaseStore, worker: str, timing: Timing, ledger: Ledger) -> None:
        self._store = store
        self._worker = worker
        self._timing = timing
        self._ledger = ledger
        self._calling = Lock()
        self._book_lock = Lock()
        self._book: dict[str, Held] = {}
        self._nonce = 0
        self._last_answered = 0
        #: The highest nonce sent without an answer yet, and which call it was.
        self._in_doubt: tuple[int, Any] | None = None
        self._begun: deque[Begun] = deque()
        #: The highest token that this worker was ever granted.
        self.highest_token = 0
        #: Older runs of attempts that are in the book anew.
        self._superseded: list[Held] = []

    def admit(self, new: Admission) -> tuple[Answer, Held | None]:
        """Admit a new attempt; with its lease when it may run."""
        with self._calling:
            sent, epoch = monotonic(), self._store.epoch.name
            answer = self._ask(new, lambda call: self._store.admit(call, new))
            held = self._admitted(new, answer, sent)
            self._note([held] if held else [], epoch)
        return answer, held

    def settle(
        self, held: Held, ending: Ending, want: int, queues: Sequence[str], following: Admission | None
    ) -> Settlement:
        """Settle a lease and admit the message that follows, in one round trip."""
        with self._calling:
            self._send(held, ending, want, queues, following)
            return self._receive()

    def begin(self, held: Held, ending: Ending, want: int, queues: Sequence[str], following: Admission | None) -> None:
        """Begin to ``settle``; ``complete`` gets the answer, in the same order. Nothing else may be asked meanwhile."""
        with self._calling:
            self._send(held, ending, want, queues, following)

    def complete(self) -> Settlement:
        """The answer to what was begun first. When it raises, nothing that was begun has an answer."""
        with self._calling:
            return self._receive()

    def claim(self, want: int, queues: Sequence[str]) -> tuple[Answer, list[Held]]:
        """Ask for what may run now."""
        with self._calling:
            sent, epoch = monotonic(), self._store.epoch.name
            answer = self._ask("claim", lambda call: self._store.claim(call, want, queues))
            granted = self._granted(answer, sent)
            self._note(granted, epoch)
        return answer, granted

    def __len__(self) -> int:
        """How many leases are in the book."""
        return len(self._book)

    def snapshot(self) -> tuple[int, list[tuple[str, int]]]:
        """The last nonce answered, and every lease held by then: what a renewal names."""
        with self._book_lock:
            return self._last_answered, [(held.attempt, held.token) for held in self._book.values()]

    def renewed(self, leases: Mapping[str, int], sent: float) -> None:
        """These (attempt -> token) leases were renewed by a call sent at that monotonic time."""
        with self._book_lock:
            for name, token in leases.items():
                held = self._book.get(name)
                if held is not None and held.token == token:
                    held.until = max(held.until, self._timing.counts_until(sent, held.lease_seconds))
                    if held.row is not None:
                        held.row.renew(held.until)

    def mark_lost(self, leases: Sequence[tuple[str, int]]) -> list[Held]:
        """Those of the (attempt, token) leases still in the book, marked as lost now if they were not before.

        The worker may have got the same attempt again, under a new token, since it named the old one.
        """
        with self._book_lock:
            found = [
                held
                for name, token in leases
                if (held := self._book.get(name)) is not None and held.token == token and not held.lost
            ]
            for held in found:
                held.lost = True
                if held.row is not None:
                    held.row.lose()
            return found

    def held(self) -> list[Held]:
        """All leases in the book, and those that are lost to a newer one there while their runs go on."""
        with self._book_lock:
            self._superseded = [held for held in self._superseded if held.runs]
            return [*self._book.values(), *self._superseded]

    def _send(self, held: Held, ending: Ending, want: int, queues: Sequence[str], following: Admission | None) -> None:
        nonce = self._next_nonce()
        last = nonce if following is None else nonce + 1
        self._in_doubt = (last, None)
        self._begun.append(Begun(nonce, held, following, monotonic(), self._store.epoch.name))
        self._store.send_settlement(
            Call(self._worker, nonce), held.attempt, held.token, ending,
            want=want, queues=queues, following=following,
        )  # fmt: skip

    def _receive(self) -> Settlement:
        begun = self._begun.popleft()
        try:
            answer, admitted = self._store.receive_settlement()
        except StoreUnavailableError:
            self._begun.clear()
            raise
        lease = None
        if begun.following is not None and admitted is not None:
            lease = self._admitted(begun.following, admitted, begun.sent)
        granted = self._granted(answer, begun.sent)
        self._answered(begun.nonce)
        self._note([*granted, *([lease] if lease else [])], begun.epoch, settled=begun.held)
        return Settlement(answer, granted, admitted, lease)

    def _admitted(self, new: Admission, answer: Answer, sent: float) -> Held | None:
        if answer.status != "RUN":
            return None
        until = self._timing.counts_until(sent, new.lease_seconds)
        return Held(new.attempt, answer.token, new.lease_seconds, until, None)

    def _granted(self, answer: Answer, sent: float) -> list[Held]:
        counts_until = self._timing.counts_until
        return [
            Held(grant.attempt, grant.token, grant.lease_seconds, counts_until(sent, grant.lease_seconds), grant)
            for grant in answer.grants
        ]

    def _ask(self, about: Any, send: Callable[[Call], Answer]) -> Answer:
        """Send a call under its nonce. The same call after one that got no answer goes under that one's nonce."""
        doubted = self._in_doubt
        nonce = doubted[0] if doubted is not None and doubted[1] == about else self._next_nonce()
        self._in_doubt = (nonce, about)
        answer = send(Call(self._worker, nonce))
        self._answered(nonce)
        return answer

    def _answered(self, nonce: int) -> None:
        self._nonce = nonce
        if self._in_doubt is not None and self._in_doubt[0] <= nonce:
            self._in_doubt = None

    def _next_nonce(self) -> int:
        return max(self._nonce, self._in_doubt[0] if self._in_doubt else 0) + 1

    def _note(self, granted: Sequence[Held], epoch: str, settled: Held | None = None) -> None:
        with self._book_lock:
            for held in granted:
                self.highest_token = max(self.highest_token, held.token)
                held.row = self._ledger.open(held.token, held.until)
                self._supersede(held)
                self._book[held.attempt] = held
            if settled is not None:
                self._ledger.close(settled.row)
                settled.row = None
                if self._book.get(settled.attempt) is settled:
                    del self._book[settled.attempt]
            self._last_answered = self._nonce
        if granted and epoch != self._store.epoch.name:
            # Granted before the store lost its data, noted after this worker has brought it all that it held (F26).
            self._store.epoch.leave()

    def _supersede(self, newer: Held) -> None:
        """The worker has got an attempt again that it still runs itself: the older run's lease is lost (C4)."""
        older = self._book.get(newer.attempt)
        if older is not None:
            older.lost = True
            if older.row is not None:
                older.row.lose()
            self._superseded.append(older)
