"""``backfill dlq ...``: looking at dead letters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..deadletters.letter import Filter
from .filters import filters
from .output import as_json, print_json, print_table, record, safe
from .reach import app_of, fail, postgres, settings_of
from .resend import discard, requeue

if TYPE_CHECKING:
    from ..deadletters.letter import Letter, PastFailure
    from .readable import Readable

FIELDS = (
    "id",
    "task_id",
    "task",
    "queue",
    "state",
    "reason",
    "exception_type",
    "exception_message",
    "retries",
    "failure_count",
    "requeue_count",
    "group",
    "first_failed_at",
    "last_failed_at",
)
LISTED = ("id", "task", "state", "reason", "exception_type", "exception_message", "failure_count", "last_failed_at")
GROUPED = ("group", "count", "task", "exception_type", "exception_message", "last_failed_at")
ALSO_SHOWN = ("stalls", "worker", "root_id", "parent_id", "group_id", "requeue_id", "requeued_at", "resolved_at")
HISTORY = ("failed_at", "reason", "exception_type", "exception_message", "retries", "stalls", "requeue", "worker")


@click.group()
def dlq() -> None:
    """Dead letters: tasks that finally failed."""


dlq.add_command(requeue)
dlq.add_command(discard)


@dlq.command("list")
@filters
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@as_json
@click.pass_context
def list_letters(ctx: click.Context, /, limit: int, as_json: bool, which: Filter) -> None:
    """Dead letters, the newest failure first.

    \b
    Examples:
      celery -A proj backfill dlq list --task shop.charge --since 1d
      celery -A proj backfill dlq list --error TimeoutError --state dead --json
    """
    from ..deadletters.store import Letters

    with postgres(ctx) as connections:
        letters = Letters(connections)
        found = letters.find(which, limit)
        total = len(found) if as_json or len(found) < limit else letters.count(which)
    rows = [record(letter, FIELDS) for letter in found]
    if as_json:
        print_json(rows)
        return
    print_table(LISTED, rows, nothing="no dead letters match", color=not ctx.obj.no_color)
    if total > len(rows):
        click.echo(f"{len(rows)} of {total}; see more with --limit {total}", err=True)


@dlq.command("groups")
@filters
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@as_json
@click.pass_context
def list_groups(ctx: click.Context, /, limit: int, as_json: bool, which: Filter) -> None:
    """Dead letters that failed alike, the most frequent group first.

    \b
    Example:
      celery -A proj backfill dlq groups --state dead
    """
    from ..deadletters.store import Letters

    with postgres(ctx) as connections:
        rows = [record(group) for group in Letters(connections).groups(which, limit)]
    if as_json:
        print_json(rows)
    else:
        print_table(GROUPED, rows, nothing="no dead letters match", color=not ctx.obj.no_color)


@dlq.command("show", short_help="One dead letter, whole.")
@click.argument("letter", metavar="ID")
@as_json
@click.pass_context
def show(ctx: click.Context, letter: str, as_json: bool) -> None:
    """One dead letter by its id or task id: arguments, headers, traceback and every failure.

    Arguments are shown only when they were sent as JSON; what backfill_redact names is hidden.

    \b
    Example:
      celery -A proj backfill dlq show 42
    """
    from ..deadletters.store import Letters
    from .readable import positional_names, readable

    with postgres(ctx) as connections:
        letters = Letters(connections)
        found = letters.get(letter)
        if found is None:
            fail(f"there is no dead letter {letter}; list them with: celery -A proj backfill dlq list")
        message, history = letters.message(found.id), letters.history(found.task_id)
        content = readable(message, settings_of(ctx).redact, positional_names(app_of(ctx), found.task))
    if as_json:
        print_json(_whole(found, content, history))
    else:
        _print_letter(found, content, history)


def _whole(letter: Letter, content: Readable, history: list[PastFailure]) -> dict[str, Any]:
    return {
        **record(letter, (*FIELDS, *ALSO_SHOWN)),
        "args": content.args,
        "kwargs": content.kwargs,
        "headers": content.headers,
        "note": content.note,
        "traceback": history[0].traceback if history else "",
        "failures": [record(failure) for failure in history],
    }


def _print_letter(letter: Letter, content: Readable, history: list[PastFailure]) -> None:
    for name, value in record(letter, (*FIELDS, *ALSO_SHOWN)).items():
        _print_fact(name, value)
    for name in ("args", "kwargs", "note"):
        _print_fact(name, getattr(content, name))
    for name, value in content.headers.items():
        _print_fact(f"header {name}", value)
    if history:
        click.echo(f"\n{safe(history[0].traceback) or 'no traceback'}\n")
    print_table(HISTORY, [record(failure, HISTORY) for failure in history], nothing="no failures are recorded")


def _print_fact(name: str, value: Any) -> None:
    if value not in (None, ""):
        click.echo(f"{name + ':':<20} {safe(str(value))}")
