"""What an examination found: for ``backfill doctor``, and for the log of a worker that starts."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

Level = Literal["ok", "info", "warning", "error"]

LOG_LEVELS: dict[Level, int] = {
    "ok": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

ESCAPES = "special characters in a user name or password are written as %40 for @, %2F for /, %23 for #"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``fatal``: nothing can ever work so, and a worker refuses to start."""

    name: str
    level: Level
    text: str
    advice: str = ""
    fatal: bool = False

    @property
    def log_level(self) -> int:
        """Its level as ``logging`` counts."""
        return LOG_LEVELS[self.level]

    @property
    def facts(self) -> dict[str, str]:
        """What it says, as the facts of an event."""
        advice = {"advice": self.advice} if self.advice else {}
        return {"check": self.name, "found": self.text, **advice}


def is_ambiguous(url: str) -> bool:
    """Whether a character that had to be escaped may have cut a password in two: no part of it may be shown then."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return True
    return parts.netloc.count("@") > 1 or "@" in parts.path + parts.query + parts.fragment


def said(error: BaseException, url: str, longest: int = 300) -> str:
    """What an error says, in one bounded line; only its type where its words may hold a part of the URL's password."""
    lines = str(error).strip().splitlines()
    return type(error.__cause__ or error).__name__ if is_ambiguous(url) or not lines else lines[0][:longest]
