"""How Celery ends a run, and what that settles: one table.

Celery tells a request of its end by calls and exceptions (``celery/worker/request.py``). What each means for the lease:

=================================================  ===========  ============  ===============================
end                                                outcome      letter        when
=================================================  ===========  ============  ===============================
success, ``Ignore``                                done                       at once
``retry()``, automatic or manual, raised or not    retry                      at once
exception                                          dead         failed, exhausted or non_retryable   at once
``Reject(requeue=False)``                          dead         rejected      at once
``Reject(requeue=True)``                           retry in 0 s               at once
hard time limit                                    dead         time_limit    when the child is gone
revoked or expired before it started               done                       at once
revoked with ``terminate``                         done                       when the child is gone
the pool's child was lost                          stalled      poison, when over its budget   at once
the same, after its success or failure was stored  done, dead   failed        at once (F19)
the lease was lost, or could not be counted on     stalled      poison, when over its budget   at once
``Retry`` raised without ``retry()``               done                       at once
key that cannot be made, message unreadable        dead         invalid       at once
the worker's own error around the task             dead         internal      at once
=================================================  ===========  ============  ===============================
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from celery import states
from celery.exceptions import Ignore, Reject, Retry, TimeLimitExceeded, WorkerLostError

from ..events import logger
from ..leases.store import Ending
from ..ledger import Stage
from .target import describe


class Reason(StrEnum):
    """Why a task is dead."""

    FAILED = "failed"
    EXHAUSTED = "exhausted"
    NON_RETRYABLE = "non_retryable"
    POISON = "poison"
    TIME_LIMIT = "time_limit"
    REJECTED = "rejected"
    INTERNAL = "internal"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class End:
    """What the worker knows of a run's end. ``failure`` has the letter's words, ``retry`` what the task asked for."""

    outcome: str
    failure: Mapping[str, Any] | None = None
    retry: Mapping[str, Any] | None = None

    def settle_as(self, about: Mapping[str, Any], *, recorded: bool) -> Ending:
        """The ending for the store; ``about`` describes the task to the letter's reader."""
        letter = json.dumps({**about, **self.failure}, default=str) if self.failure and recorded else ""
        asked = self.retry or {}
        return Ending(
            outcome=self.outcome,
            delay_seconds=asked.get("delay", 0.0),
            message=asked.get("message", ""),
            limits=asked.get("limits", about.get("limits", "")),
            queue=asked.get("queue", ""),
            letter=letter,
        )


DONE = End("done")
GIVEN_BACK = End("back")


def end_of_report(report: Mapping[str, Any] | None) -> End | None:
    """The end that the process which ran the task reported, if it did."""
    if not report:
        return None
    if "retry" in report:
        return End("retry", retry=report["retry"])
    if "lost" in report:
        return End("stalled", failure=report["lost"])
    return End("dead", failure=report["failure"])


def as_it_was(held: Any, end: End) -> End:
    """The end of a run whose process was lost, or ended by a shutdown: what it had come to before counts (F19)."""
    stage = held.row.stage if held.row is not None else Stage.RUNNING
    if end.outcome not in ("stalled", "back") or stage is Stage.RUNNING or held.lost:
        return end
    if stage is Stage.SUCCEEDED:
        return DONE
    stored = _stored_result(held.request)
    if stage is Stage.RETURNED:
        return DONE if stored.get("status") == states.SUCCESS else end
    if stored.get("status") == states.FAILURE:
        return dead(Reason.FAILED, stored["result"], stored.get("traceback") or "")
    return End("dead", failure=end.failure) if stage is Stage.FAILED and end.failure else end


def _stored_result(request: Any) -> Mapping[str, Any]:
    try:
        meta: Mapping[str, Any] = request.task.backend.get_task_meta(request.id, cache=False)
    except Exception:
        logger.exception("what a lost process had stored cannot be read")
        return {}
    return meta


def end_of_exception(exc: BaseException, traceback: str) -> End:
    """The end that an exception in the worker's main process means, where the task's own process reported none."""
    if isinstance(exc, Ignore | Retry):
        return DONE
    if isinstance(exc, Reject):
        return End("retry", retry={}) if exc.requeue else dead(Reason.REJECTED, exc, traceback)
    if isinstance(exc, TimeLimitExceeded):
        return dead(Reason.TIME_LIMIT, exc, traceback)
    if isinstance(exc, WorkerLostError):
        return End("stalled", failure=describe(Reason.POISON, exc, traceback))
    return dead(Reason.FAILED, exc, traceback)


def dead(reason: Reason, exc: BaseException, traceback: str = "") -> End:
    """A final failure."""
    return End("dead", failure=describe(reason, exc, traceback))
