"""Migrations: once each, by any number of runners."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from celery_backfill.deadletters.connections import OneConnection
from celery_backfill.deadletters.letter import STATES, Letter, PastFailure
from celery_backfill.deadletters.migrate import migrate, migrations
from celery_backfill.deadletters.store import Letters
from celery_backfill.errors import SchemaError


def test_the_first_run_applies_all_and_the_next_none(postgres_url: str) -> None:
    assert migrate(OneConnection(postgres_url)) == tuple(migrations().values())
    assert migrate(OneConnection(postgres_url)) == ()


def test_five_at_once_apply_each_migration_once(postgres_url: str) -> None:
    with ThreadPoolExecutor(5) as runners:
        applied = list(runners.map(lambda _: migrate(OneConnection(postgres_url)), range(5)))
    assert sorted(applied, key=len) == [(), (), (), (), tuple(migrations().values())]


def test_tables_of_a_newer_version_are_left_alone(postgres_url: str) -> None:
    migrate(OneConnection(postgres_url))
    with psycopg.connect(postgres_url) as connection:
        connection.execute("INSERT INTO backfill_migrations (version, name) VALUES (9999, 'later')")
    with pytest.raises(SchemaError, match="newer version"):
        migrate(OneConnection(postgres_url))


def test_missing_tables_say_what_to_run(postgres_url: str) -> None:
    with pytest.raises(SchemaError, match="run: celery -A proj backfill migrate"):
        Letters.at(postgres_url).get("t-1")


def test_the_tables_are_made_in_the_schema_that_the_url_names(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE SCHEMA apart")
    url = f"{postgres_url}{'&' if '?' in postgres_url else '?'}options=-csearch_path%3Dapart"
    migrate(OneConnection(url))
    with psycopg.connect(postgres_url) as connection:
        found = connection.execute("SELECT schemaname FROM pg_tables WHERE tablename = 'backfill_letters'").fetchall()
    assert found == [("apart",)]


def test_tables_and_types_agree(postgres_url: str) -> None:
    migrate(OneConnection(postgres_url))
    letter = columns(postgres_url, "backfill_letters") - {"message", "fingerprint"} | {"group"}
    assert letter == set(Letter.__dataclass_fields__)
    past = columns(postgres_url, "backfill_failures") - {"task_id", "recorded_at"}
    assert past == set(PastFailure.__dataclass_fields__)


def test_the_database_knows_the_same_states(postgres_url: str) -> None:
    migrate(OneConnection(postgres_url))
    with psycopg.connect(postgres_url) as connection:
        query = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'backfill_letters_state_check'"
        (definition,) = connection.execute(query).fetchone() or ("",)
    assert all(f"'{state}'" in definition for state in STATES)


@pytest.mark.parametrize(
    ("condition", "index"),
    [
        ("state = 'dead'", "backfill_letters_by_state"),
        ("fingerprint = 'x'", "backfill_letters_by_group"),
        ("task = 'x'", "backfill_letters_by_task"),
        ("true", "backfill_letters_newest"),
    ],
)
def test_the_newest_letters_are_read_in_the_order_of_an_index(postgres_url: str, condition: str, index: str) -> None:
    migrate(OneConnection(postgres_url))
    query = f"SELECT id FROM backfill_letters WHERE {condition} ORDER BY last_failed_at DESC, id DESC LIMIT 50"
    with psycopg.connect(postgres_url) as connection:
        connection.execute("SET enable_seqscan = off; SET enable_sort = off; SET enable_bitmapscan = off")
        plan = "\n".join(row[0] for row in connection.execute("EXPLAIN " + query))
    assert index in plan
    assert "Sort" not in plan


def columns(url: str, table: str) -> set[str]:
    query = "SELECT column_name FROM information_schema.columns WHERE table_name = %s"
    with psycopg.connect(url) as connection:
        return {row[0] for row in connection.execute(query, (table,))}
