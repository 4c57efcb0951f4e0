"""``backfill migrate``"""

from __future__ import annotations

import click

from .output import as_json, print_json
from .reach import postgres


@click.command()
@as_json
@click.pass_context
def migrate(ctx: click.Context, as_json: bool) -> None:
    """Make or update the dead letters' tables in PostgreSQL. Safe to run again, and by several at once.

    \b
    Example:
      celery -A proj backfill migrate
    """
    with postgres(ctx) as connections:
        from ..deadletters.migrate import migrate as apply

        applied = apply(connections)
    if as_json:
        print_json({"applied": list(applied)})
    elif applied:
        click.echo(f"applied: {', '.join(applied)}")
    else:
        click.echo("nothing to do: the tables are up to date")
