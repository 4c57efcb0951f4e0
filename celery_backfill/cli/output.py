"""How answers are printed: JSON for programs, tables for people, nothing that could steer a terminal."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import click

WIDEST_CELL = 60
KEPT_WHOLE = 11

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON only.")


def print_json(value: Any) -> None:
    """One JSON document. Times are ISO 8601 in UTC."""
    click.echo(json.dumps(value, default=_plain, indent=2, ensure_ascii=False))


def record(row: Any, names: Iterable[str] | None = None) -> dict[str, Any]:
    """A row as a JSON object, with these fields or with all."""
    return {name: getattr(row, name) for name in names or [field.name for field in dataclasses.fields(row)]}


def print_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], *, nothing: str, color: bool = True) -> None:
    """Rows under their columns, or the sentence ``nothing``. With rich on a terminal where it is installed."""
    if not rows:
        click.echo(nothing)
        return
    cells = [[cell(row[column]) for column in columns] for row in rows]
    if not (sys.stdout.isatty() and _print_rich(columns, cells, color)):
        _print_plain(columns, cells)


def cell(value: Any) -> str:
    """A value in one short, harmless line."""
    text = safe(_words(value)).replace("\n", " ")
    return text if len(text) <= WIDEST_CELL else text[: WIDEST_CELL - 3] + "..."


def safe(text: str) -> str:
    """``text`` without control characters: what a task said must not move the cursor or colour the screen."""
    return "".join(char if char in "\n\t" or char.isprintable() else "\ufffd" for char in text)


def _words(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"no JSON form for {type(value).__name__}")


def _print_plain(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    widths = [max(len(column), *(len(row[place]) for row in cells)) for place, column in enumerate(columns)]
    for row in (columns, *cells):
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _print_rich(columns: Sequence[str], cells: Sequence[Sequence[str]], color: bool) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        short = max(len(row[place]) for row in cells) <= KEPT_WHOLE
        table.add_column(column.replace("_", " "), overflow="fold", no_wrap=short)
    for row in cells:
        table.add_row(*map(Text, row))
    Console(no_color=not color).print(table)
    return True
