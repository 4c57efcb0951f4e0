"""One app, the ends that its store decided, and who announces them, in the process of the test."""

from __future__ import annotations

import json
from typing import Any

import redis
from celery import Celery

from celery_backfill.leases.endings import Endings
from celery_backfill.worker.announcement import Site
from celery_backfill.worker.endings import Announcer

QUICK = {"retry_policy": {"max_retries": 0, "timeout": 0.2}}
TEXT = "its worker was lost 2 times"


class Dispatcher:
    """Keeps the events it is to send."""

    enabled = True

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def send(self, kind: str, **fields: Any) -> None:
        self.sent.append((kind, fields))


class Desk:
    """One app, its endings and who announces them. ``noted`` has each call of the errback that runs in the worker."""

    def __init__(
        self, redis_url: str, namespace: str, *, backend: str | None = None, broker: str | None = None
    ) -> None:
        self.app = Celery("ends", broker=broker or redis_url, backend=backend or redis_url)
        self.app.conf.update(
            result_backend_transport_options={"global_keyprefix": f"{namespace}:", **QUICK},
            task_publish_retry=False,
            broker_transport_options={"max_retries": 1, "interval_start": 0, "interval_step": 0},
        )
        # It asks for results and never subscribes to them.
        self.app.backend.on_task_call = lambda *_: None
        self.app.backend.add_pending_result = lambda result, **_: result
        self.dispatcher = Dispatcher()
        self.noted: list[tuple[str, str]] = []
        self._namespace = namespace
        self._client: Any = redis.Redis.from_url(redis_url)
        self._producer = Celery("producer", broker=redis_url, set_as_current=False)
        self.stream = Endings(self._client, namespace)
        self.site = Site(self.app, "w1@host", self.dispatcher)

        @self.app.task(name="shop.note", shared=False)
        def note(request: Any, exc: Exception, traceback: Any) -> None:
            self.noted.append((request.id, str(exc)))

        @self.app.task(name="shop.work", shared=False)
        def work() -> None: ...

        @self.app.task(name="shop.gather", shared=False)
        def gather(values: list[int]) -> None: ...

    def announcer(self, reader: str = "one", **options: Any) -> Announcer:
        """Somebody who announces; by default no other's entries are taken over."""
        settings = {"block_ms": 50, "idle_ms": 60_000, **options}
        return Announcer(site=self.site, endings=self.stream, reader=reader, **settings)

    def put(self, task: str = "shop.work", *, kind: str = "poison", noted: bool = True, **options: Any) -> str:
        """An end as the script writes it, with the message that Celery published; its task id."""
        if noted:
            options["link_error"] = self.app.signature("shop.note")
        task_id = str(self._producer.send_task(task, queue=self.queue, **options).id)
        return self.put_raw(self.sent(), task=task, task_id=task_id, kind=kind)

    def sent(self) -> str:
        """The next message in the queue, as the store keeps it."""
        return json.dumps([json.loads(self._client.rpop(self.queue)), "", self.queue])

    def waiting(self) -> list[bytes]:
        """The messages in the queue."""
        return list(self._client.lrange(self.queue, 0, -1))

    def put_raw(self, message: str | bytes, task: str, task_id: str, kind: str = "poison") -> str:
        """An end with any message."""
        fields = {"kind": kind, "attempt": "a", "token": "1", "task": task, "task_id": task_id, "text": TEXT}
        self._client.xadd(f"{{{self._namespace}}}:endings", {**fields, "message": message})
        return task_id

    @property
    def queue(self) -> str:
        return f"{self._namespace}-queue"

    def state(self, task_id: str) -> str:
        return str(self.app.backend.get_task_meta(task_id, cache=False)["status"])

    def close(self) -> None:
        self.app.close()
        self._producer.close()
        self._client.close()
