"""A place's messages at its broker: how a test sees and deletes them, whatever broker that is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

BATCH = 500
BINDINGS = "_kombu.binding_deadlines"


class Messages(Protocol):
    """A place's messages at its broker."""

    def know(self, queues: Iterable[str]) -> None:
        """These queues may hold messages."""

    def ready(self, queue: str) -> int:
        """How many messages of a queue no worker has."""

    def unacked(self) -> list[str]:
        """Names, one for each message that a worker took and the broker still has."""

    def left(self) -> list[str]:
        """Names of what the broker still holds."""

    def purge(self, queue: str) -> None:
        """Delete all messages of a queue that no worker has."""

    def close(self) -> None:
        """Delete all that is left."""


class RedisMessages:
    """A place's messages at a Redis broker."""

    def __init__(self, broker: Any, namespace: str) -> None:
        self._broker, self._namespace = broker, namespace
        self._queues: set[str] = set()

    def know(self, queues: Iterable[str]) -> None:
        self._queues.update(queues)

    def ready(self, queue: str) -> int:
        return int(self._broker.llen(queue))

    def unacked(self) -> list[str]:
        mine = self._namespace.encode()
        return [tag.decode() for tag, message in self._broker.hscan_iter("unacked", count=BATCH) if mine in message]

    def left(self) -> list[str]:
        waiting = [f"broker:{queue}" for queue in sorted(self._queues) if self.ready(queue)]
        return waiting + [f"unacked:{tag}" for tag in self.unacked()]

    def purge(self, queue: str) -> None:
        self._broker.delete(queue)

    def close(self) -> None:
        """The queues' own keys are deleted with all of the place."""
        if tags := self.unacked():
            self._broker.hdel("unacked", *tags)
            self._broker.zrem("unacked_index", *tags)
        for name, _ in self._broker.zscan_iter(BINDINGS, match=f"*{self._namespace}*", count=BATCH):
            self._broker.zrem(BINDINGS, name)
