"""What a task's code can know and say of its own run, in the process and thread it runs in.

The worker's target opens a ``Run`` around Celery's tracer. ``BackfillTask.retry()`` puts what it would have published
into it, and the worker takes it from there: a retry is an outcome, not a message.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import local
from time import monotonic, sleep
from typing import Any

from kombu import Producer

from .errors import LeaseLostError
from .ledger import Row, Stage
from .message import Envelope

#: How long a run that has ended waits to hear whether its lease was renewed or lost.
VERDICT_SECONDS = 2.0
POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Lease:
    """The lease a task runs under. ``token`` only grows from one lease to the next, whatever the attempt.

    Give the token to what the task writes to, where that can refuse an older one (a fencing token).
    """

    attempt: str
    token: int
    row: Row | None = field(default=None, repr=False)
    #: Whether the run is stopped when the lease cannot be counted on any more; then how many seconds it has to end.
    margin: float | None = None

    @property
    def lost(self) -> bool:
        """Whether the lease is known to be somebody else's: nothing that this run still does will count."""
        return self.row is not None and self.row.lost

    @property
    def remaining(self) -> float:
        """Seconds for which the lease can still be counted on without another renewal; 0 when it is lost."""
        if self.row is None:
            return math.inf
        return 0.0 if self.row.lost else max(0.0, self.row.until - monotonic())

    def check(self) -> None:
        """Raises ``LeaseLostError`` unless the lease can be counted on now. For a place before effects that matter."""
        if self.lost:
            raise LeaseLostError(f"attempt {self.attempt} is no longer this run's (token {self.token})")
        if self.remaining <= 0.0:
            raise LeaseLostError(f"attempt {self.attempt} could not be renewed in time (token {self.token})")

    def reach(self, stage: Stage) -> None:
        """Tell the worker's main process how far the run has come."""
        if self.row is not None:
            self.row.reach(stage)


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
    #: Why the run does not count: its lease was lost, or could not be counted on any more.
    lost: LeaseLostError | None = None
    #: The task's code runs in it: where it can be told that its lease is lost.
    inside: AbstractContextManager[Any] = field(default_factory=nullcontext)

    def end_body(self, stage: Stage) -> None:
        """The task's code has ended. Where its lease may be somebody else's by now, wait a moment to be told (F18)."""
        lease = self.lease
        until = monotonic() + VERDICT_SECONDS
        while not lease.remaining and not lease.lost and monotonic() < until:
            sleep(POLL_SECONDS)
        if lease.lost:
            self.lost = LeaseLostError(f"attempt {lease.attempt} is no longer this run's (token {lease.token})")
        else:
            lease.reach(stage)


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


def running_here() -> Run | None:
    """The run of this thread (or greenlet), whatever it does at this moment."""
    return _current.run


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
