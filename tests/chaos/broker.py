"""The brokers of chaos worlds."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import urlsplit

import kombu

from tests.chaos.server import Server

AMQP_VARIABLE = "BACKFILL_TEST_AMQP_URL"
AMQP_URL = "amqp://guest:guest@127.0.0.1:5672//"


class Broker(Protocol):
    """What a world needs of its broker. ``server`` is its own one, if it has one of its own."""

    url: str
    queue: str
    server: Server | None

    @property
    def address(self) -> tuple[str, int]: ...
    def left_over(self) -> list[str]: ...
    def close(self) -> None: ...


class RedisBroker:
    """A Valkey of the world's own."""

    def __init__(self, server: Server, queue: str) -> None:
        self.server: Server | None = server
        self._server, self.queue = server, queue
        self.url = f"redis://{server.address[0]}:{server.address[1]}/0"

    @property
    def address(self) -> tuple[str, int]:
        return self._server.address

    def left_over(self) -> list[str]:
        """Messages that wait or that a worker holds unacked."""
        waiting = self._server.client.llen(self.queue)
        unacked = self._server.client.hlen("unacked")
        found = {"broker: waiting": waiting, "broker: unacked": unacked}
        return [f"{name} {number}" for name, number in found.items() if number]

    def close(self) -> None:
        self._server.stop()


class RabbitBroker:
    """The RabbitMQ that everybody shares: a queue of the world's own, deleted at the end."""

    server: Server | None = None

    def __init__(self, queue: str) -> None:
        self.url, self.queue = amqp_url(), queue

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "127.0.0.1", parts.port or 5672

    def left_over(self) -> list[str]:
        """Messages that wait; of those that a worker holds unacked RabbitMQ tells nothing here."""
        with kombu.Connection(self.url) as connection, suppress(*_absent(connection)):
            waiting = connection.default_channel.queue_declare(self.queue, passive=True).message_count
            return [f"broker: waiting {waiting}"] if waiting else []
        return []

    def close(self) -> None:
        with kombu.Connection(self.url) as connection, suppress(*_absent(connection)):
            connection.default_channel.queue_delete(self.queue)
        with kombu.Connection(self.url) as connection, suppress(*_absent(connection)):
            connection.default_channel.exchange_delete(self.queue)


def amqp_url() -> str:
    """Where RabbitMQ is, if it is there."""
    return os.environ.get(AMQP_VARIABLE) or AMQP_URL


def rabbitmq_is_there() -> bool:
    """Whether it can be connected to."""
    try:
        with kombu.Connection(amqp_url(), connect_timeout=3) as connection:
            connection.connect()
            return True
    except OSError:
        return False


def _absent(connection: Any) -> tuple[type[Exception], ...]:
    """What it answers when the queue does not exist."""
    return tuple(connection.channel_errors)
