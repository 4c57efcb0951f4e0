"""One connection to Redis for scripts: no pool and no retry layer between the caller and the socket.

Every script is safe to send again, so a call whose reply was lost is repeated once on a new connection. What a pooled
client adds to each call is most of what a call costs here.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ..errors import StoreUnavailableError
from .script import Script

Value = str | bytes | int | float


class Wire:
    """Runs scripts on one Redis connection, one at a time; threads may share it.

    ``timeout`` seconds bound each of connecting, sending and receiving.
    """

    def __init__(self, url: str, *, timeout: float = 0.5) -> None:
        self._pool = redis.ConnectionPool.from_url(
            url, socket_timeout=timeout, socket_connect_timeout=timeout, client_name="celery_backfill"
        )
        self._connection: Any = None
        self._lock = Lock()

    def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Value]) -> Any:
        """The script's answer. Raises ``StoreUnavailableError`` when two tries got none."""
        command = ("EVALSHA", script.digest, len(keys), *keys, *arguments)
        with self._lock:
            try:
                return self._send(script, command)
            except (RedisConnectionError, RedisTimeoutError, OSError):
                self._drop()
            try:
                return self._send(script, command)
            except (RedisConnectionError, RedisTimeoutError, OSError) as error:
                self._drop()
                raise StoreUnavailableError(f"no answer from Redis to {script.name}: {error}") from error

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        with self._lock:
            self._drop()

    def _send(self, script: Script, command: tuple[Value, ...]) -> Any:
        if self._connection is None:
            connection = self._pool.make_connection()
            connection.connect()
            self._connection = connection
        try:
            return self._exchange(command)
        except NoScriptError:
            return self._exchange(("EVAL", script.text, *command[2:]))
        except RedisError as error:
            if str(error).startswith(("OOM", "LOADING", "READONLY", "MASTERDOWN", "BUSY")):
                raise StoreUnavailableError(f"Redis refused {script.name}: {error}") from error
            raise

    def _exchange(self, command: tuple[Value, ...]) -> Any:
        connection = self._connection
        connection.send_packed_command(connection.pack_command(*command), check_health=False)
        return connection.read_response()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None
