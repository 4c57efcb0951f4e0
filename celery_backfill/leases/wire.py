"""One connection to Redis for scripts: no pool and no retry layer between the caller and the socket.

Every script is safe to send again, so calls whose replies were lost are repeated once on a new connection. What a
pooled client adds to each call is most of what a call costs here.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any, NamedTuple

import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..errors import StoreUnavailableError
from .script import ALL, Script

Value = str | bytes | int | float

LOST = (RedisConnectionError, RedisTimeoutError, OSError)


class ScriptCall(NamedTuple):
    """One script with its keys and arguments."""

    script: Script
    keys: Sequence[str]
    arguments: Sequence[Value]


class Wire:
    """Runs scripts on one Redis connection; threads may share it. ``timeout`` seconds bound each wait for it."""

    def __init__(self, url: str, *, timeout: float = 0.5) -> None:
        self._pool = redis.ConnectionPool.from_url(
            url, socket_timeout=timeout, socket_connect_timeout=timeout, client_name="celery_backfill"
        )
        self._connection: Any = None
        self._lock = Lock()

    def run(self, *calls: ScriptCall) -> list[Any]:
        """The scripts' answers, in order; all are sent before the first answer is read.

        Raises ``StoreUnavailableError`` when two tries got no answer, or the server refused (it is loading, full, ...).
        """
        commands = [("EVALSHA", call.script.digest, len(call.keys), *call.keys, *call.arguments) for call in calls]
        with self._lock:
            try:
                return self._send(commands)
            except LOST:
                self._drop()
            try:
                return self._send(commands)
            except LOST as error:
                self._drop()
                names = " and ".join(call.script.name for call in calls)
                raise StoreUnavailableError(f"no answer from Redis to {names}: {error}") from error

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        with self._lock:
            self._drop()

    def _send(self, commands: Sequence[tuple[Value, ...]]) -> list[Any]:
        if self._connection is None:
            connection: Any = self._pool.make_connection()
            connection.connect()
            self._connection = connection
            self._load()
        try:
            return self._exchange(commands)
        except NoScriptError:
            # All were loaded together, so none of these ran.
            self._load()
            return self._exchange(commands)
        except LOST:
            raise
        except RedisError as error:
            raise StoreUnavailableError(f"Redis refused: {error}") from error

    def _load(self) -> None:
        self._exchange([("SCRIPT", "LOAD", script.text) for script in ALL])

    def _exchange(self, commands: Sequence[tuple[Value, ...]]) -> list[Any]:
        connection = self._connection
        packed = [part for command in commands for part in connection.pack_command(*command)]
        connection.send_packed_command(packed if len(commands) == 1 else [b"".join(packed)], check_health=False)
        answers = [_read(connection) for _ in commands]
        for answer in answers:
            if isinstance(answer, RedisError):
                raise answer
        return answers

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None


def _read(connection: Any) -> Any:
    """One answer; an error that the server answered is returned, so that the answers after it are read too."""
    try:
        return connection.read_response()
    except LOST:
        raise
    except RedisError as error:
        return error
