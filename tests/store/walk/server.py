"""Carries calls out on stored states: restore, call, dump, in one pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import redis
from redis.exceptions import ResponseError

from celery_backfill.leases import script
from celery_backfill.leases.script import Script
from celery_backfill.leases.wire import ScriptCall

from .calls import DEDUPE_SECONDS, REFUSED, Asked, Caller
from .stored import Stored
from .world import World

BATCH = 100
LUA = Path(__file__).parent / "lua"

Job = tuple[str, Asked]


class Server:
    """One namespace on a real server. ``scripts`` are run in place of the store's own, by name."""

    def __init__(self, url: str, namespace: str, world: World, scripts: Mapping[str, Script] | None = None) -> None:
        self._connection: Any = redis.ConnectionPool.from_url(url).make_connection()
        self._connection.connect()
        self._prefix = f"{{{namespace}}}:"
        self._caller = Caller(world, namespace)
        texts = {verb.name: (scripts or {}).get(verb.name, verb).text for verb in script.ALL}
        self._digests = {name: self._load(text) for name, text in texts.items()}
        self._dump = self._load((LUA / "dump.lua").read_text())
        self._restore = self._load((LUA / "restore.lua").read_text())
        self._seen: dict[str, Stored] = {}

    def close(self) -> None:
        self._connection.disconnect()

    def carry_out(self, jobs: Sequence[Job]) -> Iterator[tuple[Any, Stored]]:
        """The reply (or the error it is) to each call on its state, and the state after it."""
        for start in range(0, len(jobs), BATCH):
            yield from self._batch(jobs[start : start + BATCH])

    def _batch(self, jobs: Sequence[Job]) -> Iterator[tuple[Any, Stored]]:
        commands = [part for text, asked in jobs for part in self._commands(text, self._caller.command(asked))]
        self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)
        replies = [self._receive() for _ in commands]
        for (_, asked), restored, reply, dump in zip(jobs, replies[::3], replies[1::3], replies[2::3], strict=True):
            if isinstance(restored, ResponseError) or isinstance(dump, ResponseError):
                raise restored if isinstance(restored, ResponseError) else dump
            yield self._answer(asked, reply), self._stored(dump.decode())

    def _answer(self, asked: Asked, reply: Any) -> Any:
        if isinstance(reply, ResponseError):
            return REFUSED if str(reply).startswith("EPOCH ") else reply
        try:
            return self._caller.read(asked, reply)
        except (AttributeError, TypeError, ValueError) as error:
            return error

    def _commands(self, text: str, command: ScriptCall) -> list[tuple[Any, ...]]:
        digest = self._digests[command.script.name]
        return [
            ("EVALSHA", self._restore, 1, self._prefix, text, DEDUPE_SECONDS * 1000),
            ("EVALSHA", digest, len(command.keys), *command.keys, *command.arguments),
            ("EVALSHA", self._dump, 1, self._prefix),
        ]

    def _stored(self, text: str) -> Stored:
        if text not in self._seen:
            self._seen[text] = Stored(text)
        return self._seen[text]

    def _load(self, text: str) -> str:
        self._connection.send_command("SCRIPT", "LOAD", text)
        return str(self._connection.read_response().decode())

    def _receive(self) -> Any:
        try:
            return self._connection.read_response()
        except ResponseError as error:
            return error
