"""What a Redis broker did with the messages, read from its append-only files.

Kombu takes a message from the list by BRPOP and writes it to ``unacked`` in a second step. Where its connection is cut
between the two, the message is gone, and no worker has ever seen it (kombu#305).
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from tests.chaos.aof import Command, transactions
from tests.chaos.server import Era

PUSHES = (b"LPUSH", b"RPUSH")
POPS = (b"LPOP", b"RPOP")


class Where(Enum):
    """Where a message was last."""

    QUEUED = "queued"
    POPPED = "popped"
    UNACKED = "unacked"
    ACKED = "acked"


@dataclass(slots=True)
class Deliveries:
    """The last known place of each message, by task id, and when those were lost whose data was deleted."""

    where: dict[str, Where] = field(default_factory=dict)
    lost_with_data: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, eras: Iterable[Era], queue: str) -> Deliveries:
        """Read the files of all eras of a server."""
        deliveries = cls()
        for era in eras:
            here = _Here(deliveries, queue.encode())
            for commands in transactions(era.folder):
                for words in commands:
                    here.apply(words)
            if era.ended is not None:
                deliveries.lost_with_data |= dict.fromkeys(here.tasks(), era.ended)
        return deliveries

    def never_delivered(self, task_id: str) -> bool:
        """Whether it was taken from its list and never arrived."""
        return self.where.get(task_id) is Where.POPPED


class _Here:
    """The broker's keys in one era."""

    def __init__(self, deliveries: Deliveries, queue: bytes) -> None:
        self._deliveries, self._queue = deliveries, queue
        self._lists: dict[bytes, deque[str]] = defaultdict(deque)
        self._unacked: dict[bytes, str] = {}

    def apply(self, words: Command) -> None:
        name, key = words[0], words[1] if len(words) > 1 else b""
        if key.startswith(self._queue) and name in PUSHES:
            for payload in words[2:]:
                self._push(name, key, json.loads(payload)["headers"]["id"])
        elif key.startswith(self._queue) and name in POPS and self._lists[key]:
            line = self._lists[key]
            self._at(line.popleft() if name == b"LPOP" else line.pop(), Where.POPPED)
        elif key == b"unacked" and name == b"HSET":
            for tag, value in zip(words[2::2], words[3::2], strict=True):
                self._unacked[tag] = json.loads(value)[0]["headers"]["id"]
                self._at(self._unacked[tag], Where.UNACKED)
        elif key == b"unacked" and name == b"HDEL":
            for tag in words[2:]:
                if (task_id := self._unacked.pop(tag, None)) and self._deliveries.where[task_id] is Where.UNACKED:
                    self._at(task_id, Where.ACKED)

    def tasks(self) -> Iterator[str]:
        """Tasks whose messages are here, or on their way from here to a worker."""
        yield from (task_id for task_id, where in self._deliveries.where.items() if where is not Where.ACKED)

    def _push(self, name: bytes, key: bytes, task_id: str) -> None:
        line = self._lists[key]
        line.appendleft(task_id) if name == b"LPUSH" else line.append(task_id)
        self._at(task_id, Where.QUEUED)

    def _at(self, task_id: str, where: Where) -> None:
        self._deliveries.where[task_id] = where
