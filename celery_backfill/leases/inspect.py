"""Read-only views of the store, for the command line and for pages. Nothing here decides anything."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis

from ..errors import StoreUnavailableError

SCAN = 500
SOCKET_SECONDS = 5


@dataclass(frozen=True, slots=True)
class LimitView:
    """A key that is held or waited for. ``capacity`` is that of its newest attempt."""

    key: str
    capacity: int | None
    held: int
    blocked: int
    oldest_blocked_seconds: float | None
    paused: bool


@dataclass(frozen=True, slots=True)
class LeaseView:
    """A lease: which worker runs what, since when, for how long yet."""

    task_id: str
    task: str
    worker: str
    keys: tuple[str, ...]
    token: int
    age_seconds: float
    expires_in_seconds: float


@dataclass(frozen=True, slots=True)
class Counts:
    """How many attempts the store holds in each state, and how many entries the outbox has."""

    running: int
    blocked: int
    scheduled: int
    outbox: int


@contextmanager
def inspecting(url: str, namespace: str) -> Iterator[Inspector]:
    """Views at a Redis URL. What Redis or the way to it refuses is raised as ``StoreUnavailableError``."""
    try:
        with redis.Redis.from_url(url, socket_timeout=SOCKET_SECONDS, socket_connect_timeout=SOCKET_SECONDS) as client:
            yield Inspector(client, namespace)
    except (redis.RedisError, OSError) as error:
        raise StoreUnavailableError(type(error).__name__) from error


class Inspector:
    """Views of one namespace."""

    def __init__(self, client: redis.Redis, namespace: str) -> None:
        self._client: Any = client
        self._prefix = f"{{{namespace}}}:"

    def leases(self) -> list[LeaseView]:
        """All leases, the oldest first."""
        now = self._now_ms()
        fields = ("task_id", "task", "worker", "limits", "token", "granted")
        views = [
            LeaseView(
                task_id=task_id.decode(),
                task=task.decode(),
                worker=worker.decode(),
                keys=tuple(key for key, _ in _limits(limits)),
                token=int(token),
                age_seconds=(now - int(granted)) / 1000,
                expires_in_seconds=(deadline - now) / 1000,
            )
            for _, deadline, (task_id, task, worker, limits, token, granted) in self._running(*fields)
        ]
        return sorted(views, key=lambda view: view.token)

    def limits(self) -> list[LimitView]:
        """Every key that is held or waited for, by name."""
        capacities: dict[str, int] = {}
        held: Counter[str] = Counter()
        for _, _, (limits,) in self._running("limits"):
            for key, capacity in _limits(limits):
                capacities[key] = capacity
                held[key] += 1
        waiting = {key.decode() for key in self._client.smembers(self._prefix + "b")} - {""}
        now = self._now_ms()
        return [self._limit(key, capacities.get(key), held[key], now) for key in sorted({*held, *waiting})]

    def counts(self) -> Counts:
        """Attempts by state. What waits without a limit (recovered, due) counts as blocked."""
        with self._client.pipeline(transaction=False) as pipe:
            pipe.zcard(self._prefix + "leases")
            pipe.zcard(self._prefix + "sched")
            pipe.xlen(self._prefix + "outbox")
            pipe.smembers(self._prefix + "b")
            running, scheduled, outbox, keys = pipe.execute()
        blocked = sum(size for key in keys for _, size in self._lines(key.decode()))
        return Counts(running, blocked, scheduled, outbox)

    def _limit(self, key: str, capacity: int | None, held: int, now: int) -> LimitView:
        lines = self._lines(key)
        heads = [self._client.zrange(name, 0, 0) for name, _ in lines]
        records = [
            self._client.hmget(self._prefix + "a:" + head[0].decode(), "born", "limits") for head in heads if head
        ]
        births = [int(born) for born, _ in records if born]
        for _, limits in records:
            capacity = capacity or dict(_limits(limits)).get(key)
        oldest = (now - min(births)) / 1000 if births else None
        return LimitView(key, capacity, held, sum(size for _, size in lines), oldest, paused=False)

    def _lines(self, key: str) -> list[tuple[str, int]]:
        """The lines of a key, with their lengths."""
        queues = [queue.decode() for queue in self._client.smembers(f"{self._prefix}kq:{key}")]
        names = [f"{self._prefix}l:{len(queue.encode())}:{queue}:{key}" for queue in queues]
        with self._client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.zcard(name)
            return list(zip(names, pipe.execute(), strict=True))

    def _running(self, *fields: str) -> Iterator[tuple[str, float, list[Any]]]:
        """(attempt, deadline ms, values) of all leases; one that ended meanwhile is left out."""
        leases = self._client.zrange(self._prefix + "leases", 0, -1, withscores=True)
        for start in range(0, len(leases), SCAN):
            batch = leases[start : start + SCAN]
            with self._client.pipeline(transaction=False) as pipe:
                for attempt, _ in batch:
                    pipe.hmget(self._prefix + "a:" + attempt.decode(), fields)
                values = pipe.execute()
            for (attempt, deadline), found in zip(batch, values, strict=True):
                if None not in found and b"" not in found[4:5]:
                    yield attempt.decode(), deadline, found

    def _now_ms(self) -> int:
        seconds, micros = self._client.time()
        return int(seconds) * 1000 + int(micros) // 1000


def _limits(text: bytes | None) -> list[tuple[str, int]]:
    return [(key, capacity) for key, capacity in json.loads(text)] if text else []
