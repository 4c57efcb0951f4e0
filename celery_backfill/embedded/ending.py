"""How a server ends: at once, or with its last user."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import time
from pathlib import Path

from . import users
from .locks import EXCLUSIVE, POLL_SECONDS, held_exclusively, open_lock, try_lock

# A supervisor gives its server five seconds before it kills it.
PATIENCE_SECONDS = 8.0
STOP_SECONDS = 15.0


def halt(alive_lock: Path) -> None:
    """Stop what holds the lock and wait until it is gone. Raises ``TimeoutError`` if it does not go."""
    fd = open_lock(alive_lock)
    try:
        started = time.monotonic()
        asked: set[int] = set()
        while not try_lock(fd, EXCLUSIVE):
            passed = time.monotonic() - started
            if passed > STOP_SECONDS:
                raise TimeoutError(f"the server does not stop; its process ids are in {alive_lock}")
            if passed > PATIENCE_SECONDS:
                _kill(fd)
            else:
                _ask_to_stop(fd, asked)
            time.sleep(POLL_SECONDS)
    finally:
        os.close(fd)


def _ask_to_stop(fd: int, asked: set[int]) -> None:
    """Ask the supervisor; or the server, where the supervisor was killed and the server outlived it."""
    for pid in _process_ids(fd):
        if pid in asked:
            return
        asked.add(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
            return


def _kill(fd: int) -> None:
    """Both: a supervisor that is frozen, and a server that does not hear. Their data stands a sudden end."""
    for pid in _process_ids(fd):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _process_ids(fd: int) -> list[int]:
    return [int(word) for word in os.pread(fd, 100, 0).split()]


@atexit.register
def _leave_all() -> None:
    """The last user waits until the servers are gone, so that nothing of them outlives a command."""
    with users.guard:
        for home in users.homes():
            with contextlib.suppress(OSError):
                if users.is_last(home):
                    halt(home / "alive.lock")
                elif users.is_stopping(home):
                    _wait_until_free(home / "alive.lock")
            users.forget(home)


def _wait_until_free(alive_lock: Path) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    while held_exclusively(alive_lock) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
