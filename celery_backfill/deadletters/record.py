"""What the outbox says, as facts that can be stored: a failure, or a requeue that went well."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

from ..message import Envelope
from . import bounds
from .fingerprint import fingerprint

INVALID = "invalid"
ALSO_IN_THE_MESSAGE = ("task_id", "task", "queue", "retries", "root_id", "parent_id", "group_id", "requeue")


@dataclass(frozen=True, slots=True)
class Failure:
    """One final failure. Its texts are bounded and fit for PostgreSQL.

    ``id`` is its own for ever: the same failure read twice is recorded once. ``requeue`` is the number of the
    requeue that the attempt came from, 0 when it was no requeue. ``message`` is the stored form of the whole
    message, None when it was not there.
    """

    id: str
    at: datetime
    task_id: str
    task: str
    queue: str
    reason: str
    exception_type: str
    exception_message: str
    traceback: str
    retries: int
    stalls: int
    worker: str | None
    root_id: str | None
    parent_id: str | None
    group_id: str | None
    requeue: int
    message: bytes | None
    fingerprint: str

    def reduced(self, why: str) -> Self:
        """The same failure with nothing but its names, for when the database refuses the rest."""
        return replace(
            self,
            task_id=_ascii(self.task_id),
            task=_ascii(self.task),
            queue=_ascii(self.queue),
            reason=INVALID,
            exception_type=_ascii(self.exception_type),
            exception_message=_ascii(f"the database refused this failure's details: {why}"),
            traceback="",
            worker=None,
            root_id=None,
            parent_id=None,
            group_id=None,
            message=None,
        )


@dataclass(frozen=True, slots=True)
class Resolution:
    """The task of a letter succeeded in the attempt that came from requeue number ``requeue``."""

    id: str
    at: datetime
    task_id: str
    task: str
    requeue: int


Fact = Failure | Resolution


def parse(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Fact | None:
    """Read one entry of the outbox. Never raises.

    What a failure's details leave out is taken from its message; one that gives no reason is "invalid". None means
    that this version cannot tell what the entry is: it must stay where it is.
    """
    kind = _text(fields, b"kind")
    details = _details(fields)
    if kind == "resolved":
        return _resolution(entry_id, fields, details)
    if kind == "failed" or (not kind and (b"message" in fields or b"letter" in fields)):
        return _failure(entry_id, fields, details)
    return None


def _resolution(entry_id: bytes, fields: Mapping[bytes, bytes], details: Mapping[str, Any]) -> Resolution | None:
    if not details.get("task_id"):
        return None
    return Resolution(
        id=_own_id(entry_id, fields),
        at=_when(entry_id, fields),
        task_id=bounds.name(str(details["task_id"])),
        task=bounds.name(str(details.get("task") or "")),
        requeue=bounds.integer(details.get("requeue")),
    )


def _failure(entry_id: bytes, fields: Mapping[bytes, bytes], given: Mapping[str, Any]) -> Failure:
    own_id = _own_id(entry_id, fields)
    details = _completed(fields, given)
    task = bounds.name(str(details.get("task") or ""))
    exception_type = bounds.name(str(details.get("exception_type") or ""))
    exception_message = bounds.cut_end(_said(details.get("exception_message")))
    traceback = bounds.cut_middle(_said(details.get("traceback")))
    return Failure(
        id=own_id,
        at=_when(entry_id, fields),
        task_id=bounds.name(str(details.get("task_id") or f"unknown:{own_id}")),
        task=task,
        queue=bounds.name(str(details.get("queue") or _text(fields, b"queue"))),
        reason=bounds.name(str(details.get("reason") or INVALID)),
        exception_type=exception_type,
        exception_message=exception_message,
        traceback=traceback,
        retries=bounds.integer(details.get("retries")),
        stalls=bounds.integer(_text(fields, b"stalls")),
        worker=_optional(details, "worker"),
        root_id=_optional(details, "root_id"),
        parent_id=_optional(details, "parent_id"),
        group_id=_optional(details, "group_id"),
        requeue=bounds.integer(details.get("requeue")),
        message=fields.get(b"message") or None,
        fingerprint=fingerprint(task, exception_type, exception_message, traceback),
    )


def _details(fields: Mapping[bytes, bytes]) -> Mapping[str, Any]:
    try:
        details = json.loads(fields.get(b"letter", b"{}"))
    except (ValueError, RecursionError):
        return {}
    return details if isinstance(details, dict) else {}


def _completed(fields: Mapping[bytes, bytes], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The details, with what they leave out taken from the message.

    Endings decided in a script know little of the message; without its requeue number a letter would stay "requeued".
    """
    if given.get("task_id") and all(key in given for key in ALSO_IN_THE_MESSAGE):
        return given
    # Details without a task id are of a message that nobody could read: a 0 in them is not a number, but unknown.
    known = {key: value for key, value in given.items() if value or (value is not None and given.get("task_id"))}
    return {**_from_message(fields), **known}


def _from_message(fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    """What the message itself says; nothing when it cannot be read."""
    try:
        envelope = Envelope.decode(fields[b"message"])
        headers = dict(envelope.headers)
    except Exception:  # a stranger's bytes: whatever is wrong with them, the failure is still recorded
        return {}
    return {
        "task_id": headers.get("id"),
        "task": headers.get("task"),
        "queue": envelope.routing_key,
        "retries": headers.get("retries"),
        "root_id": headers.get("root_id"),
        "parent_id": headers.get("parent_id"),
        "group_id": headers.get("group"),
        "requeue": headers.get("backfill_requeue"),
    }


def _own_id(entry_id: bytes, fields: Mapping[bytes, bytes]) -> str:
    return bounds.name(_text(fields, b"id") or f"entry:{entry_id.decode('utf-8', 'replace')}")


def _when(entry_id: bytes, fields: Mapping[bytes, bytes]) -> datetime:
    """The failure's time. A stream entry's id begins with the server's time, so there is always one."""
    for text in (_text(fields, b"at"), entry_id.decode("utf-8", "replace").partition("-")[0]):
        try:
            return datetime.fromtimestamp(int(text) / 1000, UTC)
        except (ValueError, OverflowError, OSError):
            continue
    return datetime.now(UTC)


def _text(fields: Mapping[bytes, bytes], key: bytes) -> str:
    return fields.get(key, b"").decode("utf-8", "replace")


def _said(value: Any) -> str:
    return "" if value is None else str(value)


def _optional(details: Mapping[str, Any], key: str) -> str | None:
    value = details.get(key)
    return bounds.name(str(value)) if value else None


def _ascii(text: str) -> str:
    return bounds.cut_end(text.encode("ascii", "backslashreplace").decode("ascii"), bounds.NAME_BYTES)
