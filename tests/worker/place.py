"""A place of one test (or one module): its namespace and queues on the servers, its folder, its app, its workers."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import redis
from celery import Celery
from celery.result import GroupResult
from psycopg.rows import dict_row

from celery_backfill.leases.inspect import Inspector
from tests.waiting import wait_until
from tests.worker import shop
from tests.worker.marks import Marks, Run
from tests.worker.messages import Messages, RedisMessages
from tests.worker.rabbit import AmqpMessages
from tests.worker.tap import Tap
from tests.worker.workers import Crew, Worker

BATCH = 500


class Place:
    """Where a test's tasks live. ``conf`` are settings of its app.

    ``redis_url`` is broker, store and result backend. Apart from that the store may be another Redis (``store_url``),
    and the broker a RabbitMQ (``amqp_url``).
    """

    def __init__(
        self,
        *,
        redis_url: str,
        postgres_url: str,
        folder: Path,
        conf: dict[str, Any] | None = None,
        store_url: str | None = None,
        amqp_url: str | None = None,
    ) -> None:
        self.namespace = f"test-{uuid.uuid4().hex[:12]}"
        self.folder = folder
        self._postgres_url = postgres_url
        self.broker: Any = redis.Redis.from_url(redis_url)
        self.store: Any = redis.Redis.from_url(store_url or redis_url)
        self.queue = f"{self.namespace}-main"
        own = dict(conf or {})
        if store_url or amqp_url:
            own["backfill_redis_url"] = store_url or redis_url
        self.environ = {
            "SHOP_NAMESPACE": self.namespace,
            "SHOP_REDIS_URL": redis_url,
            "SHOP_POSTGRES_URL": postgres_url,
            "SHOP_FOLDER": str(folder),
            "SHOP_CONF": json.dumps(own),
        }
        self.messages: Messages = RedisMessages(self.broker, self.namespace)
        #: Stands between the workers and their RabbitMQ.
        self.tap: Tap | None = None
        if amqp_url:
            at_rabbit = AmqpMessages(amqp_url, self.namespace)
            self.messages, self.tap = at_rabbit, at_rabbit.tap
        self._producer_conf = {"broker_url": amqp_url} if amqp_url else {}
        self._worker_conf = {"broker_url": self.tap.url} if self.tap else {}
        self.messages.know([self.queue])
        self.marks = Marks(folder / "marks.log")
        self.crew = Crew(self._environ_with(self._worker_conf), folder, self.namespace)

    @cached_property
    def app(self) -> Celery:
        """The app, as a producer. It asks for results and never subscribes to them: no thread, nothing to end."""
        app = shop.build({**self._environ_with(self._producer_conf), "SHOP_PARTS": "goods left right"})
        app.backend.on_task_call = lambda *_: None
        return app

    def _environ_with(self, conf: dict[str, Any]) -> dict[str, str]:
        return {**self.environ, "SHOP_CONF": json.dumps({**json.loads(self.environ["SHOP_CONF"]), **conf})}

    # Sending and waiting.

    def worker(
        self,
        *,
        queues: Sequence[str] = (),
        conf: dict[str, Any] | None = None,
        environ: dict[str, str] | None = None,
        **options: Any,
    ) -> Worker:
        """Start a worker, on the main queue unless others are named, with settings of its own; ready.

        Options are those of ``Worker``.
        """
        self.messages.know(queues)
        own = self._environ_with({**self._worker_conf, **(conf or {})})
        return self.crew.start(queues=queues or (self.queue,), environ={**own, **(environ or {})}, **options)

    def workers(self, number: int, **options: Any) -> list[Worker]:
        """Start several on the main queue; all ready."""
        return self.crew.start_many(number, queues=(self.queue,), **options)

    def send(self, name: str, *args: Any, options: dict[str, Any] | None = None, **kwargs: Any) -> str:
        """Send one call of ``shop.<name>``; its task id. ``options`` are those of ``apply_async``."""
        return str(self.app.tasks[f"shop.{name}"].apply_async(args, kwargs, **(options or {})).id)

    def send_many(
        self, number: int, name: str, *args: Any, options: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[str]:
        """Send that many calls over one connection; their task ids."""
        with self.app.producer_pool.acquire(block=True) as producer:
            whole = {**(options or {}), "producer": producer}
            return [self.send(name, *args, options=whole, **kwargs) for _ in range(number)]

    def touch(self, name: str) -> None:
        """Let those go on that wait for this file."""
        (self.folder / name).touch()

    def state(self, task_id: str) -> str:
        """The task's state in the result backend."""
        return str(self.app.backend.get_state(task_id))

    def value(self, result: Any, timeout: float = 20.0) -> Any:
        """What a task, or each of a group, returned; waits for it."""
        wait_until(result.ready, "there is a result", timeout)
        members = result.results if isinstance(result, GroupResult) else None
        return result.get() if members is None else [member.get() for member in members]

    def wait_runs(self, number: int, key: str | None = None, timeout: float = 20.0) -> None:
        """Until so many runs (of one key) have started."""
        wait_until(lambda: len(self.marks.runs(key)) >= number, f"{number} have started", timeout)

    def wait_runs_of(self, task_id: str, number: int, timeout: float = 10.0) -> None:
        """Until a task has started so often."""
        wait_until(lambda: len(self.marks.runs_of(task_id)) >= number, f"it has started {number} times", timeout)

    def wait_started(self, *task_ids: str, timeout: float = 10.0) -> list[Run]:
        """Until all have started; their first runs."""
        wait_until(lambda: set(task_ids) <= {run.task_id for run in self.marks.runs()}, "all have started", timeout)
        return [self.marks.runs_of(task_id)[0] for task_id in task_ids]

    def has_ended(self, task_id: str) -> bool:
        """Whether a run of it has ended by itself."""
        return any(run.ended is not None for run in self.marks.runs_of(task_id))

    def wait_ended(self, *task_ids: str, timeout: float = 20.0) -> None:
        """Until the last run of each has ended by itself."""

        def missing() -> set[str]:
            return set(task_ids) - {run.task_id for run in self.marks.runs() if run.ended is not None}

        wait_until(lambda: not missing(), "all have ended", timeout)

    def wait_state(self, task_id: str, state: str, timeout: float = 10.0) -> None:
        """Until the result backend has this state."""
        wait_until(lambda: self.state(task_id) == state, f"{task_id} is {state}", timeout)

    # What the store has.

    @property
    def inspector(self) -> Inspector:
        """Views of the store."""
        return Inspector(self.store, self.namespace)

    def wait_counts(self, timeout: float = 10.0, **wanted: int) -> None:
        """Until the store counts so many ``running``, ``blocked``, ``scheduled``."""

        def counted() -> bool:
            counts = self.inspector.counts()
            return all(getattr(counts, name) == number for name, number in wanted.items())

        try:
            wait_until(counted, f"the store counts {wanted}", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.inspector.counts()}; {self.left_over()}") from None

    def wait_empty(self, timeout: float = 10.0) -> None:
        """Until the store holds no attempt, no lease and no permit, and the broker no message."""
        wait_until(lambda: not self.left_over(), "nothing is left in the store and the broker", timeout)

    def left_over(self) -> list[str]:
        """Names of what the store or the broker still holds of any attempt."""
        prefix = f"{{{self.namespace}}}:"
        kinds = ("a:", "h:", "l:", "kq:", "t:", "w:", "leases", "sched")
        keys = (key.decode().removeprefix(prefix) for key in self.store.scan_iter(f"{prefix}*", count=BATCH))
        return [key for key in keys if key.startswith(kinds)] + self.messages.left()

    def record(self, task_id: str) -> dict[str, str]:
        """The store's record of a task's attempt; empty when it has none."""
        for key in self.store.scan_iter(f"{{{self.namespace}}}:a:*", count=BATCH):
            if self.store.hget(key, "task_id") == task_id.encode():
                return {name.decode(): value.decode() for name, value in self.store.hgetall(key).items()}
        return {}

    def held(self, key: str) -> int:
        """Permits of a key that are held."""
        return int(self.store.scard(f"{{{self.namespace}}}:h:{key}"))

    def unacked(self) -> list[str]:
        """Names, one for each message of this place that a worker took and the broker still has."""
        return self.messages.unacked()

    # What is dead.

    def letters(self, task_id: str) -> list[dict[str, Any]]:
        """The dead letters of a task, wherever they are on their way; looked at in the order they travel."""
        entries = self.store.xrange(f"{{{self.namespace}}}:outbox")
        waiting = [json.loads(fields[b"letter"]) for _, fields in entries if fields[b"kind"] == b"failed"]
        found = [letter for letter in waiting if letter.get("task_id") == task_id]
        return found or self._recorded(task_id)

    def _recorded(self, task_id: str) -> list[dict[str, Any]]:
        with psycopg.connect(self._postgres_url, row_factory=dict_row) as connection:
            return connection.execute("SELECT * FROM backfill_letters WHERE task_id = %s", (task_id,)).fetchall()

    def wait_letter(self, task_id: str, timeout: float = 10.0) -> dict[str, Any]:
        """Until there is a letter of this task; the only one."""
        wait_until(lambda: self.letters(task_id), f"a letter of {task_id}", timeout)
        (letter,) = self.letters(task_id)
        return letter

    # The end.

    def close(self, *, warm: bool) -> None:
        """End the workers, warmly or by a kill, and delete all that this place has left on the servers."""
        self.touch(shop.CLOSING)
        try:
            self.crew.dismiss() if warm else self.crew.kill()
        finally:
            self._delete()
            if "app" in self.__dict__:
                self.app.close()
            self.broker.close()
            self.store.close()

    def _delete(self) -> None:
        for client in (self.broker, self.store):
            for key in client.scan_iter(f"*{self.namespace}*", count=BATCH):
                client.unlink(key)
        self.messages.close()


Opener = Callable[..., Place]


@contextmanager
def opener(redis_url: str, postgres_url: str, folder: Path, *, warm: bool) -> Iterator[Opener]:
    """Opens places that are closed at the end, all of them. Keywords of what it gives are those of ``Place``."""
    places: list[Place] = []

    def open_place(**options: Any) -> Place:
        own = folder / f"place{len(places) + 1}"
        own.mkdir()
        settings = {"redis_url": redis_url, "postgres_url": postgres_url, "folder": own, **options}
        places.append(Place(**settings))
        return places[-1]

    try:
        yield open_place
    finally:
        errors = [error for place in places if (error := _closed(place, warm)) is not None]
        if errors:
            raise errors[0]


def _closed(place: Place, warm: bool) -> AssertionError | None:
    try:
        place.close(warm=warm)
    except AssertionError as error:
        return error
    return None


def in_database(redis_url: str, number: int) -> str:
    """The URL of another database of that Redis."""
    return urlunsplit(urlsplit(redis_url)._replace(path=f"/{number}"))
