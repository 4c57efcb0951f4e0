"""Judges what a worker's heartbeat asks: to renew, to recover, to greet, to adopt, to join, to leave."""

from __future__ import annotations

from collections.abc import Iterator

from .calls import GAP_MS, HOST, LEASE_MS, NOW
from .judged import Judged, where


class Beats(Judged):
    """What holds for each of these calls."""

    def overdue(self) -> set[str]:
        """The leases that a sweep is to take back: of those found gone, and what ran out but for a gap (F24)."""
        out = {attempt for attempt, deadline in self.before.leases.items() if deadline <= NOW}
        if self._gap() + LEASE_MS > NOW:
            out = set()
        return out | set(self.before.held.get(self.asked.gone, ()))

    def _gap(self) -> int:
        """When silence last ended, if that was not now."""
        silent = self.world.gaps and self.before.of_pulse("at") <= NOW - GAP_MS
        return NOW if silent else self.before.of_pulse("gap")

    def _pulse(self) -> Iterator[str]:
        if self.world.gaps and (self.after.of_pulse("at"), self.after.of_pulse("gap")) != (NOW, self._gap()):
            yield f"F24: the store was heard of now, and notes {self.after.entries.get('pulse')}"

    def _renew(self) -> Iterator[str]:
        yield from self._pulse()
        known = f"k:{self.asked.worker}" in self.before.entries
        if known != (self.reply.status == "RENEWED") or known != (self.asked.worker in self.after.seen):
            yield f"F10: {self.asked.worker} is known: {known}, and was answered {self.reply.status} or counted so"
        named = dict(self.asked.held)
        lost = {attempt for attempt, token in named.items() if self.before.tokens.get(attempt) != token}
        if set(self.reply.lost) != lost:
            yield f"C5: a renewal called {self.reply.lost} lost, lost are {sorted(lost)}"
        for attempt in set(named) - lost:
            yield from self.whole_lease(attempt)
        for attempt, note in self.before.held.get(self.asked.worker, {}).items():
            unknown = named.get(attempt) != note.token and note.nonce <= self.asked.nonce
            if unknown == (attempt in self.after.tokens):
                yield f"F1: {attempt}, unnamed and told of: {unknown}, is held after a renewal: {not unknown}"
            if unknown and not self.kept_place(attempt):
                yield f"F12: {attempt} was given back and lost its place"
            if not unknown and attempt not in named and self.after.leases.get(attempt) != self.before.leases[attempt]:
                yield f"L2: {attempt} was not named and was renewed"

    def _recover(self) -> Iterator[str]:
        yield from self._pulse()
        overdue = self.overdue()
        if {attempt for attempt, _ in self.reply.recovered} != overdue:
            yield f"F24: recovered {self.reply.recovered}, to be taken back are {sorted(overdue)}"
        for attempt, verdict in self.reply.recovered:
            over = int(self.before.records[attempt]["stalls"]) >= self.world.max_stalls
            if over != (verdict == "POISON") or over != (attempt not in self.after.records):
                yield f"C10: {attempt} stalled, over its budget: {over}, answered {verdict}"
            elif not over and not self.kept_place(attempt):
                yield f"F12: {attempt} was recovered and lost its place"
        for attempt, deadline in self.before.leases.items():
            if deadline <= NOW and attempt not in overdue and self.after.leases.get(attempt) != self._gap() + LEASE_MS:
                yield f"F24: {attempt} could not be renewed in a gap and has no grace"
        neighbours = self.after.entries.get(f"n:{HOST}", ())
        if self.asked.gone and (self.asked.gone in neighbours or self.asked.gone in self.after.seen):
            yield f"F25: {self.asked.gone} is gone for sure and still counted on"

    def _greet(self) -> Iterator[str]:
        yield from self._moved_nothing()
        if self.reply.token != self.after.epoch:
            yield "F26: a worker was told of another epoch than the store's"
        before, after = (stored.entries.get("epoch", {}) for stored in (self.before, self.after))
        if before.get("run") == after.get("run") and before != after:
            yield "F26: the server is the same, and its epoch is not"
        if before.get("run") != after.get("run") and self.after.epoch <= self.before.epoch:
            yield "F26: the server is another one, and its epoch is the same"
        if before and before.get("run") != after.get("run") and self.after.awaited != self.before.seen:
            yield f"F26: awaited are {sorted(self.after.awaited)}, alive were {sorted(self.before.seen)}"

    def _adopt(self) -> Iterator[str]:
        attempt, token = self.asked.attempt, self.asked.token
        if self.reply.status == "LOST" and where(self.before, attempt) != where(self.after, attempt):
            yield f"F26: {attempt} was not adopted, and changed"
        if self.reply.status == "KEPT":
            if self.after.tokens.get(attempt) != token:
                yield f"F26: {attempt} was adopted under another token"
            yield from self.whole_lease(attempt)
            if self.before.tokens.get(attempt) != token and self.after.records[attempt]["stalls"] != str(
                self.asked.stalls
            ):
                yield f"C10: the stalls of {attempt} were not brought with it"
        record = self.before.records.get(attempt, {})
        if (self.before.tokens.get(attempt) == token) and self.reply.status == "LOST":
            yield f"F26: {attempt} is held under this token, and its owner was refused"
        if int(record.get("last", 0)) > token and self.reply.status == "KEPT":
            yield f"F26: {attempt} has had a higher token, and an older owner was believed"

    def _join(self) -> Iterator[str]:
        yield from self._moved_nothing()
        worker = self.asked.worker
        if worker not in self.after.seen or worker in self.after.awaited:
            yield f"F26: {worker} has joined and is still awaited, or not known"
        if f"k:{worker}" not in self.after.entries:
            yield f"F10: nobody knows what {worker} can run"
        if self.world.witnesses and worker not in self.after.entries.get(f"n:{HOST}", ()):
            yield f"F25: {worker} has no witness"

    def _leave(self) -> Iterator[str]:
        yield from self._moved_nothing()
        worker = self.asked.worker
        if worker in {*self.after.seen, *self.after.awaited, *self.after.entries.get(f"n:{HOST}", ())}:
            yield f"{worker} has left and is still counted on"
        if f"k:{worker}" in self.after.entries:
            yield f"{worker} has left and is still handed on to"

    def _moved_nothing(self) -> Iterator[str]:
        for attempt in {*self.before.records, *self.after.records}:
            if where(self.before, attempt) != where(self.after, attempt):
                yield f"invariant 3: {attempt} was changed by a worker that came or went"
