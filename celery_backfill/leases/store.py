"""The lease store's verbs, typed. Each is one atomic script on the server's clock, safe to send again.

The server's clock decides; durations are seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .script import ADMIT, CLAIM, RECOVER, REGISTER, RENEW, SETTLE, Script
from .wire import ScriptCall, Value, Wire

WORKER_KEPT_SECONDS = 86_400
RECOVER_BATCH = 100
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


class Recovered(NamedTuple):
    """A lease that ran out; ``verdict`` is ``BACK`` (in line again) or ``POISON`` (dead)."""

    attempt: str
    task: str
    worker: str
    stalls: int
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A new attempt, as its worker presents it. ``rank`` 0 goes first; an empty ``message`` means the broker's copy."""

    attempt: str
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


class LeaseStore:
    """The verbs of one namespace on one wire.

    ``clock`` gives the time in milliseconds instead of the server's own, for tests. ``broker_keys`` are the broker's
    unacked index and unacked hash where it is the same Redis: an admission with a delivery tag is acked there.
    """

    def __init__(
        self,
        wire: Wire,
        namespace: str,
        *,
        clock: Callable[[], int] | None = None,
        broker_keys: tuple[str, str] = ("unacked_index", "unacked"),
    ) -> None:
        self._wire = wire
        self._keys = (f"{{{namespace}}}:",)
        self._keys_with_broker = (*self._keys, *broker_keys)
        self._clock = clock

    def _now(self) -> int | str:
        return self._clock() if self._clock else ""

    def register(self, worker: str, tasks: Iterable[str]) -> None:
        """Say which tasks a worker knows; it is handed nothing else."""
        self._run(REGISTER, worker, WORKER_KEPT_SECONDS, *tasks)

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
        known, *lost = self._run(RENEW, worker, last_nonce, WORKER_KEPT_SECONDS, *pairs)
        return bool(known), [attempt.decode() for attempt in lost]

    def recover(self, batch: int = RECOVER_BATCH) -> tuple[float | None, list[Recovered]]:
        """Take back leases that ran out; also in how many seconds something scheduled is due."""
        due, *rest = self._run(RECOVER, batch)
        found = [
            Recovered(attempt.decode(), task.decode(), worker.decode(), int(stalls), verdict.decode())
            for attempt, task, worker, stalls, verdict in zip(*[iter(rest)] * 5, strict=True)
        ]
        return _due(due), found

    def _run(self, script: Script, *arguments: Value) -> Any:
        return self._wire.run(ScriptCall(script, self._keys, (self._now(), *arguments)))[0]

    def _admission(self, call: Call, new: Admission) -> ScriptCall:
        arguments = (
            self._now(), call.worker, call.nonce, new.attempt, new.delivery_tag, new.queue, new.rank, new.limits,
            _ms(new.lease_seconds), new.max_stalls, _ms(new.dedupe_seconds), new.task, new.task_id, new.message,
            int(new.recorded), int(new.shares_slot),
        )  # fmt: skip
        return ScriptCall(ADMIT, self._keys_with_broker if new.delivery_tag else self._keys, arguments)

    def _settlement(
        self, call: Call, attempt: str, token: int, ending: Ending, want: int, queues: Sequence[str]
    ) -> ScriptCall:
        arguments = (
            self._now(), call.worker, call.nonce, attempt, token, ending.outcome, _ms(ending.delay_seconds),
            ending.message, ending.limits, ending.queue, ending.letter, want, *queues,
        )  # fmt: skip
        return ScriptCall(SETTLE, self._keys, arguments)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _due(milliseconds: int) -> float | None:
    return None if milliseconds < 0 else milliseconds / 1000


def _answer(reply: Any) -> Answer:
    status, token, due, more = reply[:4]
    grants = tuple(_grant(*reply[at : at + 5]) for at in range(4, len(reply), 5)) if len(reply) > 4 else ()
    return Answer(status.decode(), int(token), _due(due), more > 0, grants)


def _grant(attempt: bytes, token: bytes, task: bytes, stalls: bytes, message: bytes) -> Grant:
    return Grant(attempt.decode(), int(token), task.decode(), int(stalls), message)
