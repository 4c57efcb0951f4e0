"""The options that say which letters are meant, the same for every command."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import Any

import click

from ..deadletters.letter import STATES, Filter

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def when(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """A time as it is typed: ISO 8601 (UTC unless it says otherwise), or so long ago: 30m, 12h, 7d."""
    if value is None:
        return None
    try:
        if ago := re.fullmatch(r"(\d{1,6})([smhdw])", value):
            return datetime.now(UTC) - timedelta(**{UNITS[ago[2]]: int(ago[1])})
        at = datetime.fromisoformat(value)
    except (ValueError, OverflowError):
        message = f"{value!r} is not a time; write 30m, 12h, 7d or 2026-01-31T12:00:00"
        raise click.BadParameter(message, ctx=ctx, param=param) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


OPTIONS = (
    click.option("--task", help="Task name."),
    click.option("--queue", help="Queue."),
    click.option("--error", help="Exception type, whole or its last part: ValueError."),
    click.option("--group", help="Group, as in `dlq groups`."),
    click.option("--reason", help="Why it is dead: failed, exhausted, non_retryable, poison, ..."),
    click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="State; may be repeated."),
    click.option("--since", callback=when, help="Last failed at this time or later: 30m, 12h, 7d or ISO 8601."),
    click.option("--until", callback=when, help="Last failed before this time."),
    click.option("--search", help="Text in the message, exception type, task or task id."),
)
NAMES = ("task", "queue", "error", "group", "reason", "since", "until", "search")


def filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the filter's options; it gets what they say as ``which``, a ``Filter``."""

    @wraps(command)
    def with_filter(*args: Any, **options: Any) -> Any:
        which = Filter(states=tuple(options.pop("states")), **{name: options.pop(name) or None for name in NAMES})
        return command(*args, which=which, **options)

    for option in reversed(OPTIONS):
        with_filter = option(with_filter)
    return with_filter
