"""Judges a call: what it did to the stored state, against what it may do."""

from __future__ import annotations

from collections.abc import Iterator

from .beats import Beats
from .calls import NOW
from .effects import ANSWERED, fresh, letter_id, refused
from .invariants import line_of, may_run
from .judged import RANK, where


class Judge(Beats):
    """What holds for every call, and for those that are numbered."""

    def verdict(self) -> Iterator[str]:
        """Each promise that the call broke, in words."""
        if refused(self.before, self.asked) or self.reply.status == "EPOCH":
            yield from self._refused()
            return
        if self.asked.verb in ANSWERED and not fresh(self.before, self.asked):
            yield from self._repeated()
            return
        yield from self._tokens()
        yield from self._stalls()
        yield from self._turn()
        yield from self._bystanders()
        yield from self._endings()
        yield from getattr(self, f"_{self.asked.verb}")()

    def _refused(self) -> Iterator[str]:
        """F26: who has not joined the store's epoch is told so, and nothing is done."""
        if self.reply.status != "EPOCH" or not refused(self.before, self.asked):
            yield f"F26: a call of epoch {self.asked.epoch} was answered {self.reply.status} in {self.before.epoch}"
        if self.after.entries != self.before.entries:
            yield "F26: a call of another epoch changed something"

    def _repeated(self) -> Iterator[str]:
        """F1: a repeat, or a call older than one that was answered, changes nothing."""
        if self.after.entries != self.before.entries:
            yield "F1: a repeated or old call changed something"
        kept = self.before.answers[self.asked.worker].get(self.asked.nonce, "OLD")
        if not kept.startswith((self.reply.status, "RUN" if self.reply.status == "DUPLICATE" else "-")):
            yield f"F1: a call was answered {self.reply.status}, before it was {kept}"
        for attempt, token in self.told():
            if self.after.tokens.get(attempt) != token:
                yield f"F1: a repeat hands out {attempt} under a token that is not its own any more"

    def _tokens(self) -> Iterator[str]:
        if self.after.token < self.before.token:
            yield "F26: the counter of tokens went back"
        for attempt, token in self.granted.items():
            if token <= self.before.token:
                yield f"F26: the token of {attempt} did not grow"
        if sorted(self.told()) != sorted(self.granted.items()):
            yield f"F1: told of {self.told()}, granted {self.granted}"
        if len(set(self.granted.values())) != len(self.granted):
            yield "F26: two leases have one token"
        if len(self.granted) > max(self.asked.want, self.asked.verb == "admit"):
            yield "more was handed on than was asked for"
        for attempt in self.granted:
            if self.after.records[attempt]["worker"] != self.asked.worker:
                yield f"{attempt} was leased to somebody who did not ask"
            yield from self.whole_lease(attempt)
            note = self.after.held.get(self.asked.worker, {}).get(attempt)
            if note is None or note.nonce != self.asked.nonce:
                yield f"F1: the lease of {attempt} is not noted under its call"

    def _stalls(self) -> Iterator[str]:
        """Invariant 5."""
        brought = {self.asked.attempt} if self.asked.verb == "adopt" else set()
        for attempt in set(self.before.records) & set(self.after.records) - brought:
            more = int(self.after.records[attempt]["stalls"]) - int(self.before.records[attempt]["stalls"])
            if more != self._stalled(attempt):
                yield f"invariant 5: the stalls of {attempt} changed by {more}"

    def _stalled(self, attempt: str) -> bool:
        if self.asked.verb == "recover":
            return attempt in self.overdue()
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
        wanted = len(self.reply.grants) < self.asked.want and self.asked.outcome != "back" and not self.unsafe
        if wanted and self.after.turns and f"k:{self.asked.worker}" in self.before.entries:
            yield f"invariant 4: {list(self.after.turns)} may run and was not handed on"

    def _bystanders(self) -> Iterator[str]:
        """Invariant 3: who is not meant by a call is not changed by it, but for what it hands on and what is due."""
        meant = {self.subject, *self.granted}
        if self.asked.verb == "recover":
            meant |= {attempt for attempt, deadline in self.before.leases.items() if deadline <= NOW} | self.overdue()
        if self.asked.verb == "renew":
            meant |= set(self.before.held.get(self.asked.worker, {}))
        if self.asked.want or self.asked.verb == "settle":
            meant |= {attempt for attempt, due in self.before.sched.items() if due <= NOW}
        for attempt in set(self.before.records) - meant:
            if where(self.before, attempt) != where(self.after, attempt):
                yield f"invariant 3: {attempt} was changed by a call about something else"

    def _endings(self) -> Iterator[str]:
        """Invariants 2, 6, F17: who ends was meant to; what is dead is in the outbox, poison in the endings, once."""
        dead = [entry["id"] for entry in self.after.outbox if entry["kind"] == "failed"]
        expected = [letter_id(name, self.before.records[name]) for name in self._gone() if self._dies()]
        if sorted(dead) != sorted(expected):
            yield f"invariant 6: the outbox got {dead}, {expected} died"
        for entry in self.after.outbox:
            if not entry["message"]:
                yield "invariant 6: a letter without its message"
        poisoned = [f"{entry['attempt']}:{entry['token']}" for entry in self.after.endings]
        expected = [] if self.asked.outcome == "dead" else expected
        if sorted(poisoned) != sorted(expected) or not all(entry["message"] for entry in self.after.endings):
            yield f"F17: the endings got {poisoned}, {expected} are poison"
        for attempt in self._gone():
            if attempt != self.subject and self.asked.verb != "recover":
                yield f"invariant 2: {attempt} is gone"
            if self.after.remembers(attempt) != (self.before.records[attempt]["dedupe"] != "0"):
                yield f"F3: {attempt} ended, remembered: {self.after.remembers(attempt)}"

    def _gone(self) -> list[str]:
        return sorted(set(self.before.records) - set(self.after.records))

    def _dies(self) -> bool:
        return self.asked.outcome in ("dead", "stalled") or self.asked.verb == "recover"

    # The numbered calls.

    def _admit(self) -> Iterator[str]:
        attempt, status = self.asked.attempt, self.reply.status
        taken = self.before.answers.get(self.asked.worker, {}).get(self.asked.nonce - 1, "").endswith("]")
        if (self.asked.shares and taken) or self.unsafe:
            why = "it is not safe" if self.unsafe else "the slot is taken"
            if status != "LATER" or self.before.unacked != self.after.unacked or self.granted:
                yield f"{why} and an admission was answered {status}"
            return
        ours = not self.world.one_redis or attempt in self.before.unacked
        known = attempt in self.before.records or self.before.remembers(attempt)
        if (status == "GONE") == ours:
            yield f"F3: an admission was answered {status}, the broker waits for its ack: {ours}"
        elif ours and (status == "DUPLICATE") != known:
            yield f"F3: an admission was answered {status}, known before: {known}"
        if self.world.one_redis and self.before.unacked - {attempt} != self.after.unacked:
            yield "C17: the message was not acked, or another was"
        if known and where(self.before, attempt) != where(self.after, attempt):
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
        elif not over and not self.kept_place(attempt):
            yield f"F12: {attempt} stalled and lost its place"

    def _settled_back(self, attempt: str) -> Iterator[str]:
        if not self.kept_place(attempt):
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
