"""What the server holds, as the store's own words say it."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any, NamedTuple


class Holding(NamedTuple):
    """A worker's own note of a lease."""

    token: int
    nonce: int


def pairs(flat: list[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


class Stored:
    """One dump of a namespace, read only. Equal ones compare equal, whatever order the server kept things in."""

    def __init__(self, text: str) -> None:
        self.text = text
        plain = json.loads(text)
        self.kinds: dict[str, str] = {name: kind for name, (kind, _) in plain.items()}
        self.entries: dict[str, Any] = {name: _read(*entry) for name, entry in plain.items()}
        self.records: dict[str, dict[str, str]] = self._under("a:")
        self.tokens = {name: int(record["token"]) for name, record in self.records.items() if record.get("token")}
        self.held: dict[str, dict[str, Holding]] = {
            worker: {attempt: Holding(*map(int, note.split(":"))) for attempt, note in notes.items()}
            for worker, notes in self._under("w:").items()
        }
        self.answers: dict[str, dict[int, str]] = {
            worker: {int(kept[f"n{place}"]): kept[f"answer{place}"] for place in "01" if f"answer{place}" in kept}
            for worker, kept in self._under("r:").items()
        }
        self.leases: dict[str, int] = _scores(self.entries.get("leases", {}))
        self.sched: dict[str, int] = _scores(self.entries.get("sched", {}))
        self.outbox: list[dict[str, str]] = self.entries.get("outbox", [])
        self.endings: list[dict[str, str]] = self.entries.get("endings", [])
        #: An epoch that no worker can have joined stands for none.
        self.epoch = int(self.entries.get("epoch", {}).get("id", -1))
        self.awaited: frozenset[str] = self.entries.get("awaited", frozenset())
        self.seen: frozenset[str] = frozenset(self.entries.get("workers", ()))

    def having(self, name: str, entry: tuple[str, list[str]]) -> Stored:
        """The same with one entry more, or another, or without it if it is empty."""
        plain = {known: value for known, value in json.loads(self.text).items() if known != name}
        return Stored(json.dumps({**plain, name: entry} if entry[1] else plain))

    @cached_property
    def lines(self) -> dict[tuple[str, str], dict[str, int]]:
        """(queue, key) -> attempt -> score."""
        return {_line(name): _scores(line) for name, line in self._under("l:").items()}

    @cached_property
    def turns(self) -> dict[tuple[str, str], int]:
        """(queue, key) -> turn."""
        return {(queue, key): int(turn) for queue, keys in self._under("t:").items() for key, turn in keys.items()}

    @cached_property
    def permits(self) -> dict[str, frozenset[str]]:
        return self._under("h:")

    @cached_property
    def unacked(self) -> frozenset[str]:
        """The delivery tags that the broker waits to have acked."""
        return frozenset(self.entries.get("unacked", {}))

    def of_epoch(self, field: str) -> int:
        """A time or an epoch that the store notes about its own."""
        return int(self.entries.get("epoch", {}).get(field) or 0)

    def of_pulse(self, field: str) -> int:
        """When anybody was last heard of (``at``), and when silence ended (``gap``)."""
        return int(self.entries.get("pulse", {}).get(field) or 0)

    def noting(self, name: str, **fields: int | str) -> Stored:
        """The same with other fields in a hash, if it is there."""
        known = self.entries.get(name)
        if not known:
            return self
        told = {**known, **{field: str(value) for field, value in fields.items()}}
        return self.having(name, ("hash", [value for pair in told.items() for value in pair]))

    @property
    def token(self) -> int:
        return int(self.entries.get("token", ("0",))[0])

    @property
    def adopted(self) -> int:
        """The highest token that was adopted."""
        return self.of_epoch("adopted")

    @property
    def seq(self) -> int:
        return int(self.entries.get("seq", ("0",))[0])

    def newest(self, worker: str) -> int:
        """The newest nonce of a worker that was answered."""
        return max(self.answers.get(worker, (0,)))

    def remembers(self, attempt: str) -> bool:
        """Whether an attempt that ended is remembered."""
        return f"d:{attempt}" in self.entries

    def _under(self, prefix: str) -> Any:
        return {name[len(prefix) :]: value for name, value in self.entries.items() if name.startswith(prefix)}


def _read(kind: str, value: Any) -> Any:
    if kind in ("hash", "zset"):
        return pairs(value)
    if kind == "stream":
        return [pairs(entry) for entry in value]
    return frozenset(value) if kind == "set" else tuple(value)


def _scores(members: dict[str, str]) -> dict[str, int]:
    return {member: int(float(score)) for member, score in members.items()}


def _line(name: str) -> tuple[str, str]:
    length, rest = name.split(":", 1)
    return rest[: int(length)], rest[int(length) + 1 :]
