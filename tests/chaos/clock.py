"""A clock of the store that can be made to jump: real time and an offset, read from a file by all workers."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from celery_backfill.leases.store import LeaseStore

_OFFSET = struct.Struct("@q")


class Clock:
    """The offset in one file. While it is 0 the scripts use the server's own clock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            self._write(0)

    @property
    def offset_ms(self) -> int:
        return int(_OFFSET.unpack(self._path.read_bytes())[0])

    def jump(self, seconds: float) -> None:
        """From now on it is so many seconds later (or earlier)."""
        self._write(self.offset_ms + round(seconds * 1000))

    def now(self) -> int | str:
        """The time as scripts take it: milliseconds, or "" for the server's own."""
        offset = self.offset_ms
        return int(time.time() * 1000) + offset if offset else ""

    def _write(self, offset: int) -> None:
        part = self._path.with_suffix(".part")
        part.write_bytes(_OFFSET.pack(offset))
        part.replace(self._path)


def give_to_stores(clock: Clock) -> None:
    """Every lease store made in this process from now on takes its time from this clock."""
    original: Callable[..., None] = LeaseStore.__init__

    @wraps(original)
    def with_clock(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **{**options, "clock": clock.now})

    LeaseStore.__init__ = with_clock  # type: ignore[method-assign]
