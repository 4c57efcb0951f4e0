"""What a call may do to the stored state, and what it did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .calls import LEASE_MS, NOW, Asked, Reply
from .invariants import line_of, may_run
from .stored import Stored
from .world import World

ANSWERED = ("admit", "settle", "claim")
RANK = 10**13


class Effect(NamedTuple):
    """What changed in an attempt's life: it was accepted, it ended (and how), it is tried again."""

    accepted: str = ""
    ended: tuple[tuple[str, str], ...] = ()
    retried: str = ""
    given_back: tuple[tuple[str, int], ...] = ()
    granted: tuple[tuple[str, int], ...] = ()


def effect_of(before: Stored, asked: Asked, after: Stored) -> Effect:
    dead = {entry["id"] for entry in after.outbox if entry["kind"] == "failed"}
    ended = [
        (attempt, "dead" if _letter_id(attempt, record) in dead else "done")
        for attempt, record in before.records.items()
        if attempt not in after.records
    ]
    new = set(after.records) - set(before.records)
    retried = asked.attempt if asked.outcome in ("retry", "later") and _is_live(before, asked) else ""
    dropped = before.held.get(asked.worker, {}).items() if asked.verb == "renew" else ()
    back = tuple((name, note.token) for name, note in dropped if name not in after.tokens)
    granted = tuple(lease for lease in after.tokens.items() if lease not in before.tokens.items())
    return Effect(next(iter(new), ""), tuple(sorted(ended)), retried, back, granted)


def _letter_id(attempt: str, record: dict[str, str]) -> str:
    return f"{attempt}:{record.get('token')}"


def _is_live(before: Stored, asked: Asked) -> bool:
    return asked.verb == "settle" and _fresh(before, asked) and before.tokens.get(asked.attempt) == asked.token


def _fresh(before: Stored, asked: Asked) -> bool:
    return before.newest(asked.worker) < asked.nonce


@dataclass(frozen=True)
class Judge:
    """Judges one call: what was there, what was asked and answered, what is there now."""

    world: World
    before: Stored
    asked: Asked
    reply: Reply
    after: Stored

    def verdict(self) -> Iterator[str]:
        """Each promise that the call broke, in words."""
        if self.asked.verb in ANSWERED and not _fresh(self.before, self.asked):
            yield from self._repeated()
            return
        yield from self._tokens()
        yield from self._stalls()
        yield from self._turn()
        yield from self._bystanders()
        yield from self._endings()
        yield from getattr(self, f"_{self.asked.verb}")()

    # What holds for every call.

    @property
    def granted(self) -> dict[str, int]:
        """The leases that this call made."""
        return {name: token for name, token in self.after.tokens.items() if self.before.tokens.get(name) != token}

    @property
    def subject(self) -> str:
        """The attempt that the call is about, if it has a say in it."""
        if self.asked.verb == "admit" or (self.asked.verb == "settle" and self.reply.status != "STALE"):
            return self.asked.attempt
        return ""

    def _repeated(self) -> Iterator[str]:
        """F1: a repeat, or a call older than one that was answered, changes nothing."""
        if self.after.entries != self.before.entries:
            yield "F1: a repeated or old call changed something"
        kept = self.before.answers[self.asked.worker].get(self.asked.nonce, "OLD")
        if not kept.startswith((self.reply.status, "RUN" if self.reply.status == "DUPLICATE" else "-")):
            yield f"F1: a call was answered {self.reply.status}, before it was {kept}"
        for attempt, token in self._told():
            if self.after.tokens.get(attempt) != token:
                yield f"F1: a repeat hands out {attempt} under a token that is not its own any more"

    def _told(self) -> list[tuple[str, int]]:
        """The leases that the answer tells of."""
        run = [(self.asked.attempt, self.reply.token)] if self.reply.status == "RUN" else []
        return run + list(self.reply.grants)

    def _tokens(self) -> Iterator[str]:
        if self.after.token < self.before.token:
            yield "F26: the counter of tokens went back"
        for attempt, token in self.granted.items():
            if token <= self.before.token:
                yield f"F26: the token of {attempt} did not grow"
        if sorted(self._told()) != sorted(self.granted.items()):
            yield f"F1: told of {self._told()}, granted {self.granted}"
        if len(set(self.granted.values())) != len(self.granted):
            yield "F26: two leases have one token"
        if len(self.granted) > max(self.asked.want, self.asked.verb == "admit"):
            yield "more was handed on than was asked for"
        for attempt in self.granted:
            if self.after.records[attempt]["worker"] != self.asked.worker:
                yield f"{attempt} was leased to somebody who did not ask"
            if self.after.leases.get(attempt) != NOW + LEASE_MS:
                yield f"L2: the lease of {attempt} has another length than it should"
            note = self.after.held.get(self.asked.worker, {}).get(attempt)
            if note is None or note.nonce != self.asked.nonce:
                yield f"F1: the lease of {attempt} is not noted under its call"

    def _stalls(self) -> Iterator[str]:
        """Invariant 5."""
        for attempt in set(self.before.records) & set(self.after.records):
            more = int(self.after.records[attempt]["stalls"]) - int(self.before.records[attempt]["stalls"])
            if more != self._stalled(attempt):
                yield f"invariant 5: the stalls of {attempt} changed by {more}"

    def _stalled(self, attempt: str) -> bool:
        if self.asked.verb == "recover":
            return self.before.leases.get(attempt, NOW + 1) <= NOW
        return self.asked.outcome == "stalled" and attempt == self.subject

    def _turn(self) -> Iterator[str]:
        """Whoever is handed on was first in its line, and its line first in turn."""
        for attempt, _ in self.reply.grants:
            record = self.after.records[attempt]
            line = line_of(record)
            if any(score < int(float(record["score"])) for score in self.after.lines.get(line, {}).values()):
                yield f"F12: {attempt} overtook its own line"
            if self.after.turns.get(line, self.after.seq) < max(self.after.turns.values(), default=0):
                yield f"F10: the line {line} did not go to the end of the turn list"
        if self.reply.grants and self.before.turns:
            first = line_of(self.after.records[self.reply.grants[0][0]])
            if self.before.turns.get(first, self.before.seq + 1) > min(self.before.turns.values()):
                yield f"F10: {first} was served out of turn"
        if len(self.reply.grants) < self.asked.want and self.asked.outcome != "back" and self.after.turns:
            yield f"invariant 4: {list(self.after.turns)} may run and was not handed on"

    def _bystanders(self) -> Iterator[str]:
        """Invariant 3: who is not meant by a call is not changed by it, but for what it hands on and what is due."""
        meant = {self.subject, *self.granted}
        if self.asked.verb == "recover":
            meant |= {attempt for attempt, deadline in self.before.leases.items() if deadline <= NOW}
        if self.asked.verb == "renew":
            meant |= set(self.before.held.get(self.asked.worker, {}))
        if self.asked.want or self.asked.verb == "settle":
            meant |= {attempt for attempt, due in self.before.sched.items() if due <= NOW}
        for attempt in set(self.before.records) - meant:
            if _where(self.before, attempt) != _where(self.after, attempt):
                yield f"invariant 3: {attempt} was changed by a call about something else"

    def _endings(self) -> Iterator[str]:
        """Invariants 2 and 6: who ends was meant to, and what is dead is in the outbox once."""
        dead = [entry["id"] for entry in self.after.outbox if entry["kind"] == "failed"]
        expected = [_letter_id(name, self.before.records[name]) for name in self._gone() if self._dies()]
        if sorted(dead) != sorted(expected):
            yield f"invariant 6: the outbox got {dead}, {expected} died"
        for entry in self.after.outbox:
            if not entry["message"]:
                yield "invariant 6: a letter without its message"
        for attempt in self._gone():
            if attempt != self.subject and self.asked.verb != "recover":
                yield f"invariant 2: {attempt} is gone"
            if self.after.remembers(attempt) == self.world.one_redis:
                yield f"F3: {attempt} ended, remembered: {self.after.remembers(attempt)}"

    def _gone(self) -> list[str]:
        return sorted(set(self.before.records) - set(self.after.records))

    def _dies(self) -> bool:
        return self.asked.outcome in ("dead", "stalled") or self.asked.verb == "recover"

    def _kept_place(self, attempt: str) -> bool:
        """Whether an attempt is in line again where it was, or was handed on from there."""
        now, then = self.after.records.get(attempt), self.before.records[attempt]
        return now is not None and now["score"] == then["score"] and now["state"] in ("blocked", "running")

    # What holds for each verb.

    def _admit(self) -> Iterator[str]:
        attempt, status = self.asked.attempt, self.reply.status
        taken = self.before.answers.get(self.asked.worker, {}).get(self.asked.nonce - 1, "").endswith("]")
        if self.asked.shares and taken:
            if status != "LATER" or self.before.unacked != self.after.unacked or self.granted:
                yield f"the slot is taken and an admission was answered {status}"
            return
        ours = not self.world.one_redis or attempt in self.before.unacked
        known = attempt in self.before.records or self.before.remembers(attempt)
        if (status == "GONE") == ours:
            yield f"F3: an admission was answered {status}, the broker waits for its ack: {ours}"
        elif ours and (status == "DUPLICATE") != known:
            yield f"F3: an admission was answered {status}, known before: {known}"
        if self.world.one_redis and self.before.unacked - {attempt} != self.after.unacked:
            yield "C17: the message was not acked, or another was"
        if known and _where(self.before, attempt) != _where(self.after, attempt):
            yield f"F3: a duplicate changed {attempt}"
        if status in ("RUN", "BLOCKED"):
            yield from self._admitted(attempt, status)

    def _admitted(self, attempt: str, status: str) -> Iterator[str]:
        record = self.after.records.get(attempt)
        if record is None:
            yield f"invariant 2: {attempt} was admitted and is not there"
            return
        line = line_of(record)
        waits = bool(line[1]) and line in self.before.lines
        room = not waits and may_run(self.before, record)
        if (status == "RUN") != room:
            yield f"L1: {attempt} was answered {status}; others wait: {waits}, room: {room}"
        if int(float(record["score"])) % RANK <= self.before.seq:
            yield f"F12: {attempt} did not arrive last"

    def _settle(self) -> Iterator[str]:
        attempt = self.asked.attempt
        live = self.before.tokens.get(attempt) == self.asked.token
        if live != (self.reply.status != "STALE"):
            yield f"invariant 3: a settle was answered {self.reply.status}, its token holds: {live}"
        elif live:
            yield from getattr(self, f"_settled_{self.asked.outcome}")(attempt)
        if self.asked.outcome == "back" and self.reply.grants:
            yield "F12: a give-back handed something on"

    def _settled_done(self, attempt: str) -> Iterator[str]:
        if attempt in self.after.records:
            yield f"invariant 3: {attempt} was settled and is still there"

    _settled_dead = _settled_done

    def _settled_stalled(self, attempt: str) -> Iterator[str]:
        over = int(self.before.records[attempt]["stalls"]) >= self.world.max_stalls
        if over != (self.reply.status == "POISON") or over != (attempt not in self.after.records):
            yield f"C10: {attempt} stalled, over its budget: {over}, answered {self.reply.status}"
        elif not over and not self._kept_place(attempt):
            yield f"F12: {attempt} stalled and lost its place"

    def _settled_back(self, attempt: str) -> Iterator[str]:
        if not self._kept_place(attempt):
            yield f"F12: {attempt} was given back and lost its place"

    def _settled_retry(self, attempt: str) -> Iterator[str]:
        record = self.after.records.get(attempt)
        if record is None or record["state"] not in ("blocked", "running"):
            yield f"F12: {attempt} is to be tried again at once and does not wait"
        elif int(float(record["score"])) % RANK <= self.before.seq:
            yield f"F12: the retry of {attempt} is not a new arrival"

    def _settled_later(self, attempt: str) -> Iterator[str]:
        if self.after.sched.get(attempt, 0) <= NOW:
            yield f"invariant 2: {attempt} is to be tried later and is not scheduled so"

    def _claim(self) -> Iterator[str]:
        if self.reply.status != "CLAIMED":
            yield f"a claim was answered {self.reply.status}"
        for attempt in set(self.before.sched) - set(self.after.sched):
            record = self.after.records[attempt]
            if self.before.sched[attempt] > NOW or int(float(record["score"])) % RANK <= self.before.seq:
                yield f"F12: {attempt} came from the schedule too early, or not as a new arrival"

    def _renew(self) -> Iterator[str]:
        named = dict(self.asked.held)
        lost = {attempt for attempt, token in named.items() if self.before.tokens.get(attempt) != token}
        if set(self.reply.lost) != lost:
            yield f"C5: a renewal called {self.reply.lost} lost, lost are {sorted(lost)}"
        for attempt in set(named) - lost:
            if self.after.leases.get(attempt) != NOW + LEASE_MS:
                yield f"L2: {attempt} was named by its token and not renewed"
        for attempt, note in self.before.held.get(self.asked.worker, {}).items():
            unknown = named.get(attempt) != note.token and note.nonce <= self.asked.nonce
            if unknown == (attempt in self.after.tokens):
                yield f"F1: {attempt}, unnamed and told of: {unknown}, is held after a renewal: {not unknown}"
            if unknown and not self._kept_place(attempt):
                yield f"F12: {attempt} was given back and lost its place"
            if not unknown and attempt not in named and self.after.leases.get(attempt) != self.before.leases[attempt]:
                yield f"L2: {attempt} was not named and was renewed"

    def _recover(self) -> Iterator[str]:
        expired = {attempt for attempt, deadline in self.before.leases.items() if deadline <= NOW}
        if {attempt for attempt, _ in self.reply.recovered} != expired:
            yield f"F24: recovered {self.reply.recovered}, expired are {sorted(expired)}"
        for attempt, verdict in self.reply.recovered:
            over = int(self.before.records[attempt]["stalls"]) >= self.world.max_stalls
            if over != (verdict == "POISON") or over != (attempt not in self.after.records):
                yield f"C10: {attempt} stalled, over its budget: {over}, answered {verdict}"
            elif not over and not self._kept_place(attempt):
                yield f"F12: {attempt} was recovered and lost its place"


def _where(stored: Stored, attempt: str) -> tuple[object, ...]:
    """All that the store says of one attempt."""
    lines = [(line, waiting[attempt]) for line, waiting in stored.lines.items() if attempt in waiting]
    held = [(worker, notes[attempt]) for worker, notes in stored.held.items() if attempt in notes]
    place = stored.records.get(attempt), stored.leases.get(attempt), stored.sched.get(attempt)
    return *place, lines, held, [key for key, holders in stored.permits.items() if attempt in holders]
