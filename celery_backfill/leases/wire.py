"""One connection to Redis for scripts: no pool and no retry layer between the caller and the socket.

Every script is safe to send again, so calls whose replies were lost are repeated once on a new connection. What a
pooled client adds to each call is most of what a call costs here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from ..errors import StoreChangedError, StoreUnavailableError
from .script import ALL, Script

Value = str | bytes | int | float

Command = tuple[Value, ...]

MANY = 2**31

# A server without our scripts counts as a lost connection: nothing ran, and connecting loads them all.
LOST = (RedisConnectionError, RedisTimeoutError, OSError, NoScriptError)


class ScriptCall(NamedTuple):
    """One script with its keys and arguments."""

    script: Script
    keys: Sequence[str]
    arguments: Sequence[Value]


class Wire:
    """Runs scripts on one Redis connection. ``timeout`` seconds bound each wait for it. For one thread at a time.

    A call is given up after three waits at the most: for its answer, for a new connection, and for the answer there.
    """

    def __init__(self, url: str, *, timeout: float = 0.3) -> None:
        # redis-py's own retries and its calls at a connection's start would come on top of that.
        self._pool = redis.ConnectionPool.from_url(
            url,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            client_name="celery_backfill",
            retry=Retry(NoBackoff(), 0),
            # The pool only makes connections here, and counts each; in an outage there is one a second.
            max_connections=MANY,
        )
        #: Makes the call that each new connection begins with, if there is one; its answer is not kept.
        self.greeting: Callable[[], ScriptCall] | None = None
        self._connection: Any = None
        self._in_flight: deque[list[Command]] = deque()

    def run(self, *calls: ScriptCall) -> list[Any]:
        """The scripts' answers, in order; all are sent before the first answer is read. Raises as ``receive`` does."""
        self.send(*calls)
        return self.receive()

    def send(self, *calls: ScriptCall) -> None:
        """Send calls now and ``receive`` their answers later. What went wrong is told by ``receive``."""
        commands = [_command(call) for call in calls]
        try:
            if self._connection is None:
                self._connect()
            self._write(commands)
        except LOST:
            self._drop()
        finally:
            self._in_flight.append(commands)

    def receive(self) -> list[Any]:
        """The answers of what was sent first of all that is under way.

        Raises ``StoreUnavailableError`` when two tries got no answer, or the server refused (it is loading, full, ...),
        and ``StoreChangedError`` when the call was of another epoch; whatever else is under way is forgotten then.
        """
        try:
            answers = self._receive()
        except StoreUnavailableError:
            self._in_flight.clear()
            raise
        self._in_flight.popleft()
        return answers

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        self._in_flight.clear()
        self._drop()

    def _receive(self) -> list[Any]:
        try:
            if self._connection is not None:
                return self._answers()
        except StoreUnavailableError:
            raise
        except LOST:
            self._drop()
        try:
            self._connect()
            self._write([command for commands in self._in_flight for command in commands])
            return self._answers()
        except StoreUnavailableError:
            raise
        except LOST as error:
            self._drop()
            raise StoreUnavailableError(f"no answer from Redis: {error}") from error

    def _answers(self) -> list[Any]:
        answers = [_read(self._connection) for _ in self._in_flight[0]]
        refusal = next((answer for answer in answers if isinstance(answer, RedisError)), None)
        if refusal is None:
            return answers
        # The server's script cache was dropped, or it refuses: a new connection loads the scripts anew.
        self._drop()
        if isinstance(refusal, NoScriptError):
            raise refusal
        if str(refusal).startswith("EPOCH"):
            raise StoreChangedError(str(refusal)) from refusal
        raise StoreUnavailableError(f"Redis refused: {refusal}") from refusal

    def _connect(self) -> None:
        connection: Any = self._pool.make_connection()
        connection.connect()
        self._connection = connection
        greeting = [_command(self.greeting())] if self.greeting else []
        self._write([*(("SCRIPT", "LOAD", script.text) for script in ALL), *greeting])
        for _ in (*ALL, *greeting):
            connection.read_response()

    def _write(self, commands: Sequence[Command]) -> None:
        packed = b"".join(part for command in commands for part in self._connection.pack_command(*command))
        self._connection.send_packed_command([packed], check_health=False)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None


def _command(call: ScriptCall) -> Command:
    return ("EVALSHA", call.script.digest, len(call.keys), *call.keys, *call.arguments)


def _read(connection: Any) -> Any:
    """One answer; an error that the server answered is returned, so that the answers after it are read too."""
    try:
        return connection.read_response()
    except NoScriptError as error:
        return error
    except LOST:
        raise
    except RedisError as error:
        return error
