"""A Redis stream of the store read by one group of readers, one in each worker, each entry at least once.

An entry that a reader took and did not finish is taken over by another after a while, so it may be read twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import redis
from redis.exceptions import ResponseError

SOCKET_SECONDS = 5
START = "0-0"

Entry = tuple[bytes, dict[bytes, bytes]]


class Stream:
    """A stream of one namespace. Subclasses say which, and how its group of readers is called."""

    name: ClassVar[str]
    group: ClassVar[str]

    def __init__(self, client: redis.Redis, namespace: str) -> None:
        self._client: Any = client
        self._stream = f"{{{namespace}}}:{self.name}"
        self._next: str | bytes = START

    @classmethod
    def at(cls, url: str, namespace: str) -> Self:
        """The stream at a Redis URL. Does not connect yet."""
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
        """Remove entries that are done with."""
        with self._client.pipeline(transaction=True) as pipe:
            pipe.xack(self._stream, self.group, *ids)
            pipe.xdel(self._stream, *ids)
            pipe.execute()

    def length(self) -> int:
        """How many entries are not finished."""
        return int(self._client.xlen(self._stream))

    def _left_over(self, reader: str, count: int, idle_ms: int) -> list[Entry]:
        # The server looks at a few entries a call, from where the last one ended.
        answer = self._client.xautoclaim(self._stream, self.group, reader, idle_ms, self._next, count=count)
        self._next = answer[0]
        return [(entry_id, fields) for entry_id, fields in answer[1] if fields]

    def _fresh(self, reader: str, count: int, block_ms: int) -> list[Entry]:
        answer = self._client.xreadgroup(self.group, reader, {self._stream: ">"}, count=count, block=block_ms or None)
        entries = answer.values() if isinstance(answer, dict) else [found for _, found in answer or ()]
        return [entry for found in entries for entry in (found[0] if isinstance(answer, dict) else found)]

    def _make_group(self) -> None:
        try:
            self._client.xgroup_create(self._stream, self.group, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
