"""``backfill limits ...``"""

from __future__ import annotations

import click

from .output import as_json, print_json, print_table, record
from .reach import redis_store

COLUMNS = ("key", "capacity", "held", "blocked", "oldest_blocked_seconds", "paused")


@click.group()
def limits() -> None:
    """Keys: how many may run at once, how many do, how many wait."""


@limits.command("list")
@as_json
@click.pass_context
def list_limits(ctx: click.Context, as_json: bool) -> None:
    """Every key that is held or waited for.

    \b
    Example:
      celery -A proj backfill limits list
    """
    with redis_store(ctx) as store:
        rows = [record(view, COLUMNS) for view in store.limits()]
    if as_json:
        print_json(rows)
    else:
        print_table(COLUMNS, rows, nothing="no key is held or waited for", color=not ctx.obj.no_color)
