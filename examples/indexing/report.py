"""What the demo shows at its end."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .figures import Figures

SHOWN_PROBLEMS = 20
SHOWN_GROUPS = 12


def show(console: Console, figures: Figures) -> None:
    """The figures, the dead letters by group, and the commands to look further."""
    console.print()
    console.print(_summary(figures))
    if figures.groups:
        console.print("\nDead letters by group:")
        console.print(_groups(figures))
    elif not figures.problems:
        console.print("\nEvery file of this machine parses: no dead letters. --path DIR indexes other folders.")
    console.print("\nLook further (the servers start again for as long as a command needs them):")
    for command in _commands():
        console.print(f"  {command}", style="cyan", highlight=False, soft_wrap=True)


def show_problems(console: Console, figures: Figures) -> None:
    """What went wrong, on the error console."""
    console.print(f"The demo failed: {len(figures.problems)} problems.", style="bold red")
    for problem in figures.problems[:SHOWN_PROBLEMS]:
        console.print(f"  {problem}", markup=False, highlight=False, soft_wrap=True)
    if len(figures.problems) > SHOWN_PROBLEMS:
        console.print(f"  ... and {len(figures.problems) - SHOWN_PROBLEMS} more")


def _summary(figures: Figures) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="bold")
    counted = figures.counted
    rows = [
        (f"{figures.tasks_per_second:,.0f}", f"tasks a second: {figures.files:,} files in {figures.seconds:.1f} s"),
        (f"{figures.done:,}", f"done: {counted['lines']:,} lines, {counted['functions']:,} functions"),
        (f"{figures.dead:,}", "dead"),
        (f"{figures.running_max}", _at_once(figures)),
    ]
    for number, meaning in rows:
        table.add_row(number, meaning)
    return table


def _at_once(figures: Figures) -> str:
    return (
        f"the most files of one package at once, as the tasks saw it (limit {figures.limit}, "
        f"reached by {figures.packages_at_limit} of {figures.packages} packages)"
    )


def _groups(figures: Figures) -> Table:
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(justify="right", style="red", min_width=3)
    table.add_column(min_width=max(len(group.exception_type) for group in figures.groups))
    table.add_column(overflow="ellipsis", no_wrap=True, style="dim", ratio=1)
    for group in figures.groups[:SHOWN_GROUPS]:
        table.add_row(str(group.letters), group.exception_type, Text(group.message))
    return table


def _commands() -> list[str]:
    celery = Path(sys.executable).with_name("celery")
    near = os.path.relpath(celery)
    begin = f"{shlex.quote(near if not near.startswith('..') else str(celery))} -A examples.indexing.app"
    return [
        f"{begin} backfill dlq list --state dead",
        f"{begin} backfill dlq groups --state dead",
        f"{begin} backfill limits list",
    ]
