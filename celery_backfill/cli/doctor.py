"""``backfill doctor``: what is wrong with an app's settings and servers, and what to do about it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from .output import as_json, print_json, record, safe
from .reach import app_of

if TYPE_CHECKING:
    from ..findings import Finding, Level

FIELDS = ("name", "level", "text", "advice")
STYLES = {"ok": "green", "info": "cyan", "warning": "yellow", "error": "bold red"}
COUNTED: tuple[Level, ...] = ("error", "warning", "info", "ok")


@click.command()
@click.option("--strict", is_flag=True, help="Exit code 1 for warnings, too.")
@as_json
@click.pass_context
def doctor(ctx: click.Context, as_json: bool, strict: bool) -> None:
    """Look at the settings, the tasks, Redis and PostgreSQL, and say what to do. Nothing is changed.

    Exit code 1 when there is an error, 0 otherwise.

    \b
    Example:
      celery -A proj backfill doctor
    """
    from ..doctor import examine

    findings = examine(app_of(ctx))
    counts = Counter(finding.level for finding in findings)
    if as_json:
        found = [record(finding, FIELDS) for finding in findings]
        print_json({**{level: counts[level] for level in COUNTED}, "findings": found})
    else:
        _print(findings, color=not ctx.obj.no_color)
        click.echo(", ".join(f"{counts[level]} {level}" for level in COUNTED if counts[level]))
    if counts["error"] or (strict and counts["warning"]):
        raise SystemExit(1)


def _print(findings: Sequence[Finding], *, color: bool) -> None:
    if not (sys.stdout.isatty() and _print_rich(findings, color)):
        _print_plain(findings)


def _print_plain(findings: Sequence[Finding]) -> None:
    """One line a finding, and its advice on the next."""
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        click.echo(f"{finding.level:<7}  {finding.name:<{width}}  {_line(finding.text)}")
        if finding.advice:
            click.echo(f"{'':<7}  {'':<{width}}  -> {_line(finding.advice)}")


def _print_rich(findings: Sequence[Finding], color: bool) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table.grid(padding=(0, 2, 0, 0))
    for finding in findings:
        level = Text(finding.level, style=STYLES[finding.level])
        table.add_row(level, Text(finding.name, no_wrap=True), Text(_line(finding.text)))
        if finding.advice:
            table.add_row("", "", Text(f"-> {_line(finding.advice)}", style="dim"))
    Console(no_color=not color).print(table)
    return True


def _line(text: str) -> str:
    return safe(text).replace("\n", " ")
