"""The SQL statements, each in a file of its own under ``sql/``."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_HEADER = re.compile(r"\A(?:--[^\n]*\n)+")
_PART = re.compile(r"^\{(\w+)\}\n", re.MULTILINE)


@cache
def statement(name: str) -> str:
    """The statement in ``sql/<name>.sql`` without its header, its ``{parts}`` put in."""
    text = files(__package__).joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")
    # The header names parameters; psycopg would look for placeholders in it too.
    return _PART.sub(lambda part: statement(part[1]), _HEADER.sub("", text))
