"""One call to be judged: what was there, what was asked and answered, what is there now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .calls import LEASE_MS, NOW, Asked, Reply
from .stored import Stored
from .world import World

RANK = 10**13


@dataclass(frozen=True)
class Judged:
    """What is said of a call by all that judge it."""

    world: World
    before: Stored
    asked: Asked
    reply: Reply
    after: Stored

    @property
    def granted(self) -> dict[str, int]:
        """The leases that this call made."""
        if self.asked.verb == "adopt":
            return {}
        return {name: token for name, token in self.after.tokens.items() if self.before.tokens.get(name) != token}

    @property
    def subject(self) -> str:
        """The attempt that the call is about, if it has a say in it."""
        says = self.asked.verb == "settle" and self.reply.status != "STALE"
        return self.asked.attempt if says or self.asked.verb in ("admit", "adopt") else ""

    @property
    def unsafe(self) -> bool:
        """Whether nothing new may start yet."""
        return self.before.of_epoch("safe_at") > NOW

    def told(self) -> list[tuple[str, int]]:
        """The leases that the answer tells of."""
        run = [(self.asked.attempt, self.reply.token)] if self.reply.status == "RUN" else []
        return run + list(self.reply.grants)

    def kept_place(self, attempt: str) -> bool:
        """Whether an attempt is in line again where it was, or was handed on from there."""
        now, then = self.after.records.get(attempt), self.before.records[attempt]
        return now is not None and now["score"] == then["score"] and now["state"] in ("blocked", "running")

    def whole_lease(self, attempt: str) -> Iterator[str]:
        """A lease that was granted or renewed lasts its whole length."""
        if self.after.leases.get(attempt) != NOW + LEASE_MS:
            yield f"L2: the lease of {attempt} has another length than it should"


def where(stored: Stored, attempt: str) -> tuple[object, ...]:
    """All that the store says of one attempt."""
    lines = [(line, waiting[attempt]) for line, waiting in stored.lines.items() if attempt in waiting]
    held = [(worker, notes[attempt]) for worker, notes in stored.held.items() if attempt in notes]
    place = stored.records.get(attempt), stored.leases.get(attempt), stored.sched.get(attempt)
    return *place, lines, held, [key for key, holders in stored.permits.items() if attempt in holders]
