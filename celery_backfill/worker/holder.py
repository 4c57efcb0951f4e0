"""What the heartbeat keeps alive: this worker's book of leases, and those whom it tells of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from ..errors import StoreUnavailableError
from ..events import emit
from ..leases.store import Admission
from .gate import Gate
from .intake import Intake
from .lane import Lane
from .stopper import Stopper


class Holder:
    """One worker's leases as its heartbeat sees them."""

    def __init__(self, *, lane: Lane, intake: Intake, stopper: Stopper, gate: Gate) -> None:
        self._lane, self._intake, self._stopper, self._gate = lane, intake, stopper, gate

    @property
    def held(self) -> int:
        """How many leases this worker has."""
        return self._gate.held

    @property
    def highest_token(self) -> int:
        """The highest token that this worker was ever granted."""
        return self._lane.highest_token

    @property
    def runs(self) -> int:
        """How many runs the pool has."""
        return sum(held.runs for held in self._lane.held())

    @property
    def waits_for_children(self) -> bool:
        """Whether a run is marked as ended while its child process may still live."""
        return self._gate.waits_for_children

    def snapshot(self) -> tuple[int, list[tuple[str, int]]]:
        """The last nonce answered and every lease held by then: what a renewal names."""
        return self._lane.snapshot()

    def records(self) -> Iterator[tuple[int, int, Admission]]:
        """(token, stalls, whole record) of every lease held: what a store that lost its data is to adopt."""
        for held in self._lane.held():
            yield held.token, held.grant.stalls if held.grant else 0, self._intake.record(held)

    def renewed(self, leases: Sequence[tuple[str, int]], sent: float) -> None:
        """(attempt, token) leases renewed by a call sent at that monotonic time."""
        self._lane.renewed(dict(leases), sent)
        self._stopper.watch()

    def lost(self, leases: Sequence[tuple[str, int]]) -> None:
        """(attempt, token) leases that a renewal found lost: another run has the attempt, or it was settled."""
        for held in self._lane.mark_lost(leases):
            if held.end is None:
                emit("lease_lost", logging.WARNING, attempt=held.attempt, token=held.token)

    def enforce(self) -> None:
        """Stop runs whose leases are lost."""
        self._stopper.enforce()

    def tick(self) -> None:
        """There may be work that nobody told of."""
        self._gate.tick()

    def back(self) -> None:
        """The store answers, and this worker has joined it."""
        self._gate.back()

    def lose_store(self, error: StoreUnavailableError) -> None:
        """The store does not answer, or this worker has to join it again."""
        self._gate.lose_store(error)
