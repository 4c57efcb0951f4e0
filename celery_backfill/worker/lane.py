"""The worker's calls to the store, one after the other, and the book of leases that came of them.

Every call has the next nonce. The book and the last nonce answered change together, so that a renewal never names less
than what was granted by then (F1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, NamedTuple

from ..errors import StoreUnavailableError
from ..leases.store import Admission, Answer, Call, Ending, Grant, LeaseStore


class Held:
    """One lease of this worker: from its grant until it is settled."""

    __slots__ = ("asked_before", "attempt", "dispatched", "end", "grant", "lost", "request", "token")

    def __init__(self, attempt: str, token: int, grant: Grant | None = None) -> None:
        self.attempt = attempt
        self.token = token
        self.grant = grant
        self.request: Any = None
        self.end: Any = None
        self.dispatched = False
        self.lost = False
        #: It was settled before, and no answer came: it may have been done.
        self.asked_before = False


class Settlement(NamedTuple):
    """The answer to a settled lease: what it handed on, and the answer and lease of the message that followed."""

    answer: Answer
    granted: list[Held]
    admitted: Answer | None
    lease: Held | None


class Lane:
    """One worker's calls to the store. Threads may share it; calls go one at a time."""

    def __init__(self, store: LeaseStore, worker: str) -> None:
        self._store = store
        self._worker = worker
        self._calling = Lock()
        self._book_lock = Lock()
        self._book: dict[str, Held] = {}
        self._nonce = 0
        self._last_answered = 0
        #: The highest nonce sent without an answer yet, and which call it was.
        self._in_doubt: tuple[int, Any] | None = None
        self._begun: deque[tuple[int, Held, Admission | None]] = deque()

    def admit(self, new: Admission) -> tuple[Answer, Held | None]:
        """Admit a new attempt; with its lease when it may run."""
        with self._calling:
            answer = self._ask(new, lambda call: self._store.admit(call, new))
            held = Held(new.attempt, answer.token) if answer.status == "RUN" else None
            self._note([held] if held else [])
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
            answer = self._ask("claim", lambda call: self._store.claim(call, want, queues))
            granted = _granted(answer)
            self._note(granted)
        return answer, granted

    def __len__(self) -> int:
        """How many leases are in the book."""
        return len(self._book)

    def snapshot(self) -> tuple[int, list[tuple[str, int]]]:
        """The last nonce answered, and every lease held by then: what a renewal names."""
        with self._book_lock:
            return self._last_answered, [(held.attempt, held.token) for held in self._book.values()]

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
            return found

    def held(self) -> list[Held]:
        """All leases in the book."""
        with self._book_lock:
            return list(self._book.values())

    def _send(self, held: Held, ending: Ending, want: int, queues: Sequence[str], following: Admission | None) -> None:
        nonce = self._next_nonce()
        last = nonce if following is None else nonce + 1
        self._in_doubt = (last, None)
        self._begun.append((last, held, following))
        self._store.send_settlement(
            Call(self._worker, nonce), held.attempt, held.token, ending,
            want=want, queues=queues, following=following,
        )  # fmt: skip

    def _receive(self) -> Settlement:
        nonce, held, following = self._begun.popleft()
        try:
            answer, admitted = self._store.receive_settlement()
        except StoreUnavailableError:
            self._begun.clear()
            raise
        lease = None
        if following is not None and admitted is not None and admitted.status == "RUN":
            lease = Held(following.attempt, admitted.token)
        granted = _granted(answer)
        self._answered(nonce)
        self._note([*granted, *([lease] if lease else [])], settled=held)
        return Settlement(answer, granted, admitted, lease)

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

    def _note(self, granted: Sequence[Held], settled: Held | None = None) -> None:
        with self._book_lock:
            for held in granted:
                self._book[held.attempt] = held
            if settled is not None and self._book.get(settled.attempt) is settled:
                del self._book[settled.attempt]
            self._last_answered = self._nonce


def _granted(answer: Answer) -> list[Held]:
    return [Held(grant.attempt, grant.token, grant) for grant in answer.grants]
