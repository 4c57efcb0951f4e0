"""What the pool runs instead of Celery's tracer: the tracer, and beside its result a report of how the run ended.

A retry that was swallowed, or asked for with ``throw=False``, reaches the worker's main process as a success, and a
``Retry`` loses its signature on the way: so the report tells it (F20).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery import current_app
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.serialization import UnpickleableExceptionWrapper
from kombu.utils.encoding import safe_repr, safe_str

from .. import ledger
from ..ledger import Stage
from ..run import Lease, Run, running
from ..task import BackfillTask
from .inside import Inside
from .orphans import exit_if_orphaned

MAX_TEXT = 64 * 1024
CUT = "\n[cut]\n"


class Ticket(NamedTuple):
    """A lease as it goes to the process that runs it: its row in the ledger, and for a strict run its margin."""

    attempt: str
    token: int
    row: int | None = None
    margin: float | None = None


Result = tuple[int, Any, float, dict[str, Any] | None]


def run_leased(ticket: Ticket, trace: Callable[..., Any], name: str, task_id: str, *args: Any) -> Result:
    """Run one leased task; Celery's (failed, result, runtime) and a report, None for a plain success.

    Nothing is raised, so that every run ends in the worker's callback, on every pool.
    """
    lease = _lease(ticket)
    inside = Inside(lease)
    with running(Run(task_id, lease, inside=inside)) as run:
        try:
            failed, result, runtime = trace(name, task_id, *args)
        except Exception as error:
            info = ExceptionInfo()
            return 1, info, 0.0, {"failure": describe("internal", error, info.traceback)}
        finally:
            # An exception sent to the run may have struck in the midst of its leaving.
            inside.leave()
        report = _report(run, failed, result, name)
        if report is None and not failed:
            lease.reach(Stage.SUCCEEDED)
        elif report is not None and "failure" in report:
            lease.reach(Stage.FAILED)
    return failed, result, runtime, report


def _lease(ticket: Ticket) -> Lease:
    shared = ledger.shared
    if shared is None:
        return Lease(ticket.attempt, ticket.token)
    if ledger.in_child():
        exit_if_orphaned(shared.owner_pid)
    row = None if ticket.row is None else shared.row(ticket.row, ticket.token)
    return Lease(ticket.attempt, ticket.token, row, ticket.margin)


def _report(run: Run, failed: int, result: Any, name: str) -> dict[str, Any] | None:
    if run.lost is not None:
        return {"lost": describe("poison", run.lost, "")}
    if run.retry is not None:
        retry = run.retry
        asked = {"delay": retry.delay, "message": retry.message, "limits": retry.limits, "rerouted": retry.rerouted}
        return {"retry": asked}
    if not failed:
        return None
    exc = unwrapped(result.exception)
    if isinstance(exc, UnpickleableExceptionWrapper) and run.error is not None:
        exc = run.error
    if isinstance(exc, Ignore | Reject | Retry):
        return None
    return {"failure": describe(_reason(run, exc, name), exc, result.traceback)}


def _reason(run: Run, exc: BaseException, name: str) -> str:
    task = current_app.tasks.get(name)
    if isinstance(task, BackfillTask) and task.verdict_on(exc).permanent:
        return "non_retryable"
    return "exhausted" if run.retries_exhausted else "failed"


def unwrapped(exc: Any) -> BaseException:
    """The task's own exception: before pickling, billiard keeps it in a wrapper. A ``Retry`` has an ``exc`` too."""
    own: BaseException = exc.exc if isinstance(exc, ExceptionWithTraceback) else exc
    return own


def describe(reason: str, exc: BaseException, traceback: str) -> dict[str, Any]:
    """A failure in words, bounded, whatever the exception's own methods do."""
    return {
        "reason": str(reason),
        "exception_type": _type_name(exc),
        "exception_message": cut(_text(exc)),
        "traceback": cut(safe_str(traceback)),
    }


def _type_name(exc: BaseException) -> str:
    if isinstance(exc, UnpickleableExceptionWrapper):
        return f"{exc.exc_module}.{exc.exc_cls_name}"
    cls = type(exc)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _text(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:
        return str(safe_repr(exc))


def cut(text: str) -> str:
    """At most ``MAX_TEXT`` characters, the end kept: it is where a traceback says what happened."""
    if len(text) <= MAX_TEXT:
        return text
    half = MAX_TEXT // 2
    return text[:half] + CUT + text[-half:]
