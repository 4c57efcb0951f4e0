"""Bring the tables up to date: numbered plain SQL files, each applied once.

The tables are made in the first schema of the connection's ``search_path``; to keep them apart, name one in the
URL: ``postgresql://localhost/app?options=-csearch_path%3Dbackfill``.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from ..errors import SchemaError
from .connections import Connection, Connections, transaction

# Any number does, so long as nothing else in the database locks it: "backfill" in ASCII.
LOCK = int.from_bytes(b"backfill")

_REMEMBER = """
CREATE TABLE IF NOT EXISTS backfill_migrations (
    version integer PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


@cache
def migrations() -> dict[int, str]:
    """The names of all migrations by number, in order, without their ``.sql``."""
    folder = files(__package__).joinpath("migrations")
    names = sorted(entry.name.removesuffix(".sql") for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return {int(name.partition("_")[0]): name for name in names}


def migrate(connections: Connections) -> tuple[str, ...]:
    """Apply what is missing, all of it or nothing, and answer its names.

    Any number may run it at once: they wait for each other and each migration is applied by one of them. Raises
    ``SchemaError`` when the tables were made by a newer version, ``LettersUnavailableError`` when PostgreSQL is away.
    """
    with transaction(connections) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        connection.execute(_REMEMBER)
        missing = _missing(connection)
        for version in missing:
            _apply(connection, version)
    return tuple(migrations()[version] for version in missing)


def _missing(connection: Connection) -> list[int]:
    applied = {row[0] for row in connection.execute("SELECT version FROM backfill_migrations")}
    if unknown := applied - migrations().keys():
        raise SchemaError(
            f"the tables were made by a newer version of celery_backfill (migration {max(unknown)}); upgrade it here"
        )
    return [version for version in migrations() if version not in applied]


def _apply(connection: Connection, version: int) -> None:
    name = migrations()[version]
    connection.execute(files(__package__).joinpath("migrations", f"{name}.sql").read_text(encoding="utf-8"))
    connection.execute("INSERT INTO backfill_migrations (version, name) VALUES (%s, %s)", (version, name))
