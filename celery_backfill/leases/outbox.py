"""The outbox: final failures and resolutions on their way from the settling script to PostgreSQL.

A Redis stream read by one group. An entry that a reader took and did not finish is taken over by another after a while,
so it may be read twice; recording it twice is one (see ``deadletters``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
from redis.exceptions import ResponseError

GROUP = "shippers"
SOCKET_SECONDS = 5

Entry = tuple[bytes, dict[bytes, bytes]]


class Outbox:
    """The outbox of one namespace."""

    def __init__(self, client: redis.Redis, namespace: str) -> None:
        self._client: Any = client
        self._stream = f"{{{namespace}}}:outbox"

    @classmethod
    def at(cls, url: str, namespace: str) -> Outbox:
        """The outbox at a Redis URL. Does not connect yet."""
        return cls(redis.Redis.from_url(url, socket_timeout=SOCKET_SECONDS), namespace)

    def read(self, reader: str, *, count: int, block_ms: int, idle_ms: int) -> list[Entry]:
        """Up to ``count`` unfinished entries: those another reader took over ``idle_ms`` ago, else new ones.

        Waits up to ``block_ms`` for a new one (0: does not wait).
        """
        try:
            return self._left_over(reader, count, idle_ms) or self._fresh(reader, count, block_ms)
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            self._make_group()
            return self._fresh(reader, count, block_ms)

    def finish(self, ids: Sequence[bytes]) -> None:
        """Remove entries that are safely elsewhere."""
        with self._client.pipeline(transaction=True) as pipe:
            pipe.xack(self._stream, GROUP, *ids)
            pipe.xdel(self._stream, *ids)
            pipe.execute()

    def length(self) -> int:
        """How many entries are not finished."""
        return int(self._client.xlen(self._stream))

    def _left_over(self, reader: str, count: int, idle_ms: int) -> list[Entry]:
        answer = self._client.xautoclaim(self._stream, GROUP, reader, idle_ms, "0-0", count=count)
        return [(entry_id, fields) for entry_id, fields in answer[1] if fields]

    def _fresh(self, reader: str, count: int, block_ms: int) -> list[Entry]:
        answer = self._client.xreadgroup(GROUP, reader, {self._stream: ">"}, count=count, block=block_ms or None)
        entries = answer.values() if isinstance(answer, dict) else [found for _, found in answer or ()]
        return [entry for found in entries for entry in (found[0] if isinstance(answer, dict) else found)]

    def _make_group(self) -> None:
        try:
            self._client.xgroup_create(self._stream, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
