"""What the lease store decided: grants, ends and losses of data, read from its append-only files.

Its layout is told at the head of ``celery_backfill/leases/lua/_common.lua``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.chaos.aof import Command, transactions
from tests.chaos.server import Era

Pairs = dict[str, str]


@dataclass(frozen=True, slots=True)
class Settled:
    """An attempt's last settlement: with which token, whether it is dead, and after how many losses of data."""

    task_id: str
    token: int
    dead: bool
    losses: int = 0


@dataclass(frozen=True, slots=True)
class Loss:
    """What the store held when its data was deleted, by task id."""

    at: float
    #: Running, with their tokens.
    running: dict[str, int]
    #: Blocked, scheduled, or waiting to be recorded in PostgreSQL.
    waiting: frozenset[str]


@dataclass(slots=True)
class Decisions:
    """All that one namespace of a store decided."""

    settled: list[Settled] = field(default_factory=list)
    admitted: set[str] = field(default_factory=set)
    losses: list[Loss] = field(default_factory=list)
    #: Tokens granted after a higher one was.
    tokens_back: list[str] = field(default_factory=list)
    #: Keys of which more permits were held than their limit, with the most.
    over_limit: dict[str, int] = field(default_factory=dict)
    _highest: int = 0
    _tokens: set[tuple[str, int]] = field(default_factory=set)

    @classmethod
    def read(cls, eras: Iterable[Era], namespace: str) -> Decisions:
        """Read the files of all eras of a server."""
        decisions = cls()
        for era in eras:
            state = _State(f"{{{namespace}}}:", decisions)
            for commands in transactions(era.folder):
                state.apply(commands)
            if era.ended is not None:
                decisions.losses.append(state.loss(era.ended))
        return decisions

    def forgotten(self, task_id: str) -> Loss | None:
        """Before which loss a task had ended, if it ended once between any two: the memory of its end was lost."""
        ends = {one.token: one.losses for one in self.settled if one.task_id == task_id}
        once_each = len(set(ends.values())) == len(ends) > 1
        return self.losses[min(ends.values())] if once_each else None

    def granted(self, attempt: str, token: int) -> None:
        """A lease was given, or brought back by its owner."""
        if (attempt, token) in self._tokens:
            return
        self._tokens.add((attempt, token))
        if token <= self._highest:
            self.tokens_back.append(f"{attempt}: {token} after {self._highest}")
        self._highest = max(self._highest, token)


class _State:
    """The store's keys as far as they matter, in one era."""

    def __init__(self, prefix: str, decisions: Decisions) -> None:
        self._prefix = prefix.encode()
        self._decisions = decisions
        self._records: dict[str, Pairs] = {}
        self._held: dict[str, set[bytes]] = defaultdict(set)
        self._capacity: dict[str, int] = {}
        self._outbox: dict[bytes, str] = {}

    def apply(self, commands: Sequence[Command]) -> None:
        """The effects of one script."""
        ours = [(words[0], words[1][len(self._prefix) :].decode(), words) for words in commands if self._is_ours(words)]
        dead = {entry for _, key, words in ours if key == "outbox" for entry in self._outboxed(words)}
        for name, key, words in ours:
            kind, _, rest = key.partition(":")
            if kind == "a":
                self._on_record(name, rest, words, dead)
            elif kind == "h":
                self._on_permits(name, rest, words)
        over = self._decisions.over_limit
        for key, held in self._held.items():
            if len(held) > self._capacity.get(key, len(held)):
                over[key] = max(over.get(key, 0), len(held))

    def loss(self, at: float) -> Loss:
        """What is lost if the data is deleted now."""
        running = {record["task_id"]: int(record["token"]) for record in self._records.values() if _runs(record)}
        waiting = {record["task_id"] for record in self._records.values() if not _runs(record)}
        return Loss(at, running, frozenset(waiting) | frozenset(self._outbox.values()))

    def _is_ours(self, words: Command) -> bool:
        return len(words) > 1 and words[1].startswith(self._prefix)

    def _outboxed(self, words: Command) -> list[str]:
        """Attempts that this command writes to the outbox as failed, as attempt:token."""
        if words[0] == b"XDEL":
            for entry in words[2:]:
                self._outbox.pop(entry, None)
        if words[0] != b"XADD":
            return []
        # Options may stand between the key and the entry's id.
        start = words.index(b"kind")
        fields = _pairs(words[start:])
        if fields["kind"] != "failed":
            return []
        record = self._records.get(fields["id"].rpartition(":")[0], {})
        self._outbox[words[start - 1]] = record.get("task_id", "")
        return [fields["id"]]

    def _on_record(self, name: bytes, attempt: str, words: Command, dead: set[str]) -> None:
        if name == b"HSET":
            record = self._records.setdefault(attempt, {})
            changed = _pairs(words[2:])
            record.update(changed)
            if changed.get("token"):
                self._decisions.granted(attempt, int(changed["token"]))
            if "task_id" in changed:
                self._decisions.admitted.add(changed["task_id"])
            for key, capacity in json.loads(changed.get("limits") or "[]"):
                self._capacity[key] = capacity
        elif name in (b"DEL", b"UNLINK") and attempt in self._records:
            record = self._records.pop(attempt)
            token = record.get("token") or "0"
            is_dead, losses = f"{attempt}:{token}" in dead, len(self._decisions.losses)
            self._decisions.settled.append(Settled(record["task_id"], int(token), is_dead, losses))

    def _on_permits(self, name: bytes, key: str, words: Command) -> None:
        if name == b"SADD":
            self._held[key].update(words[2:])
        elif name == b"SREM":
            self._held[key].difference_update(words[2:])
        elif name in (b"DEL", b"UNLINK"):
            self._held.pop(key, None)


def _runs(record: Pairs) -> bool:
    return record.get("state") == "running"


def _pairs(words: Sequence[bytes]) -> Pairs:
    texts = [word.decode(errors="replace") for word in words]
    return dict(zip(texts[::2], texts[1::2], strict=True))
