"""A kept message as people may read it: decoded only from JSON, secrets blotted out, pickle never touched."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..message import Envelope

HIDDEN = "[hidden]"
JSON_TYPE = "application/json"
# Celery's own reprs of the arguments are text, in which names and values cannot be told apart.
REPRS = ("argsrepr", "kwargsrepr")


@dataclass(frozen=True, slots=True)
class Readable:
    """``note`` says why there are no arguments, when there are none to show."""

    args: list[Any] | None
    kwargs: dict[str, Any] | None
    headers: dict[str, Any]
    note: str | None


def readable(message: bytes | None, hidden: Sequence[str], names: Sequence[str] = ()) -> Readable:
    """What may be shown of a message in its stored form.

    ``hidden`` are parts of names (lower case) whose values are replaced, at any depth; ``names`` are the names of the
    task's positional arguments as far as they are known.
    """
    if message is None:
        return Readable(None, None, {}, "the message was not kept")
    try:
        envelope = Envelope.decode(message)
    except Exception as error:
        return Readable(None, None, {}, f"the message cannot be read ({type(error).__name__})")
    headers = {
        name: HIDDEN if name in REPRS and value else value
        for name, value in redacted(dict(envelope.headers), hidden).items()
    }
    args, kwargs, note = _arguments(envelope)
    shown = None if args is None else _positional(args, hidden, names)
    return Readable(shown, None if kwargs is None else redacted(kwargs, hidden), headers, note)


def redacted(value: Any, hidden: Sequence[str]) -> Any:
    """``value`` with everything under a hidden name replaced, through all dicts and lists."""
    if isinstance(value, Mapping):
        return {str(name): HIDDEN if _hides(name, hidden) else redacted(part, hidden) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(part, hidden) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def positional_names(app: Any, task: str) -> list[str]:
    """The names of a task's positional arguments; none when the app does not have the task."""
    found = app.tasks.get(task)
    if found is None:
        return []
    try:
        return list(inspect.signature(found.run).parameters)
    except (TypeError, ValueError):
        return []


def _arguments(envelope: Envelope) -> tuple[list[Any] | None, dict[str, Any] | None, str | None]:
    if envelope.content_type != JSON_TYPE:
        return None, None, f"content type {envelope.content_type or '?'} ({len(envelope.body)} bytes) is never decoded"
    try:
        args, kwargs, _ = json.loads(envelope.body)
        return list(args), dict(kwargs), None
    except (ValueError, TypeError, RecursionError):
        return None, None, f"the body ({len(envelope.body)} bytes) is not the JSON of a task"


def _positional(args: Sequence[Any], hidden: Sequence[str], names: Sequence[str]) -> list[Any]:
    known = [*names, *[""] * len(args)]
    return [
        HIDDEN if _hides(name, hidden) else redacted(value, hidden) for name, value in zip(known, args, strict=False)
    ]


def _hides(name: object, hidden: Sequence[str]) -> bool:
    return any(part in str(name).lower() for part in hidden)
