"""Advisory locks on files. The kernel gives a lock back however its holder ends, so none is ever stale."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from celery_backfill.errors import ConfigurationError

SHARED = fcntl.LOCK_SH
EXCLUSIVE = fcntl.LOCK_EX
POLL_SECONDS = 0.01


def open_lock(path: Path) -> int:
    """A file descriptor to lock. It is closed in programs this process starts, and kept by its forks."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_lock(fd: int, kind: int, deadline: float, path: Path) -> None:
    """Take the lock. Raises ``ConfigurationError`` when ``deadline`` (monotonic seconds) passes."""
    while not try_lock(fd, kind):
        if time.monotonic() > deadline:
            raise ConfigurationError(f"{path} stayed locked by another process; end it, or name another folder")
        time.sleep(POLL_SECONDS)


@contextmanager
def exclusive(path: Path, deadline: float) -> Iterator[None]:
    fd = open_lock(path)
    try:
        wait_lock(fd, EXCLUSIVE, deadline, path)
        yield
    finally:
        os.close(fd)


def held_exclusively(path: Path) -> bool:
    """Whether somebody holds the exclusive lock. Asking disturbs nobody else who asks."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(fd, SHARED)
    finally:
        os.close(fd)
