"""Between Celery's messages and requests and the store's attempts: what one is in the words of the other."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import Any
from uuid import uuid4

from celery.worker import state
from kombu.message import Message
from kombu.transport import virtual
from kombu.transport.native_delayed_delivery import CELERY_DELAYED_DELIVERY_EXCHANGE, MAX_NUMBER_OF_BITS_TO_USE

from ..events import logger
from ..leases.store import Admission, Ending
from ..message import Envelope
from ..settings import Settings
from ..task import ATTEMPT_HEADER, KEY_HEADER, REQUEUE_HEADER
from .lane import Held
from .prefetch import Prefetch

#: The last of Redis's priorities, where 0 is the first; the first of AMQP's, where 0 is the last.
REDIS_LOWEST = 9
AMQP_HIGHEST = 255


class Intake:
    """Reads what comes in, for one worker. ``attach`` gives it the consumer of the current broker connection."""

    def __init__(self, app: Any, settings: Settings, *, worker_name: str, pool: Any) -> None:
        self._app, self._settings = app, settings
        self._worker_name, self._pool = worker_name, pool
        self._consumer: Any = None
        self._connection = ""
        self._queue_by_route: dict[tuple[str, str], str] = {}
        self._redis_broker = False
        self._in_processes = bool(getattr(pool, "uses_semaphore", False))
        self._inline = type(pool).__module__ == "celery.concurrency.solo"
        self.queues: tuple[str, ...] = ()

    def attach(self, consumer: Any) -> None:
        """A consumer is connected: these are its queues from now on."""
        self._consumer = consumer
        self._connection = uuid4().hex[:12]
        self._queue_by_route.clear()
        self._redis_broker = consumer.connection.transport.driver_type == "redis"
        self.queues = tuple(self._app.amqp.queues.consume_from)

    def rest(self) -> None:
        """The gate has started what it could."""
        prefetch: Prefetch | None = getattr(self._consumer, "backfill_prefetch", None)
        if prefetch is not None:
            prefetch.rest()

    # In: a message becomes an admission.

    def admission(self, request: Any, *, limited: bool = True) -> Admission:
        """The new attempt that a request asks for. Raises ``InvalidKeyError``; not with ``limited=False``."""
        headers, task = request.message.headers, request.task
        queue = self.queue_of(request.message.delivery_info or {})
        acked_by_store = self._settings.broker_is_store and self._redis_broker
        limits = task.limits_of_call(request.args, request.kwargs, headers.get(KEY_HEADER)) if limited else ""
        attempt, again = self._identity(request)
        return Admission(
            attempt=f"{attempt}@{queue}",
            again=f"{again}@{queue}" if again else "",
            queue=queue,
            task=request.type,
            task_id=request.id,
            rank=self._rank(request.message.properties),
            limits=limits,
            lease_seconds=task.lease_seconds or self._settings.lease_seconds,
            max_stalls=self._max_stalls(task),
            dedupe_seconds=0 if acked_by_store and not headers.get(REQUEUE_HEADER) else self._settings.dedupe_seconds,
            recorded=task.dead_letter,
            message="" if acked_by_store else Envelope.of_message(request.message).encode(),
            delivery_tag=request.message.delivery_tag if acked_by_store else "",
        )

    def acknowledge(self, request: Any, *, acked: bool) -> None:
        """The store has the message (or knows better of it): ack it, unless the store's script did."""
        message = request.message
        if not acked:
            self._consumer.backfill_prefetch.acknowledge(request)
        elif not message.acknowledged:
            # Acked in the script: kombu has only its own count to correct.
            virtual.QoS.ack(message.channel.qos, message.delivery_tag)
            message._state = "ACK"

    def give_back(self, request: Any) -> None:
        """Return a message that has had no turn to the broker: now, where Celery waits for the last task's end."""
        request.message.reject_log_error(logger, request.connection_errors, requeue=True)
        request.acknowledged = True
        state.task_ready(request)

    def queue_of(self, delivery_info: Mapping[str, Any]) -> str:
        """The consumed queue that a message came through; Celery tells only its exchange and routing key (F10)."""
        route = (delivery_info.get("exchange") or "", delivery_info.get("routing_key") or "")
        if route not in self._queue_by_route:
            self._queue_by_route[route] = _match(self._app.amqp.queues.consume_from, *route)
        return self._queue_by_route[route]

    def _identity(self, request: Any) -> tuple[str, str]:
        """The attempt's id, made at publish, and none to know a redelivery by (F2).

        For producers without the library it is as near as the broker lets. On RabbitMQ only a mark tells a redelivery
        from the same task sent twice: what is new gets an id of its own, and leaves the name a redelivery will have.
        """
        message = request.message
        given = message.headers.get(ATTEMPT_HEADER)
        if given:
            return str(given), ""
        if self._redis_broker:
            return str(message.properties.get("delivery_tag") or message.delivery_tag), ""
        body = message.body.encode() if isinstance(message.body, str) else bytes(message.body)
        retries = request.request_dict.get("retries", 0)
        name = f"{request.id}:{retries}:{request.replaced_task_nesting}:{blake2b(body, digest_size=8).hexdigest()}"
        if (message.delivery_info or {}).get("redelivered"):
            return name, ""
        return f"{name}:{self._connection}:{message.delivery_tag}", name

    def _rank(self, properties: Mapping[str, Any] | None) -> int:
        """Priority as a rank, 0 first: Redis counts so, AMQP the other way round."""
        priority = max(0, int((properties or {}).get("priority") or 0))
        return min(REDIS_LOWEST, priority) if self._redis_broker else AMQP_HIGHEST - min(AMQP_HIGHEST, priority)

    def record(self, held: Held) -> Admission:
        """All that the store needs to know of a lease that it does not know."""
        message = held.request.message if held.request is not None else self._message(held)
        stored = held.grant.message if held.grant is not None else Envelope.of_message(message).encode()
        headers = message.headers
        name, task_id = headers.get("task", ""), headers.get("id", "")
        task = self._app.tasks.get(name)
        return Admission(
            attempt=held.attempt,
            queue=self.queue_of(message.delivery_info or {}),
            task=name,
            task_id=task_id,
            rank=self._rank(message.properties),
            limits=self._limits(task, message),
            lease_seconds=held.lease_seconds,
            max_stalls=self._max_stalls(task),
            dedupe_seconds=self._settings.dedupe_seconds,
            recorded=task is None or task.dead_letter,
            message=stored if isinstance(stored, str) else stored.decode(),
        )

    def is_suspect(self, held: Held) -> bool:
        """Whether an attempt has had all the stalls that it is allowed: one more, and it is poison."""
        return held.grant is not None and 0 < self._max_stalls(held.request.task) <= held.grant.stalls

    def _limits(self, task: Any, message: Message) -> str:
        try:
            args, kwargs, _ = message.payload
            return str(task.limits_of_call(args, kwargs, message.headers.get(KEY_HEADER)))
        except Exception:
            # What has no valid key was admitted without one.
            return ""

    def _max_stalls(self, task: Any) -> int:
        own = getattr(task, "max_stalls", None)
        return self._settings.max_stalls if own is None else int(own)

    # Out: a grant becomes a request.

    def feed(self, held: Held) -> None:
        """Give a stored message to Celery's strategy. Raises what makes it unreadable."""
        assert held.grant is not None
        message = self._message(held)
        message.held = held
        consumer = self._consumer
        consumer.strategies[held.grant.task](message, None, _no_ack, _no_ack, consumer.on_task_message)

    def _message(self, held: Held) -> Message:
        """A grant's message as Celery would have received it."""
        assert held.grant is not None
        envelope = Envelope.decode(held.grant.message)
        return Message(
            body=envelope.body,
            content_type=envelope.content_type,
            content_encoding=envelope.content_encoding,
            # It has waited for its time already.
            headers={**envelope.headers, "eta": None},
            properties=dict(envelope.properties),
            delivery_info={"exchange": envelope.exchange, "routing_key": envelope.routing_key},
            delivery_tag=held.attempt,
            accept=self._consumer.task_consumer.accept,
        )

    # The end: a run's end becomes an ending.

    def ending(self, held: Held) -> Ending:
        """How to settle a lease whose ``end`` is known."""
        end, request = held.end, held.request
        task = request.task if request is not None else None
        about = self._about(held)
        if end.outcome == "done" and about["requeue"]:
            return Ending(outcome="done", letter=json.dumps(about))
        if end.outcome == "retry":
            return self._retry(request, end.retry)
        recorded = task is None or task.dead_letter
        ending: Ending = end.settle_as(about, recorded=recorded)
        return ending

    def _retry(self, request: Any, asked: Mapping[str, Any]) -> Ending:
        if not asked:
            # Reject(requeue=True): the same message again.
            headers = request.message.headers
            limits = request.task.limits_of_call(request.args, request.kwargs, headers.get(KEY_HEADER))
            return Ending(outcome="retry", limits=limits)
        envelope = Envelope.decode(asked["message"])
        if not asked["rerouted"]:
            info = request.message.delivery_info or {}
            envelope = envelope.routed(info.get("exchange") or "", info.get("routing_key") or "")
        route = {"exchange": envelope.exchange, "routing_key": envelope.routing_key}
        return Ending(
            outcome="retry",
            delay_seconds=asked["delay"],
            message=envelope.encode(),
            limits=asked["limits"],
            queue=self.queue_of(route) if asked["rerouted"] else "",
        )

    def _about(self, held: Held) -> dict[str, Any]:
        """What a letter says of the task itself."""
        request = held.request
        if request is None:
            grant = held.grant
            return {"task": grant.task if grant else None, "worker": self._worker_name, "requeue": 0}
        headers = request.message.headers
        return {
            "task_id": request.id,
            "task": request.type,
            "queue": self.queue_of(request.message.delivery_info or {}),
            "worker": self._worker_name,
            "retries": headers.get("retries") or 0,
            "root_id": headers.get("root_id"),
            "parent_id": headers.get("parent_id"),
            "group_id": headers.get("group"),
            "requeue": headers.get(REQUEUE_HEADER) or 0,
        }

    # What the pool does with a request.

    def child_lives(self, request: Any) -> bool:
        """Whether the pool process, or the greenlet, that ran a request is still there."""
        if request.worker_pid is None:
            return False
        if self._in_processes:
            return _is_child(request.worker_pid)
        return request.worker_pid in (getattr(self._pool, "_pool_map", None) or ())

    def dropped(self, held: Held) -> bool:
        """Whether Celery dropped a request at a reconnect: in a timer, or a job that no process had accepted (F7)."""
        request = held.request
        if not held.dispatched:
            return request is None or request not in state.reserved_requests
        if not self._in_processes or request.time_start is not None:
            return False
        job = request._apply_result() if request._apply_result is not None else None
        return job is None or job._job not in job._cache

    def over_for_sure(self, request: Any) -> bool:
        """Whether a request cannot be running now that the pool has stopped.

        It never began, it ran in this very thread, or its process or greenlet is gone. A thread cannot be asked.
        """
        if request is None or request.time_start is None or self._inline:
            return True
        can_tell = self._in_processes or bool(getattr(self._pool, "is_green", False))
        return can_tell and not self.child_lives(request)


def _match(queues: Mapping[str, Any], exchange: str, routing_key: str) -> str:
    if not exchange and routing_key in queues:
        return routing_key
    delayed = exchange.endswith(CELERY_DELAYED_DELIVERY_EXCHANGE)
    if delayed:
        # RabbitMQ itself has kept it for a while: the bits of how long stand before its own routing key.
        routing_key = routing_key.split(".", MAX_NUMBER_OF_BITS_TO_USE)[-1]
    for name, queue in queues.items():
        if (delayed or queue.exchange.name == exchange) and _binds(queue, routing_key):
            return name
    return routing_key or next(iter(queues), "")


def _binds(queue: Any, routing_key: str) -> bool:
    kind = queue.exchange.type
    if kind == "topic":
        return fnmatchcase(routing_key, (queue.routing_key or "").replace("#", "*"))
    return kind in ("fanout", "headers") or queue.routing_key == routing_key


def _is_child(pid: int) -> bool:
    """Whether a child process still runs; one that ended but was not waited for does not."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


def _no_ack(*_: Any) -> None:
    """A stored message has no broker to ack it at."""
