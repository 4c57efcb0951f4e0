"""Asks a PostgreSQL whether it can hold the dead letters. Nothing is changed."""

from __future__ import annotations

from time import perf_counter

from ..errors import BackfillError, ConfigurationError
from ..findings import ESCAPES, Finding, is_ambiguous, said
from .connections import MIGRATE, Connection, OneConnection, shown, transaction
from .migrate import migrations

OLDEST_SERVER = 130000
RIGHTS = {"backfill_letters": ("SELECT", "INSERT", "UPDATE"), "backfill_failures": ("SELECT", "INSERT")}


def examine(url: str) -> list[Finding]:
    """Everything that matters of the database at ``url``. Raises nothing."""
    try:
        connections = OneConnection(url)
    except ConfigurationError as error:
        return [Finding("postgres", "error", str(error))]
    place = "postgresql://..." if is_ambiguous(url) else shown(url)
    try:
        with transaction(connections) as connection:
            return [_answers(connection, place), version(connection.info.server_version), *_tables(connection)]
    except BackfillError as error:
        advice = "failures wait in Redis meanwhile; start the server, or correct backfill_postgres_url"
        if is_ambiguous(url):
            advice += f"; {ESCAPES}"
        return [Finding("postgres", "error", f"{place} cannot be used: {said(error, url)}", advice)]
    finally:
        connections.close()


def version(number: int) -> Finding:
    """What a server's version number (130002 is 13.2) means."""
    text = f"PostgreSQL {number // 10000}.{number % 10000}"
    if number >= OLDEST_SERVER:
        return Finding("postgres_version", "ok", text)
    return Finding("postgres_version", "error", f"{text} is too old", "use PostgreSQL 13 or newer")


def _answers(connection: Connection, place: str) -> Finding:
    began = perf_counter()
    (read_only,) = connection.execute("SELECT current_setting('transaction_read_only')").fetchone() or ("",)
    text = f"{place} answers in {(perf_counter() - began) * 1000:.1f} ms"
    if read_only == "off":
        return Finding("postgres", "ok", text)
    advice = "put the primary into backfill_postgres_url; see also default_transaction_read_only"
    return Finding("postgres", "error", f"{text}, but takes no writes (a standby, or read-only)", advice)


def _tables(connection: Connection) -> list[Finding]:
    if not _exists(connection, "backfill_migrations"):
        return [_missing(connection)]
    if not _may(connection, "backfill_migrations", "SELECT"):
        text = "this user may not read which migrations were applied; that does not stop a worker"
        return [Finding("postgres_tables", "info", text), _rights(connection)]
    applied = {row[0] for row in connection.execute("SELECT version FROM backfill_migrations")}
    return [migrated(applied), _rights(connection)]


def migrated(applied: set[int]) -> Finding:
    """What it means that these migrations were applied."""
    known = migrations()
    newest = max(applied | {0})
    if newer := applied - known.keys():
        text = f"the tables were made by a newer version of celery_backfill (migration {max(newer)})"
        return Finding("postgres_tables", "error", text, f"upgrade celery_backfill here, which knows {max(known)}")
    if missing := [name for number, name in known.items() if number not in applied]:
        text = f"the tables are at migration {newest}; missing: {', '.join(missing)}"
        return Finding("postgres_tables", "error", text, MIGRATE)
    return Finding("postgres_tables", "ok", f"the tables are up to date (migration {newest})")


def _missing(connection: Connection) -> Finding:
    schema, may_create = connection.execute(
        "SELECT current_schema(), has_schema_privilege(current_schema(), 'CREATE')"
    ).fetchone() or (None, None)
    if schema is None:
        advice = "name a schema that exists in search_path, or create it"
        return Finding("postgres_tables", "error", "no schema of this connection's search_path exists", advice)
    advice = MIGRATE if may_create else f"{MIGRATE} as a user who may create tables in the schema {schema}"
    return Finding("postgres_tables", "error", f"there are no tables in the schema {schema}", advice)


def _rights(connection: Connection) -> Finding:
    missing = {
        table: [right for right in rights if not _may(connection, table, right)] for table, rights in RIGHTS.items()
    }
    lacking = {table: rights for table, rights in missing.items() if rights}
    if not lacking:
        return Finding("postgres_rights", "ok", "this user may read and write the tables")
    text = "; ".join(f"{', '.join(rights)} on {table}" for table, rights in lacking.items())
    grants = "; ".join(f"GRANT {', '.join(rights)} ON {table} TO ..." for table, rights in lacking.items())
    return Finding("postgres_rights", "error", f"this user may not {text}", grants)


def _exists(connection: Connection, table: str) -> bool:
    return connection.execute("SELECT to_regclass(%s) IS NOT NULL", (table,)).fetchone() == (True,)


def _may(connection: Connection, table: str, right: str) -> bool:
    query = "SELECT has_table_privilege(to_regclass(%s), %s)"
    return connection.execute(query, (table, right)).fetchone() == (True,)
