"""A small world: what it has, what state it can be in, and what can happen next in a state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from celery_backfill.leases.store import encode_limits

from .calls import NOW, Asked
from .stored import Stored

FRESH, HELD, LOST = "fresh", "held", "lost"
NOTHING = Asked("")


class Budget(NamedTuple):
    """How often each rare thing may still happen."""

    unheard: int = 0
    """Calls that get no answer: each may still arrive at any time later, or never."""
    redeliveries: int = 0
    """Messages that the broker delivers again though somebody lives who has a copy."""
    crashes: int = 0
    expiries: int = 0
    losses: int = 0
    """The server loses all its data."""

    def less(self, **spent: int) -> Budget:
        return self._replace(**{name: getattr(self, name) - count for name, count in spent.items()})


@dataclass(frozen=True)
class Attempt:
    """A message that waits at the broker at first."""

    key: str = ""
    capacity: int = 1
    queue: str = "q"
    rank: int = 0


@dataclass(frozen=True, kw_only=True)
class World:
    """What the walk begins with."""

    name: str
    attempts: dict[str, Attempt]
    one_redis: bool = True
    workers: int = 2
    slots: int = 1
    prefetch: int = 1
    pairs: bool = False
    """Whether workers settle and admit in one go."""
    outcomes: tuple[str, ...] = ("done",)
    wants: tuple[int, ...] = (1,)
    claims: int = 1
    max_stalls: int = 1
    retries: int = 1
    budget: Budget = field(default_factory=Budget)

    @property
    def queues(self) -> tuple[str, ...]:
        return tuple(sorted({attempt.queue for attempt in self.attempts.values()}))

    def queue_of(self, name: str) -> str:
        return self.attempts[name].queue

    def rank_of(self, name: str) -> int:
        return self.attempts[name].rank

    def limits_of(self, name: str) -> str:
        attempt = self.attempts[name]
        return encode_limits([(attempt.key, attempt.capacity)] if attempt.key else ())


class Run(NamedTuple):
    """A run in a worker's pool. Once it ended somehow, it is settled so until that is heard."""

    attempt: str
    token: int
    ended: str = ""


class Worker(NamedTuple):
    """A worker's own memory. ``doubt`` is the call that it has no answer to, a pair's second half for a pair."""

    generation: int = 0
    last: int = 100
    doubt: Asked = NOTHING
    following: Asked = NOTHING
    """An admission right behind a settle, both sent in one go; the answer to the settle is at hand."""
    granted: tuple[tuple[str, int], ...] = ()
    """What that settle granted: noted when both are answered."""
    copies: tuple[str, ...] = ()
    book: tuple[tuple[str, int], ...] = ()
    runs: tuple[Run, ...] = ()

    def nonce_for(self, asked: Asked) -> int:
        """As the worker's lane gives them out."""
        return self.doubt.nonce if self.doubt.about == asked.about else max(self.last, self.doubt.nonce) + 1

    def nonce_for_pair(self, settle: Asked, attempt: str) -> int:
        """That of the settle; the wire repeats a pair as it was."""
        pair = Asked("pair", attempt=attempt, token=settle.token, outcome=settle.attempt)
        return self.doubt.nonce - 1 if self.doubt.about == pair.about else max(self.last, self.doubt.nonce) + 1


class Fate(NamedTuple):
    """What became of an attempt: fresh, held by the store, lost with its data, or how it ended."""

    state: str = FRESH
    retries: int = 0


class State(NamedTuple):
    """All there is. ``late`` are calls on their way to the server that nobody listens to."""

    text: str
    workers: tuple[Worker, ...]
    late: tuple[Asked, ...]
    queue: tuple[str, ...]
    fates: tuple[Fate, ...]
    budget: Budget


class Move(NamedTuple):
    """Something that can happen. ``how`` a call goes: heard, unheard, unacked (heard, but the broker's ack is lost)."""

    what: str
    slot: int = -1
    asked: Asked | None = None
    how: str = "heard"
    attempt: str = ""

    def __str__(self) -> str:
        if self.asked is None:
            return " ".join(filter(None, (self.what, self.attempt, f"worker {self.slot}" if self.slot >= 0 else "")))
        said = {name: value for name, value in self.asked._asdict().items() if value}
        return f"{self.what} {said}" + ("" if self.how == "heard" else f" ({self.how})")


@cache
def name_of(slot: int, generation: int) -> str:
    """A worker's name; a new one after a crash."""
    return f"w{slot}.{generation}"


def moves(world: World, state: State, stored: Stored) -> Iterator[Move]:
    """All that can happen next."""
    for slot, worker in enumerate(state.workers):
        yield from _broker_moves(world, state, slot)
        name = name_of(slot, worker.generation)
        for what, asked in (*_calls(world, state, worker, name), *_renewals(worker, name, stored)):
            yield Move(what, slot, asked)
            if state.budget.unheard:
                yield Move(what, slot, asked, "unheard")
            if what == "admit" and not world.one_redis and state.budget.redeliveries:
                yield Move(what, slot, asked, "unacked")
        if state.budget.crashes:
            yield Move("crash", slot, how="fault")
    yield from (Move("arrive", asked=asked, how="fault") for asked in sorted(set(state.late)) if _is_next(state, asked))
    yield from _times_moves(state, stored)
    if world.one_redis:
        yield from _restores(state, stored)
    if state.budget.losses:
        yield Move("lose all data", how="fault")


def _is_next(state: State, asked: Asked) -> bool:
    """The halves of a pair went over one connection: they arrive in their order."""
    first = (asked.worker, asked.nonce - 1)
    return not asked.shares or all(
        (other.worker, other.nonce) != first or other.verb == "renew" for other in state.late
    )


def _broker_moves(world: World, state: State, slot: int) -> Iterator[Move]:
    copies, busy = state.workers[slot].copies, bool(state.workers[slot].following.verb)
    if len(copies) < world.prefetch:
        yield from (Move("deliver", slot, attempt=attempt) for attempt in state.queue)
    if copies and not busy and not world.one_redis and state.budget.redeliveries:
        yield Move("reconnect", slot, how="fault")


def _calls(world: World, state: State, worker: Worker, name: str) -> Iterator[tuple[str, Asked]]:
    def numbered(asked: Asked) -> Asked:
        return asked._replace(worker=name, nonce=worker.nonce_for(asked))

    if worker.following.verb:
        yield "follow", worker.following
        return
    if len(worker.runs) < world.slots:
        for attempt in sorted(set(worker.copies)):
            yield "admit", numbered(Asked("admit", attempt=attempt))
        yield "claim", numbered(Asked("claim", want=world.claims))
    for asked in _settlements(world, state, worker):
        yield "settle", numbered(asked)
        for attempt in sorted(set(worker.copies)) if world.pairs and asked.outcome != "back" else ():
            yield f"settle before {attempt}", asked._replace(worker=name, nonce=worker.nonce_for_pair(asked, attempt))


def _settlements(world: World, state: State, worker: Worker) -> Iterator[Asked]:
    for run in sorted(set(worker.runs)):
        for outcome in [run.ended] if run.ended else _outcomes(world, state, run.attempt):
            for want in world.wants:
                yield Asked("settle", attempt=run.attempt, token=run.token, outcome=outcome, want=want)


def _renewals(worker: Worker, name: str, stored: Stored) -> Iterator[tuple[str, Asked]]:
    """The heartbeat has a connection of its own: a renewal may come between the two calls of a pair."""
    if worker.book or name in stored.held:
        yield "renew", Asked("renew", name, worker.last, held=worker.book)


def _outcomes(world: World, state: State, attempt: str) -> list[str]:
    spent = state.fates[sorted(world.attempts).index(attempt)].retries >= world.retries
    return [outcome for outcome in world.outcomes if not (spent and outcome in ("retry", "later"))]


def orphans(state: State, stored: Stored) -> tuple[str, ...]:
    """The leases of workers that are gone; everybody else may renew while they run out."""
    alive = {name_of(slot, worker.generation) for slot, worker in enumerate(state.workers)}
    return tuple(attempt for attempt in sorted(stored.leases) if stored.records[attempt]["worker"] not in alive)


def _times_moves(state: State, stored: Stored) -> Iterator[Move]:
    if state.budget.expiries and any(deadline > NOW for deadline in stored.leases.values()):
        yield Move("a lease passes", how="fault")
    if any(stored.leases[attempt] > NOW for attempt in orphans(state, stored)):
        yield Move("the leases of the gone pass", how="free")
    if any(due > NOW for due in stored.sched.values()):
        yield Move("a moment passes", how="free")
    if any(deadline <= NOW for deadline in stored.leases.values()):
        yield Move("recover", asked=Asked("recover"), how="free")


def _restores(state: State, stored: Stored) -> Iterator[Move]:
    """The broker may restore at any time what is unacked; it will when nobody is left who has it."""
    for attempt in sorted(stored.unacked):
        orphan = all(attempt not in worker.copies for worker in state.workers)
        if orphan or state.budget.redeliveries:
            yield Move("restore", attempt=attempt, how="free" if orphan else "fault")
