"""Real workers on real servers. A test that fails shows the end of its workers' logs."""

from __future__ import annotations

import uuid
from collections.abc import Generator, Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from psycopg import sql

from celery_backfill.deadletters.connections import OneConnection
from celery_backfill.deadletters.migrate import migrate
from tests.conftest import administer
from tests.worker.place import Opener, Place, opener


@pytest.fixture(scope="session")
def letters_url(postgres_server_url: str) -> Iterator[str]:
    """A database with our tables for all worker tests; dropped at the end."""
    name = f"test_{uuid.uuid4().hex}"
    administer(postgres_server_url, sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    url = urlunsplit(urlsplit(postgres_server_url)._replace(path=f"/{name}"))
    connection = OneConnection(url)
    migrate(connection)
    connection.close()
    yield url
    administer(postgres_server_url, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def open_place(redis_server_url: str, letters_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opener]:
    """Opens places of one test; what it leaves running is killed."""
    with opener(redis_server_url, letters_url, tmp_path_factory.mktemp("places"), warm=False) as open_one:
        yield open_one


@pytest.fixture
def place(open_place: Opener) -> Place:
    """The place of one test, with no worker yet."""
    return open_place()


@pytest.fixture(scope="module")
def open_shared_place(
    redis_server_url: str, letters_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Opener]:
    """Opens places for all tests of a module; their workers must end by themselves."""
    with opener(redis_server_url, letters_url, tmp_path_factory.mktemp("places"), warm=True) as open_one:
        yield open_one


@pytest.fixture
def key() -> str:
    """A concurrency key of one test, for workers that several tests share."""
    return f"key-{uuid.uuid4().hex[:8]}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        places = {id(value): value for value in item.funcargs.values() if isinstance(value, Place)}
        for worker in (worker for found in places.values() for worker in found.crew.all):
            report.sections.append((f"the end of the log of {worker.name}", worker.tail()))
    return report
