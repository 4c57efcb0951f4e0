"""Send dead letters again: claim, publish, mark. Whatever is interrupted in between can be finished by anyone.

The claim is a conditional update, so of any number of operators one gets the letter. A letter whose claimer did not
come back is taken up after a minute under the same requeue id, by which a worker knows the second message from the
first and runs one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID, uuid4

from psycopg.rows import class_row

from ..errors import LettersUnavailableError, RequeueError
from ..message import Envelope
from .connections import Connections, transaction
from .letter import Filter
from .statements import statement

ABANDONED_SECONDS = 60.0

REQUEUED, SKIPPED, FAILED = "requeued", "skipped", "failed"


class Publish(Protocol):
    """Sends a message. Raises ``RequeueError`` when it surely was not sent, anything else when that is not known."""

    def __call__(self, envelope: Envelope, *, requeue_id: str, requeue: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Claim:
    """A letter held for requeueing. ``taken_over``: somebody before may have sent its message already."""

    id: int
    task_id: str
    message: bytes
    requeue_id: UUID
    requeue: int
    taken_over: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one letter: requeued, skipped (nothing was done) or failed, and why."""

    id: int | None
    task_id: str | None
    outcome: str
    reason: str | None = None
    requeue_id: str | None = None
    requeue: int | None = None


class Requeue:
    """Requeues letters of one database through one publisher."""

    def __init__(
        self, *, connections: Connections, publish: Publish, abandoned_seconds: float = ABANDONED_SECONDS
    ) -> None:
        self._connections = connections
        self._publish = publish
        self._abandoned_seconds = abandoned_seconds

    def candidates(self, which: Filter, limit: int | None = None) -> Sequence[int]:
        """The ids of the letters meant that can be requeued now, oldest failure first."""
        parameters = {**which.parameters(), "limit": limit, "abandoned_seconds": self._abandoned_seconds}
        with transaction(self._connections) as connection:
            return [row[0] for row in connection.execute(statement("requeueable"), parameters)]

    def requeue(self, letter_id: int) -> Outcome:
        """Send one letter's message again.

        Raises ``LettersUnavailableError`` only when PostgreSQL was away before anything was sent.
        """
        claim = self._claim(letter_id)
        if claim is None:
            return self._refusal(letter_id)
        try:
            self._publish(_envelope(claim), requeue_id=str(claim.requeue_id), requeue=claim.requeue)
        except RequeueError as error:
            return self._not_sent(claim, str(error))
        except Exception as error:
            return _outcome(claim, FAILED, f"not known whether it was sent ({error or type(error).__name__}); {LATER}")
        return self._sent(claim)

    def _claim(self, letter_id: int) -> Claim | None:
        parameters = {"id": letter_id, "requeue_id": uuid4(), "abandoned_seconds": self._abandoned_seconds}
        with transaction(self._connections) as connection, connection.cursor(row_factory=class_row(Claim)) as cursor:
            return cursor.execute(statement("claim"), parameters).fetchone()

    def _refusal(self, letter_id: int) -> Outcome:
        with transaction(self._connections) as connection:
            row = connection.execute(statement("refusal"), {"id": letter_id}).fetchone()
        if row is None:
            return Outcome(letter_id, None, FAILED, "there is no such letter")
        task_id, state, complete = row
        reason = _WHY.get(state, f"it is {state}") if complete else "its message was not kept"
        return Outcome(letter_id, task_id, SKIPPED, reason)

    def _not_sent(self, claim: Claim, reason: str) -> Outcome:
        """Surely not sent by us. What was taken over may have been sent before, so it must keep its id."""
        if claim.taken_over:
            return _outcome(claim, FAILED, f"{reason}; {LATER}")
        try:
            self._mark("give_back", claim)
        except LettersUnavailableError:
            return _outcome(claim, FAILED, f"{reason}; {LATER}")
        return _outcome(claim, FAILED, reason)

    def _sent(self, claim: Claim) -> Outcome:
        try:
            self._mark("sent", claim)
        except LettersUnavailableError:
            return _outcome(claim, REQUEUED, "sent, but PostgreSQL went away before that was noted")
        return _outcome(claim, REQUEUED)

    def _mark(self, verb: str, claim: Claim) -> None:
        with transaction(self._connections) as connection:
            connection.execute(statement(verb), {"id": claim.id, "requeue_id": claim.requeue_id})


LATER = f"requeue it again after {ABANDONED_SECONDS:g} s, it keeps its id"

_WHY = {
    "requeueing": "somebody is requeueing it right now",
    "requeued": "it was requeued and has not ended yet",
    "resolved": "it was requeued and its task succeeded",
    "discarded": "it was discarded",
    "dead": "somebody else had it just now; try again",
}


def _envelope(claim: Claim) -> Envelope:
    try:
        return Envelope.decode(claim.message)
    except Exception as error:
        raise RequeueError(f"its message cannot be read ({type(error).__name__})") from error


def _outcome(claim: Claim, outcome: str, reason: str | None = None) -> Outcome:
    return Outcome(claim.id, claim.task_id, outcome, reason, str(claim.requeue_id), claim.requeue)
