"""The lease store's verbs, typed. Each is one atomic script on the server's clock, safe to send again.

The server's clock decides; durations are seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .script import ADMIT, ADOPT, CLAIM, GREET, JOIN, LEAVE, RECOVER, RENEW, SETTLE, Script
from .wire import ScriptCall, Value, Wire

WORKER_KEPT_SECONDS = 86_400
RECOVER_BATCH = 100
#: What live workers need to notice that the store was restarted, and to join again.
JOIN_SECONDS = 2.0
NO_LIMITS = ""


class Call(NamedTuple):
    """Names one call: a repeat with the same worker and nonce gets the first one's answer."""

    worker: str
    nonce: int


class Grant(NamedTuple):
    """An attempt leased to a worker, with its message as stored."""

    attempt: str
    token: int
    task: str
    stalls: int
    message: bytes
    lease_seconds: float


class Answer(NamedTuple):
    """What admit, settle and claim answer.

    ``token`` is that of an admitted attempt (0 otherwise), ``due_in`` the seconds until something scheduled is due
    (None: nothing is), ``more`` whether something may run now on the queues asked about.
    """

    status: str
    token: int
    due_in: float | None
    more: bool
    grants: tuple[Grant, ...]


class Sweep(NamedTuple):
    """What a sweep found: in how many seconds something scheduled is due, the identities of the workers of this host,
    and the leases taken back.
    """

    due_in: float | None
    neighbours: dict[str, str]
    recovered: list[Recovered]


class Recovered(NamedTuple):
    """A lease that ran out, or whose worker is gone; ``verdict`` is ``BACK`` (in line again) or ``POISON`` (dead)."""

    attempt: str
    task: str
    worker: str
    stalls: int
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A new attempt, as its worker presents it. ``rank`` 0 goes first; an empty ``message`` means the broker's copy.

    ``again`` is the name by which a redelivery of it will come, where that is another one.
    """

    attempt: str
    again: str = ""
    queue: str
    task: str
    task_id: str
    rank: int = 0
    limits: str = NO_LIMITS
    lease_seconds: float = 15.0
    max_stalls: int = 3
    dedupe_seconds: float = 0.0
    recorded: bool = True
    message: str = ""
    delivery_tag: str = ""
    shares_slot: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an attempt's run ended: ``done``, ``retry``, ``dead``, ``stalled`` or ``back`` (it never started)."""

    outcome: str
    delay_seconds: float = 0.0
    message: str = ""
    limits: str = NO_LIMITS
    queue: str = ""
    letter: str = ""


def encode_limits(limits: Iterable[tuple[str, int]]) -> str:
    """Limits as the scripts read them: (key, capacity) pairs."""
    pairs = [list(limit) for limit in limits]
    return json.dumps(pairs, separators=(",", ":")) if pairs else NO_LIMITS


class Epoch:
    """The epoch that a worker has joined; all its wires share it. ``""`` is not checked: for tools, which own nothing.

    A call from another epoch than the store's raises ``StoreChangedError``, and nothing is done.
    """

    NONE = "none"

    def __init__(self, name: str = "") -> None:
        self.name = name

    def leave(self) -> None:
        """Have every call refused until the worker has joined again."""
        self.name = self.NONE


@dataclass(frozen=True, slots=True)
class Terms:
    """What a worker's calls assume. Durations are in seconds; 0 leaves a rule out.

    ``longest_lease``: how long the lease of anybody may last. ``gap``: how long the store must have heard of nobody to
    take it that it was the store that was away. ``host``: where a worker is, for witnesses on the same one.
    """

    longest_lease: float = 0.0
    gap: float = 0.0
    host: str = ""


class LeaseStore:
    """The verbs of one namespace on one wire.

    ``clock`` gives the time in milliseconds instead of the server's own, for tests. ``broker_keys`` are the broker's
    unacked index and unacked hash where it is the same Redis: an admission with a delivery tag is acked there.
    With an ``epoch``, each new connection greets the store, which is how a restart of the server is noticed.
    """

    def __init__(
        self,
        wire: Wire,
        namespace: str,
        *,
        clock: Callable[[], int] | None = None,
        broker_keys: tuple[str, str] = ("unacked_index", "unacked"),
        epoch: Epoch | None = None,
        terms: Terms | None = None,
    ) -> None:
        self._wire = wire
        self.epoch = epoch or Epoch()
        self._terms = terms or Terms()
        self._keys = (f"{{{namespace}}}:",)
        self._keys_with_broker = (*self._keys, *broker_keys)
        self._clock = clock
        if epoch is not None:
            wire.greeting = self._greeting

    def _now(self) -> int | str:
        return self._clock() if self._clock else ""

    def greet(self) -> str:
        """The store's epoch; a new one where the server was restarted or has none."""
        (epoch,) = self._wire.run(self._greeting())
        return str(epoch.decode())

    def adopt(self, worker: str, token: int, held: Admission, *, epoch: str = "", joined: str, stalls: int = 0) -> bool:
        """Bring a lease into an epoch that may not know it; False when it is lost. ``joined`` is the worker's last."""
        return bool(
            self._wire.run(
                self._call(
                    ADOPT, epoch, worker, joined, _ms(self._terms.longest_lease), held.attempt, token, held.queue,
                    held.rank, held.limits, _ms(held.lease_seconds), held.max_stalls, _ms(held.dedupe_seconds),
                    held.task, held.task_id, held.message, int(held.recorded), stalls,
                )
            )[0]
        )  # fmt: skip

    def join(
        self,
        worker: str,
        tasks: Iterable[str],
        *,
        epoch: str = "",
        joined: str = "",
        identity: str = "",
        seen: int = 0,
    ) -> float:
        """Be a worker of this epoch, which knows these tasks and is handed nothing else; ``seen`` is its highest token.

        Seconds until something new may start. Raises ``StoreChangedError`` when the epoch has changed meanwhile.
        """
        terms = self._terms
        wait = self._wire.run(
            self._call(
                JOIN, epoch, worker, WORKER_KEPT_SECONDS, joined, _ms(terms.longest_lease), terms.host, identity,
                seen, *tasks,
            )
        )[0]  # fmt: skip
        return int(wait) / 1000

    def leave(self, worker: str) -> None:
        """Have the worker forgotten; it holds nothing any more."""
        self._run(LEAVE, worker, self._terms.host)

    def admit(self, call: Call, new: Admission) -> Answer:
        """``RUN`` with a token, ``BLOCKED``, ``DUPLICATE``, ``GONE`` (the broker gave it elsewhere) or ``OLD``."""
        return _answer(*self._wire.run(self._admission(call, new)))

    def settle(
        self, call: Call, attempt: str, token: int, ending: Ending, *, want: int = 0, queues: Sequence[str] = ()
    ) -> Answer:
        """``SETTLED``, ``STALE`` (not this token's any more: nothing changed), ``POISON`` or ``OLD``; with grants."""
        return _answer(*self._wire.run(self._settlement(call, attempt, token, ending, want, queues)))

    def send_settlement(
        self,
        call: Call,
        attempt: str,
        token: int,
        ending: Ending,
        *,
        want: int,
        queues: Sequence[str],
        following: Admission | None,
    ) -> None:
        """Send ``settle`` and, under the next nonce, ``admit`` of a following attempt; answered by the next method.

        One that ``shares_slot`` is answered ``LATER``, and nothing done, where settling granted something.
        """
        calls = [self._settlement(call, attempt, token, ending, want, queues)]
        if following is not None:
            calls.append(self._admission(Call(call.worker, call.nonce + 1), following))
        self._wire.send(*calls)

    def receive_settlement(self) -> tuple[Answer, Answer | None]:
        """The answers to the first of the settlements under way: to ``settle``, and to ``admit`` if there was one."""
        settled, *admitted = self._wire.receive()
        return _answer(settled), _answer(admitted[0]) if admitted else None

    def claim(self, call: Call, want: int, queues: Sequence[str]) -> Answer:
        """``CLAIMED`` with up to ``want`` grants, or ``OLD``."""
        return _answer(self._run(CLAIM, call.worker, call.nonce, want, *queues))

    def renew(self, worker: str, last_nonce: int, held: Iterable[tuple[str, int]]) -> tuple[bool, list[str]]:
        """Renew (attempt, token) pairs; whether the worker's tasks are known, and the attempts that are lost."""
        pairs = [value for pair in held for value in pair]
        known, *lost = self._run(RENEW, worker, last_nonce, WORKER_KEPT_SECONDS, _ms(self._terms.gap), *pairs)
        return bool(known), [attempt.decode() for attempt in lost]

    def recover(self, batch: int = RECOVER_BATCH, gone: Sequence[str] = ()) -> Sweep:
        """Take back leases that ran out, and those of workers of this host that are ``gone`` for sure."""
        due, neighbours, rest = self._run(
            RECOVER, batch, _ms(self._terms.gap), self._terms.host, WORKER_KEPT_SECONDS, *gone
        )
        found = [
            Recovered(attempt.decode(), task.decode(), worker.decode(), int(stalls), verdict.decode())
            for attempt, task, worker, stalls, verdict in zip(*[iter(rest)] * 5, strict=True)
        ]
        names = [text.decode() for text in neighbours]
        return Sweep(_due(due), dict(zip(names[::2], names[1::2], strict=True)), found)

    def _run(self, script: Script, *arguments: Value) -> Any:
        return self._wire.run(self._call(script, self._epoch_of(script), *arguments))[0]

    def _call(self, script: Script, epoch: str, *arguments: Value) -> ScriptCall:
        return ScriptCall(script, self._keys, (self._now(), epoch, *arguments))

    def _epoch_of(self, script: Script) -> str:
        """A worker leaves whatever epoch there is."""
        return "" if script is LEAVE else self.epoch.name

    def _greeting(self) -> ScriptCall:
        return self._call(GREET, "", _ms(self._terms.longest_lease), _ms(JOIN_SECONDS), "", "")

    def _admission(self, call: Call, new: Admission) -> ScriptCall:
        arguments = (
            self._now(), self.epoch.name, call.worker, call.nonce, new.attempt, new.delivery_tag, new.queue, new.rank,
            new.limits, _ms(new.lease_seconds), new.max_stalls, _ms(new.dedupe_seconds), new.task, new.task_id,
            new.message, int(new.recorded), int(new.shares_slot), new.again,
        )  # fmt: skip
        return ScriptCall(ADMIT, self._keys_with_broker if new.delivery_tag else self._keys, arguments)

    def _settlement(
        self, call: Call, attempt: str, token: int, ending: Ending, want: int, queues: Sequence[str]
    ) -> ScriptCall:
        arguments = (
            self._now(), self.epoch.name, call.worker, call.nonce, attempt, token, ending.outcome,
            _ms(ending.delay_seconds), ending.message, ending.limits, ending.queue, ending.letter, want, *queues,
        )  # fmt: skip
        return ScriptCall(SETTLE, self._keys, arguments)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _due(milliseconds: int) -> float | None:
    return None if milliseconds < 0 else milliseconds / 1000


def _answer(reply: Any) -> Answer:
    status, token, due, more = reply[:4]
    grants = tuple(_grant(*reply[at : at + 6]) for at in range(4, len(reply), 6)) if len(reply) > 4 else ()
    return Answer(status.decode(), int(token), _due(due), more > 0, grants)


def _grant(attempt: bytes, token: bytes, task: bytes, stalls: bytes, message: bytes, lease_ms: bytes) -> Grant:
    return Grant(attempt.decode(), int(token), task.decode(), int(stalls), message, int(lease_ms) / 1000)
