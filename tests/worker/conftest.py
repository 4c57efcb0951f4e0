"""Real workers on real servers. A test that fails shows the end of its workers' logs."""

from __future__ import annotations

import uuid
from collections.abc import Generator, Iterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from psycopg import sql

from celery_backfill.deadletters.connections import OneConnection
from celery_backfill.deadletters.migrate import migrate
from tests.conftest import administer
from tests.worker.place import Opener, Place, opener
from tests.worker.rabbit import required_url
from tests.worker.rabbit_node import Node, installed, own_node


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


@pytest.fixture(scope="session")
def amqp_url() -> str:
    """A RabbitMQ that answers; the test is skipped where there is none, and fails where ``CI`` is "true"."""
    return required_url()


@pytest.fixture(scope="session")
def rabbit_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A RabbitMQ of the tests' own, which may be stopped; the test is skipped where none is installed."""
    with own_node(tmp_path_factory.mktemp("rabbitmq")) as node:
        yield node


@pytest.fixture(scope="session")
def quorum_url(request: pytest.FixtureRequest) -> str:
    """A RabbitMQ for quorum queues: the tests' own, if one is installed.

    For them Celery declares many queues whose names are no test's own.
    """
    url: str = request.getfixturevalue("rabbit_node").url if installed() else request.getfixturevalue("amqp_url")
    return url


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
def open_rabbit(open_place: Opener, request: pytest.FixtureRequest) -> Opener:
    """Opens places of one test on RabbitMQ, by the kind of their queues: "classic" or "quorum"."""
    return partial(_on_rabbit, open_place, request)


@pytest.fixture(scope="module")
def open_shared_rabbit(open_shared_place: Opener, request: pytest.FixtureRequest) -> Opener:
    """The same for all tests of a module."""
    return partial(_on_rabbit, open_shared_place, request)


def _on_rabbit(open_one: Opener, request: pytest.FixtureRequest, kind: str, **options: Any) -> Place:
    url = options.pop("amqp_url", None) or request.getfixturevalue("quorum_url" if kind == "quorum" else "amqp_url")
    # Celery's own queues for delays are quorum queues as well by default; those are slower to declare.
    conf = {"task_default_queue_type": kind, "broker_native_delayed_delivery_queue_type": "classic"}
    conf.update(options.pop("conf", {}))
    return open_one(amqp_url=url, conf=conf, **options)


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
