"""``celery -A proj backfill ...``

Celery loads this module each time its command line starts, so it imports nothing but click; a command's own module is
imported when that command is asked for.
"""

from __future__ import annotations

from importlib import import_module

import click

COMMANDS = {
    "migrate": "migrate:migrate",
    "doctor": "doctor:doctor",
    "dlq": "dlq:dlq",
    "limits": "limits:limits",
    "leases": "leases:leases",
}


class Commands(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"{__name__}.{module}"), name)
        return command


@click.group(cls=Commands)
def backfill(**_preload_options: object) -> None:
    """Limits, leases and dead letters.

    \b
    Example:
      celery -A proj backfill migrate
      celery -A proj backfill dlq list --task shop.charge --since 1d
    """
