"""Attempts that ended in the store, while no worker had their request: what Celery does at such an end (F17)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from billiard.einfo import ExceptionInfo
from celery import signals, states
from celery.app.task import Context
from celery.backends.redis import RedisBackend
from celery.exceptions import WorkerLostError
from celery.worker.request import Request
from celery.worker.strategy import hybrid_to_proto2
from kombu.exceptions import OperationalError
from kombu.message import Message
from kombu.serialization import prepare_accept_content
from kombu.utils.encoding import safe_repr

from ..events import emit, logger
from ..message import Envelope

Fields = Mapping[bytes, bytes]

#: Backends that have no results to look up.
WITHOUT_LOOKUP = ("rpc://", "disabled://")


class TakenOverError(Exception):
    """Another worker has taken this end over meanwhile: the rest is its own to do."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where ends are announced: the app, the worker's name, and what sends its events."""

    app: Any
    hostname: str
    eventer: Any


@dataclass(slots=True)
class Ended:
    """One attempt that ended. ``request`` is Celery's own, of the stored message; it never runs.

    ``is_ours`` tells whether it is still for this worker to announce. It knows how far that has come: what could not be
    done is tried again, the errbacks that were called are not.
    """

    site: Site
    request: Any
    text: str
    is_ours: Callable[[], bool]
    errbacks_left: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.errbacks_left = list(self.request._context.errbacks or ())

    @classmethod
    def read(cls, site: Site, fields: Fields, is_ours: Callable[[], bool]) -> Self:
        """Read an entry. Raises what makes its message unreadable here."""
        return cls(site, _request(site, fields), _text(fields, b"text"), is_ours)

    @classmethod
    def read_bare(cls, site: Site, fields: Fields, is_ours: Callable[[], bool]) -> Self | None:
        """What is known of an entry without its message's body: no errbacks, no chord. None when that is nothing."""
        if _text(fields, b"task_id"):
            with suppress(Exception):
                return cls(site, _bare_request(site, fields), _text(fields, b"text"), is_ours)
        return None

    def fail(self, exc: Exception) -> None:
        """Fail it, as Celery fails a task whose process was lost for good.

        Safe to repeat until it has returned. Raises what keeps the result backend or the broker from it, and
        ``TakenOverError``. A stored success stays: a run that nobody counted on any more has come to its end.
        """
        request = self.request
        context = request._context
        success = self._stored_success()
        if success is not None:
            emit("ended_after_success", logging.WARNING, task_id=request.id, task=request.type, error=exc)
            self._return_part(success)
            return
        if self.errbacks_left or context.chord or context.chain:
            # Celery itself swallows what goes wrong when it sends what follows from a chord's end.
            self._reach_broker()
        # Celery 5.5's own store_errors knows of the task's setting alone, not of the call's.
        stored = not request.ignore_result or request.task.store_errors_even_if_ignored
        request.task.backend.mark_as_failure(request.id, exc, request=context, store_result=stored, call_errbacks=False)
        if not self.is_ours():
            # The backend did not answer for so long: of all who tried meanwhile one goes on.
            raise TakenOverError
        while self.errbacks_left:
            self._call(self.errbacks_left[0], exc)
            del self.errbacks_left[0]
        self._tell(exc)
        emit("ended_in_store", logging.ERROR, task_id=request.id, task=request.type, error=exc)

    def _stored_success(self) -> Mapping[str, Any] | None:
        backend = self.request.task.backend
        if self.request.ignore_result or backend.as_uri() in WITHOUT_LOOKUP:
            return None
        meta: Mapping[str, Any] = backend.get_task_meta(self.request.id, cache=False)
        return meta if meta["status"] == states.SUCCESS else None

    def _return_part(self, success: Mapping[str, Any]) -> None:
        """Celery stores a success first and then counts it in its chord: its process may have died between the two.

        Redis counts a part once, however often it is returned; other backends would start the body too early.
        """
        backend, context = self.request.task.backend, self.request._context
        if context.chord and isinstance(backend, RedisBackend):
            self._reach_broker()
            backend.mark_as_done(self.request.id, success["result"], request=context, store_result=False)

    def _reach_broker(self) -> None:
        with self.site.app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)

    def _call(self, errback: Any, exc: Exception) -> None:
        """Call one errback, or send it: what is wrong with it is not the others' fault."""
        alone = Context({**vars(self.request._context), "errbacks": [errback], "chord": None, "chain": None})
        try:
            self.request.task.backend.mark_as_failure(self.request.id, exc, request=alone, store_result=False)
        except OperationalError:
            raise
        except Exception:
            logger.exception("an errback of task %s failed", self.request.id)

    def _tell(self, exc: Exception) -> None:
        request, task, info = self.request, self.request.task, _exc_info(exc)
        if request.type in self.site.app.tasks:
            task.request_stack.push(request._context)
            try:
                signals.task_failure.send(
                    sender=task,
                    task_id=request.id,
                    exception=exc,
                    args=request.args,
                    kwargs=request.kwargs,
                    traceback=info.traceback,
                    einfo=info,
                )
            finally:
                task.request_stack.pop()
        request.send_event("task-failed", exception=safe_repr(exc), traceback=info.traceback)


def _poison(ended: Ended) -> None:
    ended.fail(WorkerLostError(ended.text))


#: How to announce each kind of end that a script writes.
KINDS: Mapping[str, Callable[[Ended], None]] = {"poison": _poison}


def _request(site: Site, fields: Fields) -> Any:
    """The request that Celery's strategy would make of the stored message, had it been delivered here."""
    envelope = Envelope.decode(fields[b"message"])
    message = _message(envelope, dict(envelope.headers), accept=prepare_accept_content(site.app.conf.accept_content))
    body, headers, decoded, utc = message.body, message.headers, False, True
    if "args" in message.payload:
        body, headers, decoded, utc = hybrid_to_proto2(message, message.payload)
    return _made(site, message, headers["task"], body=body, headers=headers, decoded=decoded, utc=utc)


def _bare_request(site: Site, fields: Fields) -> Any:
    try:
        envelope = Envelope.decode(fields[b"message"])
        ignore_result = envelope.headers.get("ignore_result")
    except Exception:  # a stranger's bytes, whatever is wrong with them
        envelope, ignore_result = Envelope(b"", "", "", {}), None
    name = _text(fields, b"task")
    headers = {"id": _text(fields, b"task_id"), "task": name, "ignore_result": ignore_result}
    return _made(site, _message(envelope, headers), name, body=((), {}, {}), headers=headers, decoded=True)


def _message(envelope: Envelope, headers: dict[str, Any], accept: Any = None) -> Message:
    return Message(
        body=envelope.body,
        content_type=envelope.content_type,
        content_encoding=envelope.content_encoding,
        headers=headers,
        properties=dict(envelope.properties),
        delivery_info={"exchange": envelope.exchange, "routing_key": envelope.routing_key},
        accept=accept,
    )


def _made(site: Site, message: Message, name: str, **options: Any) -> Any:
    app = site.app
    task = app.tasks[name] if name in app.tasks else _any_task(app)
    return Request(message, app=app, hostname=site.hostname, eventer=site.eventer, task=task, **options)


def _any_task(app: Any) -> Any:
    """Stands in for a task that this worker does not know: with the app's backend and settings."""
    task = app.Task()
    task.bind(app)
    return task


def _text(fields: Fields, key: bytes) -> str:
    return fields.get(key, b"").decode("utf-8", "replace")


def _exc_info(exc: Exception) -> Any:
    try:
        raise exc
    except Exception:
        return ExceptionInfo()
