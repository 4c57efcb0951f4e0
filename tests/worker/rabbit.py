"""RabbitMQ for the worker tests: the one of this machine, or the one that the environment names."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

import pytest
from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError

from tests.worker.tap import Tap

FOREIGN = """
import sys
from celery import Celery
url, queue, kind, name, key, task_id, times = sys.argv[1:]
app = Celery("foreign", broker=url, set_as_current=False)
app.conf.update(task_default_queue=queue, task_default_queue_type=kind)
for _ in range(int(times)):
    app.send_task(name, (key,), task_id=task_id)
assert "celery_backfill" not in sys.modules
"""
DEFAULT_URL = "amqp://guest:guest@127.0.0.1:5672//"


def required_url() -> str:
    """The URL of a RabbitMQ that answers. Skips the test where there is none, and fails it where ``CI`` is "true"."""
    url = os.environ.get("BACKFILL_TEST_AMQP_URL", DEFAULT_URL)
    try:
        with Connection(url, connect_timeout=2) as connection:
            connection.ensure_connection(max_retries=1)
    except OperationalError as error:
        missing(f"no RabbitMQ answers; set BACKFILL_TEST_AMQP_URL ({error})")
    return url


def missing(what: str) -> None:
    """Skip a test for what this machine lacks; in a continuous integration it fails instead."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


def send_as_others_do(app: Celery, name: str, key: str, *, task_id: str, times: int = 1) -> None:
    """Send the same call so often from a process that does not know the library."""
    conf = app.conf
    where = (conf.broker_url, conf.task_default_queue, conf.task_default_queue_type)
    subprocess.run([sys.executable, "-c", FOREIGN, *where, name, key, task_id, str(times)], check=True, timeout=60)


class AmqpMessages:
    """A place's messages at RabbitMQ. Workers connect through ``tap``, which knows what they have not acked yet."""

    def __init__(self, url: str, namespace: str) -> None:
        self.tap = Tap(url)
        self._namespace = namespace
        self._connection = Connection(url)
        self._queues: set[str] = set()

    def know(self, queues: Iterable[str]) -> None:
        """These queues may hold messages; they are deleted at the end."""
        self._queues.update(queues)

    def ready(self, queue: str) -> int:
        """How many messages of a queue no worker has."""
        channel = self._connection.channel()
        try:
            return int(channel.queue_declare(queue, passive=True).message_count)
        except self._connection.channel_errors:
            # No such queue yet.
            return 0
        finally:
            if channel.is_open:
                channel.close()

    def unacked(self) -> list[str]:
        """Names, one for each message that a worker took and RabbitMQ still has."""
        counts = Counter(self.tap.unacked())
        return [f"{queue}-{n}" for queue, number in counts.items() for n in range(number)]

    def left(self) -> list[str]:
        """What the broker still holds."""
        waiting = [f"broker:{queue}" for queue in sorted(self._queues) if self.ready(queue)]
        return waiting + [f"unacked:{name}" for name in self.unacked()]

    def purge(self, queue: str) -> None:
        """Delete all messages of a queue that no worker has."""
        with self._connection.channel() as channel:
            channel.queue_purge(queue)

    def close(self) -> None:
        """Delete the queues and exchanges."""
        exchanges = (self._namespace, f"{self._namespace}.pidbox", f"reply.{self._namespace}.pidbox")
        try:
            with suppress(OperationalError), self._connection.channel() as channel:
                for queue in self._queues:
                    channel.queue_delete(queue)
                for exchange in (*exchanges, *self._queues):
                    channel.exchange_delete(exchange)
        finally:
            self._connection.release()
            self.tap.close()
