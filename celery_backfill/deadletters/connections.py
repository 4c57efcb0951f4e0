"""The way to PostgreSQL, and what its errors mean here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import RLock
from typing import Any, Protocol

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ..errors import ConfigurationError, LetterRefusedError, LettersUnavailableError, SchemaError
from ..findings import is_ambiguous

Connection = psycopg.Connection[Any]

DEFAULTS = {
    "application_name": "celery_backfill",
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
MIGRATE = "run: celery -A proj backfill migrate"


class Connections(Protocol):
    """Where connections come from; ``psycopg_pool.ConnectionPool`` is one too."""

    def connection(self) -> AbstractContextManager[Connection]:
        """A connection for one transaction: committed at the end, rolled back on an error."""


class OneConnection:
    """One connection, made when first needed, made anew when it broke, and used by one thread at a time."""

    def __init__(self, url: str) -> None:
        """Raises ``ConfigurationError`` when ``url`` cannot be read. Does not connect."""
        self._conninfo = conninfo(url)
        self._open: Connection | None = None
        self._lock = RLock()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        with self._lock:
            connection = self._usable()
            with connection.transaction():
                yield connection

    def close(self) -> None:
        """Close the connection, if there is one. The next use makes a new one."""
        with self._lock:
            if self._open is not None:
                self._open.close()
            self._open = None

    def _usable(self) -> Connection:
        if self._open is None or self._open.closed:
            # Servers behind a transaction pooler know no prepared statements of other transactions.
            self._open = psycopg.connect(self._conninfo, autocommit=True, prepare_threshold=None)
        return self._open


@contextmanager
def transaction(connections: Connections) -> Iterator[Connection]:
    """One transaction, with psycopg's errors turned into this library's (see ``understood``)."""
    with understood(), connections.connection() as connection:
        yield connection


def conninfo(url: str) -> str:
    """``url`` with this library's defaults for what it leaves open. Raises ``ConfigurationError``."""
    if is_ambiguous(url):
        return "postgresql://..."
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error:
        # libpq's words repeat the part that it could not read, which may be the password.
        raise ConfigurationError(
            "backfill_postgres_url cannot be read. Write, for example: postgresql://user:password@localhost:5432/app"
            " (special characters in a password are written as %40 for @, %2F for /)"
        ) from None
    return make_conninfo("", **{**DEFAULTS, **given})


def shown(url: str) -> str:
    """``url`` as it may be printed: user, host, port and database, never a password."""
    if is_ambiguous(url):
        return "postgresql://..."
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error:
        return "postgresql://..."
    user = f"{given['user']}@" if given.get("user") else ""
    port = f":{given['port']}" if given.get("port") else ""
    return f"postgresql://{user}{given.get('host') or ''}{port}/{given.get('dbname') or ''}"


@contextmanager
def understood() -> Iterator[None]:
    """Turn psycopg's errors into this library's.

    ``LetterRefusedError`` for a fault of the data, ``SchemaError`` for missing or foreign tables,
    ``LettersUnavailableError`` for everything else.
    """
    try:
        yield
    except (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.ProgramLimitExceeded) as error:
        raise LetterRefusedError(first_line(error)) from error
    except (UnicodeError, OverflowError) as error:
        raise LetterRefusedError(f"{type(error).__name__}: {error}"[:500]) from error
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        raise SchemaError(f"the dead letters' tables are missing or too old; {MIGRATE}") from error
    except psycopg.Error as error:
        raise LettersUnavailableError(first_line(error)) from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
