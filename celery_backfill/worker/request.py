"""The request of a leased task: where Celery's ends become settlements.

``acknowledged`` stays False until the store has settled the lease; before a message has its lease, acknowledge and
reject are the broker's as ever (a task revoked or expired before its turn).
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from billiard.common import TERM_SIGNAL
from billiard.einfo import ExceptionInfo
from celery import signals
from celery.exceptions import TimeLimitExceeded
from celery.worker import state
from celery.worker.request import Request
from kombu.utils.encoding import safe_repr

from ..errors import TaskExitedError
from .ends import DONE, GIVEN_BACK, End, Reason, dead, end_of_exception, end_of_report
from .target import unwrapped

if TYPE_CHECKING:
    from .gate import Gate
    from .lane import Held


class LeasedRequest(Request):  # type: ignore[misc]
    """A request that runs under a lease. The strategy makes a subclass of it with the worker's ``gate``."""

    gate: Gate
    _already_cancelled: bool

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        self.end: End | None = None
        #: Whether the process that ran it has told of its end, and whether it was killed before it could.
        self.reported = False
        self.killed = False
        #: What it means that its run is told to stop, if it is.
        self.stopping: End | None = None
        #: Set when it comes from the store; one from the broker gets its lease at the gate.
        self.held: Held | None = getattr(message, "held", None)
        if self.held is not None:
            self.held.request = self

    def on_result(self, result: Any) -> None:
        """The pool's callback: Celery's triple, and the report of the process that ran the task."""
        self.reported = True
        if len(result) == 3:
            self._on_greenlet_exit()
            return
        failed, retval, runtime, report = result
        self.end = self.end or end_of_report(report)
        self.on_success((failed, retval, runtime))

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        exc = unwrapped(exc_info.exception)
        self.killed = self.killed or isinstance(exc, TimeLimitExceeded)
        if self.end is None:
            self.end = end_of_exception(exc, exc_info.traceback)
        super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        # gevent tells of a hard limit by this alone; prefork by on_failure first.
        if not soft and self.end is None:
            self.end = dead(Reason.TIME_LIMIT, TimeLimitExceeded(timeout))
        super().on_timeout(soft, timeout)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        # Noted before: under eventlet its greenlet has ended when this returns.
        self.stopping = self.stopping or DONE
        super().terminate(pool, signal)

    def cancel(self, pool: Any, signal: Any = None, **_: Any) -> None:
        # The broker's connection is lost: the task goes on, its lease is not the broker's (F15). Or a cold shutdown, in
        # a signal handler: there a process can be killed, but no greenlet.
        if self.gate.cold and pool.uses_semaphore:
            self.kill(pool)

    def kill(self, pool: Any) -> None:
        """End its run for a shutdown, where the pool can; the gate gives it back when it is gone."""
        if self._already_cancelled:
            return
        self._already_cancelled = True
        self.stopping = self.stopping or GIVEN_BACK
        if self.time_start:
            with suppress(NotImplementedError):
                pool.terminate_job(self.worker_pid, TERM_SIGNAL)
        job = self._apply_result() if self._apply_result is not None else None
        if pool.uses_semaphore and job is not None:
            # One that no process has accepted yet is killed as it is.
            job.terminate(TERM_SIGNAL)

    def _on_greenlet_exit(self) -> None:
        """Its greenlet was killed: by ``terminate``, by ``kill``, or by somebody's code."""
        if self.stopping is None:
            error = TaskExitedError("the task's greenlet was killed")
            self.end = self.end or dead(Reason.FAILED, error)
            self.announce_failure(error)
        self.gate.finish(self, self.end or self.stopping or DONE)

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
