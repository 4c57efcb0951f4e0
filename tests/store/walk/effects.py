"""What a call did to the attempts' lives."""

from __future__ import annotations

from typing import NamedTuple

from .calls import Asked
from .stored import Stored

ANSWERED = ("admit", "settle", "claim")


class Effect(NamedTuple):
    """What changed in an attempt's life: it was accepted, it ended (and how), it is tried again."""

    accepted: str = ""
    ended: tuple[tuple[str, str], ...] = ()
    retried: str = ""
    given_back: tuple[tuple[str, int], ...] = ()
    granted: tuple[tuple[str, int], ...] = ()
    stalls: tuple[tuple[str, int], ...] = ()
    """Of what was granted."""


def effect_of(before: Stored, asked: Asked, after: Stored) -> Effect:
    dead = {entry["id"] for entry in after.outbox if entry["kind"] == "failed"}
    ended = [
        (attempt, "dead" if letter_id(attempt, record) in dead else "done")
        for attempt, record in before.records.items()
        if attempt not in after.records
    ]
    new = set(after.records) - set(before.records)
    retried = asked.attempt if asked.outcome in ("retry", "later") and _is_live(before, asked) else ""
    dropped = before.held.get(asked.worker, {}).items() if asked.verb == "renew" else ()
    back = tuple((name, note.token) for name, note in dropped if name not in after.tokens)
    granted = tuple(lease for lease in after.tokens.items() if lease not in before.tokens.items())
    stalls = tuple((name, int(after.records[name]["stalls"])) for name, _ in granted)
    if asked.verb == "adopt":
        granted = stalls = ()
    return Effect(next(iter(new), ""), tuple(sorted(ended)), retried, back, granted, stalls)


def letter_id(attempt: str, record: dict[str, str]) -> str:
    return f"{attempt}:{record.get('token')}"


def _is_live(before: Stored, asked: Asked) -> bool:
    holds = before.tokens.get(asked.attempt) == asked.token
    return asked.verb == "settle" and not refused(before, asked) and fresh(before, asked) and holds


def fresh(before: Stored, asked: Asked) -> bool:
    return before.newest(asked.worker) < asked.nonce


def refused(before: Stored, asked: Asked) -> bool:
    """Whether the caller takes the store to be in another epoch than it is."""
    return bool(asked.epoch) and asked.epoch != before.epoch
