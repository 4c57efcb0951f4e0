"""``backfill leases ...``"""

from __future__ import annotations

import click

from .output import as_json, print_json, print_table, record
from .reach import redis_store

COLUMNS = ("task_id", "task", "worker", "keys", "token", "age_seconds", "expires_in_seconds")


@click.group()
def leases() -> None:
    """Leases: what runs where, and until when."""


@leases.command("list")
@as_json
@click.pass_context
def list_leases(ctx: click.Context, as_json: bool) -> None:
    """Every lease, the oldest first.

    \b
    Example:
      celery -A proj backfill leases list
    """
    with redis_store(ctx) as store:
        rows = [record(view, COLUMNS) for view in store.leases()]
    if as_json:
        print_json(rows)
    else:
        print_table(COLUMNS, rows, nothing="nothing is running", color=not ctx.obj.no_color)
