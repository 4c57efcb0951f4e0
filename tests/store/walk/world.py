"""A small world: what it has, and what state it can be in."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from celery_backfill.leases.store import encode_limits

from .calls import Asked

FRESH, HELD, LOST = "fresh", "held", "lost"
NOTHING = Asked("")

Lease = tuple[str, int]
"""An attempt and its token."""


class Budget(NamedTuple):
    """How often each rare thing may still happen."""

    unheard: int = 0
    """Calls that get no answer: each may still arrive at any time later, or never."""
    redeliveries: int = 0
    """Messages that the broker delivers again though somebody lives who has a copy."""
    crashes: int = 0
    expiries: int = 0
    """Nobody renews for a whole lease, while others are heard of."""
    gaps: int = 0
    """The store hears of nobody for a whole lease."""
    stops: int = 0
    """Workers that stop in good order, and are started again."""
    restarts: int = 0
    """The server is restarted with its data."""
    rollbacks: int = 0
    """It is restarted with data that lack the last calls."""
    losses: int = 0
    """It loses all its data."""

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
    epochs: bool = False
    """Whether workers greet and join; otherwise they are known from the start and do not say what epoch it is."""
    fresh: int = 0
    """How many workers have not joined yet at first."""
    flushed: bool = False
    """Whether data are lost while the server goes on; otherwise it is restarted."""
    clock_back: bool = False
    """Whether the clock is behind all tokens once the data are lost."""
    forgets: int = 1
    """How many of the last calls a rollback may undo."""
    witnesses: bool = False
    loses: tuple[str, ...] = ()
    """Which calls may get no answer; none named: all."""

    def may_lose(self, asked: Asked) -> bool:
        return asked.verb != "greet" and (not self.loses or asked.verb in self.loses)

    @property
    def gaps(self) -> bool:
        """Whether workers have the rule of gaps."""
        return self.budget.gaps > 0

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
    stalls: int = 0


class Worker(NamedTuple):
    """A worker's own memory. ``doubt`` is the call that it has no answer to, a pair's second half for a pair."""

    generation: int = 0
    last: int = 100
    doubt: Asked = NOTHING
    following: Asked = NOTHING
    """An admission right behind a settle, both sent in one go; the answer to the settle is at hand."""
    granted: tuple[Lease, ...] = ()
    """What that settle granted: noted when both are answered."""
    copies: tuple[str, ...] = ()
    book: tuple[Lease, ...] = ()
    runs: tuple[Run, ...] = ()
    joined: int = 0
    """The epoch that it has joined last."""
    out: bool = False
    """Whether it has to join (again) before it asks for anything."""
    greeted: int = 0
    """The epoch that it is about to join."""
    kept: tuple[Lease, ...] = ()
    """Which of its leases that epoch has taken over so far."""
    refused: tuple[Lease, ...] = ()

    def nonce_for(self, asked: Asked) -> int:
        """As the worker's lane gives them out."""
        return self.doubt.nonce if self.doubt.about == asked.about else max(self.last, self.doubt.nonce) + 1

    def nonce_for_pair(self, settle: Asked, attempt: str) -> int:
        """That of the settle; the wire repeats a pair as it was."""
        pair = Asked("pair", attempt=attempt, token=settle.token, outcome=settle.attempt)
        return self.doubt.nonce - 1 if self.doubt.about == pair.about else max(self.last, self.doubt.nonce) + 1

    def leaves(self) -> Worker:
        """It has to join (again), from the beginning."""
        return self._replace(out=True, greeted=0, kept=(), refused=())


class Fate(NamedTuple):
    """What became of an attempt: fresh, held by the store, lost with its data, or how it ended."""

    state: str = FRESH
    retries: int = 0


class Prior(NamedTuple):
    """What the store had before one of the last calls, and what had become of the attempts."""

    text: str
    fates: tuple[Fate, ...]


class State(NamedTuple):
    """All there is. ``late`` are calls on their way to the server that nobody listens to."""

    text: str
    workers: tuple[Worker, ...]
    late: tuple[Asked, ...]
    queue: tuple[str, ...]
    fates: tuple[Fate, ...]
    budget: Budget
    unstored: tuple[Lease, ...] = ()
    """Leases that the store has lost, and that their owners still count on."""
    doubtful: tuple[Lease, ...] = ()
    """Leases that it has and that are over: brought by who could not know it, or from an earlier time."""
    told: bool = False
    """Whether the store was told, by somebody who joined it before, that it has lost its data."""
    cut: bool = False
    """The server was restarted and nobody has connected yet."""
    young: bool = False
    """It has just started."""
    priors: tuple[Prior, ...] = ()
    """The last first."""


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


def with_worker(state: State, slot: int, worker: Worker) -> State:
    return state._replace(workers=(*state.workers[:slot], worker, *state.workers[slot + 1 :]))


def alive(state: State) -> set[str]:
    """The names of the workers that live."""
    return {name_of(slot, worker.generation) for slot, worker in enumerate(state.workers)}
