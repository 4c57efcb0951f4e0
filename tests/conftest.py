"""Servers for tests: one Valkey and one PostgreSQL a session, or those that the environment names."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import redis
from psycopg import sql

from celery_backfill import embedded

SCAN_COUNT = 1000


@pytest.fixture(scope="session")
def servers_folder() -> Iterator[Path]:
    """A folder that PostgreSQL's own user can pass through when root runs the tests, unlike ``tmp_path``."""
    folder = Path(tempfile.mkdtemp(prefix="celery_backfill-tests-"))
    folder.chmod(0o711)
    yield folder
    embedded.remove(folder)


@pytest.fixture(scope="session")
def redis_server_url(servers_folder: Path) -> str:
    return embedded.redis_url(servers_folder)


@pytest.fixture(scope="session")
def postgres_server_url(servers_folder: Path) -> str:
    return embedded.postgres_url(servers_folder)


@pytest.fixture
def namespace(redis_server_url: str) -> Iterator[str]:
    """A word of this test alone; every key that contains it is deleted afterwards."""
    word = f"test-{uuid.uuid4().hex[:12]}"
    yield word
    with redis.Redis.from_url(redis_server_url) as client:
        delete_keys(client, f"*{word}*")


@pytest.fixture
def redis_url(redis_server_url: str) -> str:
    """Broker and store of one test. The database is shared: use ``namespace`` in every name of a key or queue."""
    return redis_server_url


@pytest.fixture
def postgres_url(postgres_server_url: str) -> Iterator[str]:
    """A new, empty database, dropped afterwards with whatever is still connected to it."""
    name = f"test_{uuid.uuid4().hex}"
    administer(postgres_server_url, sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    yield urlunsplit(urlsplit(postgres_server_url)._replace(path=f"/{name}"))
    administer(postgres_server_url, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def delete_keys(client: redis.Redis, pattern: str) -> None:
    for key in client.scan_iter(match=pattern, count=SCAN_COUNT):
        client.unlink(key)


def administer(url: str, statement: sql.Composed) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)
