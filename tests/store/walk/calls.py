"""Calls to the store as values, and the wire that turns them into commands and replies into answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from celery_backfill.leases.store import Admission, Answer, Call, Ending, Epoch, LeaseStore, Terms
from celery_backfill.leases.wire import ScriptCall

if TYPE_CHECKING:
    from .world import World

NOW = 10**12
LEASE_MS = 10_000
GAP_MS = 2_500
DELAY_MS = 1_000
DEDUPE_SECONDS = 3600
TASK = "shop.charge"
LETTER = '{"reason":"failed"}'
HOST = "host"
SERVER = "this server"
UPTIME_SECONDS = 3600

OUTCOMES = {
    "done": Ending(outcome="done"),
    "dead": Ending(outcome="dead", letter=LETTER),
    "stalled": Ending(outcome="stalled", letter=LETTER),
    "back": Ending(outcome="back"),
}


class Asked(NamedTuple):
    """A call. ``held`` is what a renewal names, its ``nonce`` the last one answered; admissions may share a slot.

    ``epoch`` is the one that the caller takes the store to be in (0: it does not say), ``joined`` the one before.
    """

    verb: str
    worker: str = ""
    nonce: int = 0
    attempt: str = ""
    token: int = 0
    outcome: str = ""
    want: int = 0
    held: tuple[tuple[str, int], ...] = ()
    shares: bool = False
    epoch: int = 0
    joined: int = 0
    stalls: int = 0
    gone: str = ""
    """A worker that a witness found gone."""
    young: bool = False
    """Whether the server has just started."""

    @property
    def about(self) -> tuple[str, str, int, str]:
        """What a worker knows a call by: it repeats the same one under the same nonce."""
        return self.verb, self.attempt, self.token, self.outcome if self.verb == "pair" else ""


class Reply(NamedTuple):
    """An answer in short. ``lost`` is a renewal's, ``recovered`` a sweep's (attempt, verdict).

    ``token`` is the epoch where the store was greeted.
    """

    status: str = ""
    token: int = 0
    grants: tuple[tuple[str, int], ...] = ()
    lost: tuple[str, ...] = ()
    recovered: tuple[tuple[str, str], ...] = ()


REFUSED = Reply("EPOCH")


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
        terms = Terms(
            longest_lease=LEASE_MS / 1000,
            gap=GAP_MS / 1000 if world.gaps else 0.0,
            host=HOST if world.witnesses else "",
        )
        self._store = LeaseStore(
            wire, namespace, clock=lambda: NOW, broker_keys=broker_keys, epoch=Epoch(), terms=terms
        )

    def command(self, asked: Asked) -> ScriptCall:
        self._tape.reply = self._tape.written = None
        try:
            self._send(asked)
        except Unanswered:
            assert self._tape.written is not None
            written = self._tape.written
            if asked.verb != "greet":
                return written
            server = (*written.arguments[:-2], SERVER, 0 if asked.young else UPTIME_SECONDS)
            return written._replace(arguments=server)
        raise AssertionError(f"{asked.verb} asked the server nothing")

    def read(self, asked: Asked, reply: Any) -> Reply:
        self._tape.reply = reply
        return self._send(asked)

    def _send(self, asked: Asked) -> Reply:
        call = Call(asked.worker, asked.nonce)
        self._store.epoch.name = _text(asked.epoch)
        if asked.verb == "admit":
            return _short(self._store.admit(call, self._admission(asked)))
        if asked.verb == "claim":
            return _short(self._store.claim(call, asked.want, self._world.queues))
        if asked.verb == "settle":
            return _short(self._settle(call, asked))
        reply: Reply = getattr(self, f"_{asked.verb}")(asked)
        return reply

    def _renew(self, asked: Asked) -> Reply:
        known, lost = self._store.renew(asked.worker, asked.nonce, asked.held)
        return Reply("RENEWED" if known else "UNKNOWN", lost=tuple(lost))

    def _recover(self, asked: Asked) -> Reply:
        recovered = self._store.recover(gone=[asked.gone] if asked.gone else []).recovered
        return Reply("RECOVERED", recovered=tuple((found.attempt, found.verdict) for found in recovered))

    def _greet(self, asked: Asked) -> Reply:
        return Reply("GREETED", int(self._store.greet()))

    def _adopt(self, asked: Asked) -> Reply:
        epoch, joined, lease = _text(asked.epoch), _text(asked.joined), self._lease(asked)
        kept = self._store.adopt(asked.worker, asked.token, lease, epoch=epoch, joined=joined, stalls=asked.stalls)
        return Reply("KEPT" if kept else "LOST")

    def _join(self, asked: Asked) -> Reply:
        epoch, joined = _text(asked.epoch), _text(asked.joined)
        self._store.join(asked.worker, [TASK], epoch=epoch, joined=joined, identity=asked.worker)
        return Reply("JOINED")

    def _leave(self, asked: Asked) -> Reply:
        self._store.leave(asked.worker)
        return Reply("LEFT")

    def _settle(self, call: Call, asked: Asked) -> Answer:
        ending = OUTCOMES.get(asked.outcome) or self._retry(asked)
        queues = self._world.queues if asked.want else ()
        return self._store.settle(call, asked.attempt, asked.token, ending, want=asked.want, queues=queues)

    def _retry(self, asked: Asked) -> Ending:
        delay = DELAY_MS / 1000 if asked.outcome == "later" else 0
        return Ending(outcome="retry", delay_seconds=delay, limits=self._world.limits_of(asked.attempt))

    def _admission(self, asked: Asked) -> Admission:
        world = self._world
        return self._attempt(
            asked,
            dedupe_seconds=0 if world.one_redis else DEDUPE_SECONDS,
            message="" if world.one_redis else "message",
            delivery_tag=asked.attempt if world.one_redis else "",
            shares_slot=asked.shares,
        )

    def _lease(self, asked: Asked) -> Admission:
        """What a store that does not know it is told of a lease."""
        return self._attempt(asked, dedupe_seconds=DEDUPE_SECONDS, message="message")

    def _attempt(self, asked: Asked, **own: Any) -> Admission:
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
            **own,
        )


def _text(epoch: int) -> str:
    return str(epoch or "")


def _short(answer: Answer) -> Reply:
    return Reply(answer.status, answer.token, tuple((grant.attempt, grant.token) for grant in answer.grants))
