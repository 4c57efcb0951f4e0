"""The request of a leased task: where Celery's ends become settlements.

``acknowledged`` stays False until the store has settled the lease; before a message has its lease, acknowledge and
reject are the broker's as ever (a task revoked or expired before its turn).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery import signals
from celery.exceptions import TimeLimitExceeded
from celery.worker import state
from celery.worker.request import Request
from kombu.utils.encoding import safe_repr

from .ends import DONE, End, Reason, dead, end_of_exception, end_of_report
from .target import unwrapped

if TYPE_CHECKING:
    from .gate import Gate
    from .lane import Held


class LeasedRequest(Request):  # type: ignore[misc]
    """A request that runs under a lease. The strategy makes a subclass of it with the worker's ``gate``."""

    gate: Gate

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        self.end: End | None = None
        #: Whether the process that ran it has told of its end, and whether it was killed before it could.
        self.reported = False
        self.killed = False
        #: Set when it comes from the store; one from the broker gets its lease at the gate.
        self.held: Held | None = getattr(message, "held", None)
        if self.held is not None:
            self.held.request = self

    def on_result(self, result: Any) -> None:
        """The pool's callback: Celery's triple, and the report of the process that ran the task."""
        failed, retval, runtime, report = result
        self.reported = True
        self.end = self.end or end_of_report(report)
        self.on_success((failed, retval, runtime))

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        exc = unwrapped(exc_info.exception)
        self.killed = self.killed or isinstance(exc, TimeLimitExceeded)
        if self.end is None:
            self.end = end_of_exception(exc, exc_info.traceback)
        super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        # The broker's connection is lost: the task goes on, its lease is not the broker's (F15).
        if state.should_terminate:
            super().cancel(pool, signal, emit_retry=emit_retry)

    def acknowledge(self) -> None:
        if self.held is None:
            super().acknowledge()
        elif not self.acknowledged:
            self.gate.finish(self, self.end or DONE)

    def reject(self, requeue: bool = False) -> None:
        if self.held is None:
            super().reject(requeue)
        elif not self.acknowledged:
            self.gate.finish(self, self.end or DONE)

    def fail_unstarted(self, exc: Exception, reason: Reason) -> None:
        """End as failed without having run: result, signal and event as Celery's own failures have them."""
        self.end = dead(reason, exc)
        self.announce_failure(exc)
        self.acknowledge()

    def announce_failure(self, exc: Exception) -> None:
        """The Celery side of a failure that no process of the pool has told of."""
        info = _exc_info(exc)
        state.task_ready(self)
        self.task.backend.mark_as_failure(self.id, exc, request=self._context, store_result=self.store_errors)
        signals.task_failure.send(
            sender=self.task,
            task_id=self.id,
            exception=exc,
            args=self.args,
            kwargs=self.kwargs,
            traceback=info.traceback,
            einfo=info,
        )
        self.send_event("task-failed", exception=safe_repr(exc), traceback=info.traceback)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        self.killed = self.killed or terminated
        self.end = self.end or DONE
        super()._announce_revoked(reason, terminated, signum, expired)


def _exc_info(exc: Exception) -> Any:
    try:
        raise exc
    except Exception:
        return ExceptionInfo()
