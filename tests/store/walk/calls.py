"""Calls to the store as values, and the wire that turns them into commands and replies into answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from celery_backfill.leases.store import Admission, Answer, Call, Ending, LeaseStore
from celery_backfill.leases.wire import ScriptCall

if TYPE_CHECKING:
    from .world import World

NOW = 10**12
LEASE_MS = 10_000
DELAY_MS = 1_000
DEDUPE_SECONDS = 3600
TASK = "shop.charge"
LETTER = '{"reason":"failed"}'

OUTCOMES = {
    "done": Ending(outcome="done"),
    "dead": Ending(outcome="dead", letter=LETTER),
    "stalled": Ending(outcome="stalled", letter=LETTER),
    "back": Ending(outcome="back"),
}


class Asked(NamedTuple):
    """A call. ``held`` is what a renewal names, its ``nonce`` the last one answered; admissions may share a slot."""

    verb: str
    worker: str = ""
    nonce: int = 0
    attempt: str = ""
    token: int = 0
    outcome: str = ""
    want: int = 0
    held: tuple[tuple[str, int], ...] = ()
    shares: bool = False

    @property
    def about(self) -> tuple[str, str, int, str]:
        """What a worker knows a call by: it repeats the same one under the same nonce."""
        return self.verb, self.attempt, self.token, self.outcome if self.verb == "pair" else ""


class Reply(NamedTuple):
    """An answer in short. ``lost`` is a renewal's, ``recovered`` a sweep's (attempt, verdict)."""

    status: str = ""
    token: int = 0
    grants: tuple[tuple[str, int], ...] = ()
    lost: tuple[str, ...] = ()
    recovered: tuple[tuple[str, str], ...] = ()


class Tape:
    """A wire that writes down the call when it has no reply to play."""

    def __init__(self) -> None:
        self.reply: Any = None
        self.written: ScriptCall | None = None

    def run(self, *calls: ScriptCall) -> list[Any]:
        if self.reply is None:
            self.written = calls[0]
            raise Unanswered
        return [self.reply]


class Unanswered(Exception):
    """Nobody has carried the call out yet."""


class Caller:
    """Writes calls down and reads their replies, both through the store's own client."""

    def __init__(self, world: World, namespace: str) -> None:
        self._tape = Tape()
        self._world = world
        broker_keys = (f"{{{namespace}}}:unacked_index", f"{{{namespace}}}:unacked")
        wire: Any = self._tape
        self._store = LeaseStore(wire, namespace, clock=lambda: NOW, broker_keys=broker_keys)

    def command(self, asked: Asked) -> ScriptCall:
        self._tape.reply = self._tape.written = None
        try:
            self._send(asked)
        except Unanswered:
            assert self._tape.written is not None
            return self._tape.written
        raise AssertionError(f"{asked.verb} asked the server nothing")

    def read(self, asked: Asked, reply: Any) -> Reply:
        self._tape.reply = reply
        return self._send(asked)

    def _send(self, asked: Asked) -> Reply:
        call = Call(asked.worker, asked.nonce)
        if asked.verb == "admit":
            return _short(self._store.admit(call, self._admission(asked)))
        if asked.verb == "claim":
            return _short(self._store.claim(call, asked.want, self._world.queues))
        if asked.verb == "settle":
            return _short(self._settle(call, asked))
        if asked.verb == "renew":
            _, lost = self._store.renew(asked.worker, asked.nonce, asked.held)
            return Reply("RENEWED", lost=tuple(lost))
        recovered = self._store.recover().recovered
        return Reply("RECOVERED", recovered=tuple((found.attempt, found.verdict) for found in recovered))

    def _settle(self, call: Call, asked: Asked) -> Answer:
        ending = OUTCOMES.get(asked.outcome) or self._retry(asked)
        queues = self._world.queues if asked.want else ()
        return self._store.settle(call, asked.attempt, asked.token, ending, want=asked.want, queues=queues)

    def _retry(self, asked: Asked) -> Ending:
        delay = DELAY_MS / 1000 if asked.outcome == "later" else 0
        return Ending(outcome="retry", delay_seconds=delay, limits=self._world.limits_of(asked.attempt))

    def _admission(self, asked: Asked) -> Admission:
        world, attempt = self._world, asked.attempt
        return Admission(
            attempt=attempt,
            queue=world.queue_of(attempt),
            task=TASK,
            task_id=attempt,
            rank=world.rank_of(attempt),
            limits=world.limits_of(attempt),
            lease_seconds=LEASE_MS / 1000,
            max_stalls=world.max_stalls,
            dedupe_seconds=0 if world.one_redis else DEDUPE_SECONDS,
            message="" if world.one_redis else "message",
            delivery_tag=attempt if world.one_redis else "",
            shares_slot=asked.shares,
        )


def _short(answer: Answer) -> Reply:
    return Reply(answer.status, answer.token, tuple((grant.attempt, grant.token) for grant in answer.grants))
