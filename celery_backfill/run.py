"""What a task's code can know and say of its own run, in the process and thread it runs in.

The worker's target opens a ``Run`` around Celery's tracer. ``BackfillTask.retry()`` puts what it would have published
into it, and the worker takes it from there: a retry is an outcome, not a message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import local
from typing import Any

from kombu import Producer

from .message import Envelope


@dataclass(frozen=True, slots=True)
class Lease:
    """The lease a task runs under. ``token`` only grows from one lease to the next, whatever the attempt."""

    attempt: str
    token: int


@dataclass(slots=True)
class RetryAsked:
    """A retry that the task's code asked for: in ``delay`` seconds, with this message, under these limits."""

    delay: float
    message: str
    limits: str
    rerouted: bool


@dataclass(slots=True)
class Run:
    """One run of a leased task."""

    task_id: str
    lease: Lease
    retry: RetryAsked | None = None
    retries_exhausted: bool = False
    #: What the task's code raised: Celery replaces an exception that cannot be pickled.
    error: Exception | None = None


class _Current(local):
    run: Run | None = None


_current = _Current()


@contextmanager
def running(run: Run) -> Iterator[Run]:
    """Make ``run`` the current one of this thread (or greenlet)."""
    before, _current.run = _current.run, run
    try:
        yield run
    finally:
        _current.run = before


def current_run(request: Any) -> Run | None:
    """The run of this request, if it is a leased one: not an eager call, nor a direct one, inside another task."""
    run = _current.run
    if run is None or request.called_directly or request.is_eager or request.id != run.task_id:
        return None
    return run


class RetryRecorder(Producer):  # type: ignore[misc]
    """Stands in for the producer of one retry: keeps the message that Celery would have sent, and sends nothing.

    So a retry's message is Celery's own: chains, chords, links, stamps and signal handlers are as they always are.
    """

    recorded: Envelope | None = None

    def __init__(self, app: Any) -> None:
        super().__init__(None, auto_declare=False, serializer=app.conf.task_serializer)
        self._unopened = app.connection_for_write()

    @property
    def connection(self) -> Any:
        """A connection that is never opened; Celery asks it only for its error classes."""
        return self._unopened

    def publish(
        self,
        body: Any,
        *,
        routing_key: str = "",
        exchange: Any = "",
        headers: Mapping[str, Any] | None = None,
        serializer: str | None = None,
        compression: str | None = None,
        **properties: Any,
    ) -> None:
        """Keep the message."""
        kept = dict(headers or {})
        raw, content_type, content_encoding = self._prepare(body, serializer, None, None, compression, kept)
        self.recorded = Envelope(
            body=raw.encode(content_encoding) if isinstance(raw, str) else bytes(raw),
            content_type=content_type,
            content_encoding=content_encoding,
            headers={**kept, "eta": None},
            properties={name: value for name, value in properties.items() if name in KEPT_PROPERTIES},
            exchange=getattr(exchange, "name", exchange) or "",
            routing_key=routing_key or "",
        )


KEPT_PROPERTIES = frozenset({"correlation_id", "reply_to", "priority", "expiration", "delivery_mode"})
