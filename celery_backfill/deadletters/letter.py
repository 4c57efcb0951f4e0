"""A dead letter as it is read, and which letters are meant."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

STATES = ("dead", "requeueing", "requeued", "resolved", "discarded")


@dataclass(frozen=True, slots=True)
class Letter:
    """One task that finally failed: its newest failure, and what became of it. Times are aware."""

    id: int
    task_id: str
    task: str
    queue: str
    state: str
    reason: str
    exception_type: str
    exception_message: str
    retries: int
    stalls: int
    worker: str | None
    root_id: str | None
    parent_id: str | None
    group_id: str | None
    group: str
    failure_count: int
    requeue_count: int
    requeue_id: UUID | None
    requeued_at: datetime | None
    resolved_at: datetime | None
    first_failed_at: datetime
    last_failed_at: datetime


@dataclass(frozen=True, slots=True)
class PastFailure:
    """One failure in a letter's history."""

    id: str
    requeue: int
    reason: str
    exception_type: str
    exception_message: str
    traceback: str
    retries: int
    stalls: int
    worker: str | None
    failed_at: datetime


@dataclass(frozen=True, slots=True)
class Group:
    """Letters that failed alike. ``exception_message`` is the newest one's start."""

    group: str
    task: str
    exception_type: str
    exception_message: str
    count: int
    first_failed_at: datetime
    last_failed_at: datetime


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters are meant; what is None means any.

    ``error`` is an exception type, whole or its last part. ``search`` is a text found, in any case, in message,
    exception type, task or task id. ``since`` is inclusive, ``until`` is not; both are of the newest failure.
    """

    task: str | None = None
    queue: str | None = None
    error: str | None = None
    group: str | None = None
    reason: str | None = None
    states: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    search: str | None = None

    def parameters(self) -> dict[str, Any]:
        """The parameters of the statements' filter."""
        return {
            "task": self.task,
            "queue": self.queue,
            "error": self.error,
            "group": self.group,
            "reason": self.reason,
            "states": list(self.states) or None,
            "since": self.since,
            "until": self.until,
            "search": self.search and f"%{_literal(self.search)}%",
        }


def _literal(text: str) -> str:
    """``text`` for a LIKE pattern, its own wildcards taken as they are written."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
